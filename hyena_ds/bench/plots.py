"""`hyena-ds bench plot`: time per step and peak memory against context length, from the JSON files of `bench step`.

One line a side, in both panels in the same colour. matplotlib is imported here only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hyena_ds.bench.report import Row, describe_machine
from hyena_ds.errors import UserError

COLOURS = ("#1f5fa8", "#d1495b", "#2e8b57", "#8a5fbf", "#c77d0a", "#4a4a4a", "#17a2b8", "#a0522d")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK = "#333333"
_CROWDED = 9
"""Context lengths whose labels no longer stand side by side."""


def plot(results: Sequence[str], output: str) -> None:
    """Write an image. Raises UserError when a file is no result of `bench step`, or matplotlib is not installed."""
    if Path(output).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"--output {output}: wanted a name that ends in .png, .svg or .pdf")
    machine, lines = _read(results)
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise UserError("bench plot: matplotlib is not installed; pip install 'hyena-ds[plots]'") from None
    figure, (time_axes, memory_axes) = pyplot.subplots(1, 2, figsize=(13.5, 5.4), constrained_layout=True)
    styles = {side: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, side in enumerate(lines)}
    for axes, key, title in (
        (time_axes, "seconds", "Time of an optimizer step, seconds"),
        (memory_axes, "memory", "Peak memory of a process, GiB"),
    ):
        for side, points in lines.items():
            colour, marker = styles[side]
            lengths = [point["context_length"] for point in points]
            values = [point[key] for point in points]
            axes.plot(lengths, values, color=colour, marker=marker, markersize=6, linewidth=2, label=side)
            if key == "seconds":
                axes.fill_between(
                    lengths,
                    [p["fastest"] for p in points],
                    [p["slowest"] for p in points],
                    color=colour,
                    alpha=0.12,
                    lw=0,
                )
        _axes(axes, title, sorted({p["context_length"] for points in lines.values() for p in points}))
        axes.legend(loc="upper left", frameon=False, fontsize=10, labelcolor="linecolor")  # all rises to the right
    figure.suptitle(_title(lines, machine), fontsize=11, color=INK, x=0.01, ha="left")
    figure.savefig(output, dpi=150, facecolor="white")
    pyplot.close(figure)


def _read(results: Sequence[str]) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    """The machine, and for each side its points by context length; a later file replaces a point of an earlier one."""
    machines: dict[str, None] = {}
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in results:
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            machines[describe_machine(content["machine"])] = None
            for row in content["rows"]:
                if row["status"] == "measured":
                    found.setdefault(_label(row), {})[row["context_length"]] = _point(row)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; name a file that `hyena-ds bench step --json` wrote") from None
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: not a result of `hyena-ds bench step --json`; wanted one") from None
    if not found:
        raise UserError(f"{', '.join(results)}: found no measured row, wanted one at least; run `hyena-ds bench step`")
    lines = {side: [points[length] for length in sorted(points)] for side, points in found.items()}
    return " and ".join(machines), lines


def _label(row: Row) -> str:
    if row["kind"] == "unrelated jobs":
        return f"{row['processes']} unrelated jobs"
    return row["side"].replace("published", "published code")


def _point(row: Row) -> dict[str, Any]:
    seconds = row["wall_seconds"]
    return {
        "context_length": row["context_length"],
        "seconds": seconds["median"],
        "fastest": seconds["min"],
        "slowest": seconds["max"],
        "memory": row["peak_memory_gib"],
        "shape": f"width {row['width']}, {row['layers']} layers, batch {row['batch'] * row['accumulation']}, threads {row['threads']}",
    }


def _title(lines: dict[str, list[dict[str, Any]]], machine: str) -> str:
    shapes = dict.fromkeys(point["shape"] for points in lines.values() for point in points)
    return (
        f"Forward, backward and optimizer; {' or '.join(shapes)} a process; median, and the spread as a band\n{machine}"
    )


def _axes(axes: Any, title: str, lengths: list[int]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.set_title(title, fontsize=12, loc="left", color=INK, fontweight="bold")
    axes.set_xlabel("context length, tokens", color=INK)
    axes.set_xticks(lengths)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: in_tokens(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 3.0, 4.0, 5.0, 7.0) if high / low < 10 else (1.0, 2.0, 5.0) if high / low < 1000 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=30))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK)
    if len(lengths) > _CROWDED:
        axes.tick_params(axis="x", labelsize=8.5)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)


def in_tokens(length: float) -> str:
    """As 512, 8k or 1M."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "k")):
        if length >= unit and length % unit == 0:
            return f"{length / unit:.0f}{name}"
    return f"{length:,.0f}"
