"""The tables of a suite, as text: what was scored beside row zero, audits, paired tests, what others have published, what did not run.

    TaskScores --> Table ... --> results.md, the page, the terminal;  --> results.csv, a line a row of a task

Takes no torch.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hyena_ds.errors import in_one_line
from hyena_ds.files.whole import aside
from hyena_ds.suites.plan import Plan
from hyena_ds.suites.schema import PublishedScore
from hyena_ds.suites.scores import NOT_STARTED, RowScores, TaskScores
from hyena_ds.sweeps.results import COMPLETE
from hyena_ds.text import aligned, counted, markdown_table

ZERO = "row zero"
ONE = "one measurement"
BEST = " *"
NOT_COMPARABLE = "not comparable"
_MOST_SAID = 400
"""Characters of a cell."""


@dataclass(frozen=True)
class Table:
    """A titled table of text."""

    title: str
    titles: tuple[str, ...]
    rows: list[list[str]]
    note: str
    """How it is read."""

    def markdown(self) -> list[str]:
        """Its lines in Markdown, and the note below."""
        rows = [[in_one_line(cell, _MOST_SAID).replace("|", "\\|") for cell in row] for row in self.rows]
        body = markdown_table(self.titles, rows) if rows else ["None."]
        return [f"## {self.title}", "", *body, *(["", self.note] if self.note else []), ""]

    def lines(self) -> list[str]:
        """Its lines for a terminal."""
        rows = [[in_one_line(cell, _MOST_SAID) for cell in row] for row in self.rows]
        return aligned([[*self.titles], *rows], left=range(len(self.titles)))


def tables_of(plan: Plan, scores: list[TaskScores]) -> list[Table]:
    """All of them; the first is the one that is looked at first."""
    wholes = [found for found in scores if found.group is None]
    return [
        _scored(plan, scores),
        _errors(scores),
        _audits(wholes),
        _pairs(scores),
        _published(plan, scores),
        _not_run(scores),
    ]


def markdown_of(plan: Plan, scores: list[TaskScores]) -> str:
    """The text of results.md."""
    suite, complete = (
        plan.suite,
        sum(one.status == COMPLETE for task in scores if task.group is None for row in task.rows for one in row.runs),
    )
    lines = [f"# {suite.name}", "", f"{complete:,} of {counted(len(plan.runs), 'run')} complete.", ""]
    lines += [f"Protocol: {suite.protocol}", ""] if suite.protocol else []
    for table in tables_of(plan, scores):
        lines += table.markdown()
    return "\n".join(lines)


def shown(mean: float | None, deviation: float | None = None) -> str:
    """A score and its spread."""
    if mean is None:
        return "-"
    return f"{mean:.3f}" + (f" ± {deviation:.3f}" if deviation is not None else "")


def _scored(plan: Plan, scores: list[TaskScores]) -> Table:
    rows = []
    for found in scores:
        zero, best = found.row_zero, None if found.zero_wins else found.best
        verdict = found.prepared.verdict if found.prepared is not None and found.prepared.verdict else "-"
        rows.append(
            [
                found.name,
                found.task.metric,
                "-" if found.group is not None else f"{verdict}, known" if found.task.leaks else verdict,
                shown(zero[1] if zero else None) + (BEST if found.zero_wins else ""),
                *(_cell(row) + (BEST if row is best else "") for row in found.rows),
            ]
        )
    titles = ("task", "metric", "audit", ZERO, *plan.suite.models)
    note = (
        f"Scores are of the test set, opened once a run by the weights that were best on the validation split: mean ± standard "
        f"deviation over seeds.{BEST} is the best of a task. «{ONE}»: nothing of that row depends on the seed, so its runs are one. Row "
        "zero is the best rule without a model by the task's metric on the test set itself, so an upper bound for rules. A score "
        "on a task whose audit says FAIL says little about biology; «known» is a task whose suite says that it leaks."
    )
    return Table("Scores", titles, rows, note)


def _cell(row: RowScores) -> str:
    if not row.runs:
        return "not run"
    done = len(row.by_seed)
    if row.is_one and done:
        return f"{shown(row.mean)} ({ONE})"
    part = (
        f" ({done} of {counted(len(row.runs), 'seed')})" if done < len(row.runs) else " (1 seed)" if done == 1 else ""
    )
    return f"{shown(row.mean, row.deviation)}{part}"


def _errors(scores: list[TaskScores]) -> Table:
    rows = []
    for found in scores:
        zero, prepared = found.row_zero, found.prepared
        train, test = (f"{count:,}" for count in prepared.rows) if prepared and prepared.rows else ("-", "-")
        sizes = [f"{train}, drawn" if found.task.rows and train != "-" else train, test]
        if zero is not None:
            rows.append([found.name, f"{ZERO}: {zero[0]}", shown(zero[1]), "-", "-", "-", *sizes])
        for row in found.rows:
            if row.mean is not None:
                seeds = ONE if row.is_one else str(len(row.by_seed))
                rows.append([found.name, row.row, *map(shown, (row.mean, row.deviation, row.sampling)), seeds, *sizes])
    note = (
        "Over seeds: standard deviation of the runs, which differ in first weights, order, and, where they are drawn, in train "
        "sequences and validation split. Of the test set: standard error that its size brings, by drawing its sequences anew; "
        "rows of a task share their test set, so their differences have less. Train and test are numbers of sequences; «drawn» is a part "
        "of the train set, chosen by the seed."
    )
    titles = ("task", "row", "score", "over seeds", "of the test set", "seeds", "train", "test")
    return Table("Scores and their errors", titles, rows, note)


def _audits(scores: list[TaskScores]) -> Table:
    rows = []
    for found in scores:
        prepared = found.prepared
        verdict = "not done" if prepared is None or prepared.verdict is None else prepared.verdict
        reasons = [] if prepared is None else [*prepared.reasons, *([prepared.error] if prepared.error else [])]
        known = [f"known: {found.task.leaks}"] if found.task.leaks else []
        sequences = f"{prepared.whole:,} / {prepared.rows[1]:,}" if prepared is not None and prepared.rows else "-"
        rows.append([found.task.name, verdict, sequences, "; ".join([*reasons, *known]) or "-"])
    note = "Of the whole train set against the test set, by `hyena-ds audit`; tasks/TASK.json beside this file has all of it."
    return Table("Audits", ("task", "verdict", "train / test", "why"), rows, note)


def _pairs(scores: list[TaskScores]) -> Table:
    rows, counts = [], []
    for found in scores:
        for pair in found.pairs:
            n, t, p = len(pair.differences), pair.t, pair.p
            if p is not None:
                counts.append(n)
            tested = ("-", "-") if t is None or p is None else (f"{t:.2f}", f"{p:.3f}" if p >= 0.001 else "< 0.001")
            rows.append([found.name, f"{pair.first} - {pair.second}", f"{pair.mean:+.3f}", str(n), *tested])
    return Table(
        "Rows against each other", ("task", "rows", "difference", "seeds", "t", "p"), rows, paired_note(counts)
    )


def paired_note(counts: list[int]) -> str:
    """What the paired tests are, and how little so few seeds can tell; `counts` has the seeds of each test."""
    text = "Paired t-test, two-sided, of the differences on the same seeds (the same drawn sequences, validation split and order)"
    if not counts:
        return f"{text}: there are not two seeds yet of any two rows, so nothing is tested."
    from scipy.special import stdtrit

    fewest = min(counts)
    needed = float(stdtrit(fewest - 1, 0.975)) / math.sqrt(fewest)
    return (
        f"{text}; not corrected for the {counted(len(counts), 'test')} of this table. With {fewest} seeds it has "
        f"{counted(fewest - 1, 'degree')} of freedom: p < 0.05 takes a mean difference of {needed:.1f} standard deviations of the "
        "differences, so that a larger p does not say that two rows are alike. Seeds vary the training, not the test set."
    )


def _published(plan: Plan, scores: list[TaskScores]) -> Table:
    rows = []
    for found in scores:
        for score in plan.suite.published_of(found.task, found.group):
            rows.append([score.name, *_of_published(score)])
    note = "Shares of 1. A re-run is by others than the model's authors."
    return Table("Published", ("task", "model", "score", "of", "compares", "source"), rows, note)


def _of_published(score: PublishedScore) -> list[str]:
    table, why = score.table, score.why_not_comparable
    what = [score.metric, *([table.spread] if table.spread and score.spread is not None else [])]
    what += [counted(table.seeds, "seed")] if table.seeds else []
    who = "re-run" if table.independent else "authors"
    return [
        table.model,
        shown(score.score, score.spread),
        ", ".join(what),
        f"{NOT_COMPARABLE}: {why}" if why else "yes",
        f"{table.source} ({who})",
    ]


def _not_run(scores: list[TaskScores]) -> Table:
    rows = []
    scored = {one.run.number for found in scores for row in found.rows for one in row.runs if one.score is not None}
    for found in scores:
        error = found.prepared.error if found.prepared is not None else None
        for row in found.rows:
            if row.why is not None and found.group is None:
                rows.append([found.name, row.row, "-", "left out", row.why])
            groups: dict[tuple[str, str], list[str]] = {}
            for one in row.runs:
                if one.score is None and (found.group is None or one.run.number in scored):
                    said = error if error and one.status == NOT_STARTED else one.error
                    groups.setdefault((one.status, said or ""), []).append(str(one.run.seed))
            rows += [[found.name, row.row, ", ".join(seeds), *key] for key, seeds in groups.items()]
    return Table("Not in the table", ("task", "row", "seeds", "status", "why"), rows, "")


_COLUMNS = (
    *(
        "task",
        "metric",
        "what",
        "row",
        "mean",
        "deviation",
        "standard_error",
        "seeds",
        "measurements",
        "scores",
        "train",
        "test",
        "audit",
        "row_zero_wins",
    ),
    *("compares", "source", "status"),
)


def write_csv(file: Path, plan: Plan, scores: list[TaskScores]) -> None:
    """Write a line for row zero, for each row of models, and for each published score, of every task. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with aside(file) as partial, partial.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, _COLUMNS)
        writer.writeheader()
        for found in scores:
            writer.writerows(_csv_rows(plan, found))


def _csv_rows(plan: Plan, found: TaskScores) -> Iterator[dict[str, object]]:
    prepared, zero = found.prepared, found.row_zero
    train, test = prepared.rows if prepared is not None and prepared.rows else (None, None)
    about: dict[str, object] = {"task": found.name, "metric": found.task.metric, "train": train, "test": test}
    about |= {"audit": prepared.verdict if prepared is not None else None, "row_zero_wins": found.zero_wins}
    if zero is not None:
        yield {**about, "what": ZERO, "row": zero[0], "mean": zero[1]}
    for row in found.rows:
        states = dict.fromkeys(one.status for one in row.runs)
        yield {
            **about,
            "what": "model",
            "row": row.row,
            "mean": row.mean,
            "deviation": row.deviation,
            "standard_error": row.sampling,
            "seeds": len(row.by_seed),
            "measurements": min(1, len(row.by_seed)) if row.is_one else len(row.by_seed),
            "scores": " ".join(f"{seed}:{score:.6g}" for seed, score in row.by_seed.items()),
            "status": row.why or "; ".join(states),
        }
    for score in plan.suite.published_of(found.task, found.group):
        yield {
            **about,
            "metric": score.metric,
            "what": "published",
            "row": score.table.model,
            "mean": score.score,
            "deviation": score.spread,
            "seeds": score.table.seeds,
            "compares": f"{NOT_COMPARABLE}: {score.why_not_comparable}" if score.why_not_comparable else "yes",
            "source": score.table.source,
        }
