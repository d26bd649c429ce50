"""The runs of a suite: tasks x rows x seeds, each a config of `hyena-ds finetune` that is written out.

    suite --settings of suite, task and row--> SuiteRun: OUTPUT/NAME/runs/TASK/ROW-SEED.yaml, and its run ROW-SEED beside it

Every config is checked before the first run starts. Takes no torch.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hyena_ds.config.loading import load_node
from hyena_ds.config.nodes import compose, override_all
from hyena_ds.config.schema import RunConfig
from hyena_ds.config.task import TaskConfig
from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line
from hyena_ds.files.whole import write_whole
from hyena_ds.redaction import redacted
from hyena_ds.runs.directory import SUMMARY
from hyena_ds.suites.schema import RANDOM, SuiteConfig, SuiteModel, SuiteTask, load_suite

_FROZEN = {"full": "false", "head": "backbone", "probe": "probe", "trees": "trees"}
_OURS = ("name", "output", "resume", "seed", "initialize_from")
_OF_TASK = (
    "kind",
    "train",
    "valid",
    "test",
    "genome",
    "sequence",
    "label",
    "metric",
    "rows",
    "groups",
    "frozen",
    "like",
)
_ODD = re.compile(r"[^\w.+-]")
"""Characters of a row's name that its directories do not have."""
_SHAPE = {"width": 8, "layers": 1, "maximum_context": 64}
_STAGES = [{"context_length": 64, "steps": 1, "global_batch": 1}]
"""What the weights and the data will say, in place of which these stand while a config is checked."""


@dataclass(frozen=True)
class SuiteRun:
    """One run of a suite."""

    number: int
    """From 0, in the order of the suite."""
    task: SuiteTask
    row: str
    seed: int
    directory: Path
    """What the run leaves; its config stands beside it."""
    text: str
    """The config."""
    config: TaskConfig
    """What the config says of the task."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.task.name}, {self.row}, seed {self.seed}"

    @property
    def file(self) -> Path:
        """The config, written out."""
        return self.directory.with_name(f"{self.directory.name}.yaml")

    @property
    def arguments(self) -> tuple[str, ...]:
        """What `hyena-ds finetune` is given."""
        name = str(self.file)
        return (f"./{name}" if name.startswith("-") else name,)

    def is_complete(self) -> bool:
        """Whether it has trained to its end, and opened its test set."""
        return (self.directory / SUMMARY).is_file()

    def write(self) -> None:
        """Write the config, unless it stands there already."""
        if not self.file.is_file() or self.file.read_bytes() != self.text.encode():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.file, self.text)


@dataclass(frozen=True)
class Plan:
    """A suite whose runs are all valid."""

    file: str
    suite: SuiteConfig
    runs: tuple[SuiteRun, ...]

    def runs_of(self, task: SuiteTask, row: str | None = None) -> list[SuiteRun]:
        """The runs of a task, or of one of its rows, in the order of the seeds."""
        return [run for run in self.runs if run.task is task and row in (None, run.row)]

    def why_no_runs(self, task: SuiteTask, row: str) -> str | None:
        """Why a row of a task has none; None where it has."""
        if row in task.without:
            return task.without[row]
        model = self.suite.models[row]
        if model.tasks and task.name not in model.tasks:
            return "this row is of other tasks"
        return None

    def chosen(self, tasks: Sequence[str], rows: Sequence[str]) -> list[SuiteRun]:
        """The runs of tasks whose names match one of the patterns, and of these rows; all where none are named.

        Raises UserError for a pattern that matches no task, and for an unknown row.
        """
        names = [task.name for task in self.suite.tasks]
        for what, wanted, known in (("task", tasks, names), ("row", rows, list(self.suite.models))):
            for one in wanted:
                if not (fnmatch.filter(known, one) if what == "task" else one in known):
                    raise UserError(
                        f"{self.file}: found no {what} '{in_one_line(one, MOST_QUOTED)}', wanted one of {', '.join(known)}"
                    )
        return [
            run
            for run in self.runs
            if (not tasks or any(fnmatch.fnmatchcase(run.task.name, one) for one in tasks))
            and (not rows or run.row in rows)
        ]


def load_plan(file: str, overrides: list[str]) -> Plan:
    """Read a suite and make its runs. Raises UserError, with the run's name where its config is wrong."""
    suite = load_suite(file, overrides)
    runs: list[SuiteRun] = []
    places: dict[Path, str] = {}
    for task in suite.tasks:
        for row, model in suite.rows_of(task):
            for seed in suite.seeds:
                directory = suite.directory / "runs" / task.name / f"{_ODD.sub('_', row)}-{seed}"
                run = _run(file, suite, task, row, model, seed, directory, len(runs))
                if directory in places:
                    raise UserError(
                        f"{file}: models: {places[directory]} and {run.name} would both be {directory}; rename a row"
                    )
                places[directory] = run.name
                runs.append(run)
    changed = [run for run in runs if _has_changed(run)]
    if changed:
        raise UserError(
            f"{file}: {suite.directory} holds {len(changed):,} of its runs with other settings, as {changed[0].name}; set them "
            "back, choose another name or output, or remove these runs"
        )
    return Plan(file, suite, tuple(runs))


def _has_changed(run: SuiteRun) -> bool:
    return run.directory.is_dir() and run.file.is_file() and run.file.read_bytes() != run.text.encode()


def _run(
    file: str, suite: SuiteConfig, task: SuiteTask, row: str, model: SuiteModel, seed: int, directory: Path, number: int
) -> SuiteRun:
    weights, settings = suite.weights_of(row, task), suite.settings_of(row, task)
    place = f"{file}: task {task.name}, row {row}"
    for key, value in settings.items():
        if key in (*_OURS, "task", *(f"task.{name}" for name in _OF_TASK)):
            raise UserError(f"{place}: settings: {key}: the suite sets it itself; leave it out")
        if redacted(value) != value:
            raise UserError(f"{place}: settings: {key}: found a secret, wanted none: configs are written down")
    is_random = model.initialize_from == RANDOM
    config: dict[str, Any] = {
        "name": directory.name,
        "output": str(directory.parent),
        "seed": seed,
        "initialize_from": RANDOM if is_random else weights,
        "local_ranks": 1,
        "task": {**_task(suite, task), "frozen": _FROZEN[model.training], **({"like": weights} if is_random else {})},
    }
    try:
        root = _node(config, settings)
        text = yaml.serialize(root, allow_unicode=True, width=10_000)
        found = load_node(_completed(config, settings), place, RunConfig)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    assert found.task is not None
    return SuiteRun(number, task, row, seed, directory, text, found.task)


def _task(suite: SuiteConfig, task: SuiteTask) -> dict[str, Any]:
    files = {split: str(path) for split, path in suite.files_of(task).items()}
    if task.valid_fraction is not None:
        files["valid"] = str(task.valid_fraction)
    said = {"genome": task.genome and str(suite.path(task.genome))}
    said |= {name: getattr(task, name) for name in ("sequence", "label", "rows")} | {"groups": task.groups or None}
    return {
        "kind": task.kind,
        **files,
        "metric": task.metric,
        **{name: value for name, value in said.items() if value is not None},
    }


def _node(config: dict[str, Any], settings: dict[str, str]) -> yaml.Node:
    root = compose(yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=10_000), "its config")
    assert root is not None
    override_all(root, [f"{key}={value}" for key, value in settings.items()])
    return root


def _completed(config: dict[str, Any], settings: dict[str, str]) -> yaml.Node:
    """The nodes of a config with stand-ins for what follows from weights and data, unless settings say it."""
    begun = {**config, "initialize_from": None}
    if not any(key == "model" or key.startswith("model.") for key in settings):
        begun["model"] = _SHAPE
    if not any(key.startswith(("stages", "warmup")) for key in settings):
        begun["stages"] = _STAGES
    return _node(begun, settings)
