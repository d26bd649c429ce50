"""HyenaDNA written the plain way, as the oracle: whole tensors, a direct or FFT convolution, autograd, any dtype.

It shares no code with hyena_ds/model but the parameters' names.

B batch, L context length, D width, N order of the positional features.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_ds.config.model import ModelConfig

Parameters = dict[str, Tensor]


def plain_logits(parameters: Parameters, config: ModelConfig, token_ids_BL: Tensor) -> Tensor:
    """(B, L) -> (B, L, V), differentiable in every parameter."""
    hidden_BLD = plain_hidden(parameters, config, token_ids_BL)
    return F.linear(hidden_BLD, parameters["backbone.embedding.weight"])


def plain_hidden(parameters: Parameters, config: ModelConfig, inputs: Tensor) -> Tensor:
    """Token ids (B, L) or embeddings (B, L, D) -> (B, L, D) after the final norm."""
    p = {name.removeprefix("backbone."): tensor for name, tensor in parameters.items()}
    return _norm(p, "final_norm", plain_residual(parameters, config, inputs, config.layers))


def plain_residual(parameters: Parameters, config: ModelConfig, inputs: Tensor, layers: int) -> Tensor:
    """Token ids (B, L) or embeddings (B, L, D) -> (B, L, D) after so many blocks, before the final norm."""
    p = {name.removeprefix("backbone."): tensor for name, tensor in parameters.items()}
    x = inputs if inputs.is_floating_point() else F.embedding(inputs, p["embedding.weight"])
    for number in range(layers):
        x = x + _operator(_Block(p, number), config, _norm(p, f"blocks.{number}.operator_norm", x))
        block = _Block(p, number)
        h = F.linear(_norm(p, f"blocks.{number}.mlp_norm", x), block("mlp.up.weight"), block("mlp.up.bias"))
        h = F.gelu(h, approximate="tanh")
        x = x + F.linear(h, block("mlp.down.weight"), block("mlp.down.bias"))
    return x


class _Block:
    def __init__(self, parameters: Parameters, number: int):
        self.parameters, self.prefix = parameters, f"blocks.{number}."

    def __call__(self, name: str) -> Tensor:
        return self.parameters[self.prefix + name]


def _norm(p: Parameters, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], 1e-5)


def _operator(block: _Block, config: ModelConfig, x_BLD: Tensor) -> Tensor:
    L = x_BLD.shape[1]
    projected = F.linear(x_BLD, block("operator.in_projection.weight"), block("operator.in_projection.bias"))
    weight, bias = block("operator.short_filter.weight"), block("operator.short_filter.bias")
    q = F.conv1d(projected.mT, weight, bias, padding=2, groups=weight.shape[0])[..., :L]
    x0, x1, v = q.chunk(3, dim=1)
    u = v * x1
    k_DL = plain_filter(block, config, L)
    y = torch.fft.irfft(torch.fft.rfft(u, n=2 * L) * torch.fft.rfft(k_DL, n=2 * L), n=2 * L)[..., :L]
    y = (y + u * block("operator.skip").unsqueeze(-1)) * x0
    return F.linear(y.mT, block("operator.out_projection.weight"), block("operator.out_projection.bias"))


def plain_filter(block: _Block, config: ModelConfig, L: int, first: int = 0) -> Tensor:
    """(D, L), positions first .. first + L, from the formulas of the paper in the parameters' dtype."""
    f = lambda name: block(f"operator.implicit_filter.{name}")  # noqa: E731
    dtype = f("frequency").dtype
    M, bands = config.maximum_context, (config.filter_features - 1) // 2
    if config.extension == "extrapolate":
        M = config.extended_from or 0
    n = (first + torch.arange(L, dtype=torch.float64)).unsqueeze(1)
    t = n / (M - 1)
    angles = torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64) * 2 * math.pi * n / M
    h = torch.cat((t, angles.cos(), -angles.sin()), dim=1).to(dtype)
    for layer in ("input", "hidden1", "hidden2"):
        h = torch.sin(f("frequency") * F.linear(h, f(f"{layer}.weight"), f(f"{layer}.bias")))
    rates = torch.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, config.width, dtype=torch.float64).abs()
    window = torch.exp(-t * rates) + config.filter_shift
    return (F.linear(h, f("output.weight")) * window.to(dtype)).t()


def plain_gradients(
    parameters: Parameters, config: ModelConfig, token_ids_BL: Tensor, targets_BL: Tensor, ignored: int = -100
) -> tuple[Tensor, Tensor, Parameters]:
    """(loss sum, logits, gradient of the loss sum for every parameter), in float64."""
    leaves = {name: tensor.detach().double().requires_grad_() for name, tensor in parameters.items()}
    logits = plain_logits(leaves, config, token_ids_BL)
    loss = F.cross_entropy(logits.flatten(0, 1), targets_BL.flatten(), ignore_index=ignored, reduction="sum")
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return loss.detach(), logits.detach(), dict(zip(leaves, gradients, strict=True))
