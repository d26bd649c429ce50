"""A checkpoint's state, put together again.

    state-RANK-of-RANKS.safetensors: KIND/NAME@OFFSET, flat pieces --SavedState--> whole tensors, one at a time

The ranks that wrote it may have been more or fewer, under any ZeRO stage.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hyena_ds.checkpoints.engine_state import MOMENTS, PARAMETER, Fragment
from hyena_ds.checkpoints.manifest import Checkpoint
from hyena_ds.errors import UserError


def state_file(rank: int, ranks: int) -> str:
    """Name of the file that rank `rank` of `ranks` writes."""
    return f"state-{rank:05d}-of-{ranks:05d}.safetensors"


def named_slices(fragment: Fragment) -> dict[str, Tensor]:
    """A fragment's tensors under the keys of a state file."""
    return {key_of(kind, fragment.name, fragment.offset): value for kind, value in fragment.slices.items()}


def key_of(kind: str, name: str, offset: int) -> str:
    """Key of a piece of a parameter, or of one of its moments, that begins at element `offset`."""
    return f"{kind}/{name}@{offset}"


class SavedState:
    """Opens a checkpoint for an objective: parameters of these `shapes`, of which those in `frozen` are not trained.

    Raises UserError unless the pieces cover every parameter, and both moments of every trained one, each element once.
    """

    def __init__(self, checkpoint: Checkpoint, shapes: Mapping[str, Sequence[int]], frozen: Collection[str] = ()):
        self._checkpoint, self._shapes = checkpoint, shapes
        self._pieces: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = {}
        for name in checkpoint.manifest.files:
            if name.startswith("state-"):
                self._open(checkpoint.path / name)
        for kind in (PARAMETER, *MOMENTS):
            for name, shape in shapes.items():
                if kind == PARAMETER or name not in frozen:
                    self._check(kind, name, math.prod(shape))

    def tensor(self, kind: str, name: str) -> Tensor:
        """A whole tensor, in the parameter's shape."""
        pieces = [file.get_tensor(key) for _, _, file, key in self._pieces[kind, name]]
        return torch.cat(pieces).view(tuple(self._shapes[name]))

    def parameters(self) -> dict[str, Tensor]:
        """Every parameter in its shape, by name."""
        return {name: self.tensor(PARAMETER, name) for name in self._shapes}

    def _open(self, path: Path) -> None:
        try:
            file = safe_open(path, framework="pt")
            for key in file.keys():  # noqa: SIM118 (not a dict)
                kind, _, place = key.partition("/")
                name, _, offset = place.rpartition("@")
                if kind not in (PARAMETER, *MOMENTS) or name not in self._shapes:
                    raise UserError(
                        f"{path}: found '{key}', which the model does not have; make model agree with the run"
                    )
                size = math.prod(file.get_slice(key).get_shape())
                self._pieces.setdefault((kind, name), []).append((int(offset), size, file, key))
        except (OSError, SafetensorError, ValueError) as error:
            raise UserError(f"{path}: not readable ({error}): the checkpoint is damaged; use another one") from None

    def _check(self, kind: str, name: str, wanted: int) -> None:
        pieces = sorted(self._pieces.get((kind, name), []), key=lambda piece: piece[:2])
        end = 0
        for offset, size, _, _ in pieces:
            if offset != end:
                what = "is missing" if offset > end else "is there twice"
                first, last = sorted((offset, end))
                raise UserError(
                    f"{self._checkpoint}: of {kind}/{name}, element {first} to {last} {what}; use another checkpoint"
                )
            end += size
        if end != wanted:
            raise UserError(
                f"{self._checkpoint}: {kind}/{name} has {end} elements in all files together, the model's has {wanted}; "
                "use another checkpoint, or make model agree with the run"
            )
        self._pieces[kind, name] = pieces
