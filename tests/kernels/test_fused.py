"""The fused convolution as a back end: a model trained through it, and the choice of it at the start of a run; interpreted.

B batch, L context length.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hyena_ds.config.policy import POLICIES, PolicyName
from hyena_ds.errors import UserError
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.model.triton_kernels import TRITON
from hyena_ds.ops import convolution_backend, place
from hyena_ds.ops.convolution_backend import FFT, Choice, Convolution, choose_convolution
from hyena_ds.ops.triton import long_convolution
from hyena_ds.parallel.layout import Layout
from hyena_ds.training import back_ends
from tests.kernels.test_model import CONFIG, B, L, batch, gradients, lively_model, worst
from tests.model.plain import plain_gradients

HERE = torch.device("cpu")
SHORT = replace(long_convolution.FUSED, shortest=16, longest=64)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter is slow: fewer points, and shorter contexts, than a card would be given."""
    monkeypatch.setattr(long_convolution, "SHORTEST", 16)
    monkeypatch.setattr(long_convolution, "FUSED", SHORT)
    monkeypatch.setattr(convolution_backend, "CHECKED_FUSED", (19,))
    monkeypatch.setattr(convolution_backend, "_TIMED_CHANNELS", 1)


@pytest.mark.parametrize("policy", ["fastest", "leanest"])
def test_a_model_trained_through_it_has_the_gradients_of_float64(policy: PolicyName) -> None:
    call = ForwardPass(Layout.whole(L), policy=POLICIES[policy], convolution=SHORT)
    ids, targets = batch()
    assert ids.shape == (B, L) and B > 1
    parameters = dict(lively_model().named_parameters())
    loss, _, of_parameters = plain_gradients(parameters, CONFIG, ids, targets)
    error, name = worst(gradients(call, ids, targets), {"loss": loss, **of_parameters})
    assert error <= 1e-5, (error, name)


def test_it_stands_where_the_kernels_put_the_skip_into_the_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    call = ForwardPass(Layout.whole(L), policy=POLICIES["lean"])
    wanted = gradients(call, *batch())
    monkeypatch.setattr(place, "on_device", lambda device: True)
    error, name = worst(gradients(replace(call, convolution=SHORT, kernels=TRITON), *batch()), wanted)
    assert error <= 1e-5, (error, name)


def test_sequences_of_other_lengths_go_through_fft() -> None:
    def never(*arguments: Any) -> Any:
        raise AssertionError("it was called")

    call = ForwardPass(
        Layout.whole(L), convolution=Convolution("fused", never, never, shortest=L + 1), policy=POLICIES["lean"]
    )
    assert torch.isfinite(gradients(call, *batch())["loss"])


def timed(*seconds: float) -> Callable[[Callable[[], object]], float]:
    """What the fused convolution and the other are said to take; each runs once."""
    left = list(seconds)

    def take(work: Callable[[], object]) -> float:
        work()
        return left.pop(0)

    return take


STAND_IN = replace(FFT, name="fused", shortest=16, longest=64, pieces=4)
"""To choose it takes no kernels."""


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(convolution_backend, "is_cuda", lambda device: True)
    monkeypatch.setattr(long_convolution, "FUSED", STAND_IN)
    monkeypatch.setitem(sys.modules, "cudnn", None)
    return monkeypatch


def named(name: str) -> Callable[[torch.Tensor], Convolution]:
    return lambda skip: replace(FFT, name=f"{name} of {skip.numel()}")


def test_auto_takes_it_where_it_is_right_and_faster(a_gpu: pytest.MonkeyPatch) -> None:
    choice = choose_convolution("auto", HERE, (1024, 20), None, timed(1.0, 2.0))
    assert choice == (STAND_IN, "0e+00 from fft at most, and 0.50 of the time of fft's at 20 tokens")
    choice = choose_convolution("auto", HERE, (20,), named("kernels"), timed(3.0, 4.0))
    assert choice.why.endswith("and 0.75 of the time of kernels of 1's at 20 tokens")


def test_auto_leaves_it_where_it_is_slower(a_gpu: pytest.MonkeyPatch) -> None:
    choice = choose_convolution("auto", HERE, (20,), None, timed(2.0, 1.0))
    assert choice.convolution is FFT
    assert choice.why.endswith("; a fused convolution that takes 2.00 of the time of fft's at 20 tokens")


def test_auto_leaves_it_where_it_is_wrong(a_gpu: pytest.MonkeyPatch) -> None:
    wrong = replace(STAND_IN, forward=lambda u, k: 1.01 * FFT.forward(u, k))
    a_gpu.setattr(long_convolution, "FUSED", wrong)
    choice = choose_convolution("auto", HERE, (20,), None, timed())
    assert choice.convolution is FFT
    assert choice.why.endswith("; fused convolution's output 1e-02 from fft's at 19 tokens, more than 1e-05")


def test_auto_leaves_it_where_it_reads_pieces_in_another_order(a_gpu: pytest.MonkeyPatch) -> None:
    def by(whole: Callable[[torch.Tensor], torch.Tensor]) -> Convolution:
        return replace(
            STAND_IN,
            takes_pieces=True,
            forward=lambda u, k: FFT.forward(whole(u), k),
            backward=lambda dy, u, k, again: FFT.backward(whole(dy), whole(u), k, again),
        )

    right = by(lambda x: x.flatten(2))
    a_gpu.setattr(long_convolution, "FUSED", right)
    assert choose_convolution("auto", HERE, (21,), None, timed(1.0, 2.0)).convolution is right
    a_gpu.setattr(long_convolution, "FUSED", by(lambda x: x.flatten(2) if x.dim() == 3 else x.flip(2).flatten(2)))
    choice = choose_convolution("auto", HERE, (21,), None, timed())
    assert choice.convolution is FFT and "from fft's at 21 tokens, more than 1e-05" in choice.why


def test_asked_for_it_is_checked_and_not_timed() -> None:
    choice = choose_convolution("fused", HERE, (20,), None, timed())
    assert choice.convolution is SHORT and choice.why.endswith("e-07 from fft at most")


def refusal(*lengths: int) -> str:
    with pytest.raises(UserError) as caught:
        choose_convolution("fused", HERE, lengths)
    return str(caught.value)


def test_it_is_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(15, 65) == (
        "convolution: found no context of 16 to 64 tokens, which the fused convolution is made for, wanted fused; "
        "set convolution: fft, or set convolution: auto"
    )
    with monkeypatch.context() as patch:
        patch.setattr(long_convolution, "is_interpreted", lambda: False)
        assert refusal(20) == (
            "convolution: found no CUDA device, wanted fused; train on a machine with one, or set convolution: auto"
        )
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "hyena_ds.ops.triton.long_convolution", None)
        assert "found no triton that can be imported (" in refusal(20)
    failing = replace(STAND_IN, forward=lambda u, k: u[0])
    monkeypatch.setattr(long_convolution, "FUSED", failing)
    assert "found a fused convolution that fails at 20 tokens (ValueError: torch.float32 (3, 20) where" in refusal(20)


def test_ranks_that_took_different_ones_all_take_fft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(back_ends, "agreed", lambda work: work())
    monkeypatch.setattr(back_ends, "choose_convolution", lambda *arguments: Choice(SHORT, "as a test has it"))
    config: Any = SimpleNamespace(schedule=(), convolution="auto")
    compute: Any = SimpleNamespace(device=HERE)
    answers: list[list[object]] = [[None, None], ["fused", "fused"], [None, None], ["fused", "cudnn"]]
    monkeypatch.setattr(back_ends, "from_every_rank", lambda value: answers.pop(0))
    assert back_ends.common_convolution(config, compute).convolution is SHORT
    assert back_ends.common_convolution(config, compute) == (FFT, "ranks took cudnn, fused")
