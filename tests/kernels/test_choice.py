"""The choice of kernels at the start of a run: with a CPU in the place of a GPU, and Triton's interpreter."""

from __future__ import annotations

import sys

import pytest
import torch

from hyena_ds.config.model import ModelConfig
from hyena_ds.errors import UserError
from hyena_ds.model import kernel_choice, triton_kernels
from hyena_ds.model.kernel_choice import KernelChoice, Wanted, choose_kernels
from hyena_ds.model.triton_kernels import TRITON
from hyena_ds.ops.triton import cases

HERE = torch.device("cpu")
CONFIG = ModelConfig(width=4, layers=1, maximum_context=64, filter_width=4, filter_features=3, inner_width=6)
ONE = tuple(case for case in cases.CASES if case.name == "gelu")


def chosen(wanted: Wanted) -> KernelChoice:
    return choose_kernels(wanted, CONFIG, "bfloat16", HERE)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(kernel_choice, "is_cuda", lambda device: True)
    monkeypatch.setattr(kernel_choice, "CHECKED", ((2, 19),))
    return monkeypatch


def refusal() -> tuple[str, str]:
    """(why `auto` takes the portable code, what `triton` raises)."""
    choice = chosen("auto")
    assert choice.kernels is None
    with pytest.raises(UserError) as caught:
        chosen("triton")
    sentence = str(caught.value)
    assert sentence.startswith(f"kernels: found {choice.why}, wanted triton; ") and "\n" not in sentence
    assert sentence.endswith(", or set kernels: portable")
    return choice.why, sentence


def test_kernels_are_taken_where_all_agree_with_the_portable_code(a_gpu: pytest.MonkeyPatch) -> None:
    choice = chosen("triton")
    assert choice.kernels is TRITON
    number, _, rest = choice.why.partition(" ")
    assert 0 < float(number) <= 2.0**-7 and rest == "from the portable code at most"


def test_the_portable_code_asked_for_is_taken_without_a_look(a_gpu: pytest.MonkeyPatch) -> None:
    a_gpu.setitem(sys.modules, "hyena_ds.model.triton_kernels", None)
    assert chosen("portable") == (None, "as configured")


def test_without_a_gpu_they_are_refused() -> None:
    why, sentence = refusal()
    assert why == "no CUDA device" and "train on a machine with one" in sentence


def test_without_triton_they_are_refused(a_gpu: pytest.MonkeyPatch) -> None:
    a_gpu.setitem(sys.modules, "hyena_ds.model.triton_kernels", None)
    why, sentence = refusal()
    assert why.startswith("no triton that can be imported (") and "pip install 'hyena-ds[triton]'" in sentence


def test_a_kernel_that_is_wrong_or_fails_is_refused(a_gpu: pytest.MonkeyPatch) -> None:
    a_gpu.setattr(triton_kernels, "CASES", ONE)
    a_gpu.setattr(cases.gelu, "gelu", lambda h: h)
    why, _ = refusal()
    assert why.startswith("a kernel, gelu, whose results differ: a of 2 x 19 tokens ")
    a_gpu.setattr(cases.gelu, "gelu", lambda h: h * float("nan"))
    assert refusal()[0].endswith("nan away from the portable code's")
    a_gpu.setattr(cases.gelu, "gelu", lambda h: h.float())
    assert refusal()[0].startswith(
        "a kernel, gelu, that fails (ValueError: torch.float32 (38, 6) where torch.bfloat16 "
    )
