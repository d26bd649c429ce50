"""The table of precisions: every choice changes something, and leaves the model as it was."""

from __future__ import annotations

import torch

from hyena_ds.bench.precision import _CHOICES, measure_precision
from hyena_ds.data.loader import MicroBatch
from tests.model.test_block_policies import batch, lively_model


def test_every_choice_shows_and_is_undone() -> None:
    model = lively_model()
    micro_batch = MicroBatch(*batch(2, 96), torch.arange(2))
    rows = measure_precision(model, micro_batch)
    assert rows[0]["loss_change"] == rows[0]["logits"] == rows[0]["gradients"] == 0.0
    assert len({row["choice"] for row in rows}) == len(rows) == 8
    for row in rows[1:]:
        assert row["gradients"] > 1e-5, row
        assert abs(row["loss_change"]) < 0.1, row
    for name, rounding in _CHOICES.items():
        callers, operations = map(set, zip(*rounding.rounded, strict=True))
        assert (callers, operations) == ({*rounding.callers}, {*rounding.operations}), name
    again = measure_precision(model, micro_batch)
    assert again == rows
