"""A suite: one YAML file that names tasks, the models to fine-tune on each, and what others have published for them.

    tasks x models x seeds --> runs of `hyena-ds finetune`        published --> rows beside them, with their source

What is published is kept as tables of one source each, as their papers print them. A score stands beside ours as
comparable only where neither its table nor the task says what differs. Takes no torch.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from hyena_ds.config.limits import MOST, Bound, Bounded
from hyena_ds.config.loading import load_yaml, require
from hyena_ds.errors import UserError
from hyena_ds.suites.published import MOST_SEEDS, Metric, PublishedTable

Kind = Literal["classification", "multilabel", "regression", "per_base"]
RANDOM = "random"
MADE = {"train": "train.csv.gz", "valid": "valid.csv.gz", "test": "test.csv.gz"}
"""What `hyena-ds prep task` writes."""
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_PLAIN = re.compile(r"[^\W_][\w .+-]*(/[^\W_][\w .+-]*)*")
"""A name that is part of a path: words apart by slashes, none of which begins with a dot."""


def _check_names(field_name: str, names: list[str]) -> None:
    require(bool(names), field_name, f"found none, wanted at least one of the {field_name}")
    for name, count in Counter(names).items():
        plain = _PLAIN.fullmatch(name) is not None
        require(plain, field_name, f"found the name '{name}', wanted letters, digits and . + - / between them")
        require(count == 1, field_name, f"found the name '{name}' twice, wanted it once")


@dataclass(frozen=True)
class SuiteModel(Bounded):
    """A row of the table."""

    initialize_from: str
    """What `initialize_from` of a fine-tuning config takes: weights, a checkpoint, a run; or random."""
    like: str | None = None
    """With random: the row whose model has the shape of this one."""
    training: Literal["full", "head", "probe", "trees"] = "full"
    """full: every weight is trained. head: the backbone is frozen. probe: a linear model on one pass of embeddings. trees:
    boosted trees on it."""
    tasks: tuple[str, ...] = ()
    """Tasks that have this row; by default all."""
    settings: dict[str, str] = field(default_factory=dict)
    """Settings of this row's fine-tuning configs, which go before those of suite and task."""

    def __post_init__(self) -> None:
        super().__post_init__()
        is_random = self.initialize_from == RANDOM
        require(
            is_random == (self.like is not None),
            "like",
            "wanted it with initialize_from: random, to name the row whose shape it has, and only there",
        )


@dataclass(frozen=True)
class SuiteTask(Bounded):
    """A task: labelled sequences, and how a model's predictions of them are scored."""

    name: str
    """What the table and its files call it; slashes make groups of tasks, as gue/tf/0."""
    kind: Kind
    """What is learnt of a sequence: one of several classes, several outputs of 0 or 1, a number, or a class for every base."""
    metric: Metric
    """What the table shows, and the best step on the validation split is chosen by."""
    train: str | None = None
    """As `hyena-ds finetune` takes it, below the suite's `data`. Left out where a recipe makes it."""
    test: str | None = None
    """Opened once, by the step that was chosen."""
    valid: str | None = None
    """A file, or the fraction of the train set that is held out; by default 0.1."""
    recipe: str | None = None
    """What makes the files: the words after `hyena-ds prep task`, without the directory; {data} is the suite's `data`."""
    genome: str | None = None
    """FASTA of a task whose files have intervals."""
    sequence: str | None = None
    """Column of the sequences, where it is neither `sequence` nor `seq`."""
    label: str | None = None
    """Column of the labels, where it is not `label`."""
    rows: Annotated[int | None, Bound(1, MOST)] = None
    """Rows of the train set that are drawn with the run's seed; by default all. The table says so."""
    groups: dict[str, str] = field(default_factory=dict)
    """Sets of outputs of a multilabel task that are scored apart, by what their names begin with; the tables and published scores
    name them TASK/GROUP."""
    leaks: str | None = None
    """What is known to be wrong with the split; the table marks the task. The audit is run all the same."""
    differs: str | None = None
    """How data or protocol differ from those of every published score: these stand beside it as not comparable."""
    get: str | None = None
    """Where the files come from, for messages where they are missing."""
    without: dict[str, str] = field(default_factory=dict)
    """Rows that are left out for this task, and why."""
    weights: dict[str, str] = field(default_factory=dict)
    """Rows that start from other weights for this task, a longer context's for instance."""
    settings: dict[str, str] = field(default_factory=dict)
    """Settings of this task's fine-tuning configs, which go before those of the suite."""

    def __post_init__(self) -> None:
        super().__post_init__()
        files = [self.train, self.test]
        made = self.recipe is not None
        require(
            not any((*files, self.valid)) if made else all(files),
            "recipe" if made else "train",
            "found files beside a recipe, which makes them; wanted one of both"
            if made
            else "wanted train and test, or a recipe that makes them",
        )
        if self.recipe is not None:
            try:
                words = shlex.split(self.recipe)
            except ValueError as error:
                words = []
                require(False, "recipe", f"found {str(error).lower()}, wanted words as in a shell")
            require(bool(words), "recipe", "found no word, wanted the words after `hyena-ds prep task`")
        if self.valid_fraction is not None:
            require(0 < self.valid_fraction < 1, "valid", f"found {self.valid}, wanted a file, or a share below 1")

    @property
    def valid_fraction(self) -> float | None:
        """The share of the train set that is held out; None where the validation split is a file."""
        if self.recipe is not None:
            return None
        if self.valid is None:
            return 0.1
        try:
            return float(self.valid)
        except ValueError:
            return None


@dataclass(frozen=True)
class SuiteConfig(Bounded):
    """A whole suite."""

    name: str
    """What it leaves lives in `output`/`name`."""
    models: dict[str, SuiteModel]
    """Rows of the table."""
    tasks: tuple[SuiteTask, ...]
    """Labelled data sets, each with its metric."""
    data: str = "."
    """Directory that the paths of tasks begin at, as ${NAME} for a variable of the environment."""
    output: str = "runs"
    """Directory of runs."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each task and row: initial weights of what is new, order of samples, dropout, a drawn train set."""
    settings: dict[str, str] = field(default_factory=dict)
    """Settings of every fine-tuning config. Keys are dotted, as on the command line."""
    protocol: str | None = None
    """The published hyper-parameters, and where they are from."""
    cluster: str | None = None
    """The command that runs the suite at its full scale."""
    published: tuple[PublishedTable, ...] = ()
    """What others have measured, a table for each model and source."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [task.name for task in self.tasks]
        _check_names("tasks", names)
        _check_names("models", list(self.models))
        require(
            _PLAIN.fullmatch(self.name) is not None and "/" not in self.name,
            "name",
            f"found '{self.name}', wanted a plain directory name",
        )
        for task in self.tasks:
            require(
                not task.groups or task.kind == "multilabel",
                "tasks",
                f"{task.name}: found groups, wanted them of multilabel alone",
            )
        require(bool(self.seeds), "seeds", "found none, wanted at least one")
        require(len(set(self.seeds)) == len(self.seeds), "seeds", "found a seed twice, wanted each once")
        require(len(self.seeds) <= MOST_SEEDS, "seeds", f"found {len(self.seeds):,}, wanted at most {MOST_SEEDS:,}")
        for seed in self.seeds:
            require(0 <= seed < 2**31, "seeds", f"found {seed}, wanted 0 to 2^31 - 1")
        for row, model in self.models.items():
            shape = self.models.get(model.like) if model.like is not None else model
            known = shape is not None and shape.initialize_from != RANDOM
            known = known or model.like is None
            require(known, "models", f"{row}: found like: {model.like}, wanted a row that starts from weights")
            for name in model.tasks:
                require(name in names, "models", f"{row}: found the task {name}, which the suite does not have")
        for task in self.tasks:
            for row in (*task.without, *task.weights):
                require(
                    row in self.models,
                    "tasks",
                    f"{task.name}: found the row {row}, wanted one of {', '.join(self.models)}",
                )
        scored = {f"{task.name}/{group}" for task in self.tasks for group in task.groups}.union(names)
        for table in self.published:
            for name in (*table.scores, *table.metrics):
                require(
                    name in scored, "published", f"{table.model}: found the task {name}, which the suite does not have"
                )

    @property
    def directory(self) -> Path:
        """Directory of what the suite leaves."""
        return Path(self.output) / self.name

    def rows_of(self, task: SuiteTask) -> Iterator[tuple[str, SuiteModel]]:
        """The rows that a task has, with their names, in the order of the file."""
        for row, model in self.models.items():
            if row not in task.without and (not model.tasks or task.name in model.tasks):
                yield row, model

    def weights_of(self, row: str, task: SuiteTask) -> str:
        """What a row starts from for a task; of a random one, the weights whose shape it has. Raises UserError."""
        shape = self.models[row].like or row
        return _expanded(task.weights.get(row) or task.weights.get(shape) or self.models[shape].initialize_from)

    def settings_of(self, row: str, task: SuiteTask) -> dict[str, str]:
        """Settings of the fine-tuning config of a row and a task: the row's before the task's before the suite's."""
        return {**self.settings, **task.settings, **self.models[row].settings}

    def is_one_measurement(self, row: str, task: SuiteTask) -> bool:
        """Whether nothing of a row depends on the seed: given weights stay as they are, and all files are given as a whole."""
        model = self.models[row]
        fitted = model.training in ("probe", "trees") and model.initialize_from != RANDOM
        return fitted and task.rows is None and task.valid_fraction is None

    def path(self, place: str) -> Path:
        """Where a path of a task is. Raises UserError where a variable that it names is not set."""
        return Path(_expanded(self.data), _expanded(place)).expanduser()

    def made_in(self, task: SuiteTask) -> Path:
        """The directory that a task's recipe writes."""
        return self.directory / "data" / task.name

    def recipe_of(self, task: SuiteTask) -> list[str]:
        """The words after `hyena-ds prep task` that make the task's files, none where they are given. Raises UserError."""
        if task.recipe is None:
            return []
        root = str(self.path("."))
        return [*(word.replace("{data}", root) for word in shlex.split(task.recipe)), str(self.made_in(task))]

    def files_of(self, task: SuiteTask) -> dict[str, Path]:
        """Files of train, test and, where it is no share of train, valid. Raises UserError."""
        if task.recipe is not None:
            return {split: self.made_in(task) / name for split, name in MADE.items()}
        named = {"train": task.train, "test": task.test}
        if task.valid_fraction is None:
            named["valid"] = task.valid
        return {split: self.path(name) for split, name in named.items() if name is not None}

    def published_of(self, task: SuiteTask, group: str | None = None) -> list[PublishedScore]:
        """What others have published for a task, or for a group of its outputs, in the order of the file."""
        name = task.name if group is None else f"{task.name}/{group}"
        return [PublishedScore(table, task, name) for table in self.published if name in table.scores]


@dataclass(frozen=True)
class PublishedScore:
    """One published score."""

    table: PublishedTable
    task: SuiteTask
    name: str
    """The task's, or TASK/GROUP."""

    @property
    def score(self) -> float:
        """The score, as a share."""
        return self.table.scores[self.name]

    @property
    def spread(self) -> float | None:
        """Its spread, where the source has one; `table.spread` says what it is."""
        return self.table.spreads.get(self.name)

    @property
    def metric(self) -> Metric:
        """What was measured."""
        return self.table.metrics.get(self.name, self.task.metric)

    @property
    def why_not_comparable(self) -> str | None:
        """What differs from our runs of the task; None where nothing is known to."""
        drawn = None if self.task.rows is None else f"we train on {self.task.rows:,} rows"
        metric = None if self.metric == self.task.metric else f"it is {self.metric}"
        said = [text for text in (metric, drawn, self.task.differs, self.table.differs) if text]
        return "; ".join(said) or None


def load_suite(file: str | Path, overrides: list[str] | None = None) -> SuiteConfig:
    """Read a suite, with `key.path=value` overrides. Raises UserError with `file:line: path: ...`."""
    return load_yaml(file, SuiteConfig, overrides)


def _expanded(place: str) -> str:
    for name in _VARIABLE.findall(place):
        if name not in os.environ:
            raise UserError(
                f"{place}: the variable {name} is not set; set it to a directory, or give data=DIRECTORY on the command line"
            )
    return _VARIABLE.sub(lambda match: os.environ[match[1]], place)
