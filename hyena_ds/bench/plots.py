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
from hyena_ds.plots import check_image, dress, line, panels

_CROWDED = 9
"""Context lengths whose labels no longer stand side by side."""


def plot(results: Sequence[str], output: str) -> None:
    """Write an image. Raises UserError when a file is no result of `bench step`, or matplotlib is not installed."""
    check_image("--output", output)
    machine, sides = _read(results)
    lengths = sorted({point["context_length"] for points in sides.values() for point in points})
    with panels(output, 2, _title(sides, machine), (13.5, 5.4)) as both:
        for axes, key, title in (
            (both[0], "seconds", "Time of an optimizer step, seconds"),
            (both[1], "memory", "Peak memory of a process, GiB"),
        ):
            for number, (side, points) in enumerate(sides.items()):
                x = [point["context_length"] for point in points]
                colour = line(axes, number, x, [point[key] for point in points], side)
                if key == "seconds":
                    low, high = ([point[end] for point in points] for end in ("fastest", "slowest"))
                    axes.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)
            dress(axes, title, lengths)
            _logarithmic(axes, len(lengths))
            axes.legend(loc="upper left", frameon=False, fontsize=10, labelcolor="linecolor")  # all rises to the right


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


def _logarithmic(axes: Any, lengths: int) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.margins(y=0.12)
    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 3.0, 4.0, 5.0, 7.0) if high / low < 10 else (1.0, 2.0, 5.0) if high / low < 1000 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=30))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    if lengths > _CROWDED:
        axes.tick_params(axis="x", labelsize=8.5)
