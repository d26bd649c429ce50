"""From the answers of a side's ranks to a row, and from rows to what a person reads. Imports no torch."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from hyena_ds.bench.case import Side
from hyena_ds.bench.report import Column, Row, print_table, shown_spread, spread_of_turns
from hyena_ds.bench.turns import Turn
from hyena_ds.cost.work import PRODUCTS, TRANSFORMS, WAITING, Ceilings, exchange_bytes, least_seconds
from hyena_ds.text import number

LIMITED = ("hyena-ds", "hyena-ds engine", "published")
"""Kinds of sides that compute what work.py counts, all from the same first weights."""


def new_row(side: Side) -> Row:
    """What is known before anything ran."""
    return {
        "side": side.label,
        "kind": side.kind,
        **side.case.columns(),
        "processes": side.processes,
        "status": "measured",
        "estimated_memory_gib": side.memory_gib(),
    }


def add_measured(
    row: Row,
    side: Side,
    turns: list[Turn],
    live: list[float] | None,
    rates: Ceilings | None,
    interleaved: bool,
) -> None:
    """Times are of the slowest rank, CPU seconds the sum over the ranks, memory of the largest rank."""
    row |= spread_of_turns(turns)
    row["cpu_seconds_per_rank"] = statistics.median(max(answer["cpu_seconds"] for answer in turn) for turn in turns)
    row["tokens_per_second"] = side.case.tokens / row["wall_seconds"]["median"]
    row["cpu_microseconds_per_token"] = 1e6 * row["cpu_seconds"]["median"] / side.case.tokens
    row["live_memory_gib"] = None if live is None else max(live)
    row["interleaved"] = interleaved
    if turns[-1][0].get("filter_seconds") is not None:
        filter_seconds = statistics.median(max(answer["filter_seconds"] for answer in turn) for turn in turns)
        row["filter_seconds"] = filter_seconds
        row["filter_nanoseconds_per_token"] = 1e9 * filter_seconds * side.processes / side.case.tokens
    if rates is not None:
        row["limit"] = _limit(row, side, rates)
        if "bytes_forward" in turns[-1][0]:
            least = exchange_bytes(side.case)
            row["bytes_exchanged"] = {
                "forward": max(answer["bytes_forward"] for answer in turns[-1]),
                "backward": max(answer["bytes_backward"] for answer in turns[-1]),
                "minimum_forward": float(least[0]),
                "minimum_backward": float(least[1]),
            }


def _limit(row: Row, side: Side, rates: Ceilings) -> dict[str, Any]:
    """Least seconds at the machine's ceilings, and the share of them that the step reaches."""
    wall, busy = row["wall_seconds"]["median"], row["cpu_seconds_per_rank"] / side.case.threads
    least = least_seconds(side.case, rates, recompute=False)
    limit = {"rates": asdict(rates), "seconds": least, "share": sum(least.values()) / wall}
    if side.kind != "published":
        again = least_seconds(side.case, rates, recompute=True)
        limit["seconds_with_recompute"] = again
        limit["share_with_recompute"] = sum(again.values()) / wall
        limit["share_with_recompute_of_cpu_seconds"] = sum(again.values()) / busy if busy else None
    return limit


def print_rows(rows: list[Row], *below: str) -> None:
    """Times and memory, then the limits, then every side against the first of ours; lines `below` follow."""
    print_table(_COLUMNS, rows)
    measured = [row for row in rows if row["status"] == "measured"]
    if limited := [row for row in measured if row["kind"] == "hyena-ds"]:
        print_table(_LIMIT_COLUMNS, limited)
    if compared := _compared(measured):
        print_table(_COMPARED_COLUMNS, compared)
    for row in measured:
        if row.get("parts"):
            print_table(_part_columns(row), sorted(row["parts"], key=lambda part: -max(part["wall"], part["cpu"])))
    for line in below:
        print(f"  {line}")


def mean_of_ranks(answers: list[dict[str, tuple[float, float]]]) -> list[Row]:
    """Seconds by part of a step, of the clock and of the CPU."""
    names = dict.fromkeys(name for answer in answers for name in answer)
    mean = {
        name: [statistics.fmean(answer.get(name, (0.0, 0.0))[at] for answer in answers) for at in (0, 1)]
        for name in names
    }
    return [{"status": "measured", "part": name, "wall": wall, "cpu": cpu} for name, (wall, cpu) in mean.items()]


def _part_columns(row: Row) -> list[Column]:
    """Each part beside the least that the machine needs for it, recomputation included, where that is known."""
    least = row["limit"]["seconds_with_recompute"]
    ceilings = {PRODUCTS: least["gemm"], TRANSFORMS: least["fft"], WAITING: least.get("exchange")}
    of_all = sum(part["wall"] for part in row["parts"])
    return [
        (f"{row['side']}, {row['context_length']:,}: part", lambda part: part["part"]),
        ("s of a rank", lambda part: number(part["wall"])),
        ("share", lambda part: f"{part['wall'] / of_all:.0%}"),
        ("CPU s", lambda part: number(part["cpu"])),
        ("s at the ceiling", lambda part: number(ceilings.get(part["part"]))),
    ]


def _sent(row: Row) -> str:
    if not (sent := row.get("bytes_exchanged")) or not sent["minimum_forward"]:
        return "-"
    found, least = sent["forward"] + sent["backward"], sent["minimum_forward"] + sent["minimum_backward"]
    return f"{number(found / 2**20)} / {number(least / 2**20)}"


def _share(row: Row) -> str:
    return f"{row['limit']['share']:.0%}" if "limit" in row else "-"


_COLUMNS: list[Column] = [
    ("side", lambda row: row["side"]),
    ("context", lambda row: f"{row['context_length']:,}"),
    ("s a step: median (spread)", lambda row: shown_spread(row, "wall_seconds")),
    ("CPU s, all ranks", lambda row: shown_spread(row, "cpu_seconds")),
    ("tokens/s", lambda row: f"{row['tokens_per_second']:,.0f}"),
    ("peak GiB a rank", lambda row: number(row["peak_memory_gib"])),
    ("live tensors", lambda row: number(row["live_memory_gib"])),
    ("MiB sent / least", _sent),
    ("of the limit", _share),
]


def _least(row: Row, part: str) -> str:
    return number(row["limit"]["seconds"].get(part))


_LIMIT_COLUMNS: list[Column] = [
    ("least seconds at the machine's limits", lambda row: row["side"]),
    ("context", lambda row: f"{row['context_length']:,}"),
    ("GEMM", lambda row: _least(row, "gemm")),
    ("FFT", lambda row: _least(row, "fft")),
    ("exchange", lambda row: _least(row, "exchange")),
    ("sum", lambda row: number(sum(row["limit"]["seconds"].values()))),
    ("reached", _share),
    ("with recompute", lambda row: number(sum(row["limit"]["seconds_with_recompute"].values()))),
    ("reached", lambda row: f"{row['limit']['share_with_recompute']:.0%}"),
    ("of CPU s", lambda row: f"{row['limit']['share_with_recompute_of_cpu_seconds'] or 0:.0%}"),
    ("filter took s", lambda row: number(row.get("filter_seconds"))),
    ("ns a token", lambda row: number(row.get("filter_nanoseconds_per_token"))),
]


def _compared(rows: list[Row]) -> list[Row]:
    """The rows that have an earlier one of ours at their context length and allocator; adds the ratios to them."""
    first: dict[tuple[int, str], Row] = {}
    compared = []
    for row in rows:
        base = first.setdefault((row["context_length"], row["allocator"]), row)
        if row is base or base["kind"] != "hyena-ds":
            continue
        row["against"] = {
            "side": base["side"],
            "wall": row["wall_seconds"]["median"] / base["wall_seconds"]["median"],
            "cpu": row["cpu_seconds"]["median"] / base["cpu_seconds"]["median"],
            "peak_memory": row["peak_memory_gib"] / base["peak_memory_gib"],
            "live_memory": _ratio(row["live_memory_gib"], base["live_memory_gib"]),
        }
        compared.append(row)
    return compared


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _times(key: str) -> Callable[[Row], str]:
    return lambda row: "-" if row["against"][key] is None else f"{row['against'][key]:.2f} x"


_COMPARED_COLUMNS: list[Column] = [
    ("compared", lambda row: row["side"]),
    ("context", lambda row: f"{row['context_length']:,}"),
    ("time", _times("wall")),
    ("CPU seconds", _times("cpu")),
    ("peak memory", _times("peak_memory")),
    ("live tensors", _times("live_memory")),
    ("of", lambda row: row["against"]["side"]),
]
