"""The choice between portable code, C functions and Triton kernels at the start of a run.

wanted, device --found?--> every kernel beside the portable function, on the device --agrees?--> KernelChoice(kernels, why)
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from hyena_ds.config.model import ModelConfig
from hyena_ds.errors import UserError
from hyena_ds.model.kernels import Kernels
from hyena_ds.ops.start_check import Unusable, difference, first_line, is_cuda

Wanted = Literal["portable", "native", "triton", "auto"]
CHECKED = ((2, 1031), (3, 77))
"""Batch and tokens of the checks: several programs of a kernel, and none that is full."""
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2.0**-7}
"""Largest difference from the portable code, relative to the largest value, by the type of a result."""


class KernelChoice(NamedTuple):
    """Kernels, None for the portable code, and, in a few words, why it is these."""

    kernels: Kernels | None
    why: str


def choose_kernels(
    wanted: Wanted, config: ModelConfig, precision: Literal["float32", "bfloat16"], device: torch.device
) -> KernelChoice:
    """What `device` computes a model of this shape with.

    C functions that cannot be had here, or are wrong, are no error: the portable code gives the same. Raises UserError when
    Triton's kernels are asked for and there is no GPU, no triton, or one of them is wrong.
    """
    if wanted == "portable":
        return KernelChoice(None, "as configured")
    if wanted == "native":
        return _native(config, getattr(torch, precision), device)
    try:
        if not is_cuda(device):
            raise Unusable("no CUDA device", "train on a machine with one")
        kernels, worst = _checked(config, getattr(torch, precision), device)
    except Unusable as problem:
        if wanted == "triton":
            raise UserError(
                f"kernels: found {problem}, wanted triton; {problem.cure}, or set kernels: portable"
            ) from problem
        return KernelChoice(None, str(problem))
    return KernelChoice(kernels, f"{worst:.0e} from the portable code at most")


def _native(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> KernelChoice:
    from hyena_ds.model.native_kernels import NATIVE, check_native

    try:
        if device.type != "cpu":
            raise Unusable("no CPU", "leave kernels out")
        return KernelChoice(NATIVE, f"{check_native(config, dtype):.0e} from the portable code at most")
    except Unusable as problem:
        return KernelChoice(None, f"no native: {problem}; {problem.cure}")


def _checked(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> tuple[Kernels, float]:
    """The kernels, and the largest difference of any result from the portable code's as a share of the largest value."""
    try:
        from hyena_ds.model.filter_kernel import filter_cases
        from hyena_ds.model.triton_kernels import CASES, TRITON
        from hyena_ds.ops.triton.case import Sizes, random_tensors
    except ImportError as error:
        raise Unusable(
            f"no triton that can be imported ({first_line(error)})", "pip install 'hyena-ds[triton]'"
        ) from error
    worst = 0.0
    for case in (*CASES, *filter_cases(config.filter_features, config.filter_width)):
        for batch, tokens in CHECKED:
            sizes = Sizes(batch, tokens, config.width, config.mlp_width, dtype, device)
            tensors = random_tensors(case, sizes, seed=tokens)
            try:
                found, wanted = case.kernel(*tensors), case.portable(*tensors)
                differences = [difference(a, b) for a, b in zip(found, wanted, strict=True)]
            except Exception as error:
                raise Unusable(f"a kernel, {case.name}, that fails ({first_line(error)})", "report it") from error
            for name, result, far_off in zip(case.results, found, differences, strict=True):
                if not far_off <= TOLERANCES[result.dtype]:  # NaN too
                    what = f"{name} of {batch} x {tokens} tokens {far_off:.0e} away from the portable code's"
                    raise Unusable(f"a kernel, {case.name}, whose results differ: {what}", "report it")
                worst = max(worst, far_off)
    return TRITON, worst
