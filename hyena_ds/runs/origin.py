"""How weights were trained, as the checkpoint that holds them and its run say. Takes no torch.

    a run, a checkpoint, or a checkpoint's weights file --> Origin; None for weights that stand alone

A checkpoint knows its run's config, step and grid wherever it lies. Data and metrics are its run's, and missing where it was
moved away from it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyena_ds.checkpoints.directory import meant_checkpoint
from hyena_ds.checkpoints.manifest import MANIFEST, WEIGHTS, Checkpoint, Record, read_checkpoint
from hyena_ds.data.identity import SHARDS, ShardList, read_shard_list
from hyena_ds.errors import UserError
from hyena_ds.files.rows import METRICS, STARTS, Row, read_rows, read_summary
from hyena_ds.runs import directory


@dataclass(frozen=True)
class Origin:
    """The training of weights."""

    record: Record
    """Config, stages, step, tokens and grid."""
    name: str
    """The run's."""
    shards: ShardList | None = None
    validations: list[Row] = field(default_factory=list)
    """Rows of metrics.jsonl: the validation at the checkpoint's step, or the newest before."""
    summary: Row = field(default_factory=dict)
    """The run's summary.json, where it is about the checkpoint's step."""
    versions: dict[str, str] = field(default_factory=dict)
    """The packages' versions at the run's last start."""

    def setting(self, group: str, name: str) -> Any:
        """What the run's config says; None where it says nothing."""
        found = self.record.config.get(group)
        return found.get(name) if isinstance(found, dict) else None


def find_origin(path: str | Path) -> Origin | None:
    """The training of the weights that `path` means. Raises UserError where its checkpoint is damaged."""
    checkpoint = find_checkpoint(path)
    if checkpoint is None:
        return None
    record, run = checkpoint.record, run_of(checkpoint)
    name = record.config.get("name")
    origin = Origin(record, name if isinstance(name, str) else record.run)
    if not (run / directory.CONFIG).is_file():
        return origin
    step = record.state.step
    rows = [row for row in read_rows(run / directory.METRICS, METRICS) if row.get("validation_loss") is not None]
    newest = max((row["step"] for row in rows if row["step"] <= step), default=None)
    summary = read_summary(run / directory.SUMMARY) or {}
    starts = read_rows(run / directory.ENVIRONMENT, STARTS)
    return Origin(
        record,
        origin.name,
        _shards(run, checkpoint),
        [row for row in rows if row["step"] == newest],
        summary if summary.get("step") == step else {},
        starts[-1].get("versions", {}) if starts else {},
    )


def find_checkpoint(path: str | Path) -> Checkpoint | None:
    """The checkpoint whose weights `path` means; None for weights that stand alone. Raises UserError where it is damaged."""
    path = Path(path)
    if (path / WEIGHTS).is_file():
        path = path / WEIGHTS
    if path.name == WEIGHTS or os.path.lexists(path / MANIFEST):
        folder = path.parent if path.name == WEIGHTS else path
        return read_checkpoint(folder) if os.path.lexists(folder / MANIFEST) else None
    return meant_checkpoint(path / "checkpoints") if (path / "checkpoints").is_dir() else None


def run_of(checkpoint: Checkpoint) -> Path:
    """The directory of the run that a checkpoint lies in, if it was not moved."""
    return checkpoint.path.absolute().parent.parent


def _shards(run: Path, checkpoint: Checkpoint) -> ShardList | None:
    """The run's list, if it is the one that the checkpoint was trained with."""
    try:
        found = read_shard_list(run / SHARDS)
    except UserError:
        return None
    return found if found is not None and found.digest == checkpoint.manifest.shards else None
