"""What an optimizer step must compute and exchange, counted by formula, and the seconds that takes at a machine's limits.

All numbers are of one rank. `again` is what the activation policy recomputes on top of the minimum.

B batch, M micro steps, L context length, P ranks, l = L / P, D width, d = D / P, I inner width, V vocabulary, E features
and F width of the filter's MLP, n points of an FFT.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hyena_ds.config.policy import Policy
from hyena_ds.cost.shape import StepShape
from hyena_ds.genome.tokenizer import VOCABULARY
from hyena_ds.ops.sizes import fft_length

PRODUCTS, TRANSFORMS, WAITING = "products of projections and MLP", "transforms", "waiting for exchanges"
"""Parts of a step that have a ceiling (hyena_ds/bench/parts.py measures all parts)."""
_FLOAT32 = 4


@dataclass(frozen=True)
class Amount:
    """Forward and backward without recomputation, and what comes on top of it."""

    minimum: float
    again: float

    @property
    def total(self) -> float:
        """What has to be done once, and what is done again."""
        return self.minimum + self.again


@dataclass(frozen=True)
class Ceilings:
    """Ceilings of the machine: what one rank reaches while all of them run."""

    gemm_float32: float
    """Flops a second."""
    gemm_bfloat16: float
    fft: float
    """Flops a second of batched real transforms of the step's own length."""
    copy: float
    """Bytes a second, read and written."""
    exchange: float | None = None
    """Bytes a second that a rank sends in an all-to-all; None without other ranks."""


def gemm_flops(shape: StepShape) -> Amount:
    """Projections and MLP of the blocks; a product of (a, b) and (b, c) is 2abc flops.

    Forward, a token and layer: projection D -> 3D and out projection D -> D are 6 D^2 + 2 D^2; the MLP D -> I -> D is
    4 D I. Backward multiplies twice for each product (gradient of its input, gradient of its weight), so forward and
    backward are three times that. Again: the projection, without `keep_projections` (twice, when they are not even held
    for the backward of a layer); the MLP's first product, without `keep_inner`; the operator's forward, 8 D^2, without
    `keep_middle`.
    """
    config, policy = shape.config, shape.activation_policy
    D, inner = config.width, config.mlp_width
    tokens = shape.batch * shape.accumulation * shape.local_length * shape.layers
    again = 0 if policy.keep_projections else 6 * D**2 * (1 if policy.hold_projections else 2)
    again += 0 if policy.keep_inner else 2 * D * inner
    again += 0 if policy.keep_middle else 8 * D**2
    return Amount(3.0 * tokens * (8 * D**2 + 4 * D * inner), float(tokens * again))


def filter_flops(shape: StepShape) -> Amount:
    """The implicit filter's MLP, once an optimizer step whatever B and M.

    Forward, a position and layer: E -> F -> F -> F -> D is 2 (E F + 2 F^2 + F D) flops. Backward is twice that, less the
    gradient of the positions, 2 E F. Again: backward keeps nothing of the MLP and evaluates it once more (less the output
    product 2 F D); without `keep_filter`, at one micro step, the filter is evaluated again for backward's convolution.
    """
    config, policy = shape.config, shape.activation_policy
    E, F, D = config.filter_features, config.filter_width, config.width
    positions = shape.local_length * shape.layers
    forward = 2 * (E * F + 2 * F**2 + F * D)
    again = forward - 2 * F * D + (forward if evaluates_again(shape, policy) else 0)
    return Amount(float(positions * (3 * forward - 2 * E * F)), float(positions * again))


def head_flops(shape: StepShape) -> float:
    """The tied head, float32 under any precision; a token: 2 D V forward, twice that backward."""
    return 3.0 * 2 * shape.width * VOCABULARY * shape.batch * shape.accumulation * shape.local_length


def fft_flops(shape: StepShape, points: int) -> Amount:
    """Real transforms of the long convolution, 2.5 n log2 n flops each (half of a complex one's 5 n log2 n).

    Least, a layer and one of the rank's d channels: forward transforms u and back y, for each of B M sequences; backward
    transforms dy and back du; the filter k is transformed once a step, and dk back once: 4 B M + 2. Again: every micro
    step transforms k and dk, 2 M - 2; without `keep_spectra` u and k are transformed again in backward, (B + 1) M.
    Without `keep_convolution` y is made once more, B M; without `keep_middle` the operator's forward runs again,
    (2 B + 1) M.
    """
    policy, B, M = shape.activation_policy, shape.batch, shape.accumulation
    again = 2 * M - 2
    again += 0 if policy.keep_spectra else (B + 1) * M
    again += 0 if policy.keep_convolution else B * M
    again += 0 if policy.keep_middle else (2 * B + 1) * M
    transforms = shape.layers * shape.width // shape.sequence_parallel
    flops = 2.5 * points * math.log2(points)
    return Amount((4 * B * M + 2) * transforms * flops, again * transforms * flops)


def exchange_bytes(shape: StepShape) -> tuple[int, int]:
    """(forward, backward): the fewest bytes that a rank sends in all-to-alls under its policy.

    A shard is one activation tensor of the rank, B l D in the precision of exchanges; an all-to-all keeps 1/P of it here. Forward moves one
    shard in and one out. Backward moves one in and one out (dy, du), with u and y kept; else two in and two out (dy, u;
    du, y). Without `keep_middle` the operator's forward runs again: one more in and one more out. The filter, l D float32 always
    and no B, goes in once a step and its gradient out once; again in, when backward evaluates it again. Not counted: the
    halo of two tokens, and the sum of the parameters' gradients.
    """
    policy, P = shape.activation_policy, shape.sequence_parallel
    filter_shard = shape.local_length * shape.width * _FLOAT32
    shards = shape.batch * shape.accumulation * shape.local_length * shape.width * shape.exchanged_size
    backward = 2 if policy.keep_convolution else 4
    backward += 0 if policy.keep_middle else 2
    filters = 1 + evaluates_again(shape, policy)
    sent = [(2 * shards + filter_shard) * shape.layers, (backward * shards + filters * filter_shard) * shape.layers]
    return sent[0] * (P - 1) // P, sent[1] * (P - 1) // P


def least_seconds(shape: StepShape, rates: Ceilings, recompute: bool) -> dict[str, float]:
    """Seconds of every part of an optimizer step at the machine's ceilings; parts that overlap are not told apart."""

    def flops(amount: Amount) -> float:
        return amount.total if recompute else amount.minimum

    in_float32 = flops(filter_flops(shape)) + head_flops(shape)
    gemm = rates.gemm_bfloat16 if shape.precision == "bfloat16" else rates.gemm_float32
    seconds = {
        "gemm": flops(gemm_flops(shape)) / gemm + in_float32 / rates.gemm_float32,
        "fft": flops(fft_flops(shape, fft_length(shape.context_length))) / rates.fft,
    }
    if rates.exchange:
        seconds["exchange"] = sum(exchange_bytes(shape)) / rates.exchange
    return seconds


def evaluates_again(shape: StepShape, policy: Policy) -> bool:
    """Whether backward evaluates the filter once more for its convolution."""
    return not policy.keep_filter and shape.accumulation == 1
