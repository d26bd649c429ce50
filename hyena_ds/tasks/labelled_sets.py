"""The labelled sequences of a run: what is trained on, what is validated on, and, at the very end, the test set.

task.train --read_labelled--> rows - validation split, or the file of task.valid --> Sets; the digests of their files
task.test ---read_test--> LabelledSet, with the classes of the train set
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyena_ds.config.schema import RunConfig
from hyena_ds.config.task import TaskConfig
from hyena_ds.data.identity import ListedShard, ListedSource, ShardList
from hyena_ds.data.order import permutation
from hyena_ds.data.shards import sha256_of
from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line
from hyena_ds.labelled import LabelledSet, read_labelled
from hyena_ds.labelled.cards import CARD, is_of_one_strand
from hyena_ds.labelled.metrics import HIGHER_IS_BETTER, OF_KIND
from hyena_ds.labelled.sets import UNLABELLED
from hyena_ds.labelled.splitting import validation_split
from hyena_ds.tasks.label_tokens import tokens_around

_ROWS = 3
"""What a permutation is for; see tasks/labelled.py."""


@dataclass(frozen=True)
class Sets:
    """What a run sees before its end."""

    task: TaskConfig
    train: LabelledSet
    valid: LabelledSet
    pool: LabelledSet
    """All that may be trained on, of which `train` is a part where `task.rows` says so: what demonstrations are taken from."""
    around: int = 0
    """Tokens that stand before and after a sequence, at most: a prompt, demonstrations, an end."""

    @property
    def outputs(self) -> int:
        """Numbers that a head gives: one for each class or output."""
        return len(self.train.classes)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence with what stands around it."""
        return self.around + max(len(text) for part in (self.train, self.valid) for text in part.sequences)

    @cached_property
    def class_weights(self) -> NDArray[np.float32] | None:
        """(C,), rows / (classes x rows of the class) of the train set; 0 for a class without any. None: all count the same.

        Of a multilabel set (K,), what positives of an output weigh where negatives weigh 1: negatives / positives; 1 where one
        of both is missing.
        """
        if self.task.class_weights == "none":
            return None
        targets = self.train.targets
        if self.task.kind == "multilabel":
            ones, zeros = ((np.asarray(targets) == value).sum(0) for value in (1, 0))
            return np.where(ones * zeros > 0, zeros / np.maximum(ones, 1), 1).astype(np.float32)
        known = np.concatenate(targets) if isinstance(targets, tuple) else targets
        counts = np.bincount(known[known != UNLABELLED].astype(np.int64), minlength=self.outputs)
        return np.where(counts > 0, counts.sum() / (self.outputs * np.maximum(counts, 1)), 0).astype(np.float32)

    @cached_property
    def scale(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(mean, standard deviation) of each number of a regression on the train set, (K,); 1 where it does not vary."""
        columns = np.asarray(self.train.targets, dtype=np.float64).reshape(len(self.train), -1)
        deviation = np.nanstd(columns, axis=0)
        return np.nanmean(columns, axis=0), np.where(deviation > 0, deviation, 1.0)


def read_sets(config: RunConfig | TaskConfig, seed: int) -> Sets:
    """Read what `task` names, but for its test set. Raises UserError, naming file and line, for what cannot be used."""
    task = config if isinstance(config, TaskConfig) else config.task
    assert task is not None
    chosen_by(task)
    if task.reverse_complement and is_of_one_strand(task.train):
        raise UserError(
            f"task.reverse_complement: found true with {task.train}, wanted false: its {CARD} says that a label is of the strand "
            "that its sequence is written on (strand: forward), so the other strand would be learnt with a wrong label; leave it out"
        )
    train = read_labels(task, task.train)
    fraction = task.valid_fraction
    if fraction is None:
        valid = read_labels(task, task.valid, train.classes)
    else:
        of_train, of_valid = validation_split(train, fraction, seed)
        valid, train = train.take(of_valid), train.take(of_train)
    groups_of(task, train.classes)
    around, pool = tokens_around(task, train), train
    if task.rows is not None and task.rows < len(train):
        train = train.take(np.sort(permutation(len(train), seed, _ROWS)[: task.rows]))
    sets = Sets(task, train, valid, pool, around)
    if task.kind == "regression" and not (np.nanstd(np.asarray(train.targets, dtype=np.float64), axis=0) > 0).any():
        raise UserError(f"{task.train}: found one and the same number for every sequence, wanted numbers that vary")
    return sets


def groups_of(task: TaskConfig, outputs: tuple[str, ...]) -> dict[str, NDArray[np.int64]]:
    """The numbers of the outputs of each of the task's groups. Raises UserError for a group without any."""
    found = {}
    for name, beginning in task.groups.items():
        found[name] = np.flatnonzero([output.startswith(beginning) for output in outputs])
        if not len(found[name]):
            shown = in_one_line(", ".join(outputs), MOST_QUOTED)
            raise UserError(
                f"task.groups.{in_one_line(name, MOST_QUOTED)}: found no output of {task.train} whose name begins with "
                f"'{in_one_line(beginning, MOST_QUOTED)}' ({shown}); correct the beginning, or leave the group out"
            )
    return found


def read_test(task: TaskConfig, classes: tuple[str, ...]) -> LabelledSet:
    """The test set, whose classes are those of the train set. Raises UserError."""
    assert task.test is not None
    return read_labels(task, task.test, classes)


def check_lengths(data: LabelledSet, most: int, key: str, around: int = 0) -> None:
    """Raise UserError for a sequence that takes, with `around` tokens more, over `most`, which the setting `key` says."""
    for text, name in zip(data.sequences, data.names, strict=True):
        if len(text) + around > most:
            what, cure = "", "cut it"
            if around:
                what = f" and up to {around:,} tokens around it (prompt, demonstrations, an end), {len(text) + around:,} in all"
                cure = "lower task.prompt.tokens or task.demonstrations.per_class"
            raise UserError(
                f"{name}: found a sequence of {len(text):,} bases{what}, wanted at most {key} {most:,}; {cure}, or raise "
                f"{key}" + (" (model.extension says how a trained model is extended)" if "maximum" in key else "")
            )


def chosen_by(task: TaskConfig) -> tuple[str, bool]:
    """(the metric by which weights are chosen, whether the lower one is better). Raises UserError for an unknown one."""
    known = (*OF_KIND[task.kind], "loss")
    metric = task.metric or known[0]
    if metric not in known:
        raise UserError(
            f"task.metric: found '{in_one_line(metric, MOST_QUOTED)}', wanted {', '.join(known[:-1])} or {known[-1]}, for the "
            f"kind {task.kind}"
        )
    return metric, not HIGHER_IS_BETTER.get(metric, False)


def data_files(path: str) -> list[Path]:
    """The files that a labelled set is read from: itself, or those of a directory."""
    found = Path(path)
    return sorted(each for each in found.iterdir() if each.is_file()) if found.is_dir() else [found]


def digest(path: str) -> str:
    """SHA-256 of a file; of a directory, of the list of its files' digests."""
    files = data_files(path)
    if not Path(path).is_dir():
        return sha256_of(files[0])
    return hashlib.sha256("".join(f"{each.name} {sha256_of(each)}\n" for each in files).encode()).hexdigest()


def listed(task: TaskConfig) -> ShardList:
    """The files that are trained and validated on, as a run keeps them to compare."""
    parts = [(task.train, "train"), *([] if task.valid_fraction is not None else [(task.valid, "valid")])]
    shards = [
        ListedShard(each.name, split, each.stat().st_size, sha256_of(each), ())
        for path, split in parts
        for each in data_files(path)
    ]
    return ShardList((ListedSource(hashlib.sha256(b"labelled sequences").hexdigest(), tuple(shards)),))


def rounded_up(length: int, multiple: int) -> int:
    """The smallest multiple that is no less."""
    return math.ceil(length / multiple) * multiple


def read_labels(task: TaskConfig, path: str | Path, classes: tuple[str, ...] | None = None) -> LabelledSet:
    """A file of the task; of the `classes` that are known, where they are. Raises UserError."""
    return read_labelled(
        path,
        task.kind,
        genome=task.genome,
        sequence=task.sequence,
        label=task.label,
        classes=classes,
        window=task.window,
    )
