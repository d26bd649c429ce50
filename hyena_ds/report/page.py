"""One HTML page about a run: charts and tables in a single file that fetches nothing.

    Records --> headline numbers, charts (charts.py), tables (tables.py) --> text of the page

The style sheet is page.css beside this file, put into the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from statistics import median

from hyena_ds.files.rows import HOSTS_CHANGED, training_time
from hyena_ds.redaction import shown
from hyena_ds.report import pictures, tables
from hyena_ds.runs.records import VALIDATION, Records
from hyena_ds.text import show_duration

_STYLE = Path(__file__).with_name("page.css")


def page(records: Records) -> str:
    """The whole page. Everything that comes from the run is escaped."""
    name, config = escape(records.config.name), records.config
    sections = [
        section("Loss", pictures.loss(records)),
        section("Validation by context", pictures.validation(records) + tables.validation(records)),
        *([section("Test set", tables.test(records))] if config.task is not None else []),
        section("Speed and memory", pictures.steps(records, pictures.SPEED)),
        *([section("Efficiency and ranks", efficiency)] if (efficiency := pictures.efficiency(records)) else []),
        section("Optimizer", pictures.steps(records, pictures.OPTIMIZER)),
        section("Faults and restarts", tables.events(records)),
        section("What ran", tables.what_ran(records)),
        section("Checkpoints", tables.checkpoints(records)),
        section("Environment", tables.environment(records)),
        section("Last lines of the log", tables.log(records)),
    ]
    return document(
        records.config.name,
        f"<h1>{name}{_badge(records)}</h1>{_subtitle(records)}",
        _headline(records) + "".join(sections),
        f"hyena-ds report, {{now}}, from {records.path}",
    )


def document(title: str, header: str, body: str, written_by: str) -> str:
    """A page that fetches nothing. `header` and `body` are HTML; title and `written_by`, in which {now} is the time, are text."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # No icon is asked for, and nothing else either.
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)} - hyena-ds</title><style>{_STYLE.read_text(encoding='utf-8')}</style></head><body><main>"
        f"<header>{header}</header>"
        + body
        + f"<footer>Written by {escape(written_by.replace('{now}', now))}.</footer></main></body></html>\n"
    )


def section(title: str, content: str) -> str:
    """A titled part of a page; `content` is HTML."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>\n"


def _badge(records: Records) -> str:
    state = tables.state(records)
    kind = {"complete": "good", "failed": "bad"}.get(state, "open")
    return f' <span class="badge {kind}">{escape(state)}</span>'


def _subtitle(records: Records) -> str:
    config = records.config
    model = f"HyenaDNA, width {config.model.width}, {config.model.layers} layers, context to {config.model.maximum_context:,}"
    places = [config.task.train] if config.task is not None else [source.shards for source in config.data.sources]
    shards = ", ".join(map(shown, places))
    parts = [model, f"data {shards}", f"ZeRO stage {config.zero_stage}", config.precision, f"seed {config.seed}"]
    if records.written is not None:
        parts.append(f"last recorded {records.written.strftime('%Y-%m-%d %H:%M:%S UTC')}")
    return f"<p>{escape('; '.join(parts))}</p>"


def _headline(records: Records) -> str:
    """The numbers that one looks for first."""
    config, steps = records.config, records.steps
    seconds, tokens = training_time(steps)
    last = records.summary or (records.validations[-1] if records.validations else {})
    loss = last.get("validation_loss")
    memory = max((row.get("peak_memory_gib") or 0.0 for row in steps), default=0.0)
    starts = max(len(records.starts), 1)
    faults = sum(row["kind"] != HOSTS_CHANGED for row in records.faults)
    cards = [
        ("steps", f"{records.step:,}", f"of {config.total_steps:,}"),
        ("tokens", pictures.short(tokens), f"of {pictures.short(config.total_tokens)}"),
    ]
    if loss is not None:
        context = f"context {last.get('context_length', 0):,}"
        cards.append(("validation loss", f"{loss:.4f}", f"{records.unit}, {context}"))
        cards += [
            (name.replace("_", " "), tables.shown(last.get(f"{VALIDATION}{name}")), f"validation, {context}")
            for name in records.qualities
        ]
    elif steps and steps[-1].get("loss") is not None:
        cards.append(("training loss", f"{steps[-1]['loss']:.4f}", f"{records.unit}, last step"))
    if seconds:
        cards.append(("tokens a second", f"{tokens / seconds:,.0f}", f"{show_duration(seconds)} of training"))
    shares = [row["mfu"] for row in steps if row.get("mfu") is not None]
    if shares:
        cards.append(("model flops utilisation", f"{100 * median(shares):.3g} %", "median of the steps"))
    cards += [
        ("memory", f"{memory:.2f} GiB" if memory else "-", "peak of the largest rank"),
        ("starts", str(starts), f"{faults} {'fault' if faults == 1 else 'faults'}"),
    ]
    return card_row(cards)


def card_row(cards: Sequence[tuple[str, str, str]]) -> str:
    """Numbers that one looks for first: name, value, and what there is to say of it."""
    return (
        '<div class="cards">'
        + "".join(
            f'<div><span>{escape(name)}</span><b>{escape(value)}</b><span class="more">{escape(more)}</span></div>'
            for name, value, more in cards
        )
        + "</div>\n"
    )
