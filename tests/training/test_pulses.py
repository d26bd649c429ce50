"""Real runs of two ranks: one that is stopped in pulses is named and ends the run, and nobody is where none is."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyena_ds.cli import main
from tests.distributed.pool import Pool
from tests.training.runs import make_shards, write_config
from tests.training.watched_work import train_watched

Ranks = Callable[[int], Pool]
TIMEOUT = 240.0
WINDOW = 5
STOPPED, RUNNING = 0.08, 0.02
"""Seconds of a pulse: the rank takes five times as long."""


def write(directory: Path, steps: int, context_length: int, batch: int, stragglers: dict[str, Any]) -> Path:
    stages = [{"context_length": context_length, "steps": steps, "global_batch": 2 * batch, "micro_batch_size": batch}]
    quiet = {"validation": {"every_steps": steps, "windows": 2}, "checkpoint": {"every_steps": steps}}
    model = {"width": 16, "layers": 2, "maximum_context": context_length}
    shards, settings = make_shards(directory), {"stages": stages, "model": model, "stragglers": stragglers, **quiet}
    return write_config(directory / "config.yaml", shards, watchdog={"enabled": False}, **settings)


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The steps that are in metrics.jsonl by now."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [row for row in (json.loads(line) for line in lines if line.endswith("\n")) if "loss" in row]


def pulse(pool: Pool, rank: int, run: Path, after: int, done: threading.Event) -> int:
    """From the step on that follows `after` steps, stop a rank in pulses until the run is done; how many steps it had before."""
    until = time.monotonic() + TIMEOUT
    while len(rows_of(run)) < after and not done.wait(0.01):
        assert time.monotonic() < until
    process, before = pool.process_ids()[rank], len(rows_of(run))
    try:
        while not done.is_set():
            os.kill(process, signal.SIGSTOP)
            time.sleep(STOPPED)
            os.kill(process, signal.SIGCONT)
            done.wait(RUNNING)
    finally:
        os.kill(process, signal.SIGCONT)
    return before


@pytest.mark.slow
def test_a_rank_that_is_stopped_in_pulses_is_named_within_two_windows_and_ends_the_run(
    ranks: Ranks, tmp_path: Path
) -> None:
    stragglers, place = {"every_steps": WINDOW, "ends_at": 1.5}, f"rank 1 on {socket.gethostname()} (CPU)"
    config, run, done = write(tmp_path, 300, 512, 4, stragglers), tmp_path / "runs" / "run", threading.Event()
    pool, ended = ranks(2), []

    def train() -> None:
        try:
            ended.extend(pool.run(train_watched, timeout=TIMEOUT, config=config, overrides=[], flips={}))
        finally:
            done.set()

    thread = threading.Thread(target=train)
    thread.start()
    before = pulse(pool, 1, run, 3 * WINDOW, done)
    thread.join()
    assert ended == [(75, ""), (75, "")]
    windows = {row["step"]: row for row in rows_of(run) if "slowest_rank" in row}
    named = [step for step, row in windows.items() if "slow_ranks" in row]
    (step,) = named
    shown = {at: (row["slowest_rank"], row["slowest_times"]) for at, row in windows.items()}
    begun = before - before % WINDOW + WINDOW  # the window in which the pulses began is none of the two
    assert before < step <= begun + 2 * WINDOW + 1, (
        f"after step {before}: {shown}"
    )  # a window is handed in a step later
    assert windows[step]["slow_ranks"][0].startswith(f"{place} is slow: it computes ")
    log = (run / "log.txt").read_text()
    assert f"step {step}: {place} is slow: it computes " in log
    assert f"stopped by {place}, which is " in log and f"(stragglers.ends_at 1.5) after step {step} of 300" in log
    assert main(["report", str(run)]) == 0
    assert f"Step {step}: {place} is slow: " in (run / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("HYENA_FULL") != "1", reason="takes a minute: make test-full (HYENA_FULL=1) runs it")
def test_nobody_is_named_in_a_thousand_quiet_steps_of_a_real_run(ranks: Ranks, tmp_path: Path) -> None:
    config = write(tmp_path, 1000, 64, 1, {})
    settings: dict[str, Any] = {"config": config, "overrides": [], "flips": {}}
    assert ranks(2).run(train_watched, timeout=3 * TIMEOUT, **settings) == [(0, ""), (0, "")]
    rows = rows_of(tmp_path / "runs" / "run")
    assert sum("slowest_rank" in row for row in rows) == 19
    assert [row["slow_ranks"] for row in rows if "slow_ranks" in row] == []
