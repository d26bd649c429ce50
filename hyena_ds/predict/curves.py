"""From sums of blocks to rows with standard errors, and their picture.

A mean is the sum of all losses over the number of targets; its standard error is that of a ratio of sums over blocks, which
takes the bases of one block for dependent and blocks for independent.

b blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hyena_ds.baselines.backoff import Floats
from hyena_ds.plots import COLOURS, GREY, dress, line, panels
from hyena_ds.predict.beside import COPY, LZMA, MARKOV, WEIGHT
from hyena_ds.predict.targets import ALONE, COLUMNS, CONTEXT, POSITION, REPEATED, Plan

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]


def mean_and_error(loss_b: Floats, targets_b: Floats) -> tuple[float, float | None]:
    """The mean of a target, and its standard error; None where there are fewer than two blocks with a target."""
    loss_b, targets_b = loss_b[targets_b > 0], targets_b[targets_b > 0]
    blocks, total = len(loss_b), float(targets_b.sum())
    mean = float(loss_b.sum()) / total
    if blocks < 2:
        return mean, None
    residual_b = loss_b - mean * targets_b
    return mean, math.sqrt(blocks / (blocks - 1) * float(residual_b @ residual_b)) / total


def quality(loss_b: Floats, targets_b: Floats) -> Row:
    """Columns of a mean loss: in nats, in bits and as a perplexity, each with its standard error."""
    mean, error = mean_and_error(loss_b, targets_b)
    perplexity = math.exp(mean)
    return {
        "targets": int(targets_b.sum()),
        "nats": mean,
        "nats_error": error,
        **in_bits("bits_per_base", mean, error),
        "perplexity": perplexity,
        "perplexity_error": None if error is None else perplexity * error,
    }


def in_bits(name: str, nats: float, error: float | None) -> Row:
    """Columns of a mean in bits and its standard error."""
    return {name: nats / math.log(2), f"{name}_error": None if error is None else error / math.log(2)}


class Totals:
    """Sums of parts, by what they are about: an array over the blocks each."""

    def __init__(self, tables: Iterable[pa.Table], blocks: int):
        self._sums: dict[tuple[str, int], Floats] = {}
        for table in tables:
            for block, about, at, *sums in zip(*(table[name].to_pylist() for name in COLUMNS), strict=True):
                self._sums.setdefault((about, at), np.zeros((3, blocks)))[:, max(0, block)] += sums

    def of(self, about: str) -> dict[int, Floats]:
        """(3, b) sums of losses, targets and bases before, by what they are at, in its order."""
        return {at: sums for (what, at), sums in sorted(self._sums.items()) if what == about and sums[1].any()}


def tables_of(parts: Iterable[pa.Table], blocks: int, plan: Plan, trained: bool) -> dict[str, list[Row]]:
    """The rows of each table."""
    totals = Totals(parts, blocks)
    contexts = totals.of(CONTEXT)
    full_b, targets_b, _ = contexts[plan.context]
    context = [
        {
            "context": at,
            "mean_before": float(before_b.sum() / targets_b.sum()),
            **quality(loss_b, targets_b),
            **in_bits("above_longest_bits", *mean_and_error(loss_b - full_b, targets_b)),
        }
        for at, (loss_b, _, before_b) in contexts.items()
    ]
    position = [
        {"first": at // 2 + 1, "last": min(at, plan.context), **quality(*sums[:2])}
        for at, sums in totals.of(POSITION).items()
    ]
    return {
        "context": context,
        "position": position,
        "baselines": _baselines(totals, contexts[plan.context], trained),
        "recall": _recall(totals, plan.segment),
    }


def _baselines(totals: Totals, model: Floats, trained: bool) -> list[Row]:
    loss_b, targets_b, _ = model
    weights = {at: float(sums[0].sum()) for at, sums in totals.of(WEIGHT).items()}
    learnt = "training bases" if trained else "the bases before, online"
    rows = [_beside("model", None, "its own training", None, loss_b, targets_b, loss_b)]
    for order, sums in totals.of(MARKOV).items():
        rows.append(_beside(f"Markov {order}", order, learnt, weights[order], sums[0], sums[1], loss_b))
    for mer, sums in totals.of(COPY).items():
        learnt_too = "both" if trained else learnt
        rows.append(_beside(f"copy {mer}", None, learnt_too, None, sums[0], sums[1], loss_b))
    packed = next(iter(totals.of(LZMA).values()))
    nats = float(packed[0].sum() / packed[1].sum())
    rows.append(
        {name: None for name in rows[0]}
        | {"baseline": "LZMA 9e", "learnt_from": "the targets", "targets": int(packed[1].sum()), "nats": nats}
        | {"bits_per_base": nats / math.log(2), "perplexity": math.exp(nats)}
    )
    return rows


def _beside(
    name: str, order: int | None, learnt: str, weight: float | None, loss_b: Floats, targets_b: Floats, model_b: Floats
) -> Row:
    """One row of baselines.tsv: the last columns compare it with the model block by block."""
    return {
        "baseline": name,
        "order": order,
        "learnt_from": learnt,
        "backoff_weight": weight,
        **quality(loss_b, targets_b),
        **in_bits("above_model_bits", *mean_and_error(loss_b - model_b, targets_b)),
    }


def _recall(totals: Totals, segment: int) -> list[Row]:
    rows = []
    repeated = totals.of(REPEATED)
    for gap, (alone_b, targets_b, _) in totals.of(ALONE).items():
        again_b = repeated[gap][0]
        rows.append(
            {
                "gap": gap,
                "segment": segment,
                "targets": int(targets_b.sum()),
                **in_bits("alone_bits", *mean_and_error(alone_b, targets_b)),
                **in_bits("repeated_bits", *mean_and_error(again_b, targets_b)),
                **in_bits("saved_bits", *mean_and_error(alone_b - again_b, targets_b)),
            }
        )
    return rows


def draw(path: Path, title: str, tables: dict[str, list[Row]]) -> None:
    """Write the picture of the four tables: a panel for each of three, and baselines as lines in the first."""
    context, position, recall = tables["context"], tables["position"], tables["recall"]
    with panels(path, 3, title, (16, 4.8)) as (first, second, third):
        _curve(first, context, "context", "bits_per_base", "the model")
        for number, row in enumerate(_shown(tables["baselines"]), start=1):
            colour = COLOURS[number % len(COLOURS)]
            first.axhline(row["bits_per_base"], color=colour, linestyle="--", linewidth=1.2, label=row["baseline"])
        dress(first, "Bits per base by context", _ticks(context, "context"), "bases before a target, at most")
        first.legend(fontsize=8, edgecolor="none", framealpha=0.85)
        _curve(second, position, "last", "bits_per_base", "")
        dress(second, "Bits per base by position in the window", _ticks(position, "last"), "bases before, at most")
        _curve(third, recall, "gap", "saved_bits", "")
        third.axhline(0, color=GREY, linewidth=1)
        dress(third, "Bits per base that a copy before saves", _ticks(recall, "gap"), "bases between the copies")


def _curve(axes: Any, rows: Sequence[Row], x: str, y: str, label: str) -> None:
    """A line, and a band of two standard errors on both sides."""
    xs, ys = [row[x] for row in rows], [row[y] for row in rows]
    errors = [2 * (row[f"{y}_error"] or 0.0) for row in rows]
    colour = line(axes, 0, xs, ys, label)
    low, high = ([y + sign * error for y, error in zip(ys, errors, strict=True)] for sign in (-1, 1))
    axes.fill_between(xs, low, high, color=colour, alpha=0.2, linewidth=0, label="two standard errors")


def _shown(baselines: list[Row]) -> list[Row]:
    """The baselines of a picture: the frequencies, the best Markov model, and the compressors."""
    markov = [row for row in baselines if row["order"] is not None]
    best = min(markov, key=lambda row: float(row["nats"]))
    rest = [row for row in baselines if row["order"] is None and row["baseline"] != "model"]
    return [markov[0], *([best] if best is not markov[0] else []), *rest]


def _ticks(rows: Sequence[Row], x: str) -> list[float]:
    """Some of the powers of two of a column."""
    powers = [row[x] for row in rows if row[x] & (row[x] - 1) == 0]
    return powers[:: 1 + len(powers) // 9]
