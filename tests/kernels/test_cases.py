"""Every kernel in Triton's interpreter: against float64, beside the portable code, and its declared bytes."""

from __future__ import annotations

import pytest
import torch

from hyena_ds.model.filter_kernel import FILTER_CASES
from hyena_ds.ops.triton.case import Case, Sizes, exact, random_tensors
from hyena_ds.ops.triton.cases import CASES
from hyena_ds.ops.triton.packing_cases import PACKING_CASES
from hyena_ds.ops.triton.spectra_cases import SPECTRA_CASES
from tests.kernels.counting import counted

ALL = (*CASES, *SPECTRA_CASES, *FILTER_CASES, *PACKING_CASES)
HERE = torch.device("cpu")
TOLERANCES = {torch.bfloat16: 2.0**-7, torch.float32: 5e-6}
"""The interpreter cuts bf16 off where a card rounds."""
SHAPES = {"odd": (2, 293, 5, 9), "tiny": (3, 1, 4, 2), "even": (1, 64, 4, 32)}
"""Batch, tokens, width, inner width."""


def sizes(shape: str, dtype: torch.dtype) -> Sizes:
    return Sizes(*SHAPES[shape], dtype, HERE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_a_kernel_gives_what_float64_gives(case: Case, shape: str, dtype: torch.dtype) -> None:
    tensors = random_tensors(case, sizes(shape, dtype), seed=len(case.name))
    copies = [x.clone() for x in tensors]
    found, wanted, portable = case.kernel(*tensors), exact(case, tensors), case.portable(*tensors)
    for name, a, b, c in zip(case.results, found, wanted, portable, strict=True):
        assert a.shape == b.shape and a.dtype == c.dtype, name
        assert float((a.double() - b).abs().max()) <= TOLERANCES[a.dtype] * float(b.abs().max()), name
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True)), "an input was changed"


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_a_kernel_moves_the_bytes_that_it_declares(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = random_tensors(case, sizes("odd", torch.bfloat16), seed=1)
    with counted(monkeypatch) as count:
        results = case.kernel(*tensors)
    declared = case.traffic(*tensors)
    # Parameters, neighbours' tokens and sums are small and not declared.
    tokens = SHAPES["odd"][1]

    def large(x: torch.Tensor) -> bool:
        return any(size % tokens == 0 for size in x.shape)

    assert declared.read == sum(count.read(x) for x in tensors if large(x))
    assert declared.written == sum(count.written(x) for x in results if x.numel() >= tokens)
