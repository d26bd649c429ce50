"""All ranks convolve with one back end, whatever each of them has installed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.distributed import cases
from tests.distributed.pool import Pool
from tests.ops.test_convolution_backend import NOT_FOR_FUSED

Ranks = Callable[[int], Pool]


@pytest.mark.parametrize(
    ("with_cudnn", "chosen"),
    [
        ([], ("fft", "no CUDA device")),
        ([0], ("fft", "rank 1: cuDNN 9.25.0, older than 9.26.0")),
        ([1], ("fft", "cuDNN 9.25.0, older than 9.26.0")),
        ([0, 1], ("cudnn", "from fft at most")),
    ],
)
def test_cudnn_is_taken_only_when_every_rank_can(ranks: Ranks, with_cudnn: list[int], chosen: tuple[str, str]) -> None:
    found = ranks(2).run(cases.convolution, wanted="auto", with_cudnn=with_cudnn)
    assert found[0][0] == found[1][0] == chosen[0]
    assert all(why.removesuffix(f"; {NOT_FOR_FUSED}").endswith(chosen[1]) for _, why in found)


def test_every_rank_refuses_when_one_cannot_have_the_cudnn_that_is_asked_for(ranks: Ranks) -> None:
    sentence = "convolution: found cuDNN 9.25.0, older than 9.26.0, wanted cudnn; install a newer cuDNN, or set convolution: auto"
    assert ranks(2).run(cases.convolution, wanted="cudnn", with_cudnn=[0]) == [("refused", sentence)] * 2
