"""Durations as people write them: `3h50m`, `90s`, `1d`, or plain seconds."""

from __future__ import annotations

import math
import re

_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_FORM = re.compile(r"(?:(?P<d>\d+)d)?(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m)?(?:(?P<s>\d+(?:\.\d+)?)s)?", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds of `3h50m` or `13800`. Raises ValueError unless it is one of these forms, longer than nothing, and finite."""
    text = text.strip()
    if re.fullmatch(r"\d+(?:\.\d+)?", text, re.ASCII):
        seconds = float(text)
    else:
        match = _FORM.fullmatch(text)
        if match is None:
            raise ValueError(text)
        seconds = sum(float(match[unit]) * size for unit, size in _SECONDS.items() if match[unit])
    if not 0 < seconds < math.inf:
        raise ValueError(text)
    return seconds


def show_duration(seconds: float) -> str:
    """The two largest units, as a person reads them."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    for (unit, size), (lower, below) in (
        (("d", 86400), ("h", 3600)),
        (("h", 3600), ("m", 60)),
        (("m", 60), ("s", 1)),
    ):
        if whole >= size:
            return f"{whole // size:,}{unit}{whole % size // below:02d}{lower}"
    raise AssertionError(seconds)
