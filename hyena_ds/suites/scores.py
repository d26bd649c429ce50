"""What a suite's runs came to: scores by task, row and seed, and paired tests between rows.

    RUN/summary.json, RUN.outcome.json, tasks/TASK.json --> TaskScores: audit, row zero, a RowScores each, a Pair of any two
    a group of a task's outputs ---------------------------> TaskScores of its own

Also while they run. Takes no torch. n seeds.
"""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass
from typing import Any

from hyena_ds.files.rows import METRICS, is_count, is_number, read_json, read_rows
from hyena_ds.redaction import redacted
from hyena_ds.runs.directory import METRICS as METRICS_FILE
from hyena_ds.runs.directory import SUMMARY
from hyena_ds.runtime.interruption import STOPPED_CODES
from hyena_ds.suites.plan import Plan, SuiteRun
from hyena_ds.suites.preparing import Prepared, read_prepared
from hyena_ds.suites.schema import SuiteTask
from hyena_ds.sweeps.results import COMPLETE, read_outcome
from hyena_ds.tasks.outcomes import PREDICTIONS, error_from

NOT_STARTED = "not started"


@dataclass(frozen=True)
class RunScore:
    """One run."""

    run: SuiteRun
    status: str
    """`complete`, or a word or two on why not."""
    score: float | None
    """The test set's, by the task's metric."""
    error: str | None
    """The sentence of a run that failed."""
    sampling: float | None = None
    """The standard error of the score that the size of the test set alone brings."""


@dataclass(frozen=True)
class RowScores:
    """A row of a task."""

    row: str
    runs: tuple[RunScore, ...]
    why: str | None
    """Why it has no runs."""
    is_one: bool = False
    """Whether nothing depends on the seed: however many runs, they are one measurement."""

    @property
    def by_seed(self) -> dict[int, float]:
        """Scores of complete runs."""
        return {one.run.seed: one.score for one in self.runs if one.score is not None}

    @property
    def mean(self) -> float | None:
        """None where no run is complete."""
        return statistics.fmean(self.by_seed.values()) if self.by_seed else None

    @property
    def deviation(self) -> float | None:
        """The sample's standard deviation, over n - 1; None of fewer than two, and of one measurement."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 and not self.is_one else None

    @property
    def sampling(self) -> float | None:
        """The mean standard error of the runs by the size of the test set; None where none is known."""
        known = [one.sampling for one in self.runs if one.score is not None and one.sampling is not None]
        return statistics.fmean(known) if known else None


@dataclass(frozen=True)
class Pair:
    """A row less another, on the seeds that both have."""

    first: str
    second: str
    differences: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean difference."""
        return statistics.fmean(self.differences)

    @property
    def t(self) -> float | None:
        """Student's t of the mean, n - 1 degrees of freedom; None where it cannot be said."""
        if len(self.differences) < 2 or not (spread := statistics.stdev(self.differences)):
            return None
        return self.mean / (spread / math.sqrt(len(self.differences)))

    @property
    def p(self) -> float | None:
        """Two-sided p of the paired t-test; None where t is."""
        if self.t is None:
            return None
        from scipy.special import stdtr

        return float(2 * stdtr(len(self.differences) - 1, -abs(self.t)))


@dataclass(frozen=True)
class TaskScores:
    """All that is known of a task."""

    task: SuiteTask
    prepared: Prepared | None
    rows: tuple[RowScores, ...]
    group: str | None = None
    """The group of outputs that they are of; None: all."""

    @property
    def name(self) -> str:
        """The task's, or TASK/GROUP."""
        return self.task.name if self.group is None else f"{self.task.name}/{self.group}"

    @property
    def row_zero(self) -> tuple[str, float] | None:
        """The best rule without a model, and its score."""
        return None if self.prepared is None else self.prepared.best(self.task.metric, self.group)

    @property
    def best(self) -> RowScores | None:
        """The row of the highest mean."""
        known = [row for row in self.rows if row.mean is not None]
        return max(known, key=lambda row: row.mean or 0.0, default=None)

    @property
    def zero_wins(self) -> bool | None:
        """Whether no row is better than row zero; None while either is unknown."""
        zero, best = self.row_zero, self.best
        return None if zero is None or best is None or best.mean is None else zero[1] >= best.mean

    @property
    def pairs(self) -> list[Pair]:
        """Any two rows that share a seed."""
        found = []
        for one, other in itertools.combinations(self.rows, 2):
            mine, theirs = one.by_seed, other.by_seed
            shared = [seed for seed in mine if seed in theirs]
            shared = shared[:1] if one.is_one and other.is_one else shared
            if shared:
                found.append(Pair(one.row, other.row, tuple(mine[seed] - theirs[seed] for seed in shared)))
        return found


def scores_of(plan: Plan) -> list[TaskScores]:
    """One a task, and one for each of its groups, in the suite's order."""
    found = []
    for task in plan.suite.tasks:
        prepared = read_prepared(plan.suite, task)
        for group in (None, *task.groups):
            rows = []
            for row in plan.suite.models:
                runs = tuple(_score(run, prepared, group) for run in plan.runs_of(task, row))
                is_one = plan.suite.is_one_measurement(row, task)
                rows.append(RowScores(row, runs, plan.why_no_runs(task, row), is_one))
            found.append(TaskScores(task, prepared, tuple(rows), group))
    return found


def _score(run: SuiteRun, prepared: Prepared | None, group: str | None) -> RunScore:
    if run.is_complete():
        tested = (read_json(run.directory / SUMMARY) or {}).get("test")
        of = tested if group is None else _child(_child(tested, "groups"), group)
        metrics = _child(of, "metrics")
        if not isinstance(tested, dict) or not isinstance(metrics, dict):
            what = "metrics of a test set" if group is None else f"metrics of the group {group}"
            return RunScore(run, "damaged", None, f"{run.directory / SUMMARY}: found no {what}")
        if prepared is not None and prepared.test not in (None, tested.get("sha256")):
            return RunScore(run, "other data", None, "its test set is not the one that is there now; remove the run")
        score, error = metrics.get(run.task.metric), _child(_child(of, "standard_error"), run.task.metric)
        if not is_number(score) or score is None:
            return RunScore(run, COMPLETE, None, f"{run.task.metric} cannot be said of its predictions")
        if error is None and "standard_error" not in tested:  # a run of an older version
            error = error_from(run.directory / PREDICTIONS, run.task.kind, run.task.metric)
        return RunScore(run, COMPLETE, float(score), None, float(error) if error and is_number(error) else None)
    outcome = read_outcome(run.directory)
    if outcome is not None and outcome.exit_code not in STOPPED_CODES:
        return RunScore(run, f"failed ({outcome.exit_code})", None, outcome.error and redacted(outcome.error))
    steps = [row["step"] for row in read_rows(run.directory / METRICS_FILE, METRICS) if is_count(row["step"])]
    return RunScore(run, f"unfinished, at step {max(steps):,}" if steps else NOT_STARTED, None, None)


def _child(found: Any, name: str) -> Any:
    return found.get(name) if isinstance(found, dict) else None
