"""The choice of C functions at the start of a run, and what is said where they are left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hyena_ds.config.model import ModelConfig
from hyena_ds.model import native_kernels
from hyena_ds.model.kernel_choice import choose_kernels
from hyena_ds.model.native_kernels import NATIVE
from hyena_ds.ops.native import functions
from hyena_ds.ops.native.library import library

HERE = torch.device("cpu")
CONFIG = ModelConfig(width=8, layers=1, maximum_context=64, filter_width=4, filter_features=3, inner_width=6)


@pytest.mark.parametrize(("precision", "most"), [("float32", 1e-5), ("bfloat16", 2.0**-4)])
def test_they_are_taken_where_a_block_agrees_with_the_portable_code(precision: str, most: float) -> None:
    choice = choose_kernels("native", CONFIG, precision, HERE)  # type: ignore[arg-type]
    assert choice.kernels is NATIVE
    number, _, rest = choice.why.partition(" ")
    assert 0 < float(number) < most and rest == "from the portable code at most"


def test_auto_and_portable_take_none_on_a_cpu() -> None:
    assert choose_kernels("auto", CONFIG, "float32", HERE) == (None, "no CUDA device")
    assert choose_kernels("portable", CONFIG, "float32", HERE) == (None, "as configured")


def test_without_a_compiler_the_portable_code_is_taken_and_the_log_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    library.cache_clear()
    choice = choose_kernels("native", CONFIG, "float32", HERE)
    library.cache_clear()
    assert choice == (None, "no native: no C compiler (cc, gcc or clang); install gcc or clang")


def test_functions_that_are_wrong_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_kernels, "CHECKED", ((1, 19),))
    monkeypatch.setattr(functions, "gelu", lambda h, bias, a: a.zero_())
    choice = choose_kernels("native", CONFIG, "float32", HERE)
    assert choice.kernels is None and "whose results differ: the residual of 1 x 19 tokens " in choice.why


def test_on_a_device_they_are_left() -> None:
    choice = choose_kernels("native", CONFIG, "float32", torch.device("meta"))
    assert choice == (None, "no native: no CPU; leave kernels out")
