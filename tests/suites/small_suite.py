"""A suite of two tiny generated tasks, whose models are too small to learn much."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

from hyena_ds.suites.plan import Plan, load_plan

LETTERS = 40
TINY = {"model.width": "8", "model.layers": "1", "model.maximum_context": "64"}


def write_tables(directory: Path, seed: int = 0, rows: int = 48) -> None:
    """train.csv and test.csv: sequences of class 1 have more A than those of class 0."""
    directory.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    for name in ("train", "test"):
        lines = ["sequence,label"]
        for row in range(rows):
            lines.append(f"{''.join(draw.choices('ACGT', [1 + row % 2, 1, 1, 1], k=LETTERS))},{row % 2}")
        (directory / f"{name}.csv").write_text("\n".join(lines) + "\n")


def task(name: str, **changes: Any) -> dict[str, Any]:
    place = name.rpartition("/")[2]
    files = {split: f"{place}/{split}.csv" for split in ("train", "test")}
    about = {"name": name, "kind": "classification", "metric": "mcc", "valid": "0.25", **files}
    return {**about, **changes}


def write_suite(directory: Path, **changes: Any) -> Path:
    """The suite's file; `changes` replace its keys."""
    suite: dict[str, Any] = {
        "name": "small",
        "data": str(directory / "data"),
        "output": str(directory / "runs"),
        "seeds": [0, 1],
        "settings": {"task.epochs": "1", "task.batch": "8"},
        "models": {
            "pretrained": {"initialize_from": "no/weights", "tasks": ["of/b"]},
            "from scratch": {"initialize_from": "random", "like": "pretrained", "settings": TINY},
            "probe": {"initialize_from": "random", "like": "pretrained", "training": "probe", "settings": TINY},
        },
        "tasks": [task("of/a"), task("of/b", without={"from scratch": "it would take too long"})],
    }
    for number, name in enumerate("ab"):
        write_tables(directory / "data" / name, number)
    file = directory / "suite.yaml"
    file.write_text(yaml.safe_dump({**suite, **changes}, sort_keys=False))
    return file


def finish(
    plan: Plan, row: str, name: str, scores: dict[int, float | None], sha256: str = "f" * 64, **more: Any
) -> None:
    """Leave summaries as runs that came to these scores by mcc would."""
    for run in plan.runs:
        if run.row == row and run.task.name == name and run.seed in scores:
            run.directory.mkdir(parents=True, exist_ok=True)
            test = {"metrics": {"mcc": scores[run.seed], "accuracy": 0.5}, "sha256": sha256, "n": 48, **more}
            (run.directory / "summary.json").write_text(json.dumps({"step": 3, "test": test}))


def audited(plan: Plan, name: str, rules: dict[str, float], verdict: str = "WARN", sha256: str = "f" * 64) -> None:
    """Leave an audit of a task, as if it had been made."""
    file = plan.suite.directory / "tasks" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {
        "digests": {"train": "0" * 64, "test": sha256},
        "rows": None,
        "seed": None,
        "audit": {
            "verdict": verdict,
            "reasons": [{"level": verdict, "text": "planted"}],
            "test": {"sequences": 48},
            "train": {"sequences": 50},
        },
        "row_zero": {
            "train": 48,
            "rules": [{"rule": rule, "chosen": "k 3", "mcc": score} for rule, score in rules.items()],
        },
    }
    file.write_text(json.dumps(kept))


def load(file: Path, *overrides: str) -> Plan:
    return load_plan(str(file), [*overrides])
