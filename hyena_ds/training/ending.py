"""The end of a run: its summary, and its last words. On rank 0 alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hyena_ds.config.schema import RunConfig
from hyena_ds.monitoring.metrics import finite
from hyena_ds.runs.directory import RunDirectory
from hyena_ds.tasks.task import Task
from hyena_ds.training.journal import Journal
from hyena_ds.training.scores import Scores

_QUALITY = "validation_"


def conclude(
    config: RunConfig,
    task: Task,
    directory: RunDirectory,
    journal: Journal,
    scores: Scores,
    step: int,
    predictions: Sequence[NDArray[np.float32]],
) -> str | None:
    """Write the summary and say the last words; why the summary could not be written.

    `step` is the run's last, `predictions` are those of the test set.
    """
    journal.end_progress()
    context_length, best = config.schedule[-1].context_length, scores.selection.best
    if best is None:
        journal.say("counting baselines on the training data")
        last, quality = scores.last, scores.quality
    else:
        last, step = best, int(best["step"])
        quality = {name.removeprefix(_QUALITY): value for name, value in best.items() if name.startswith(_QUALITY)}
    conclusion = task.conclude(context_length, quality)
    summary, lines = {**finite(last), **conclusion.summary}, [*conclusion.lines]
    try:
        if predictions:
            summary["test"], more = task.tested(step, predictions, directory.path)
            lines += more
        directory.write_summary(summary)
    except OSError as error:
        return f"{error.filename or directory.summary}: cannot be written ({error.strerror})"
    journal.conclude(step, context_length, lines)
    return None


def complete_message(directory: RunDirectory) -> list[str]:
    """What is said when a finished run is started again."""
    return [
        f"The run in {directory.path} is complete: {directory.path / 'summary.json'} holds its results.",
        f"To train on from its weights, give a config another name and initialize_from: {directory.path}",
        f"To start afresh, remove {directory.path}, or choose another name (name=OTHER on the command line).",
    ]
