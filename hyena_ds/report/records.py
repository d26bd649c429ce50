"""What a run left on the disk, as a report reads it: whatever is missing, half-written or of an older version is left out.

RUN/{config.yaml, metrics.jsonl, environment.jsonl, faults.jsonl, log.txt, summary.json, checkpoints/} --> Records
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from hyena_ds.checkpoints.listing import list_checkpoints
from hyena_ds.config.arithmetic import describe
from hyena_ds.config.loading import dump_yaml, load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.config.secrets import kept, redacted
from hyena_ds.errors import UserError
from hyena_ds.monitoring.rows import Row, read_rows, read_text
from hyena_ds.training.run_directory import CONFIG, RunDirectory
from hyena_ds.training.supervisor import read_faults

_LOG_LINES = 60


@dataclass(frozen=True)
class Records:
    """Of one run."""

    path: Path
    config: RunConfig
    config_text: str
    steps: list[Row]
    """Rows of training steps."""
    validations: list[Row]
    starts: list[Row]
    """Rows of environment.jsonl, the oldest first."""
    faults: list[Row]
    summary: Row | None
    """None while the run is not complete."""
    log: list[str]
    """The last lines."""
    checkpoints: list[str]
    """As `hyena-ds checkpoints` prints them."""
    grid: list[str]
    """As `hyena-ds check` prints it, for the ranks of the last start."""
    written: datetime | None
    """When metrics.jsonl was last written."""

    @property
    def step(self) -> int:
        return int(self.steps[-1]["step"]) if self.steps else 0


def read_records(path: Path) -> Records:
    """Of the run in the directory `path`. Raises UserError where there is no run."""
    if not (path / CONFIG).is_file():
        raise UserError(
            f"{path}: found no config.yaml, wanted the directory of a run that has begun; name one, for instance "
            "runs/quickstart"
        )
    config = load_yaml(path / CONFIG, RunConfig)
    paths = RunDirectory(config, path)
    rows = read_rows(paths.metrics)
    starts = read_rows(paths.environment)
    try:
        written = datetime.fromtimestamp(paths.metrics.stat().st_mtime, UTC)
    except OSError:
        written = None
    return Records(
        path=path,
        config=config,
        config_text=_config_text(paths),
        steps=[row for row in rows if "loss" in row],
        validations=[row for row in rows if row.get("validation_loss") is not None],
        starts=starts,
        faults=[{**row, "text": redacted(str(row["text"]))} for row in read_faults(paths.faults)],
        summary=_summary(paths),
        log=[redacted(line) for line in read_text(paths.log).splitlines()[-_LOG_LINES:]],
        checkpoints=list_checkpoints(path, verify=False)[0] if paths.checkpoints.is_dir() else [],
        grid=_grid(config, starts),
        written=written,
    )


def _config_text(paths: RunDirectory) -> str:
    """The run's config; one of an older version may hold secrets."""
    return dump_yaml(kept(yaml.safe_load(read_text(paths.config_file))))


def _grid(config: RunConfig, starts: list[Row]) -> list[str]:
    ranks = starts[-1].get("ranks") if starts else None
    try:
        return describe(config, int(ranks or config.local_ranks or config.widest_sequence_parallel))
    except UserError as error:
        return [str(error)]


def _summary(paths: RunDirectory) -> Row | None:
    try:
        found = json.loads(read_text(paths.summary))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
