"""The long convolution's passes in Triton's interpreter: against float64, for lengths that fill their points and that do not."""

from __future__ import annotations

import pytest
import torch

from hyena_ds.ops.triton import long_convolution
from hyena_ds.ops.triton.case import Case, Sizes, exact, random_tensors
from hyena_ds.ops.triton.long_convolution_cases import CONVOLUTION_CASES
from tests.kernels.counting import counted

HERE = torch.device("cpu")
FORWARD, BACKWARD = CONVOLUTION_CASES


def made(case: Case, batch: int, tokens: int, width: int) -> tuple[torch.Tensor, ...]:
    return random_tensors(case, Sizes(batch, tokens, width, 1, torch.float32, HERE), seed=tokens)


@pytest.mark.parametrize(("batch", "tokens", "width"), [(2, 1_000, 1), (1, 2_048, 1), (1, 5, 2)])
@pytest.mark.parametrize("case", CONVOLUTION_CASES, ids=lambda case: case.name)
def test_it_gives_what_float64_gives(case: Case, batch: int, tokens: int, width: int) -> None:
    tensors = made(case, batch, tokens, width)
    copies = [x.clone() for x in tensors]
    for name, a, b in zip(case.results, case.kernel(*tensors), exact(case, tensors), strict=True):
        assert a.shape == b.shape and a.dtype == torch.float32, name
        assert float((a.double() - b).abs().max()) <= 2e-6 * float(b.abs().max()), name
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True)), "an input was changed"


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1 << 13, 1 << 14])
def test_longer_ones_too(tokens: int) -> None:
    tensors = made(FORWARD, 1, tokens, 1)
    (y,), (wanted,) = FORWARD.kernel(*tensors), exact(FORWARD, tensors)
    assert float((y.double() - wanted).abs().max()) <= 2e-6 * float(wanted.abs().max())


@pytest.mark.parametrize(
    ("case", "planes_read", "planes_written"),
    [(FORWARD, 2 + 1, 2), (BACKWARD, 2 + 2 + 1 + 1, 2 + 1 + 2)],
    ids=["forward", "backward"],
)
def test_it_moves_the_bytes_that_it_declares(
    case: Case, planes_read: int, planes_written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Besides, a pass that begins or ends with a signal hands points on through its planes, within a cache."""
    tensors = made(case, 2, 1_000, 1)
    with counted(monkeypatch) as count:
        case.kernel(*tensors)
    declared, planes, skip = case.traffic(*tensors), 2 * 1_024, 1
    assert declared.read == 4 * (count.words_read() - planes_read * planes - skip)
    assert declared.written == 4 * (count.words_written() - planes_written * planes)


@pytest.mark.parametrize("length", [1, 1_024, 1_025, 1 << 20, (1 << 20) + 1, 1 << 21])
def test_a_length_is_split_into_columns_and_rows(length: int) -> None:
    points = long_convolution.points_of(length)
    down, along = long_convolution.split_of(points)
    assert points == down * along >= length and points & (points - 1) == 0
    assert down <= 1_024 and down >= 32 and 32 <= along <= 2_048
    for size in (down, along):
        side = long_convolution.side_of(size, 8)
        assert side.first * side.second == size and side.first <= side.second <= 64


def test_longer_than_the_longest_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^a convolution over 2,097,153 tokens; this one is made for up to 2,097,152$"
    ):
        long_convolution.points_of((1 << 21) + 1)
