"""Images of values against context length or devices, in one style. matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hyena_ds.errors import UserError
from hyena_ds.text import in_tokens

COLOURS = ("#1f5fa8", "#d1495b", "#2e8b57", "#8a5fbf", "#c77d0a", "#4a4a4a", "#17a2b8", "#a0522d")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK = "#333333"
GREY = "#777777"
_FORMS = (".png", ".svg", ".pdf")
_DOTS = 130


def check_image(option: str, path: str) -> None:
    """Raise UserError unless `path`, which `option` names, ends as an image that can be written."""
    if Path(path).suffix.lower() not in _FORMS:
        raise UserError(f"{option} {path}: wanted a name that ends in {', '.join(_FORMS[:-1])} or {_FORMS[-1]}")


@contextmanager
def panels(path: str | Path, count: int, title: str, size: tuple[float, float]) -> Iterator[list[Any]]:
    """Axes of `count` panels beside each other below a title; at the end of the block the image is written to `path`.

    `size` is in inches. Raises UserError where matplotlib is not installed.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise UserError(f"{path}: an image needs matplotlib; pip install 'hyena-ds[plots]'") from None
    figure, axes = pyplot.subplots(1, count, figsize=size, constrained_layout=True, squeeze=False)
    try:
        yield list(axes[0])
        figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
        figure.savefig(path, dpi=_DOTS, facecolor="white")
    finally:
        pyplot.close(figure)


def line(axes: Any, number: int, x: Sequence[float], y: Sequence[float], label: str) -> str:
    """Draw the line of that number; returns its colour."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    axes.plot(x, y, color=colour, marker=marker, markersize=6, linewidth=2, label=label)
    return colour


def dress(
    axes: Any,
    title: str,
    ticks: Sequence[float] | None = None,
    label: str = "context length, tokens",
    shown: Callable[[float], str] = in_tokens,
) -> None:
    """Title, labels and grid; with `ticks` a logarithmic x axis that names them."""
    axes.set_title(title, fontsize=12, loc="left", color=INK, fontweight="bold")
    axes.set_xlabel(label, color=INK)
    if ticks is not None:
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [shown(tick) for tick in ticks])
        axes.tick_params(axis="x", which="minor", bottom=False)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
