"""What a task's runs wait for: its files, made by a recipe or found, and its audit, which is kept.

    recipe --hyena-ds prep task--> files --digests--> known already? --no--> audit of train against test, row zero
    --> OUTPUT/NAME/tasks/TASK.json: {digests, audit, row_zero} or {error}

The audit is of the whole train set, and of the validation set where that is a file. Row zero is fitted on what the models train on: where a task draws rows, on those of the
first seed. Takes no torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyena_ds.errors import UserError, need
from hyena_ds.files.rows import is_number
from hyena_ds.files.whole import write_whole
from hyena_ds.suites.plan import Plan
from hyena_ds.suites.schema import SuiteConfig, SuiteTask
from hyena_ds.suites.thresholds import LEVELS
from hyena_ds.sweeps.runner import last_error

_MOST = 1 << 22
"""Bytes of a kept audit."""


@dataclass(frozen=True)
class Prepared:
    """What is kept of a task."""

    error: str | None = None
    """Why it cannot run."""
    verdict: str | None = None
    reasons: tuple[str, ...] = ()
    rows: tuple[int, int] | None = None
    """Sequences that the models see (train, or what is drawn of it) and of the test set."""
    whole: int = 0
    """Sequences of the whole train set."""
    test: str | None = None
    """SHA-256 of the test set."""
    rules: tuple[tuple[str, dict[str, float]], ...] = ()
    """Rules without a model: name, and metrics on the test set."""
    of_groups: dict[str, tuple[tuple[str, dict[str, float]], ...]] = field(default_factory=dict)
    """The same by group of outputs."""

    def best(self, metric: str, group: str | None = None) -> tuple[str, float] | None:
        """The rule of the highest value of a metric, on all outputs or a group's, and the value; None where none is known."""
        rules = self.rules if group is None else self.of_groups.get(group, ())
        known = [(name, found[metric]) for name, found in rules if metric in found]
        return max(known, key=lambda one: one[1], default=None)


def read_prepared(suite: SuiteConfig, task: SuiteTask) -> Prepared | None:
    """What is kept of a task; None where nothing is, or it is not readable."""
    found = _kept(_file(suite, task))
    if isinstance(found.get("error"), str):
        return Prepared(error=found["error"])
    try:
        audit, zero = found["audit"], found["row_zero"]
        rules = [(str(rule["rule"]), _numbers(rule)) for rule in zero["rules"]]
        of_groups = {
            group: tuple((str(rule["rule"]), _numbers(rule["groups"].get(group, {}))) for rule in zero["rules"])
            for group in task.groups
        }
        reasons = tuple(f"{each['level']}: {each['text']}" for each in audit["reasons"])
        rows = int(zero["train"]), int(audit["test"]["sequences"])
        said = [value for some in (rules, *of_groups.values()) for _, one in some for value in one.values()]
        if audit["verdict"] not in LEVELS or not all(map(is_number, said)):
            return None
        whole, digest = int(audit["train"]["sequences"]), str(found["digests"]["test"])
        return Prepared(None, audit["verdict"], reasons, rows, whole, digest, tuple(rules), of_groups)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _numbers(found: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in found.items() if type(value) in (int, float)}


def prepare(plan: Plan, task: SuiteTask) -> Prepared:
    """Make a task's files and audit them, unless both were done before; what stands against it is kept too."""
    file = _file(plan.suite, task)
    kept = _kept(file)
    try:
        found = _prepared(plan, task, kept)
    except UserError as error:
        found = {"error": str(error)}
    if found != kept:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(found, indent=1) + "\n")
    read = read_prepared(plan.suite, task)
    assert read is not None
    return read


def _prepared(plan: Plan, task: SuiteTask, kept: dict[str, Any]) -> dict[str, Any]:
    for package in ("scipy", "sklearn"):
        need(package, "predict")
    from hyena_ds.suites.audit import audit
    from hyena_ds.suites.row_zero import in_groups
    from hyena_ds.tasks.labelled_sets import digest, groups_of, read_labels, read_sets

    _make(plan.suite, task)
    files = plan.suite.files_of(task)
    for path in files.values():
        if not path.exists():
            get = f"; {task.get}" if task.get else "; name an existing one, or get it"
            raise UserError(f"{path}: no such file or directory{get}")
    digests = {split: digest(str(path)) for split, path in files.items()}
    (first, *_) = plan.runs_of(task)
    seed = first.seed if task.rows else None
    about = {"digests": digests, "rows": task.rows, "seed": seed, "groups": task.groups or None}
    judged = kept.get("audit")
    same = isinstance(judged, dict) and ("dev" in judged) == ("valid" in files)
    if same and all(kept.get(name) == value for name, value in about.items()):
        return kept
    train = read_labels(first.config, files["train"])
    test = read_labels(first.config, files["test"], train.classes)
    dev = read_labels(first.config, files["valid"], train.classes) if "valid" in files else None
    whole = zero = audit(train, test, dev)
    drawn = len(train)
    if task.rows is not None and task.rows < len(train):
        part = read_sets(first.config, first.seed).train
        zero, drawn = audit(part, test), len(part)
    rules = zero.as_dict()["row_zero"]
    if task.groups:
        groups = groups_of(first.config, test.classes)
        rules = [
            {**said, "groups": in_groups(rule, test, groups)} for said, rule in zip(rules, zero.row_zero, strict=True)
        ]
    return {**about, "audit": whole.as_dict(), "row_zero": {"train": drawn, "rules": rules}}


def _make(suite: SuiteConfig, task: SuiteTask) -> None:
    """Run the task's recipe, which has nothing to do where its files are there."""
    words = suite.recipe_of(task)
    if not words:
        return
    suite.made_in(task).parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "hyena_ds", "prep", "task", *words]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if done.returncode:
        said = last_error([*done.stdout.splitlines(), *done.stderr.splitlines()])
        raise UserError(f"hyena-ds prep task {words[0]}: {said or f'ended with exit code {done.returncode}'}")


def _file(suite: SuiteConfig, task: SuiteTask) -> Path:
    return suite.directory / "tasks" / f"{task.name}.json"


def _kept(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            found = json.loads(stream.read(_MOST))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
