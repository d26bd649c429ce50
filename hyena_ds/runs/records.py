"""What a run left on the disk, as a report reads it: whatever is missing, half-written or of an older version is left out.

RUN/{config.yaml, metrics.jsonl, environment.jsonl, faults.jsonl, log.txt, summary.json, checkpoints/} --> Records
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from hyena_ds.checkpoints.listing import list_checkpoints
from hyena_ds.config.arithmetic import describe
from hyena_ds.config.loading import dump_yaml, load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError
from hyena_ds.files.rows import FAULTS, METRICS, STARTS, Row, Shape, is_number, read_lines, read_summary, read_text
from hyena_ds.redaction import kept, redacted
from hyena_ds.runs.directory import CONFIG, RunDirectory
from hyena_ds.text import counted

UNIT = "nats a base"
VALIDATION = "validation_"
_LOG_LINES = 60


@dataclass(frozen=True)
class Records:
    """What one run left."""

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
    """None while the run is not complete; empty where it is not readable."""
    log: list[str]
    """The last lines."""
    checkpoints: list[str]
    """As `hyena-ds checkpoints` prints them."""
    grid: list[str]
    """As `hyena-ds check` prints it, for the ranks of the last start."""
    written: datetime | None
    """When metrics.jsonl was last written."""
    left_out: list[str]
    """Which files hold what is not readable, and how much of it."""

    @property
    def step(self) -> int:
        """The last step that there is a row of."""
        return int(self.steps[-1]["step"]) if self.steps else 0

    @property
    def unit(self) -> str:
        """What a loss is measured in; runs of older versions were all language models."""
        return str(self.starts[-1].get("unit", UNIT)) if self.starts else UNIT

    @property
    def qualities(self) -> list[str]:
        """What validations measure beside the loss: the columns of their rows, without `validation_`."""
        columns = dict.fromkeys(name for row in self.validations for name, value in row.items() if is_number(value))
        found = (name.removeprefix(VALIDATION) for name in columns if name.startswith(VALIDATION))
        return [name for name in found if name != "loss"]


def read_records(path: Path) -> Records:
    """The records of the run in the directory `path`. Raises UserError where there is no run."""
    try:
        (path / CONFIG).stat()
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); ask its owner, or copy it") from None
    except (OSError, ValueError):  # there is none
        pass
    if not os.path.isfile(path / CONFIG):
        raise UserError(
            f"{path}: found no config.yaml, wanted the directory of a run that has begun; name one, for instance "
            "runs/quickstart"
        )
    config = load_yaml(path / CONFIG, RunConfig)
    paths = RunDirectory(config, path)
    left_out: list[str] = []
    rows, starts, faults = (
        _rows(file, shape, left_out)
        for file, shape in ((paths.metrics, METRICS), (paths.environment, STARTS), (paths.faults, FAULTS))
    )
    summary = read_summary(paths.summary)
    if summary == {}:
        left_out.append(f"{paths.summary.name}: not readable")
    try:
        written = datetime.fromtimestamp(paths.metrics.stat().st_mtime, UTC)
    except (OSError, ValueError, OverflowError):
        written = None
    return Records(
        path=path,
        config=config,
        config_text=_config_text(paths),
        steps=[row for row in rows if "loss" in row],
        validations=[row for row in rows if row.get("validation_loss") is not None],
        starts=starts,
        faults=[{**row, "text": redacted(row["text"])} for row in faults],
        summary=summary,
        log=[redacted(line) for line in read_text(paths.log).splitlines()[-_LOG_LINES:]],
        checkpoints=list_checkpoints(path, verify=False)[0] if paths.checkpoints.is_dir() else [],
        grid=_grid(config, starts),
        written=written,
        left_out=left_out,
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


def _rows(file: Path, shape: Shape, left_out: list[str]) -> list[Row]:
    rows: list[Row] = []
    damaged = set[int]()
    try:
        for line in read_lines(file, shape):
            if line.row is None:
                damaged.add(line.number)
            else:
                rows.append(line.row)
    except OSError as error:
        left_out.append(f"{file.name}: not readable ({error.strerror})")
    if damaged:
        left_out.append(f"{file.name}: {counted(len(damaged), 'line')} not readable")
    return rows
