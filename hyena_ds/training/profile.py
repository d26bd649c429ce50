"""A trace of some steps by torch's profiler, on every rank.

    steps 100 to 105 --profiler--> runs/NAME/profile/steps-100-105/rank-00003.json.gz   for chrome://tracing or Perfetto
                                                                   rank-00003.txt       a table by operator

What cannot be written is said by whom it concerns, and training goes on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from hyena_ds.config.watching import ProfileConfig
from hyena_ds.errors import say
from hyena_ds.files.whole import aside, write_whole
from hyena_ds.parallel.devices import Compute, is_accelerated
from hyena_ds.runtime.watchdog import Watchdog

_ROWS = 100
"""Operators in the table, those that take the most time first."""


class Profiler:
    """One rank's. A run that ends, or is rolled back, in between leaves what was recorded until then."""

    def __init__(self, config: ProfileConfig | None, run: Path, compute: Compute, watchdog: Watchdog):
        self._first, self._last = config.steps if config is not None else (0, -1)
        self._directory = run / "profile" / f"steps-{self._first}-{self._last}"
        self._compute, self._watchdog = compute, watchdog
        self._profile: Any = None

    def before(self, step: int) -> None:
        """A step begins, numbered from 1."""
        if self._profile is None and self._first <= step <= self._last:
            devices = [ProfilerActivity.CUDA] if is_accelerated(self._compute) else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *devices])
            with no_stderr():
                self._profile.start()

    def after(self, step: int) -> list[str]:
        """The step is done: write the trace if it ends with it; what is to be said of it, on rank 0."""
        if self._profile is None or step < self._last:
            return []
        self._watchdog.enter("save", step)
        return self._write()

    def close(self) -> None:
        """Write what is recorded, if something is."""
        if self._profile is not None:
            self._write()

    def _write(self) -> list[str]:
        recorded, self._profile = self._profile, None
        with no_stderr():
            recorded.stop()
        trace = self._directory / f"rank-{self._compute.rank:05}.json.gz"
        by = f"self_{self._compute.device.type}_time_total"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with aside(trace) as partial:
                text = partial.with_name(f"{partial.name}.json.gz")  # it packs what ends so
                recorded.export_chrome_trace(str(text))
                text.rename(partial)
            table = recorded.key_averages().table(sort_by=by, row_limit=_ROWS)
            write_whole(trace.with_name(f"rank-{self._compute.rank:05}.txt"), table)
        except (OSError, RuntimeError) as error:
            say(f"{trace}: cannot be written ({' '.join(str(error).split())}); training goes on without it")
            return []
        return [f"profiled steps {self._first} to {self._last}: {self._directory}"]


@contextmanager
def no_stderr() -> Iterator[None]:
    """Throw away what is written to standard error in the block: the profiler's library writes there, from C++."""
    saved, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)
