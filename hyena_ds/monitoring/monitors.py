"""DeepSpeed's own monitors, as `monitors` in the config asks for them, fed with what TensorBoard gets. Rank 0 only.

csv     runs/NAME/csv/: a file a scalar, with the columns step and its name
wandb   Weights & Biases, if its package is installed; a resumed run goes on in the same record
"""

from __future__ import annotations

import csv
import importlib
import os
from pathlib import Path
from typing import Any

from hyena_ds.config.monitors import MonitorsConfig
from hyena_ds.errors import LocalError, UserError
from hyena_ds.monitoring.scalars import Scalar

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
        """`run` is the run's random name, the same after a restart."""
        from deepspeed.monitor.config import get_monitor_config
        from deepspeed.monitor.monitor import MonitorMaster

        written = _drop_after(directory / CSV, step) if config.csv else []
        wanted: dict[str, Any] = {}
        if config.csv:
            wanted["csv_monitor"] = {"enabled": True, "output_path": str(directory), "job_name": CSV}
        if config.wandb is not None:
            given = {"project": config.wandb.project, "group": config.wandb.group, "team": config.wandb.team}
            wanted["wandb"] = {"enabled": True, **{key: value for key, value in given.items() if value is not None}}
            # DeepSpeed hands on neither the run's name nor where it is kept.
            own = {"WANDB_NAME": name, "WANDB_DIR": str(directory), "WANDB_RUN_ID": run, "WANDB_RESUME": "allow"}
            for key, value in own.items():
                os.environ.setdefault(key, value)
        try:
            self._master = MonitorMaster(get_monitor_config(wanted))
        except Exception as error:  # what wandb raises without a login or a network is its own affair
            raise LocalError(
                f"monitors: cannot start ({' '.join(str(error).split())}); log in (wandb login), set WANDB_MODE=offline, "
                "or leave monitors.wandb out"
            ) from None
        if self._master.csv_monitor is not None:
            # It would write its heading again into files that are there.
            self._master.csv_monitor.filenames += written

    def write(self, scalars: list[Scalar], step: int) -> None:
        self._master.write_events([(name, value, step) for name, value in scalars])


def _drop_after(directory: Path, step: int) -> list[str]:
    """Rewrite the files without rows after `step`; their names as the monitor counts them."""
    names = []
    for path in sorted(directory.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            heading, *rows = [*csv.reader(file)] or [[]]
        kept = [row for row in rows if len(row) == 2 and row[0].isdigit() and int(row[0]) <= step]
        if heading:
            partial = path.with_name(f".{path.name}.partial")
            with partial.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([heading, *kept])
            partial.replace(path)
            names.append(path.stem)
    return names
