"""A sweep that is interrupted, started again, and has a run that fails: real runs, started as a user starts them.

The run that is interrupted also writes CSV curves, and a page is made of it before and after.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hyena_ds.cli import main
from hyena_ds.sweeps.runner import last_error
from tests.paths import ROOT
from tests.training.runs import TIMEOUT, make_shards, write_config

pytestmark = pytest.mark.slow

STEPS = 250
LONG = 2 * TIMEOUT
"""Seconds for all runs of a sweep, on a machine that does other work."""


def _sweep(file: Path, output: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hyena_ds", "sweep", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    with output.open("w") as out:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, text=True)


def _end(sweep: subprocess.Popen[str]) -> None:
    """With everything that it started, in whatever session."""
    if sweep.poll() is None:
        for process in [*psutil.Process(sweep.pid).children(recursive=True), sweep]:
            process.kill()
    sweep.wait()


def test_a_sweep_stops_after_a_save_goes_on_passes_a_failed_run_and_repeats_no_finished_one(tmp_path: Path) -> None:
    write_config(
        tmp_path / "base.yaml",
        make_shards(tmp_path),
        local_ranks=1,
        stages=[{"context_length": 32, "steps": STEPS, "global_batch": 1, "micro_batch_size": 1}],
        validation={"every_steps": 1000, "windows": 2},
        checkpoint={"every_steps": 1000},
        monitors={"csv": True},
    )
    file = tmp_path / "sweep.yaml"
    file.write_text(f"name: trial\nbase: base.yaml\noutput: {tmp_path / 'runs'}\naxes: {{seed: [1, 2]}}\n")
    first, second = (tmp_path / "runs" / "trial" / name for name in ("seed-1", "seed-2"))
    (second / "mine").mkdir(parents=True)  # no run can begin here

    output = tmp_path / "output"
    sweep = _sweep(file, output)
    try:
        deadline = time.monotonic() + TIMEOUT
        while not (first / "metrics.jsonl").is_file() or not (first / "metrics.jsonl").stat().st_size:
            assert sweep.poll() is None and time.monotonic() < deadline, output.read_text()
            time.sleep(0.05)
        sweep.send_signal(signal.SIGTERM)
        assert sweep.wait(LONG) == 128 + signal.SIGTERM, output.read_text()
    finally:
        _end(sweep)
    said = output.read_text()
    assert "sweep: [1/2] seed-1: stopped after" in said and "[2/2]" not in said, said
    saved = json.loads((first / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert saved < STEPS, "the run was over before it was stopped; make it longer"
    assert (first / "checkpoints" / f"step-{saved:08d}").is_dir()
    assert main(["report", str(first)]) == 0
    page = (first / "report.html").read_text()
    assert '<span class="badge open">unfinished</span>' in page and f"<b>{saved:,}</b>" in page

    sweep = _sweep(file, output)
    try:
        assert sweep.wait(LONG) == 1, output.read_text()
    finally:
        _end(sweep)
    said = output.read_text()
    assert f"resuming after step {saved} from" in said and "sweep: [1/2] seed-1: complete after" in said, said
    assert "sweep: [2/2] seed-2: failed with exit code 2 after" in said
    assert "seed-2: " + str(second) + ": found a directory that is no run; choose another name or output" in said
    results = list(csv.DictReader((tmp_path / "runs" / "trial" / "results.csv").open(newline="")))
    assert [(row["status"], row["exit_code"]) for row in results] == [("complete", "0"), ("failed (2)", "2")]

    # DeepSpeed's CSV monitor: every step once, under one heading, though the run was started twice.
    curve = list(csv.reader((first / "csv" / "train_loss.csv").open(newline="")))
    steps = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in steps if "loss" in row]
    assert curve[0] == ["step", "loss"]
    assert [(int(step), float(loss)) for step, loss in curve[1:]] == [(row["step"], row["loss"]) for row in steps]
    assert len(steps) == STEPS

    starts = [json.loads(line) for line in (first / "environment.jsonl").read_text().splitlines()]
    assert [(start["step"], start["ranks"], start["device"]) for start in starts] == [(0, 1, "CPU"), (saved, 1, "CPU")]
    assert all(start["versions"].keys() >= {"python", "torch", "deepspeed", "hyena-ds"} for start in starts)
    assert main(["report", str(first)]) == 0
    page = (first / "report.html").read_text()
    assert '<span class="badge good">complete</span>' in page and "started again" in page


def test_the_error_of_a_failed_run_is_its_own_sentence_else_its_last_line() -> None:
    lines = ["step 1\n", "hyena-ds: error: no room\n", "[launcher] exits with 2\n", "\n"]
    assert last_error(lines) == "no room"
    assert last_error(["Segmentation fault\n", "  \n"]) == "Segmentation fault"
    assert last_error([]) is None
