"""Compile every kernel for an H100 on a machine without one, as its launcher would, and print what it takes of a processor.

    python -m tests.kernels.compile_offline [WORD]

A driver that only names its device stands in for CUDA's: Triton specialises, lowers and assembles with its own ptxas, and
nothing is launched. One line of JSON a kernel: registers, spilled bytes, shared memory.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

TARGET = GPUTarget("cuda", 90, 32)
TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class _NamedDevice:
    """What Triton asks of a driver before it launches."""

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, and bytes that ptxas put on the stack, spilled ones among them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([TOOL, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    # A kernel and the functions of the mathematics library that are not part of it.
    found = {
        name: max(map(int, re.findall(rf"\b{name}:(\d+)", done.stdout)), default=0)
        for name in ("REG", "STACK", "LOCAL")
    }
    return {"registers": found["REG"], "stack": found["STACK"] + found["LOCAL"]}


def compile_all(word: str = "") -> list[dict[str, Any]]:
    """One record a kernel and precision."""
    from hyena_ds.model.filter_kernel import FILTER_CASES
    from hyena_ds.ops.triton.case import Sizes, random_tensors
    from hyena_ds.ops.triton.cases import CASES
    from hyena_ds.ops.triton.long_convolution_cases import CONVOLUTION_CASES
    from hyena_ds.ops.triton.packing_cases import PACKING_CASES
    from hyena_ds.ops.triton.spectra_cases import SPECTRA_CASES

    driver.set_active(_NamedDevice())
    run, compiled = JITFunction.run, {}

    def only_compile(self: JITFunction, *args: Any, **kwargs: Any) -> Any:
        kwargs["warmup"] = True
        kernel = run(self, *args, **kwargs)
        compiled[self.__name__] = kernel
        return kernel

    JITFunction.run = only_compile
    records = []
    for case in (*CASES, *FILTER_CASES, *CONVOLUTION_CASES, *SPECTRA_CASES, *PACKING_CASES):
        for dtype in (torch.bfloat16, torch.float32):
            if word not in case.name:
                continue
            compiled.clear()
            case.kernel(*random_tensors(case, Sizes(1, 1 << 14, 256, 1024, dtype, torch.device("cpu")), 0))
            for name, kernel in compiled.items():
                records.append(
                    {"case": case.name, "kernel": name, "precision": str(dtype)}
                    | resources(kernel.asm["cubin"])
                    | {"shared": kernel.metadata.shared, "warps": kernel.metadata.num_warps}
                )
                print(json.dumps(records[-1]), flush=True)
    return records


if __name__ == "__main__":
    compile_all(*sys.argv[1:])
