"""The long convolution's passes in Triton's interpreter: against float64, for lengths that fill their points and that do not."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from hyena_ds.ops.triton import long_convolution
from hyena_ds.ops.triton.case import Case, Sizes, exact, random_tensors
from hyena_ds.ops.triton.long_convolution_cases import CONVOLUTION_CASES
from hyena_ds.ops.triton.traffic import Traffic
from tests.kernels.counting import counted

FULL = os.environ.get("HYENA_FULL") == "1"
HERE = torch.device("cpu")
FORWARD, BACKWARD, OF_PIECES = CONVOLUTION_CASES


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter is slow: fewer points than a card would be given."""
    monkeypatch.setattr(long_convolution, "SHORTEST", 16)


def made(case: Case, batch: int, tokens: int, width: int) -> tuple[torch.Tensor, ...]:
    return random_tensors(case, Sizes(batch, tokens, width, 1, torch.float32, HERE), seed=tokens)


def check(case: Case, tensors: tuple[torch.Tensor, ...]) -> None:
    copies = [x.clone() for x in tensors]
    for name, a, b in zip(case.results, case.kernel(*tensors), exact(case, tensors), strict=True):
        assert a.shape == b.shape and a.dtype == torch.float32, name
        assert float((a.double() - b).abs().max()) <= 2e-6 * float(b.abs().max()), name
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True)), "an input was changed"


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("batch", "tokens", "width"), [(2, 50, 1), (1, 256, 1), (3, 5, 2)])
@pytest.mark.parametrize("case", CONVOLUTION_CASES, ids=lambda case: case.name)
def test_it_gives_what_float64_gives(case: Case, batch: int, tokens: int, width: int) -> None:
    check(case, made(case, batch, tokens, width))


def test_it_gives_it_at_its_own_fewest_points() -> None:
    check(FORWARD, made(FORWARD, 1, 1_000, 1))


@pytest.mark.skipif(not FULL, reason="minutes in the interpreter: HYENA_FULL=1")
@pytest.mark.parametrize("tokens", [1 << 13, 1 << 14])
def test_longer_ones_too(tokens: int) -> None:
    check(FORWARD, made(FORWARD, 1, tokens, 1))


@pytest.mark.usefixtures("short")
def test_results_have_the_type_of_what_they_belong_to_and_the_filters_gradient_is_float32() -> None:
    u, k, dy = made(BACKWARD, 2, 50, 1)
    rounded_u, rounded_dy = u.bfloat16(), dy.bfloat16()
    y = long_convolution.causal_convolution(rounded_u, k)
    du, dk, _ = long_convolution.causal_convolution_backward(rounded_dy, rounded_u, k, False)
    assert (y.dtype, du.dtype, dk.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    exact_du, exact_dk, exact_y = exact(BACKWARD, (rounded_u, k, rounded_dy))
    assert float((dk - exact_dk).abs().max()) <= 2e-6 * float(exact_dk.abs().max())
    for found, wanted in ((y, exact_y), (du, exact_du)):
        assert float((found - wanted).abs().max()) <= 2.0**-7 * float(wanted.abs().max())


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("case", "planes_read", "planes_written"),
    [(FORWARD, 2 + 1, 2), (BACKWARD, 2 + 2 + 1 + 1, 2 + 1 + 2), (OF_PIECES, 3 + 6, 2 + 5)],
    ids=["forward", "backward", "pieces"],
)
def test_it_moves_the_bytes_that_it_declares(
    case: Case, planes_read: int, planes_written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Besides, a pass that begins or ends with a signal hands points on through its planes, within a cache."""
    tensors = made(case, 2, 50, 1)
    launched: list[Traffic] = []
    start = long_convolution.launch

    def noted(kernel: Any, grid: Any, like: Any, declared: Any, *arguments: Any, **options: Any) -> None:
        launched.append(declared())
        start(kernel, grid, like, declared, *arguments, **options)

    monkeypatch.setattr(long_convolution, "launch", noted)
    with counted(monkeypatch) as count:
        case.kernel(*tensors)
    declared, planes = case.traffic(*tensors), 2 * 64
    assert declared.read == 4 * (count.words_read() - planes_read * planes)
    assert declared.written == 4 * (count.words_written() - planes_written * planes)
    assert declared == Traffic(sum(each.read for each in launched), sum(each.written for each in launched))


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
