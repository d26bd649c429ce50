"""The model by the functions of ops/native: the value that a pass on a CPU is given, and its check at the start of a run.

a block of the run's shape --forward, backward: portable, native--> results and gradients --agree?--> the largest difference
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hyena_ds.config.model import ModelConfig
from hyena_ds.model.block import Block
from hyena_ds.model.filter_native import evaluate_filter, filter_gradients
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.model.kernels import Kernels
from hyena_ds.model.mlp_native import mlp_backward, mlp_forward
from hyena_ds.model.operator_native import operator_backward, operator_forward
from hyena_ds.ops.native.library import library
from hyena_ds.ops.start_check import Unusable, difference
from hyena_ds.parallel.layout import Layout

NATIVE = Kernels(
    "native", operator_forward, operator_backward, mlp_forward, mlp_backward, evaluate_filter, filter_gradients
)

CHECKED = ((1, 531), (2, 77))
"""Batch and tokens of the check: more than a tile, and tiles of several sequences."""
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2.0**-4}
"""Largest difference from the portable code, relative to the largest value; in bfloat16 both round, at other places."""


def check_native(config: ModelConfig, dtype: torch.dtype) -> float:
    """The largest difference of a block's results and gradients from the portable code's, relative to the largest value of each.

    Raises Unusable where the functions cannot be compiled here, or are wrong.
    """
    library()
    block = _lively_block(config)
    worst = 0.0
    for batch, tokens in CHECKED:
        tokens = min(tokens, config.maximum_context)
        call = ForwardPass(Layout.whole(tokens), compute_dtype=dtype)
        wanted, found = (_results(block, replace(call, kernels=kernels), batch) for kernels in (None, NATIVE))
        for name, result in found.items():
            far_off = difference(result, wanted[name])
            if not far_off <= TOLERANCES[dtype]:  # NaN too
                what = f"{name} of {batch} x {tokens} tokens {far_off:.0e} away from the portable code's"
                raise Unusable(f"C functions whose results differ: {what}", "report it")
            worst = max(worst, far_off)
    return worst


def _lively_block(config: ModelConfig) -> Block:
    """Weights large enough that every part shows in the result and its gradients."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = Block(replace(config, residual_dropout=0.0), 0)
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return block


def _results(block: Block, call: ForwardPass, batch: int) -> dict[str, Tensor]:
    shape = (batch, call.layout.context_length, block.operator_norm.weight.numel())
    generator = torch.Generator().manual_seed(batch)
    r_BlD, dout_BlD = (torch.randn(shape, generator=generator) for _ in range(2))
    with torch.enable_grad():
        r_BlD.requires_grad_()
        out_BlD = block(r_BlD, call)
        names, parameters = zip(*block.named_parameters(), strict=True)
        gradients = torch.autograd.grad(out_BlD, (r_BlD, *parameters), dout_BlD)
    return {"the residual": out_BlD.detach(), **dict(zip(("its gradient", *names), gradients, strict=True))}
