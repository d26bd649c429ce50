"""Products of bfloat16 operands: float32 sums on a device, as its dispatcher sees them, and values on a CPU."""

from __future__ import annotations

import pytest
import torch

from hyena_ds.bench.count import Count
from hyena_ds.ops import products

META = torch.device("meta")


def called(can: bool, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels of a projection into a buffer, a product and a sum of a batch of two."""
    monkeypatch.setattr(products, "writes_float32", lambda device: can)
    weight_CD, x_BnD = (torch.empty(shape, device=META, dtype=torch.bfloat16) for shape in ((12, 4), (1, 32, 4)))
    two_BCn, two_BnD = (torch.empty(shape, device=META, dtype=torch.bfloat16) for shape in ((2, 12, 32), (2, 32, 4)))
    with Count() as count:
        assert products.to_channels(weight_CD, x_BnD, torch.empty(1, 12, 32, device=META)).dtype == torch.float32
        assert products.to_tokens(two_BCn, weight_CD).dtype == torch.float32
        total_CD = torch.zeros(12, 4, device=META)
        products.add_product(total_CD, two_BCn, two_BnD)
    return sorted(name for _, name in count.kernels.elements())


def test_a_device_writes_the_sums_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert products.writes_float32(META)
    assert called(True, monkeypatch) == ["addmm", "addmm", "bmm", "mm", "zeros"]


def test_an_older_torch_sums_weights_in_float32_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    names = called(False, monkeypatch)
    assert names.count("addmm_") == 2 and names.count("_to_copy") == 1 + 2 * 2, (
        "each operand of the sum is widened first"
    )


def test_a_cpu_cannot_and_is_not_asked_to() -> None:
    assert not products.writes_float32(torch.device("cpu"))
    a_BCn, b_BnD = torch.randn(2, 12, 32).bfloat16(), torch.randn(2, 32, 4).bfloat16()
    total_CD = torch.ones(12, 4)
    products.add_product(total_CD, a_BCn, b_BnD)
    torch.testing.assert_close(
        total_CD.double(), 1 + torch.bmm(a_BCn.double(), b_BnD.double()).sum(0), rtol=2e-2, atol=0.1
    )
