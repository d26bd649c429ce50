"""What a model is shown before a sequence, and how a label is written in tokens.

    prompt | X1 [SEP] Y1 [SEP] | X2 [SEP] Y2 [SEP] | ... | X [SEP]          X bases, Y label tokens, | a border
                    ^                     ^                   ^
    the label is the token that follows a [SEP] after bases: there its logits are read

Demonstrations are sequences of the train set, as many of every class, drawn anew for every sequence: a function of the seed and of
which sequence it is. None has the bases of the sequence that is asked for. As a control their labels may be shown in random order: then Y
says nothing of X, but what is to be predicted after X stays X's own label.

Source of the layout and of the label tokens: HyenaDNA (arXiv 2306.15794), section 4.3 and its published evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyena_ds.config.task import TaskConfig
from hyena_ds.data.order import hash64, permutation
from hyena_ds.genome.tokenizer import PAD, SEP
from hyena_ds.labelled import LabelledSet
from hyena_ds.tasks.label_tokens import BESIDE, label_ids
from hyena_ds.tasks.outcomes import Reading

_CHOICE, _ORDER, _LABELS = 4, 5, 6
"""What a hash is for; see tasks/labelled.py and tasks/labelled_sets.py."""


@dataclass(frozen=True, eq=False)
class Shown(Reading):
    """A sequence with what stands around it."""

    prompt: int
    """Embeddings before it, which stand for no token."""
    label_ids: tuple[int, ...]
    """Tokens of the classes; none where a head reads the sequence."""
    demonstrations: tuple[Reading, ...]
    classes_shown: tuple[int, ...]
    """The class whose label stands behind each demonstration."""

    @property
    def length(self) -> int:
        """Tokens of all, the prompt's included."""
        shown = sum(each.length + BESIDE for each in self.demonstrations)
        return self.prompt + shown + super().length + bool(self.label_ids)

    @property
    def tokens(self) -> NDArray[np.uint8]:
        """Ids of all; [PAD] where the prompt is."""
        parts = [np.full(self.prompt, PAD, dtype=np.uint8)]
        for each, label in zip(self.demonstrations, self.classes_shown, strict=True):
            parts += [each.tokens, np.array([SEP, self.label_ids[label], SEP], dtype=np.uint8)]
        parts += [super().tokens, np.full(int(bool(self.label_ids)), SEP, dtype=np.uint8)]
        return np.concatenate(parts)

    @property
    def labels(self) -> list[tuple[int, int]]:
        """(position from which a label is predicted, class) of every demonstration, and at last of the sequence."""
        found, end = [], self.prompt
        for each in self.demonstrations:
            end += each.length + BESIDE
            found.append((end - BESIDE, int(each.target)))
        return [*found, (self.length - 1, int(self.target))]


class Surroundings:
    """What stands around the sequences of a task."""

    def __init__(self, task: TaskConfig, pool: LabelledSet, seed: int):
        """Demonstrations are taken from `pool`. Raises UserError where the label tokens do not fit its classes."""
        self._prompt, self._each, self._pool, self._seed = task.prompt_tokens, task.shots, pool, seed
        self._shuffles = task.demonstrations is not None and task.demonstrations.labels == "shuffled"
        self.label_ids = label_ids(task, pool.classes)
        self._rows = [np.flatnonzero(np.asarray(pool.targets) == label) for label in range(len(pool.classes))]

    def of(self, reading: Reading, *key: int) -> Shown:
        """`reading` with its demonstrations, which `key` chooses; they are read on the same strand."""
        shown: list[Reading] = []
        if self._each:
            text = reading.data.sequences[reading.number]
            drawn = [row for label in range(len(self._rows)) for row in self._drawn(label, text, key)]
            order = permutation(len(drawn), self._seed, _ORDER, *key)
            shown = [Reading(self._pool, drawn[at], reading.reverse) for at in order.tolist()]
        labels = [int(each.target) for each in shown]
        if self._shuffles:
            labels = [labels[at] for at in permutation(len(labels), self._seed, _LABELS, *key).tolist()]
        around = self._prompt, self.label_ids, tuple(shown), tuple(labels)
        return Shown(reading.data, reading.number, reading.reverse, *around)

    def _drawn(self, label: int, text: str, key: tuple[int, ...]) -> list[int]:
        """Rows of the pool, each once, that are of a class and are not `text`."""
        rows, choice = self._rows[label], (self._seed, _CHOICE, *key, label)
        draws = hash64(*choice, np.arange(4 * self._each + 32)) % np.uint64(len(rows))
        found = self._others(rows[draws.astype(np.int64)], text)
        if len(found) < self._each:  # nearly all of the class are asked for
            found = self._others(rows[permutation(len(rows), *choice)], text)
        return found[: self._each]

    def _others(self, rows: NDArray[np.int64], text: str) -> list[int]:
        return [row for row in dict.fromkeys(rows.tolist()) if self._pool.sequences[row] != text]
