"""What a suite writes beside its runs: results.md, results.csv, results.png, report.html. Takes no torch."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from hyena_ds.errors import UserError, in_one_line
from hyena_ds.files.whole import write_whole
from hyena_ds.report.page import card_row, document, section
from hyena_ds.report.tables import table as html_table
from hyena_ds.suites.picture import plot
from hyena_ds.suites.plan import Plan
from hyena_ds.suites.scores import TaskScores, scores_of
from hyena_ds.suites.table import markdown_of, tables_of, write_csv
from hyena_ds.sweeps.results import COMPLETE

_IMAGE = "results.png"


def write_results(plan: Plan) -> tuple[list[str], list[TaskScores]]:
    """Write all of it from what there is. Returns a line on each file, and the scores. Raises OSError."""
    directory, scores = plan.suite.directory, scores_of(plan)
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / name for name in ("results.md", "results.csv", "report.html")]
    write_whole(files[0], markdown_of(plan, scores))
    write_csv(files[1], plan, scores)
    said, image = [], directory / _IMAGE
    try:
        plot(image, plan, scores)
        said.append(f"written: {image}")
    except UserError as error:
        image.unlink(missing_ok=True)
        said.append(f"no plot: {error}")
    write_whole(files[2], _page(plan, scores, image))
    return [*(f"written: {file}" for file in files), *said], scores


def _page(plan: Plan, scores: list[TaskScores], image: Path) -> str:
    suite = plan.suite
    wholes = [found for found in scores if found.group is None]
    runs = [one for found in wholes for row in found.rows for one in row.runs]
    complete, failed = (sum(one.status.startswith(state) for one in runs) for state in (COMPLETE, "failed"))
    state, kind = (
        ("complete", "good") if complete == len(runs) else ("failed runs", "bad") if failed else ("unfinished", "open")
    )
    known = [found.zero_wins for found in scores if found.zero_wins is not None]
    verdicts = [found.prepared.verdict for found in wholes if found.prepared is not None and found.prepared.verdict]
    cards = [
        ("runs", f"{complete:,}", f"of {len(runs):,} complete, {failed:,} failed"),
        ("tasks", f"{len(wholes):,}", f"{len(suite.models):,} rows, {len(suite.seeds):,} seeds"),
        ("audits", f"{verdicts.count('FAIL'):,} FAIL", f"{verdicts.count('WARN'):,} WARN, {verdicts.count('OK'):,} OK"),
        ("row zero wins", f"{sum(known):,}", f"of {len(known):,} tasks with scores"),
    ]
    picture = ""
    if image.is_file():
        data = base64.b64encode(image.read_bytes()).decode()
        picture = f'<figure><img alt="scores of all tasks" style="max-width:100%" src="data:image/png;base64,{data}"></figure>'
    sections = [
        section(
            each.title,
            (picture if number == 0 else "")
            + f'<div class="wide">{html_table(each.titles, [[in_one_line(cell, 400) for cell in row] for row in each.rows], words=True)}</div>'
            + (f"<p>{escape(each.note)}</p>" if each.note else ""),
        )
        for number, each in enumerate(tables_of(plan, scores))
    ]
    header = (
        f'<h1>{escape(suite.name)} <span class="badge {kind}">{state}</span></h1><p>{escape(suite.protocol or "")}</p>'
    )
    return document(
        suite.name, header, card_row(cards) + "".join(sections), f"hyena-ds evaluate, {{now}}, from {suite.directory}"
    )
