"""Kernels compiled for an H100 by Triton's own toolchain, on a machine that has none; in a process that does not interpret."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.paths import ROOT

FULL = os.environ.get("HYENA_FULL") == "1"
WORDS = ("",) if FULL else ("residual: drop",)


@pytest.mark.slow
@pytest.mark.parametrize("word", WORDS, ids=lambda word: word or "all")
def test_kernels_compile_without_a_device_and_spill_nothing(word: str) -> None:
    """The filter's gradient alone may put up to 200 bytes a thread on the stack: it holds three weights' gradients."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_offline", word],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900 if FULL else 120,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found
    for kernel in found:
        assert 16 <= kernel["registers"] <= 255 and kernel["shared"] <= 227 * 1024, kernel
        assert kernel["stack"] <= (200 if kernel["kernel"] == "_gradients_kernel" else 0), kernel
