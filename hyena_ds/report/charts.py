"""Line charts as inline SVG, without a library: they take the page's colours, by classes, in light and in dark.

    series, boundaries --scales, ticks--> <svg> 540 x 230 or, wide, 1090 x 300; as wide as its place

Colours are classes s0 to s7. Everything that comes from a run is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

_SIZE, _WIDE_SIZE = (540.0, 230.0), (1090.0, 300.0)
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 14.0, 20.0, 34.0
_BUCKETS = 240
"""Points of a line at most: longer ones are means over neighbours, with a band from smallest to largest."""
_LABEL_GAP = 26.0
"""Least distance of two boundaries' labels."""


@dataclass(frozen=True)
class Series:
    """A line, or single points."""

    label: str
    points: Sequence[Point]
    colour: int = 0
    marks: bool = False
    """Draw each point, with its value under the pointer."""
    dashed: bool = False


@dataclass(frozen=True)
class Boundary:
    """A vertical line."""

    x: float
    label: str
    alarm: bool = False


@dataclass(frozen=True)
class Scale:
    """From values to places in the picture."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value, in the picture's units."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        at = math.log(max(value, 1e-300)) if self.log else value
        return self.start + (at - low) / ((high - low) or 1.0) * (self.end - self.start)

    def ticks(self, wanted: int = 6) -> list[float]:
        """Round values."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            every = (1, 2, 5) if len(decades) <= 3 else (1,)
            ticks = self._inside([digit * 10.0**decade for decade in decades for digit in every])
            if len(ticks) > 2:
                return ticks
        rough = (self.high - self.low) / wanted
        size = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
        step = next((size * factor for factor in (1, 2, 2.5, 5) if size * factor >= rough), 10 * size)
        first = math.ceil(self.low / step - 1e-9)
        return self._inside([number * step for number in range(first, first + 2 * wanted + 2)])

    def _inside(self, ticks: list[float]) -> list[float]:
        return [tick for tick in ticks if self.low * (1 - 1e-9) - 1e-12 <= tick <= self.high * (1 + 1e-9) + 1e-12]


def short(value: float) -> str:
    """As 512, 1.5k, 7.5M or 2B."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"


def line_chart(
    title: str,
    series: Sequence[Series],
    boundaries: Sequence[Boundary] = (),
    x_range: tuple[float, float] | None = None,
    x_title: str = "tokens",
    log_x: bool = False,
    log_y: bool = False,
    from_zero: bool = False,
    cut: float | None = None,
    wide: bool = False,
    show: Callable[[float], str] = short,
) -> str:
    """A figure, or a sentence where there is nothing to draw. `cut` is the largest y that is shown."""
    drawn = [_visible(one, log_x, log_y) for one in series]
    drawn = [one for one in drawn if one.points]
    if not drawn:
        return f'<figure><figcaption>{escape(title)}</figcaption><p class="none">nothing recorded</p></figure>'
    xs = [x for one in drawn for x, _ in one.points]
    low, high = x_range or (min(xs), max(xs))
    width, height = _WIDE_SIZE if wide else _SIZE
    x = Scale(low, high if high > low else low + 1.0, _LEFT, width - _RIGHT, log_x)
    y = _y_scale([value for one in drawn for _, value in one.points], height, log_y, from_zero, cut)
    largest = max(value for one in drawn for _, value in one.points)
    if not log_y and largest > y.high:
        title += f" (goes up to {show(largest)})"
    across, down = x.end - x.start, y.start - y.end
    # An inner picture cuts off what is outside of it; its edge leaves room for a mark on the axes.
    inner = (
        f'<svg x="{x.start - 5:.0f}" y="{y.end:.0f}" width="{across + 10:.0f}" height="{down + 5:.0f}" '
        f'viewBox="{x.start - 5:.0f} {y.end:.0f} {across + 10:.0f} {down + 5:.0f}">'
    )
    lines = "".join(_line(one, x, y, show) for one in drawn)
    parts = [_grid(x, y, show), _boundaries(boundaries, x, y), inner, lines, "</svg>"]
    named = [one for one in drawn if one.label]
    legend = "".join(
        f'<span class="key s{one.colour}{" dashed" if one.dashed else ""}">{escape(one.label)}</span>' for one in named
    )
    return (
        f'<figure><figcaption>{escape(title)}<span class="legend">{legend}</span></figcaption>'
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title, quote=True)}">'
        + "".join(parts)
        + f'<text class="axis" x="{x.end:.0f}" y="{height - 4:.0f}" text-anchor="end">{escape(x_title)}</text>'
        "</svg></figure>"
    )


def thinned(points: Sequence[Point], log_x: bool) -> tuple[list[Point], list[tuple[float, float, float]]]:
    """At most _BUCKETS points, and for each x the smallest and the largest y that it stands for."""
    if len(points) <= _BUCKETS:
        return list(points), []
    scale = Scale(points[0][0], points[-1][0], 0.0, _BUCKETS - 1e-6, log_x)
    buckets: dict[int, list[Point]] = {}
    for point in points:
        buckets.setdefault(int(scale(point[0])), []).append(point)
    line, band = [], []
    for _, bucket in sorted(buckets.items()):
        values = [value for _, value in bucket]
        middle = sum(at for at, _ in bucket) / len(bucket)
        line.append((middle, sum(values) / len(values)))
        band.append((middle, min(values), max(values)))
    return line, band


def _visible(one: Series, log_x: bool, log_y: bool) -> Series:
    points = [(x, y) for x, y in one.points if math.isfinite(y) and (x > 0 or not log_x) and (y > 0 or not log_y)]
    return Series(one.label, points, one.colour, one.marks, one.dashed)


def _y_scale(values: list[float], height: float, log: bool, from_zero: bool, cut: float | None) -> Scale:
    low, high = min(values), max(values)
    if cut is not None and low < cut < high:
        high = cut
    if from_zero and not log:
        low, high = 0.0, high if high > 0 else 1.0
    if high <= low:
        low, high = (low / 2, high * 2) if log else (low - 0.5 * abs(low or 1.0), high + 0.5 * abs(high or 1.0))
    if log:
        low, high = low / 1.15, high * 1.15
    else:
        margin = 0.06 * (high - low)
        low, high = low if from_zero else low - margin, high + margin
    return Scale(low, high, height - _BOTTOM, _TOP, log)


def _grid(x: Scale, y: Scale, show: Callable[[float], str]) -> str:
    parts = []
    ends = f'x1="{x.start:.0f}" x2="{x.end:.0f}"'
    for tick in y.ticks():
        at = y(tick)
        parts.append(f'<line class="grid" {ends} y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{x.start - 6:.0f}" y="{at + 3.5:.1f}" text-anchor="end">{show(tick)}</text>'
        )
    for tick in x.ticks():
        parts.append(f'<text x="{x(tick):.1f}" y="{y.start + 15:.0f}" text-anchor="middle">{short(tick)}</text>')
    parts.append(f'<line class="base" {ends} y1="{y.start:.0f}" y2="{y.start:.0f}"/>')
    return "".join(parts)


def _boundaries(boundaries: Sequence[Boundary], x: Scale, y: Scale) -> str:
    parts, last = [], -math.inf
    for boundary in boundaries:
        if not x.low <= boundary.x <= x.high:
            continue
        at = x(boundary.x)
        kind = "alarm" if boundary.alarm else "stage"
        parts.append(
            f'<line class="{kind}" x1="{at:.1f}" x2="{at:.1f}" y1="{y.end:.0f}" y2="{y.start:.0f}">'
            f"<title>{escape(boundary.label)}</title></line>"
        )
        if not boundary.alarm and at - last >= _LABEL_GAP:
            parts.append(f'<text class="stage" x="{at + 3:.1f}" y="{y.end - 7:.0f}">{escape(boundary.label)}</text>')
            last = at
    return "".join(parts)


def _line(one: Series, x: Scale, y: Scale, show: Callable[[float], str]) -> str:
    points, band = ([*one.points], []) if one.marks or one.dashed else thinned(one.points, x.log)
    parts: list[str] = []

    def place(at: float, value: float) -> str:
        return f"{x(at):.1f},{y(value):.1f}"

    if band:
        upper = [place(at, high) for at, _, high in band]
        lower = [place(at, low) for at, low, _ in reversed(band)]
        parts.append(f'<polygon class="band s{one.colour}" points="{" ".join(upper + lower)}"/>')
    if len(points) > 1:
        kind = f"line s{one.colour}" + (" dashed" if one.dashed else "")
        parts.append(f'<polyline class="{kind}" points="{" ".join(place(*point) for point in points)}"/>')
    if one.marks or len(points) == 1:
        for at, value in points:
            across, down = place(at, value).split(",")
            label = f"{one.label} {show(value)} at {short(at)}".strip()
            parts.append(
                f'<circle class="mark s{one.colour}" cx="{across}" cy="{down}" r="3.2"><title>{escape(label)}</title></circle>'
            )
    return "".join(parts)
