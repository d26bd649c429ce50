"""Which tokens stand for the classes of a task, and how many tokens a sequence has around it.

Source of the published letters: HyenaDNA (arXiv 2306.15794) and its evaluations of in-context learning.
"""

from __future__ import annotations

import numpy as np

from hyena_ds.config.task import TaskConfig
from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line
from hyena_ds.genome.tokenizer import LETTERS
from hyena_ds.labelled import LabelledSet

BESIDE = 3
"""Tokens of a demonstration that are no bases."""
_PUBLISHED = {2: "AN", 3: "AGN"}
"""Label tokens by the number of classes."""


def label_ids(task: TaskConfig, classes: tuple[str, ...]) -> tuple[int, ...]:
    """Token ids of the classes; none where a head reads the sequences. Raises UserError where there is not one for each."""
    if not task.reads_tokens:
        return ()
    letters = task.label_tokens or tuple(_PUBLISHED.get(len(classes), ""))
    if len(letters) != len(classes):
        found = f"{len(letters)} ({', '.join(letters)})" if letters else "none"
        names = in_one_line(", ".join(classes), MOST_QUOTED)
        raise UserError(
            f"task.label_tokens: found {found}, wanted one for each of the {len(classes)} classes of {task.train} ({names}); "
            f"there are {len(LETTERS)} letters, {' '.join(LETTERS)}"
        )
    return tuple(LETTERS[letter] for letter in letters)


def tokens_around(task: TaskConfig, pool: LabelledSet) -> int:
    """Tokens that stand before and after a sequence, at most. Raises UserError where `pool` has too few demonstrations."""
    if not task.in_context:
        return 0
    label_ids(task, pool.classes)
    total = task.prompt_tokens + task.reads_tokens
    for label, name in enumerate(pool.classes if task.shots else ()):
        texts = {pool.sequences[row] for row in np.flatnonzero(np.asarray(pool.targets) == label).tolist()}
        if len(texts) <= task.shots:
            raise UserError(
                f"task.demonstrations.per_class: found {task.shots} with {len(texts)} different sequences of the class "
                f"'{in_one_line(name, MOST_QUOTED)}' in {task.train} (without what validates), wanted at least {task.shots + 1}: "
                "none is shown before itself; lower it, or give more"
            )
        total += sum(sorted(map(len, texts))[-task.shots :]) + BESIDE * task.shots
    return total
