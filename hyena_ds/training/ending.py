"""The end of a run: its summary, and its last words, on rank 0 alone; or why it cannot go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hyena_ds.checkpoints.directory import newest_whole
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UnwrittenError, UserError
from hyena_ds.monitoring.metrics import finite
from hyena_ds.parallel.agreement import from_rank_zero
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
    if config.steps_only:
        journal.say(f"steps_only: {step:,} steps are done; nothing was validated, and no weights are kept")
        try:
            directory.write_summary({"step": step, "context_length": context_length})
        except OSError as error:
            return f"{error.filename or directory.summary}: cannot be written ({error.strerror})"
        return None
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


def leave_without_rows(journal: Journal, directory: RunDirectory, step: int, save: Callable[[], None]) -> None:
    """End a run whose metrics.jsonl cannot be written, after saving what was trained up to `step`. Collective; all ranks raise it.

    Returns where the rows could be written after all.
    """
    kept = f"step {step} is saved"
    try:
        newest = from_rank_zero(lambda: newest_whole(directory.checkpoints))
        if newest is None or newest.record.state.step != step:
            save()
    except UserError:
        newest = from_rank_zero(lambda: newest_whole(directory.checkpoints))
        kept = f"nor could step {step} be saved; the newest whole checkpoint is {newest or 'none'}"
    problem = from_rank_zero(journal.problem)
    if problem is not None:
        raise UnwrittenError(
            f"{problem}, so the run ends: {kept}; make room, or put right what is in the way, and start it again"
        )
