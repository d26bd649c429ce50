"""A checkpoint's state, put together again.

    state-NODE-of-NODES.safetensors: KIND/NAME@OFFSET, flat pieces --one rank a file--> all ranks, 64 MiB of a tensor at a time

The ranks that wrote it may have been more or fewer, under any ZeRO stage; in older checkpoints each wrote a file of its own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hyena_ds.checkpoints.engine_state import MOMENTS, PARAMETER, Fragment
from hyena_ds.checkpoints.manifest import Checkpoint, Manifest
from hyena_ds.errors import LocalError, UserError
from hyena_ds.parallel.agreement import from_every_rank
from hyena_ds.parallel.devices import Compute
from hyena_ds.parallel.nodes import Nodes, looker

_CHUNK = 1 << 24
"""Elements that are read, and sent to all ranks, at a time."""


def state_file(node: int, nodes: int) -> str:
    """Name of the file that the ranks of node `node` of `nodes` write."""
    return f"state-{node:05d}-of-{nodes:05d}.safetensors"


def named_slices(fragment: Fragment) -> dict[str, Tensor]:
    """A fragment's tensors under the keys of a state file."""
    return {key_of(kind, fragment.name, fragment.offset): value for kind, value in fragment.slices.items()}


def key_of(kind: str, name: str, offset: int) -> str:
    """Key of a piece of a parameter, or of one of its moments, that begins at element `offset`."""
    return f"{kind}/{name}@{offset}"


def state_files(manifest: Manifest) -> list[str]:
    """Names of the files that hold the state, in their order."""
    return sorted(name for name in manifest.files if name.startswith("state-"))


def nodes_with(checkpoint: Checkpoint, name: str, nodes: Nodes) -> Nodes:
    """Those of `nodes` (all of the run's) that see a file: one where it is on a disk of its own."""
    return (nodes[checkpoint.held[name]],) if name in checkpoint.held else nodes


class SavedState:
    """Opens a checkpoint for an objective: parameters of these `shapes`, of which those in `frozen` are not trained.

    With `compute` every method is collective: a file is opened by one rank, and what it holds is sent to all. Raises
    UserError unless the pieces cover every parameter, and both moments of every trained one, each element once.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        shapes: Mapping[str, Sequence[int]],
        frozen: Collection[str] = (),
        compute: Compute | None = None,
    ):
        self._checkpoint, self._shapes, self._compute = checkpoint, shapes, compute
        self._files: dict[int, Any] = {}
        """Those that this process has opened, by number."""
        self._pieces: dict[tuple[str, str], list[_Piece]] = {}
        for piece in self._opened():
            self._pieces.setdefault((piece.kind, piece.name), []).append(piece)
        for kind in (PARAMETER, *MOMENTS):
            for name, shape in shapes.items():
                if kind == PARAMETER or name not in frozen:
                    self._check(kind, name, math.prod(shape))

    def tensor(self, kind: str, name: str) -> Tensor:
        """A whole tensor in the parameter's shape, in main memory."""
        shape = tuple(self._shapes[name])
        whole = torch.empty(math.prod(shape))
        for begin, elements in self.chunks(kind, name):
            whole[begin : begin + len(elements)] = elements
        return whole.view(shape)

    def chunks(self, kind: str, name: str) -> Iterator[tuple[int, Tensor]]:
        """The flat tensor from its first element to its last, 64 MiB at a time: (number of the first element, elements)."""
        count = math.prod(self._shapes[name])
        for begin in range(0, count, _CHUNK):
            yield begin, self._elements(kind, name, begin, min(begin + _CHUNK, count))

    def parameters(self) -> dict[str, Tensor]:
        """Every parameter in its shape, by name."""
        return {name: self.tensor(PARAMETER, name) for name in self._shapes}

    def _elements(self, kind: str, name: str, begin: int, end: int) -> Tensor:
        # Each element is in one piece, which one rank reads: as whole numbers the sum over the ranks is exact.
        found = torch.zeros(end - begin, dtype=torch.int32)
        for piece in self._pieces[kind, name]:
            first, last = max(begin, piece.offset), min(end, piece.offset + piece.size)
            if first < last and piece.file in self._files:
                place = slice(first - piece.offset, last - piece.offset)
                found[first - begin : last - begin] = self._read(piece, place).view(torch.int32)
        if self._compute is None or self._compute.ranks == 1:
            return found.view(torch.float32)
        moved = found.to(self._compute.device)
        dist.all_reduce(moved)
        return moved.view(torch.float32)

    def _read(self, piece: _Piece, place: slice) -> Tensor:
        try:
            elements: Tensor = self._files[piece.file].get_slice(piece.key)[place]
            return elements.float()
        except (OSError, SafetensorError) as error:
            raise LocalError(
                f"{self._checkpoint}: a file of the state became unreadable ({error}); start the same line again"
            ) from None

    def _opened(self) -> list[_Piece]:
        """The pieces of all files, of which this process has opened its own. Raises UserError, on all ranks alike."""
        compute, own, problem = self._compute, [], None
        try:
            for number, name in enumerate(state_files(self._checkpoint.manifest)):
                if compute is None or self._looker(compute, number, name) == compute.rank:
                    own += self._open(number, self._checkpoint.path / name)
        except UserError as error:
            problem = str(error)
        everywhere = [(problem, own)] if compute is None else from_every_rank((problem, own))
        first = next((problem for problem, _ in everywhere if problem is not None), None)
        if first is not None:
            raise UserError(first)
        return [piece for _, pieces in everywhere for piece in pieces]

    def _looker(self, compute: Compute, number: int, name: str) -> int:
        return looker(nodes_with(self._checkpoint, name, compute.nodes), number)

    def _open(self, number: int, path: Path) -> list[_Piece]:
        pieces = []
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
                pieces.append(_Piece(kind, name, int(offset), size, number))
        except (OSError, SafetensorError, ValueError) as error:
            raise UserError(f"{path}: not readable ({error}): the checkpoint is damaged; use another one") from None
        self._files[number] = file
        return pieces

    def _check(self, kind: str, name: str, wanted: int) -> None:
        pieces = sorted(self._pieces.get((kind, name), []), key=lambda piece: (piece.offset, piece.size))
        end = 0
        for piece in pieces:
            if piece.offset != end:
                what = "is missing" if piece.offset > end else "is there twice"
                first, last = sorted((piece.offset, end))
                raise UserError(
                    f"{self._checkpoint}: of {kind}/{name}, element {first} to {last} {what}; use another checkpoint"
                )
            end += piece.size
        if end != wanted:
            raise UserError(
                f"{self._checkpoint}: {kind}/{name} has {end} elements in all files together, the model's has {wanted}; "
                "use another checkpoint, or make model agree with the run"
            )
        self._pieces[kind, name] = pieces


class _Piece(NamedTuple):
    """Elements `offset` to `offset + size` of a parameter or of one of its moments, in file number `file`."""

    kind: str
    name: str
    offset: int
    size: int
    file: int

    @property
    def key(self) -> str:
        return key_of(self.kind, self.name, self.offset)
