"""cuDNN's convolution behind the one value, with a stand-in that computes on the CPU: nothing here ran on a GPU."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from torch import Tensor

from hyena_ds.errors import UserError
from hyena_ds.ops.convolution_backend import CHECKED_LENGTHS, FFT, Wanted, choose_convolution, cudnn_convolution
from tests.cudnn_stand_in import CALLS, WRONG, Function, fft_causal_conv1d, install, pretend_cuda
from tests.ops.test_fft_convolution import direct, relative_error, tensors

HERE = torch.device("cpu")
NOT_FOR_FUSED = "no context of 16,384 to 2,097,152 tokens, which the fused convolution is made for"


def refusal(lengths: tuple[int, ...] = ()) -> tuple[str, str]:
    """(why `auto` takes FFT, what `cudnn` raises)."""
    choice = choose_convolution("auto", HERE, lengths)
    assert choice.convolution is FFT
    why = choice.why.removesuffix(f"; {NOT_FOR_FUSED}")
    with pytest.raises(UserError) as caught:
        choose_convolution("cudnn", HERE, lengths)
    sentence = str(caught.value)
    assert sentence.startswith(f"convolution: found {why}, wanted cudnn; ")
    assert sentence.endswith(", or set convolution: auto")
    assert "\n" not in sentence
    return why, sentence


@pytest.mark.parametrize("wanted", ["auto", "cudnn"])
def test_cudnn_is_chosen_where_it_agrees_with_fft_at_all_checked_lengths(
    wanted: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    CALLS.forget()
    choice = choose_convolution(wanted, HERE, (700, 4_096))
    assert choice.convolution.name == "cudnn"
    number, _, rest = choice.why.partition(" ")
    more = f"; {NOT_FOR_FUSED}" if wanted == "auto" else ""
    assert 0 < float(number) <= 1e-5 and rest == f"from fft at most{more}"
    padded = [1 << (length - 1).bit_length() for length in (700, *CHECKED_LENGTHS)]
    assert CALLS.shapes == [(2, 3, length) for length in padded for _ in ("forward", "backward")]


def test_fft_asked_for_is_taken_without_a_look_at_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    CALLS.forget()
    choice = choose_convolution("fft", HERE)
    assert choice.convolution is FFT and choice.why == "as configured"
    assert not CALLS.shapes


def test_without_a_cuda_device_cudnn_is_refused_before_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cudnn", raising=False)
    why, sentence = refusal()
    assert why == "no CUDA device"
    assert sentence == (
        "convolution: found no CUDA device, wanted cudnn; train on a machine with one, or set convolution: auto"
    )
    assert "cudnn" not in sys.modules


def test_a_missing_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch)
    monkeypatch.setitem(sys.modules, "cudnn", None)
    why, sentence = refusal()
    assert why.startswith("no nvidia-cudnn-frontend that can be used (ModuleNotFoundError: ")
    assert "; install nvidia-cudnn-frontend 1.28.0 or newer, or set" in sentence


def test_a_package_that_does_not_load_its_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend_version() -> int:
        raise RuntimeError("libcudnn.so.9: cannot open shared object file.\nsecond line")

    install(monkeypatch)
    monkeypatch.setattr(sys.modules["cudnn"], "backend_version", backend_version)
    why, _ = refusal()
    assert why == (
        "no nvidia-cudnn-frontend that can be used (RuntimeError: libcudnn.so.9: cannot open shared object file)"
    )


def test_a_cudnn_that_is_too_old_is_refused_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, version=92_501)
    why, sentence = refusal()
    assert why == "cuDNN 9.25.1, older than 9.26.0"
    assert "; install a newer cuDNN, or set" in sentence
    install(monkeypatch, version=100_000)
    assert choose_convolution("auto", HERE).convolution.name == "cudnn"


def test_a_package_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, function=None)
    why, sentence = refusal()
    assert why.startswith("no fft_causal_conv1d in nvidia-cudnn-frontend (AttributeError: ")
    assert "; install nvidia-cudnn-frontend 1.28.0 or newer, or set" in sentence
    monkeypatch.delitem(sys.modules, "cudnn.ops")
    why, _ = refusal()
    assert why.startswith("no fft_causal_conv1d in nvidia-cudnn-frontend (ModuleNotFoundError: ")


@pytest.mark.parametrize(("function", "reason"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrong_convolution_is_refused_with_its_reason(
    function: Function, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, function)
    why, sentence = refusal(lengths=(10_000,))
    assert re.fullmatch(reason, why), why
    assert "; install another cuDNN, or set" in sentence


@pytest.mark.parametrize("L", [1, 2, 5, 64, 127, 128, 129, 301])
@pytest.mark.parametrize("B", [1, 3])
def test_the_wrapper_equals_the_direct_sum_at_any_length(B: int, L: int) -> None:
    check(*tensors(B, 2, L))


def test_the_wrapper_takes_inputs_that_are_not_contiguous() -> None:
    u, k, dy = tensors(2, 3, 128)
    strided_u, strided_dy = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (u, dy))
    strided_k = k.t().contiguous().t()
    assert not any(x.is_contiguous() for x in (strided_u, strided_k, strided_dy))
    check(strided_u, strided_k, strided_dy)
    # The stand-in is as sensitive to strides as the package is: without the wrapper the gradients are wrong.
    leaves = [x.float().requires_grad_() for x in (strided_u, strided_k)]
    found = torch.autograd.grad(fft_causal_conv1d(*leaves), leaves, dy.float())
    wanted = FFT.backward(dy.float(), u.float(), k.float(), False)
    assert all(relative_error(a, b) > 0.1 for a, b in zip(found, wanted[:2], strict=True))


def check(u: Tensor, k: Tensor, dy: Tensor) -> None:
    """Forward and backward against the sum in float64, with autograd off as inside a block, and nothing left behind."""
    wanted_u, wanted_k = u.clone().requires_grad_(), k.clone().requires_grad_()
    wanted = direct(wanted_u, wanted_k)
    wanted_du, wanted_dk = torch.autograd.grad(wanted, (wanted_u, wanted_k), dy)
    u32, k32, dy32 = u.float(), k.float(), dy.float()
    copies = [x.clone() for x in (u32, k32, dy32)]
    convolution = cudnn_convolution(fft_causal_conv1d)
    CALLS.forget()
    with torch.no_grad():
        y = convolution.forward(u32, k32)
        assert relative_error(y, wanted) < 1e-6
        for again in (False, True):
            du, dk, repeated = convolution.backward(dy32, u32, k32, again)
            assert relative_error(du, wanted_du) < 1e-6
            assert relative_error(dk, wanted_dk) < 1e-6
            assert (repeated is not None) == again
            assert repeated is None or relative_error(repeated, wanted) < 1e-6
            for result in (y, du, dk, *(() if repeated is None else (repeated,))):
                assert result.dtype == torch.float32 and not result.requires_grad
                result.add_(1.0)  # the caller adds the skip in place
                result.sub_(1.0)
    assert CALLS.reserved == 0
    assert all(torch.equal(a, b) for a, b in zip((u32, k32, dy32), copies, strict=True)), "an input was changed"


def test_autograd_that_is_on_keeps_no_reserve_of_forward() -> None:
    CALLS.forget()
    u, k, _ = (x.float().requires_grad_() for x in tensors(1, 2, 64))
    y = cudnn_convolution(fft_causal_conv1d).forward(u, k)
    assert not y.requires_grad and CALLS.reserved == 0
    kept = fft_causal_conv1d(u, k)
    assert kept.requires_grad and CALLS.reserved == 1, "the stand-in reserves as the package does"


def test_cudnn_takes_no_longer_sequences_than_it_can() -> None:
    convolution = cudnn_convolution(fft_causal_conv1d)
    assert convolution.takes(1) and convolution.takes(1 << 23) and not convolution.takes((1 << 23) + 1)
