"""The tables of a run's page. Everything that comes from the run is escaped, here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from hyena_ds.files.rows import HOSTS_CHANGED, MENDED, is_count, is_number
from hyena_ds.runs.records import VALIDATION, Records, Row
from hyena_ds.text import in_tokens

_MOST_SLOW = 10
"""Windows with a slow rank that the page names one by one: the first and the last ones."""


def state(records: Records) -> str:
    """In a word: complete, failed (since its last start), or unfinished."""
    if records.summary is not None:
        return "complete"
    ending = [row for row in records.faults if row["kind"] not in MENDED]
    last_start, last_fault = (rows[-1].get("time", "") if rows else "" for rows in (records.starts, ending))
    return "failed" if last_fault and last_fault >= last_start else "unfinished"


def validation(records: Records) -> str:
    """The last validation at every context length, and the baselines."""
    last = {row["context_length"]: row for row in records.validations}
    cells = [
        (
            f"HyenaDNA, context {in_tokens(length)}",
            f"{row['step']:,}",
            *(shown(row.get(f"{VALIDATION}{name}")) for name in ("loss", *records.qualities)),
        )
        for length, row in sorted(last.items())
    ]
    markov = (records.summary or {}).get("markov_losses") or {}
    cells += [
        (f"Markov, order {order}", "", shown(loss), *(shown(_of_loss(name, loss)) for name in records.qualities))
        for order, loss in markov.items()
    ]
    if not cells:
        return _none("no validation yet")
    return table(("", "step", records.unit, *(name.replace("_", " ") for name in records.qualities)), cells)


def test(records: Records) -> str:
    """What the selected weights are worth on the test set; empty where there is none, or none yet."""
    found = (records.summary or {}).get("test")
    measured = found.get("metrics") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(measured, dict):
        return _none("not opened yet" if records.summary is None else "this run has none")
    names = [str(name) for name in measured]
    cells = [*(shown(value) for value in measured.values())]
    facts = (
        f"{found.get('file')}, SHA-256 {found.get('sha256')}; opened once, by the weights of step {found.get('step')}"
    )
    count = found.get("n")
    return (
        table(
            ("sequences", *(name.replace("_", " ") for name in names)),
            [(f"{count:,}" if is_count(count) else "", *cells)],
        )
        + f"<p>{escape(facts)}.</p>"
    )


def events(records: Records) -> str:
    """Starts, faults, changes of hosts and skipped steps, in their order."""
    rows = [
        (row.get("time", ""), "started again" if number else "start", f"{row.get('step', 0):,}", _where(row))
        for number, row in enumerate(records.starts)
    ]
    rows += [
        (row.get("time", ""), row["kind"], f"{row['step']}", f"{_rank(row)}{row['text']}") for row in records.faults
    ]
    rows.sort(key=lambda row: row[0])
    skipped = [str(row["step"]) for row in records.steps if row.get("skipped")]
    text = "".join(f"<p>Left out: {escape(line)}.</p>" for line in records.left_out)
    if skipped:
        text += f"<p>Skipped, because loss or gradients were not finite: step {escape(', '.join(skipped))}.</p>"
    slow = [f"Step {row['step']:,}: {words}." for row in records.steps for words in row.get("slow_ranks", ())]
    if len(slow) > _MOST_SLOW:
        slow[_MOST_SLOW // 2 : -_MOST_SLOW // 2] = [f"{len(slow) - _MOST_SLOW:,} more."]
    text += "".join(f"<p>{escape(line)}</p>" for line in slow)
    if not rows:
        return text or _none("none recorded")
    return text + table(("time", "what", "after step", "where, why"), rows, words=True)


def what_ran(records: Records) -> str:
    """Grid and batch by stage, and the resolved config."""
    return (
        f"<pre>{escape(chr(10).join(records.grid))}</pre>"
        f"<details><summary>config.yaml, resolved</summary><pre>{escape(records.config_text)}</pre></details>"
    )


def checkpoints(records: Records) -> str:
    """The run's checkpoints, as `hyena-ds checkpoints` lists them."""
    if not records.checkpoints:
        return _none("none yet")
    return f"<pre>{escape(chr(10).join(records.checkpoints))}</pre>"


def environment(records: Records) -> str:
    """A row for every start."""
    if not records.starts:
        return _none("not recorded: the run is of an older version")
    names = list(dict.fromkeys(name for row in records.starts for name in row.get("versions", {})))
    rows = []
    for row in records.starts:
        hosts = ", ".join(f"{host} x {count}" for host, count in row.get("hosts", {}).items())
        system = " ".join(row[key] for key in ("system", "launcher") if row.get(key))
        where = (str(row.get("ranks", "")), hosts, row.get("device", ""), str(row.get("threads", "")), system)
        versions = (row.get("versions", {}).get(name, "") for name in names)
        rows.append((row.get("time", ""), f"{row.get('step', 0):,}", *where, *versions))
    titles = ("time", "after step", "ranks", "hosts", "device", "threads", "system", *names)
    return f'<div class="wide">{table(titles, rows, words=True)}</div>'


def log(records: Records) -> str:
    """The last lines of the log, folded."""
    return f"<details><summary>log.txt</summary><pre>{escape(chr(10).join(records.log))}</pre></details>"


def _rank(row: Row) -> str:
    return "" if row["kind"] == HOSTS_CHANGED else f"rank {row.get('rank', '?')}: "


def _where(row: Row) -> str:
    hosts = ", ".join(row.get("hosts", {}))
    return f"{row.get('ranks', '?')} ranks on {hosts or 'unknown hosts'}" + (
        f", {row['launcher']}" if row.get("launcher") else ""
    )


def shown(value: Any) -> str:
    """A loss or another measure."""
    return f"{value:.4f}" if value is not None and is_number(value) else ""


def _of_loss(name: str, loss: float) -> float | None:
    """What a language model's loss is in another measure; None for one that does not follow from it."""
    return {"bits_per_base": loss / math.log(2), "perplexity": math.exp(min(loss, 700.0))}.get(name)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], words: bool = False) -> str:
    """A table in HTML, of text: numbers on the right, or all on the left where the cells are `words`."""
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    kind = "words" if words else "numbers"
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _none(text: str) -> str:
    return f'<p class="none">{escape(text)}</p>'
