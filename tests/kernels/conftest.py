"""Kernels run in Triton's interpreter here, on CPU tensors.

Triton asks for TRITON_INTERPRET when a kernel is defined, so it is set around the import of all kernels, before anything else
imports triton; processes that tests start are not told of it.
"""

from __future__ import annotations

import os
import pkgutil
import sys
from importlib import import_module

import pytest


def _import_interpreted() -> None:
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise pytest.UsageError("triton was imported before tests/kernels: set TRITON_INTERPRET=1 (make test-kernels)")
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        import hyena_ds.ops.triton as kernels

        import_module("triton.experimental.gluon")  # the interpreter does, later, and it asks again
        for module in pkgutil.iter_modules(kernels.__path__, f"{kernels.__name__}."):
            import_module(module.name)
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]


_import_interpreted()
