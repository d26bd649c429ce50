"""What a step moves through memory besides its transforms: tensors that kernels read and write, and how many kernels.

Every kernel reads its operands and writes its result, as the code in model/ and ops/ is written; the numbers below are
those, counted kernel by kernel, in tensors of one token and D channels of float32. A test counts them again while a
model runs. On a CPU a tile's tensors stay in the caches, on a GPU they go through its memory.

D width, i = inner width / D, F width of the filter's MLP, B batch, M micro steps, l local length.
"""

from __future__ import annotations

from dataclasses import dataclass

from hyena_ds.config.policy import Policy, PolicyName
from hyena_ds.cost.shape import KernelsName, Precision, StepShape
from hyena_ds.cost.work import evaluates_again
from hyena_ds.genome.tokenizer import VOCABULARY
from hyena_ds.ops.sizes import (
    AT_WORK,
    AT_WORK_IN_FILTER,
    AT_WORK_IN_KERNELS,
    AT_WORK_IN_TRANSFORMS,
    LOSS_PIECES,
    channels_of_a_group,
    channels_of_an_exchange,
    pieces_of_a_block,
    tokens_of_a_chunk,
    tokens_of_a_tile,
)

_FLOAT32 = 4
_PROJECTION = 12.0
"""Norm, product, bias: D in, 3 D out."""
_SHORT = 30.0
"""The short filter of 3 D channels: three multiply-adds and a bias."""
_DROPOUT = 62.0
"""A mask from 64-bit words, and its use."""
_DEVICE_DROPOUT = 32.0
"""The same mask from 32-bit words."""
_DEVICE_UNITS: dict[KernelsName, dict[Precision, dict[PolicyName, tuple[float, float]]]] = {}
_DEVICE_UNITS["portable"] = {
    "float32": {"fastest": (135.0, 16.0), "balanced": (142.0, 15.0), "lean": (159.0, 15.0), "leanest": (188.0, 15.0)},
    "bfloat16": {"fastest": (139.0, 8.0), "balanced": (145.0, 7.5), "lean": (162.0, 7.5), "leanest": (191.7, 7.5)},
}
_DEVICE_UNITS["triton"] = {
    "float32": {"fastest": (73.0, 12.0), "balanced": (80.0, 13.0), "lean": (85.0, 13.0), "leanest": (104.0, 13.0)},
    "bfloat16": {"fastest": (45.5, 6.0), "balanced": (49.5, 6.5), "lean": (52.5, 6.5), "leanest": (64.0, 6.5)},
}
"""What a layer of a device moves, (a, b) for a + b i units: counted by `hyena-ds bench bytes`, transforms and filter left out."""
_KERNELS = {"forward": 24, "backward": 74, "again": 13, "group": 28, "exchange": 6, "filter": 90, "loss": 25}
"""Launched for a tile of a layer, a group of channels, an exchange, a chunk of the filter, a tile of the loss."""
_TRITON = {"layer": 56, "again": 12, "sequence": 2, "transform": 4, "group": 6, "exchange": 1, "filter": 46, "loss": 51}
_TRITON |= {"tile": 31, "tile forward": 8, "tile of MLP": 21}
"""Launched for a layer, and for its operator again; for each tile but the first, of the operator's backward and of each forward,
and of the MLP; for each of several sequences; for a transform and a group of channels; for an exchange, which is itself one, and
one more where B > 1; for the filter, with its gradient; for embedding, head and loss."""


@dataclass(frozen=True)
class MemoryTraffic:
    """What one rank moves in one optimizer step."""

    layer_bytes: float
    """Projections, gates, norms, MLP, dropout, embedding, head and loss."""
    filter_bytes: float
    kernels: float
    messages: float
    """All-to-alls and halos."""
    packed_bytes: float
    """Copied into and out of the buffers of exchanges."""


def traffic(shape: StepShape, on_cpu: bool) -> MemoryTraffic:
    """Everything above."""
    tokens = shape.batch * shape.accumulation * shape.local_length
    of_layer = _layer_units(shape) if on_cpu else _device_units(shape)
    units = shape.layers * of_layer + _ends_units(shape, _DROPOUT if on_cpu else _device_dropout(shape))
    packed = _packed_bytes(shape, on_cpu) if shape.sequence_parallel > 1 else 0.0
    return MemoryTraffic(
        tokens * units * _FLOAT32 * shape.width,
        _FLOAT32 * shape.local_length * shape.layers * _filter_floats(shape, on_cpu),
        _kernels(shape, on_cpu),
        _messages(shape, on_cpu),
        packed * shape.local_length * shape.width,
    )


def _device_units(shape: StepShape) -> float:
    """Units that a token moves in a layer on a device, where every kernel goes through memory."""
    of_operator, of_inner = _DEVICE_UNITS[shape.kernels][shape.precision][shape.policy]
    units = of_operator + of_inner * shape.config.mlp_width / shape.width
    units += _cut_units(shape) / shape.layers
    return units + (5 * _device_dropout(shape) if shape.config.residual_dropout else 0.0)


def _cut_units(shape: StepShape) -> float:
    """What layers that Triton's kernels cut into tiles move besides: part of p, copied; p and gradients, made twice."""
    if shape.kernels != "triton":
        return 0.0
    policy, a = shape.activation_policy, 0.5 if shape.precision == "bfloat16" else 1.0
    of_layer = 2 * a * (1 if policy.keep_middle else 2) + (0.0 if policy.hold_projections else 2 + 8 * a)
    return sum(count * of_layer for after, count in _alike(shape, False) if operator_tiles(shape, after) > 1)


def operator_tiles(shape: StepShape, after: int) -> int:
    """Tiles of the operator by Triton's kernels in the block that has so many `after` it."""
    if shape.activation_policy.keep_projections:
        return 1
    return _tiles(shape, 4 * shape.width * pieces(shape, False, after, AT_WORK_IN_KERNELS), on_cpu=False)


def _tiles(shape: StepShape, widest: int, on_cpu: bool) -> int:
    tokens = tokens_of_a_tile(widest, on_cpu)
    rows = max(1, tokens // shape.local_length)
    return -(-shape.batch // rows) * -(-shape.local_length // tokens)


def _device_dropout(shape: StepShape) -> float:
    return 0.0 if shape.kernels == "triton" else _DEVICE_DROPOUT  # Triton's kernels make masks in registers


def _layer_units(shape: StepShape) -> float:
    """Units that a token moves in a layer. In bfloat16 products read half as much, and what they read and write is converted."""
    policy, i = shape.activation_policy, shape.config.mlp_width / shape.width
    mixed = shape.precision == "bfloat16"
    projection = _PROJECTION + (4.0 if mixed else 0.0)
    # The rest of the operator: gates 5, out of and into the convolution 5, out projection and residual 10.
    operator = projection + _SHORT + 20.0 + (2.0 if mixed else 0.0)
    units = operator + 7.0 + 12.0 * i + (2.0 + 2.0 * i if mixed else 0.0)
    if not policy.keep_middle:
        units += operator
    # The MLP's backward: GELU and its slope 19 i, four products, sums, the norm's backward.
    units += 13.0 + 27.0 * i + (2.5 + 2.0 * i if mixed else 0.0)
    of_inner = 0.5 if mixed else 1.0
    units += 2.0 * i * of_inner if policy.keep_inner else of_inner * (1.0 + i)
    # The operator's: up to the gradient of the convolution's output, through the convolution, and before it.
    if not policy.keep_projections:
        units += projection * (1 if policy.hold_projections else 2)
    units += 10.0 + 5.0 + 7.0 if policy.keep_convolution else _SHORT + 3.0 + 5.0 + 12.0
    units += 141.0 + (8.0 if mixed else 0.0)
    if shape.config.residual_dropout:
        units += 5 * _DROPOUT
    return units


def _ends_units(shape: StepShape, dropout: float) -> float:
    """Embedding, head and loss of a token."""
    units = 14.0 + 12.0 * VOCABULARY / shape.width
    return units + (2 * dropout if shape.config.embedding_dropout else 0.0)


def _filter_floats(shape: StepShape, on_cpu: bool) -> float:
    """Floats that a position moves in a layer, whatever B and M: evaluated once or twice, and its gradient.

    Each of them makes the window of one chunk in float64 first, on a device of one block. Triton's kernels have features and
    window in registers: the filter once for each evaluation, its gradient with sums of the MLP's, and both in the cache.
    """
    D, F = shape.width, shape.config.filter_width
    evaluations = 2 if evaluates_again(shape, shape.activation_policy) else 1
    if shape.kernels == "triton" and not on_cpu:
        return (4.0 + evaluations) * D + 2.0 * F
    window = 10.0 * D * min(1.0, chunk_tokens(shape, on_cpu) / shape.local_length) if on_cpu else 2.5 * D
    features = 100.0
    return evaluations * (18.0 * F + 6.0 * D + features + window) + 70.0 * F + 7.0 * D + features + window


def chunk_tokens(shape: StepShape, on_cpu: bool, after: int = 0) -> int:
    """Tokens of a chunk of the filter, of the block that has so many `after` it."""
    cut = pieces(shape, on_cpu, after, AT_WORK_IN_FILTER)
    return tokens_of_a_chunk(cut * max(shape.width, shape.config.filter_width), on_cpu)


def channels_at_once(shape: StepShape, on_cpu: bool, after: int = 0) -> int:
    """Channels of a rank that go through the convolution together, of the block that has so many `after` it."""
    sizes = (shape.batch, shape.own_channels, shape.context_length, on_cpu)
    most = -(-channels_of_a_group(*sizes) // pieces(shape, on_cpu, after, AT_WORK_IN_TRANSFORMS))
    return min(most, channels_of_a_group(*sizes, cut=shape.sequence_parallel > 1))


def pieces(shape: StepShape, on_cpu: bool, after: int = 0, at_work: int = AT_WORK) -> int:
    """Into how many pieces a block, with so many `after` it, cuts what is done at once on a device."""
    return 1 if on_cpu else pieces_of_a_block(shape.activation_policy.kept_units, after, at_work)


def _alike(shape: StepShape, on_cpu: bool) -> list[tuple[int, int]]:
    """(blocks after it, how many are cut as it is) of each kind of block: from the first that is in one piece, all are."""
    layers = shape.layers
    if on_cpu:
        return [(0, layers)]
    kinds: list[tuple[int, int]] = []
    for after in range(layers):
        if pieces(shape, on_cpu, after, AT_WORK_IN_TRANSFORMS) == 1:  # nothing works with more
            return [*kinds, (after, layers - after)]
        kinds.append((after, 1))
    return kinds


def overlap_groups(shape: StepShape, on_cpu: bool, after: int = 0) -> int:
    """Groups of channels: all but one exchange is under way while another group is transformed."""
    return -(-shape.own_channels // channels_at_once(shape, on_cpu, after))


def _moved(policy: Policy) -> int:
    """Activation tensors to channels or back, of a layer and micro step."""
    return 2 + (2 if policy.keep_convolution else 4) + (0 if policy.keep_middle else 2)


def _packed_bytes(shape: StepShape, on_cpu: bool) -> float:
    """Bytes of a token and channel, copied out of tensors and into them, there and here, of B sequences and M micro steps.

    What comes of PyTorch's transforms is float32, and rounded by the copy. Triton's kernel copies a filter where it arrives and
    its gradient where it leaves, and, where B > 1, what is sent to a transform and what comes back from one.
    """
    policy, size = shape.activation_policy, shape.exchanged_size
    by_kernel = shape.kernels == "triton" and not on_cpu
    copied = 0.5 * (_FLOAT32 + size) + 3 * size if not by_kernel else 2 * size if shape.batch > 1 else 0
    activations = _moved(policy) * shape.batch * shape.accumulation * copied
    filters = (2 if by_kernel else 4) * _FLOAT32 * (2 + evaluates_again(shape, policy))
    return shape.layers * (activations + filters)


def _messages(shape: StepShape, on_cpu: bool) -> float:
    """The filter goes in groups of channels of its own, activations in those of the convolution; a halo each way."""
    if shape.sequence_parallel == 1:
        return 0.0
    policy, d = shape.activation_policy, shape.own_channels
    pieces = -(-d // channels_of_an_exchange(1, d, shape.context_length, on_cpu))
    halos = 3 + (not policy.keep_middle) - policy.keep_projections
    filters = (2 + evaluates_again(shape, policy)) * pieces
    groups = sum(count * overlap_groups(shape, on_cpu, after) for after, count in _alike(shape, on_cpu))
    return shape.accumulation * (_moved(policy) * groups + halos * shape.layers) + filters * shape.layers


def _kernels(shape: StepShape, on_cpu: bool) -> float:
    if shape.kernels == "triton" and not on_cpu:
        return _triton_kernels(shape)
    D = shape.width

    def tiles(widest: int, after: int) -> int:
        cut = pieces(shape, on_cpu, after) if after < shape.layers else 1 if on_cpu else LOSS_PIECES
        return _tiles(shape, cut * widest, on_cpu)

    policy = shape.activation_policy
    tile = _KERNELS["forward"] + _KERNELS["backward"] + (0 if policy.keep_middle else _KERNELS["again"])
    found = _KERNELS["loss"] * tiles(max(D, 4 * VOCABULARY), shape.layers) + 0.0
    chunks = 0
    for after, count in _alike(shape, on_cpu):
        found += count * (tile * tiles(4 * D, after) + _KERNELS["group"] * overlap_groups(shape, on_cpu, after))
        chunks += count * -(-shape.local_length // chunk_tokens(shape, on_cpu, after))
    return shape.accumulation * found + _KERNELS["filter"] * chunks + _KERNELS["exchange"] * _messages(shape, on_cpu)


def _triton_kernels(shape: StepShape) -> float:
    policy = shape.activation_policy
    transforms = 6 + (0 if policy.keep_spectra else 2) + (0 if policy.keep_convolution else 1)
    transforms += 0 if policy.keep_middle else 3
    group = _TRITON["group"] + _TRITON["transform"] * transforms
    inner = shape.config.mlp_width
    tile = _TRITON["tile"] + _TRITON["tile forward"] * (1 if policy.keep_middle else 2)
    groups, tiles = 0, 0.0
    for after, count in _alike(shape, False):
        groups += count * overlap_groups(shape, False, after)
        of_mlp = _tiles(shape, inner * pieces(shape, False, after, AT_WORK_IN_KERNELS), on_cpu=False)
        tiles += count * (tile * (operator_tiles(shape, after) - 1) + _TRITON["tile of MLP"] * (of_mlp - 1))
    layer = _TRITON["layer"] + (0 if policy.keep_middle else _TRITON["again"]) + _TRITON["sequence"] * (shape.batch - 1)
    of_filter = _TRITON["filter"] * (1.4 if evaluates_again(shape, policy) else 1.0)
    steps = shape.accumulation * (shape.layers * layer + tiles + group * groups + _TRITON["loss"])
    of_message = _TRITON["exchange"] + (1 if shape.batch > 1 else 0)
    return steps + shape.layers * of_filter + of_message * _messages(shape, False)


def fused_bytes(shape: StepShape) -> float:
    """What one rank must move in a micro step, with everything fused that can be: a floor that a table of bytes is read beside.

    In bytes of a token, layer and channel, a = 2 for bfloat16 and 4 for float32, i = inner width / D:
    - the long convolution in three passes, of which every pair passes 8 bytes on and takes them up again: forward 2
      transforms in and 1 out, backward 3 and 3; gates read and write 12 a, the filter and its gradient 12;
    - operator, forward: residual in 4, projections 3 a; convolution's result a, residual 4 and 4. Backward: two residuals and
      a gradient 12, and projections, gradients and results of the products once each, 14 a;
    - MLP, forward: residual 4 and 4, inner tensor 2 i a. Backward: 12, and three times the inner tensor out and in, 6 i a;
    - filter, once: evaluated 4, its gradient 4.
    """
    a, i = (2 if shape.precision == "bfloat16" else 4), shape.config.mlp_width / shape.width
    convolution = 9 * 16 + 12 * a + 12
    operator = 24 + 18 * a
    mlp = 20 + 8 * i * a
    return (convolution + operator + mlp + 8) * float(shape.layers * shape.batch * shape.local_length * shape.width)
