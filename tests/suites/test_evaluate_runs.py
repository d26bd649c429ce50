"""A suite that is stopped in the middle, started again, and has runs that fail: real runs, started as a user starts them."""

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

from tests.paths import ROOT
from tests.suites.small_suite import TINY, task, write_suite
from tests.training.runs import TIMEOUT

pytestmark = pytest.mark.slow

EPOCHS = 40
STEPS = EPOCHS * 36 // 8
"""A quarter of the 48 sequences is validated on, and a step has 8."""


def _evaluate(file: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hyena_ds", "evaluate", str(file), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    with output.open("w") as out:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, text=True)


def _ended(evaluate: subprocess.Popen[str]) -> int:
    """Its exit code; with everything that it started, in whatever session, gone."""
    try:
        return evaluate.wait(2 * TIMEOUT)
    finally:
        if evaluate.poll() is None:
            for process in [*psutil.Process(evaluate.pid).children(recursive=True), evaluate]:
                process.kill()
            evaluate.wait()


def test_a_suite_stops_goes_on_passes_failed_runs_and_repeats_no_finished_one(tmp_path: Path) -> None:
    scratch = {"initialize_from": "random", "like": "pretrained"}
    settings = {**TINY, "task.epochs": str(EPOCHS), "validation.every_steps": "1000"}
    models = {
        "from scratch": {**scratch, "settings": settings},
        "pretrained": {"initialize_from": "no/weights", "tasks": ["of/b"]},
        "probe": {**scratch, "training": "probe", "settings": TINY},
    }
    file = write_suite(
        tmp_path, models=models, tasks=[task("of/a"), task("of/b", without={"from scratch": "it would take too long"})]
    )
    runs, output = tmp_path / "runs" / "small" / "runs" / "of", tmp_path / "output"
    first = runs / "a" / "from_scratch-0"

    evaluate = _evaluate(file, output, "--at-once", "2")
    deadline = time.monotonic() + TIMEOUT
    while not (first / "metrics.jsonl").is_file() or not (first / "metrics.jsonl").stat().st_size:
        assert evaluate.poll() is None and time.monotonic() < deadline, output.read_text()
        time.sleep(0.02)
    evaluate.send_signal(signal.SIGTERM)
    assert _ended(evaluate) == 128 + signal.SIGTERM, output.read_text()
    assert "evaluate: [1/8] of/a, from scratch, seed 0: stopped after" in output.read_text(), output.read_text()
    steps = [json.loads(line)["step"] for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) < STEPS and not (first / "summary.json").is_file(), "the run was over before it was stopped"

    audits = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "small" / "tasks").rglob("*.json")}
    assert len(audits) == 2
    assert _ended(_evaluate(file, output, "--at-once", "2")) == 1, output.read_text()
    said = output.read_text()
    assert "of/b, pretrained, seed 0: failed with exit code 2 after" in said and "no/weights" in said, said
    trained = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in trained if "loss" in row] == [*range(1, STEPS + 1)]
    starts = [json.loads(line)["step"] for line in (first / "environment.jsonl").read_text().splitlines()]
    assert starts == [0, max(steps)]

    results = list(csv.DictReader((tmp_path / "runs" / "small" / "results.csv").open(newline="")))
    models_of = {(row["task"], row["row"]): row for row in results if row["what"] == "model"}
    assert {key: (row["status"], row["seeds"]) for key, row in models_of.items()} == {
        ("of/a", "from scratch"): ("complete", "2"),
        ("of/a", "pretrained"): ("this row is of other tasks", "0"),
        ("of/a", "probe"): ("complete", "2"),
        ("of/b", "from scratch"): ("it would take too long", "0"),
        ("of/b", "pretrained"): ("failed (2)", "0"),
        ("of/b", "probe"): ("complete", "2"),
    }
    summary = json.loads((runs / "a" / "probe-1" / "summary.json").read_text())
    assert f"1:{summary['test']['metrics']['mcc']:.6g}" in models_of["of/a", "probe"]["scores"]
    for name in ("results.md", "report.html"):
        text = (tmp_path / "runs" / "small" / name).read_text()
        assert "no/weights" in text and "failed (2)" in text and "it would take too long" in text

    assert _ended(_evaluate(file, output, "--row", "probe", "--row", "from scratch")) == 0, output.read_text()
    assert output.read_text().count("complete already") == 6
    assert {path: path.stat().st_mtime_ns for path in audits} == audits, "a set was audited twice"
