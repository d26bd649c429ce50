"""Checkpoints on disk: complete or not there.

    checkpoints/.step-00000100.partial/ --every rank writes its share, fsync--> manifest of SHA-256 --rename-->
    checkpoints/step-00000100/ {run_state.json, state-RANK-of-RANKS.safetensors, weights.safetensors, manifest.json}
    checkpoints/latest          the newest complete one; moved last, atomically

The state is named float32 parameters and moments (engine_state), so any grid and ZeRO stage can load it.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import deepspeed
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hyena_ds.checkpoints.engine_state import MOMENTS, gather_state
from hyena_ds.config.loading import to_plain
from hyena_ds.config.schema import ModelConfig, RunConfig
from hyena_ds.data.shards import sha256_of
from hyena_ds.errors import UserError
from hyena_ds.model.published import write_weights
from hyena_ds.parallel.agreement import agreed
from hyena_ds.parallel.devices import Compute

MANIFEST, RUN_STATE, WEIGHTS, LATEST = "manifest.json", "run_state.json", "weights.safetensors", "latest"


@dataclass(frozen=True)
class RunState:
    """Where a run stands. The stream's position is the step: the order of samples is a function of it."""

    step: int
    """Optimizer steps done."""
    stage: int
    """Stage of the last step."""
    tokens: int
    """Tokens trained on."""
    skipped: tuple[int, ...] = ()
    """Steps done, numbered from 0, whose loss or gradients were not finite: nothing was trained on them."""
    passed_over: tuple[int, ...] = ()
    """Steps, done or to come, that were such before the run was rolled back: nothing is trained on them either."""
    roll_backs: int = 0
    """Times that the run was rolled back."""

    @property
    def updates(self) -> int:
        """Optimizer updates done."""
        return self.step - len(self.skipped) - sum(step < self.step for step in self.passed_over)


def save_checkpoint(
    directory: Path, engine: deepspeed.DeepSpeedEngine, config: RunConfig, state: RunState, compute: Compute
) -> None:
    """Write a checkpoint of `state` below `directory`, drop those beyond `config.checkpoint.keep`. Collective."""
    final = directory / f"step-{state.step:08d}"
    partial = directory / f".{final.name}.partial"
    agreed(lambda: _fresh(partial) if compute.rank == 0 else None)
    share, weights = _gather_share(engine, compute)

    def write_share() -> None:
        save_file(share, partial / f"state-{compute.rank:05d}-of-{compute.ranks:05d}.safetensors")
        if compute.rank == 0:
            write_weights(partial / WEIGHTS, config.model, weights)
            record = {**asdict(state), "ranks": compute.ranks, "config": to_plain(config)}
            (partial / RUN_STATE).write_text(json.dumps(record, indent=1) + "\n")

    agreed(write_share)
    agreed(lambda: _finish(directory, partial, final, config.checkpoint.keep) if compute.rank == 0 else None)


def latest_checkpoint(directory: Path) -> Path | None:
    """The checkpoint that `latest` names, or None before the first one. Raises UserError when it is not there."""
    pointer = directory / LATEST
    if not pointer.is_file():
        return None
    path = directory / pointer.read_text().strip()
    if not (path / MANIFEST).is_file():
        raise UserError(f"{pointer}: names '{path.name}', which is not a complete checkpoint; name another one in it")
    return path


def verify_checkpoint(path: Path) -> None:
    """Raise UserError, naming the file, unless every byte of the checkpoint is as it was written."""
    for name, wanted in _read_json(path / MANIFEST).items():
        file = path / name
        if not file.is_file():
            raise UserError(f"{file}: the checkpoint's manifest lists this file, but it is missing")
        if file.stat().st_size != wanted["bytes"] or sha256_of(file) != wanted["sha256"]:
            raise UserError(f"{file}: the bytes do not match the checkpoint's manifest: the file is damaged")


def load_run_state(path: Path) -> RunState:
    raw = _read_json(path / RUN_STATE)
    # A checkpoint of an earlier version knows of no skipped steps.
    skipped, passed_over = (tuple(raw.get(name, ())) for name in ("skipped", "passed_over"))
    return RunState(raw["step"], raw["stage"], raw["tokens"], skipped, passed_over, raw.get("roll_backs", 0))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """(parameters, moments by name), whole, from all ranks' shares."""
    parameters: dict[str, Tensor] = {}
    moments: dict[str, dict[str, Tensor]] = {}
    for file in sorted(path.glob("state-*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (not a dict)
                kind, name = key.split("/", 1)
                if kind == "parameter":
                    parameters[name] = tensors.get_tensor(key)
                else:
                    moments.setdefault(name, {})[kind] = tensors.get_tensor(key)
    return parameters, moments


def find_weights(path: str | Path) -> Path:
    """The weights file of a path that names it, a checkpoint, or a run."""
    path = Path(path)
    candidates = [path] if path.is_file() else [path / WEIGHTS]
    if path.is_dir() and (newest := latest_checkpoint(path / "checkpoints")):
        candidates.append(newest / WEIGHTS)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UserError(f"{path}: found no {WEIGHTS}; name a weights file, a checkpoint or a run directory")


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


def _gather_share(engine: deepspeed.DeepSpeedEngine, compute: Compute) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """This rank's share of the state (every `ranks`-th parameter with its moments); on rank 0 also all parameters."""
    share: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for number, (name, tensors) in enumerate(gather_state(engine)):
        if number % compute.ranks == compute.rank:
            for kind in ("parameter", *MOMENTS):
                share[f"{kind}/{name}"] = tensors[kind].cpu().clone()
        if compute.rank == 0:
            weights[name] = tensors["parameter"].cpu().clone()
    return share, weights


def _fresh(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _finish(directory: Path, partial: Path, final: Path, keep: int) -> None:
    files = sorted(partial.iterdir())
    manifest = {file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in files}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    for file in [*files, partial / MANIFEST, partial]:
        _fsync(file)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    pointer = directory / f".{LATEST}.partial"
    pointer.write_text(final.name + "\n")
    _fsync(pointer)
    pointer.replace(directory / LATEST)
    _fsync(directory)
    for old in sorted(directory.glob("step-*"))[:-keep]:
        if old != final:
            shutil.rmtree(old)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({error}); the checkpoint is damaged") from None
