"""What a device is said to reach, beside what one of its kind was measured to."""

from __future__ import annotations

import json
import math
import re

import pytest

from hyena_ds.cost.devices import TRANSFORM_COPIES, transform_copies
from tests.paths import ROOT

CEILINGS = json.loads((ROOT / "bench" / "results" / "card" / "ceilings.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("points", "copies"), TRANSFORM_COPIES)
def test_a_transform_of_a_measured_size_takes_what_it_took(points: int, copies: float) -> None:
    batch = {1 << 16: 512, 1 << 21: 32, 1 << 24: 4}[points]
    found = re.search(r"([\d.]+) copies of its data", CEILINGS[f"real transform {points} x {batch}"])
    assert found is not None and float(found[1]) == copies == transform_copies(points)


def test_larger_transforms_take_more_copies_of_their_data() -> None:
    counts = [transform_copies(1 << exponent) for exponent in range(1, 31)]
    assert counts == sorted(counts) and counts[0] == 2.9 and math.isfinite(counts[-1])
    assert transform_copies(1 << 18) == transform_copies(1 << 21), "as many passes as the next size that was measured"
    assert transform_copies(1 << 27) == pytest.approx(6.5 + 1.6)
