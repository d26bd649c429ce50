"""DeepSpeed's own monitors, as `monitors` in the config asks for them, fed with what TensorBoard gets. Rank 0 only.

csv     runs/NAME/csv/: a file a scalar, with the columns step and its name
wandb   Weights & Biases, if its package is installed; a resumed run goes on in the same record
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hyena_ds.config.monitors import MonitorsConfig
from hyena_ds.errors import LocalError, UserError
from hyena_ds.files.whole import write_whole
from hyena_ds.monitoring.scalars import Scalar

if TYPE_CHECKING:
    from deepspeed.monitor.monitor import MonitorMaster

CSV = "csv"
"""Directory of the CSV files, within that of the run."""


def check_monitors(config: MonitorsConfig) -> None:
    """Raise UserError when a monitor's package is missing."""
    if config.wandb is not None:
        try:
            importlib.import_module("wandb")
        except ImportError as error:  # of the package itself, or of one that it needs
            raise UserError(
                f"monitors.wandb: cannot import the package wandb ({error}); pip install wandb, or leave monitors.wandb out"
            ) from None


class Monitors:
    """Those of one run that continues after `step`."""

    def __init__(self, config: MonitorsConfig, directory: Path, name: str, run: str, step: int):
        """`run` is the run's random name, the same after a restart. Raises LocalError where wandb does not start."""
        self._directory, self._step = directory, step
        self._csv: MonitorMaster | None = None
        self.writers: dict[str, Callable[[Sequence[Scalar], int], None]] = {}
        """What writes a step's scalars, by the name of where it writes them."""
        if config.csv:
            self.writers[str(directory / CSV)] = self._write_csv
        if config.wandb is not None:
            given = {"project": config.wandb.project, "group": config.wandb.group, "team": config.wandb.team}
            # DeepSpeed hands on neither the run's name nor where it is kept.
            own = {"WANDB_NAME": name, "WANDB_DIR": str(directory), "WANDB_RUN_ID": run, "WANDB_RESUME": "allow"}
            for key, value in own.items():
                os.environ.setdefault(key, value)
            try:
                wandb = _master("wandb", {key: value for key, value in given.items() if value is not None})
            except Exception as error:  # what wandb raises without a login or a network is its own affair
                raise LocalError(
                    f"monitors: cannot start ({' '.join(str(error).split())}); log in (wandb login), set "
                    "WANDB_MODE=offline, or leave monitors.wandb out"
                ) from None
            self.writers["Weights & Biases"] = lambda scalars, step: wandb.write_events(_events(scalars, step))

    def _write_csv(self, scalars: Sequence[Scalar], step: int) -> None:
        if self._csv is None:
            written = _drop_after(self._directory / CSV, self._step)
            self._csv = _master("csv_monitor", {"output_path": str(self._directory), "job_name": CSV})
            # It would write its heading again into files that are there.
            self._csv.csv_monitor.filenames += written
        self._csv.write_events(_events(scalars, step))


def _master(monitor: str, settings: dict[str, str]) -> MonitorMaster:
    """DeepSpeed's, with this monitor alone."""
    from deepspeed.monitor.config import get_monitor_config
    from deepspeed.monitor.monitor import MonitorMaster

    return MonitorMaster(get_monitor_config({monitor: {"enabled": True, **settings}}))


def _events(scalars: Sequence[Scalar], step: int) -> list[tuple[str, float, int]]:
    return [(name, value, step) for name, value in scalars]


def _drop_after(directory: Path, step: int) -> list[str]:
    """Rewrite the files without rows after `step`; their names as the monitor counts them."""
    names = []
    for path in sorted(path for path in directory.glob("*.csv") if path.is_file()):
        found = path.read_bytes().splitlines(keepends=True)
        # What a killed run left half-written is the row of a later step, or the end of one.
        kept = [line for line in found if line.endswith((b"\r", b"\n")) and not _is_after(line, step)]
        write_whole(path, b"".join(kept))
        if kept:
            names.append(path.stem)
    return names


def _is_after(line: bytes, step: int) -> bool:
    """Whether it is the row of a later step; what is no row at all stays where it is."""
    first = line.partition(b",")[0]
    return first.isdigit() and len(first) < 20 and int(first) > step
