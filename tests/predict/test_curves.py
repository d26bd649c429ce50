"""Standard errors of means over blocks."""

from __future__ import annotations

import numpy as np
import pytest

from hyena_ds.predict.curves import mean_and_error


def test_the_standard_error_is_that_of_resampled_blocks() -> None:
    generator = np.random.default_rng(9)
    targets_b = generator.integers(20, 100, 300).astype(float)
    loss_b = targets_b * generator.normal(1.3, 0.2, 300)
    mean, error = mean_and_error(loss_b, targets_b)
    drawn = generator.integers(0, 300, (4000, 300))
    resampled = loss_b[drawn].sum(1) / targets_b[drawn].sum(1)
    assert error == pytest.approx(resampled.std(), rel=0.06) and mean == pytest.approx(resampled.mean(), rel=1e-3)
    assert mean_and_error(loss_b[:1], targets_b[:1]) == (pytest.approx(loss_b[0] / targets_b[0]), None)
