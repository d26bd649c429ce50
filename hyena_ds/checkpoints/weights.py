"""The weights that a path means: a file, a checkpoint's, a run's, a published folder's; their model, and whether they fit."""

from __future__ import annotations

import os
from pathlib import Path

from hyena_ds.checkpoints.directory import meant_checkpoint
from hyena_ds.checkpoints.manifest import MANIFEST, WEIGHTS, read_manifest, sums_agree
from hyena_ds.config.model import Extension, ModelConfig
from hyena_ds.errors import UserError, say
from hyena_ds.model.backbone import HyenaDNA
from hyena_ds.weights.extension import extended
from hyena_ds.weights.reading import Weights, read_weights

_ELSEWHERE = ("model.safetensors", "pytorch_model.bin", "weights.ckpt")
"""Files of folders that others have written, the safest first."""


def find_weights(path: str | Path) -> Path:
    """The weights file that a path means: itself, a checkpoint's, a run's selected or newest, or that of a folder from elsewhere.

    In a checkpoint it is checked against the manifest. Raises UserError when there is none, or it is not what was written.
    """
    path = Path(path)
    candidates = [path] if path.is_file() else [path / name for name in (WEIGHTS, *_ELSEWHERE)]
    if path.is_dir() and (meant := meant_checkpoint(path / "checkpoints")):
        candidates.append(meant.path / WEIGHTS)
    for candidate in candidates:
        if candidate.is_file():
            _check(candidate)
            return candidate
    raise UserError(
        f"{path}: found no {', '.join((WEIGHTS, *_ELSEWHERE[:-1]))} or {_ELSEWHERE[-1]}; name a weights file, a checkpoint, a run directory, or a "
        "folder of published weights"
    )


def load_model(
    path: str | Path,
    shift: float | None = None,
    maximum_context: int | None = None,
    extension: Extension | None = None,
) -> HyenaDNA:
    """The model of a weights file, a checkpoint, the newest whole checkpoint of a run, or a folder of published weights.

    `shift` is that of the filter: what the file says by default, and what predicts a real sequence better where it says
    nothing, which is then said on stderr. `maximum_context` and `extension` ("rescale" or "extrapolate") extend the model.
    `model(token_ids)` maps (B, L) ids to logits (B, L, 16), `model.backbone(token_ids)` to hidden states (B, L, D).
    Raises UserError when there are none, they are not what was written, or cannot be extended so.
    """
    return extended(read_aloud(path, shift), maximum_context, extension).model()


def read_aloud(path: str | Path, shift: float | None = None) -> Weights:
    """The weights that a path means; what their user has to know is said on stderr, by one rank."""
    weights = read_weights(find_weights(path), shift)
    if os.environ.get("RANK", "0") == "0":
        for note in weights.notes:
            say(f"{weights.path}: {note}")
    return weights


def _check(weights: Path) -> None:
    if weights.name != WEIGHTS or not (weights.parent / MANIFEST).is_file():
        return  # a file on its own: nothing says what it should be
    written = read_manifest(weights.parent).files.get(WEIGHTS)
    whole = written is not None and weights.stat().st_size == written.bytes
    if written is None or not whole or not sums_agree(weights, written, range(len(written.checked))):
        raise UserError(
            f"{weights}: does not match its SHA-256 in {MANIFEST}: the file is damaged; take the weights of another checkpoint"
        )


def check_same_shape(path: Path, found: ModelConfig, wanted: ModelConfig) -> None:
    """Raise UserError unless weights of shape `found` fit a model of shape `wanted`, extended as it says."""
    for name in ("width", "layers", "mlp_width", "filter_width", "filter_features"):
        if getattr(found, name) != getattr(wanted, name):
            raise UserError(
                f"{path}: the weights have {name} {getattr(found, name)}, the config wants {getattr(wanted, name)}; "
                "make model agree with the weights"
            )
    cure = _cure_of_context(found, wanted)
    if cure is not None:
        have, want = _context_of(found), _context_of(wanted)
        raise UserError(f"{path}: the weights have maximum_context {have}, the config wants {want}; {cure}")


def _cure_of_context(found: ModelConfig, wanted: ModelConfig) -> str | None:
    """None when the filter of `wanted` is that of `found`, or follows from it by the extension of `wanted`.

    Only a rate of time that is that of a whole context is represented: extrapolating keeps the rate that there was,
    rescaling needs a filter whose time ends at 1.
    """
    limit, rate = found.maximum_context, found.time_context
    extrapolated = rate < limit
    same = (limit, rate) == (wanted.maximum_context, wanted.time_context)
    as_it_is = wanted.extension in (None, found.extension) and wanted.extended_from in (None, found.extended_from)
    if same and as_it_is:
        return None
    if wanted.maximum_context < limit:
        return f"set model.maximum_context to {limit}: shorter stages use a prefix of its filter"
    if extrapolated:
        if wanted.time_context == rate:
            return None
        return (
            f"their time runs over {rate} tokens and beyond, which no other filter can go on: set model.extended_from to "
            f"{rate} and model.extension to extrapolate"
        )
    if wanted.extended_from == limit:
        return None
    if wanted.maximum_context == limit:
        return "nothing is left to extend: leave model.extension and model.extended_from out"
    return (
        f"set model.extended_from to {limit} and model.extension to rescale or extrapolate, or model.maximum_context to "
        f"{limit}"
    )


def _context_of(model: ModelConfig) -> str:
    extended = f" (extended from {model.extended_from} by {model.extension})" if model.extension else ""
    return f"{model.maximum_context}{extended}"
