"""Predicted peak memory of one rank, by part: what is live at each moment that can be the highest, and the allocator's slack.

    forward --kept by the policy--> loss --> backward of the last block: MLP | operator (its convolution) | filter

Sizes are those of the tensors in model/, ops/ and parallel/layout.py, counted from the code; one activation tensor is
B x l x D float32. What a tensor of the next moment replaces is not counted twice.

B batch, l local length, L context length, D width, d = D / P, n FFT length, g channels of a group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from hyena_ds.config.model import ModelConfig
from hyena_ds.cost.devices import GIB, Device
from hyena_ds.cost.shape import StepShape, parameters
from hyena_ds.cost.traffic import channels_at_once, chunk_tokens, operator_tiles, overlap_groups, pieces
from hyena_ds.cost.work import evaluates_again
from hyena_ds.genome.tokenizer import VOCABULARY
from hyena_ds.ops import sizes

PARTS = ("process", "weights and optimizer", "kept", "layer at work", "transforms", "exchange", "tiles", "slack")
_FLOAT32 = 4
_BUCKET = (1 << 24) * _FLOAT32
"""DeepSpeed's reduce bucket, as training/engine.py sets it."""
_OF_A_TILE = 6
"""Widest tensors of a tile that are live at once, in the MLP's and the operator's backward."""
_OF_A_CHUNK = 8
_PREDICTING, _PREDICTING_ON_DEVICE = 0.4 * GIB, 2.0 * GIB
"""Program and libraries of a process that predicts; on a GPU its context, an assumption."""
_HALO = 2
MOST_HELD_BYTES = 1 << 30
"""A prediction holds its filters up to this size; those of longer contexts are evaluated by every pass: beside its transforms
that takes little time."""


class Held(NamedTuple):
    """Tensors of one size."""

    part: str
    size: float
    """Bytes of each."""
    number: float


@dataclass(frozen=True)
class Memory:
    """Bytes by part at the highest moment."""

    parts: dict[str, float]
    moment: str
    host: float = 0.0
    """Bytes of the host's memory that hold what is offloaded from a GPU; on a CPU they are among the parts."""

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return sum(self.parts.values())


def peak_memory(shape: StepShape, device: Device) -> Memory:
    """The highest of all moments."""
    found = moments(shape, device.on_cpu)
    peaks = []
    for name, held in found.items():
        parts = dict.fromkeys(PARTS, 0.0)
        parts["process"] = device.process
        for part, size, count in held:
            parts[part] += size * count
        parts["slack"] = device.slack * with_slack(shape, found, name, device.on_cpu)
        peaks.append(Memory(parts, name, 0.0 if device.on_cpu else offloaded(shape)))
    return max(peaks, key=lambda memory: memory.total)


def with_slack(shape: StepShape, found: dict[str, list[Held]], moment: str, on_cpu: bool) -> float:
    """Bytes of which the allocator holds a share more.

    On a GPU, what is live. On a CPU large tensors have blocks of their own (ops/large.py), but for the transforms' results:
    those are the C library's, and if they are small leave holes that stay, the more the more groups of channels there
    are. That it grows with the logarithm of their number is what steps of two and four ranks showed, no theory.
    """
    if on_cpu:
        return max(_holes(shape, held) for held in found.values())
    return _sum(found[moment])


def _holes(shape: StepShape, held: list[Held]) -> float:
    small = sum(size * count for part, size, count in held if part == "transforms" and size < sizes.GIVEN_BACK)
    return small * (1.0 + math.log2(overlap_groups(shape, on_cpu=True)))


def moments(shape: StepShape, on_cpu: bool) -> dict[str, list[Held]]:
    """What is live when the highest may come, by the moment's name."""
    if shape.kernels == "triton" and not on_cpu:
        return _moments_of_kernels(shape)
    policy, D = shape.activation_policy, shape.width
    unit = float(_FLOAT32 * shape.batch * shape.local_length * D)
    filter_unit = unit / shape.batch

    def work(units: float, size: float = unit) -> Held:
        return Held("layer at work", size, units)

    always = _state(shape, on_cpu)
    always += [Held("kept", size, number * shape.layers) for _, size, number in _kept_by_a_layer(shape, unit, False)]
    again = [work(1, filter_unit)] if evaluates_again(shape, policy) else []
    # Of the block at work the middle and the MLP's inner tensor are gone when its operator's backward begins.
    operator = list(always)
    operator += [Held("kept", unit, -1)] if policy.keep_middle else []
    operator += [Held("kept", _inner(shape), -1)] if policy.keep_inner else []
    own_u = 0 if policy.keep_convolution else 1
    held = policy.hold_projections and not policy.keep_projections
    projections = 3 * (1 + _HALO / shape.local_length) if held else 0.0
    convolution = [*operator, work(3 + own_u + projections), *again]
    kind = "spectra" if policy.keep_spectra else "again" if own_u else "backward"
    cut = shape.sequence_parallel > 1
    found = {
        "loss": [
            *always,
            work(2),
            _tile(shape, max(D, 4 * VOCABULARY), sizes.LOSS_PIECES, on_cpu, 4 * D + 6 * VOCABULARY),
        ],
        "backward of the MLP": [
            *always,
            work(2 if policy.keep_middle else 3),
            *again,
            _tile(shape, max(shape.config.mlp_width, 4 * D), pieces(shape, on_cpu, 0, sizes.AT_WORK_IN_MLP), on_cpu),
        ],
        "backward of the convolution": [
            *convolution,
            *_transforms(shape, kind, on_cpu),
            *_buffers(shape, 1 + own_u, on_cpu),
        ],
        "backward of the operator": [*convolution, _tile(shape, 4 * D, pieces(shape, on_cpu), on_cpu)],
        "gradient of the filter": [*operator, work(2), work(2 if cut else 1, filter_unit), _chunk(shape, on_cpu)],
    }
    if not policy.keep_middle:
        forward = [*_transforms(shape, "forward", on_cpu), *_buffers(shape, 1, on_cpu)]
        found["the operator's forward, again"] = [*always, work(3), *again, *forward]
    return found


def _moments_of_kernels(shape: StepShape) -> dict[str, list[Held]]:
    """`moments` of Triton's kernels, each of the block for which it is the highest."""
    found: dict[str, list[Held]] = {}
    for after in range(shape.layers):
        for name, held in _moments_of_a_block(shape, after).items():
            if name not in found or _sum(held) > _sum(found[name]):
                found[name] = held
        if pieces(shape, False, after, sizes.AT_WORK_IN_TRANSFORMS) == 1:
            break  # those before it are not cut either, and less is kept
    return found


def _moments_of_a_block(shape: StepShape, after: int) -> dict[str, list[Held]]:
    """What is live beside what is kept has the precision of products, but for residuals and what goes through the convolution."""
    policy, D = shape.activation_policy, shape.width
    unit = float(_FLOAT32 * shape.batch * shape.local_length * D)
    a, moved = 0.5 if shape.precision == "bfloat16" else 1.0, shape.exchanged_size / _FLOAT32

    def work(units: float, size: float = unit) -> Held:
        return Held("layer at work", size, units)

    def tile(widest: int) -> float:
        cut = pieces(shape, False, after, sizes.AT_WORK_IN_KERNELS)
        return min(1.0, sizes.tokens_of_a_tile(widest * cut, False) / (shape.batch * shape.local_length))

    layers, filters = shape.layers - after, 2 * after if shape.accumulation > 1 else 0
    always = [*_state(shape, False), *(Held("kept", size, n * layers) for _, size, n in _kept_by_a_layer(shape, unit))]
    always.append(Held("kept", unit / shape.batch, filters))
    again = [work(1, unit / shape.batch)] if evaluates_again(shape, policy) else []
    operator = [*always, work(1 - policy.keep_middle), *again, Held("kept", _inner(shape), -policy.keep_inner)]
    own_u = 0 if policy.keep_convolution else 1
    kind = "spectra" if policy.keep_spectra else "again" if own_u else "backward"
    cut = operator_tiles(shape, after) > 1
    made, through = (2 if policy.keep_projections else 5) * a, (1 + own_u) * moved
    held = 0.0 if cut and not policy.hold_projections else made
    of_mlp, of_tile = tile(shape.config.mlp_width), tile(4 * D) if cut else 1.0
    found = {
        "loss": [*always, work(2)],
        "backward of the MLP": [
            *always,
            *again,
            work((1 if policy.keep_middle else 2) + 3 * a * of_mlp),
            work((1 if policy.keep_inner else 2) * of_mlp, _inner(shape)),
        ],
        "backward of the convolution": [
            *operator,
            work(through + held),
            *_transforms(shape, kind, False, after),
            *_buffers(shape, 1 + own_u, False, after),
        ],
        "backward of the operator": [*operator, work(through + held + of_tile * (4 * a + made - held))],
    }
    if not policy.keep_middle:
        forward = [*_transforms(shape, "forward", False, after), *_buffers(shape, 1, False, after)]
        found["the operator's forward, again"] = [*always, *again, work(1 + moved + (1 if cut else 3) * a), *forward]
    return found


def _sum(held: list[Held]) -> float:
    return sum(size * count for _, size, count in held)


def held_filters(config: ModelConfig, context_length: int, sequence_parallel: int) -> int:
    """Bytes of all filters of a rank for so many tokens, in channel layout."""
    return _FLOAT32 * config.layers * (config.width // sequence_parallel) * context_length


def predict_memory(shape: StepShape, on_cpu: bool, results: float = 0.0, held: float = 0.0) -> Memory:
    """The peak of one rank that runs forward passes of `shape`; `results` are bytes of what a verb makes of the hidden states,
    `held` of what it has beside the pass.

    A CPU's large tensors leave blocks that stay for the next layer (ops/large.py): four activations, one signal. In ranks
    that were started to keep freed memory (runtime/local_ranks.py), results of transforms leave the holes of `with_slack`.
    """
    unit = float(_FLOAT32 * shape.batch * shape.local_length * shape.width)
    filters = float(held_filters(shape.config, shape.context_length, shape.sequence_parallel))
    if filters > MOST_HELD_BYTES:
        filters /= shape.layers
    signal = float(
        _FLOAT32 * shape.batch * channels_at_once(shape, on_cpu) * sizes.fft_length(shape.context_length, on_cpu)
    )
    parts = dict.fromkeys(PARTS, 0.0)
    parts["process"] = _PREDICTING if on_cpu else _PREDICTING_ON_DEVICE
    parts["weights and optimizer"] = float(_FLOAT32 * parameters(shape.config))
    parts["kept"] = filters + held
    parts["layer at work"] = 4 * unit
    always = dict(parts)
    transforms = _transforms(shape, "forward", on_cpu)
    for tensor in [*transforms, *_buffers(shape, 1, on_cpu)]:
        parts[tensor.part] += tensor.size * tensor.number
    if shape.sequence_parallel > 1:
        parts["exchange"] += unit  # an activation that comes in pieces, until it is put together
    widest = max(shape.config.mlp_width, 4 * shape.width)
    parts["tiles"] = _tile(shape, widest, pieces(shape, on_cpu), on_cpu).size * _OF_A_TILE
    if on_cpu:
        parts["slack"] = signal + (_holes(shape, transforms) if shape.sequence_parallel > 1 else 0.0)
    moments = {"convolution": parts, "results": {**always, "results": results, "slack": parts["slack"]}}
    return max((Memory(held, name) for name, held in moments.items()), key=lambda memory: memory.total)


class State(NamedTuple):
    """Tensors as large as a share of the float32 weights, of one rank."""

    what: str
    share: float
    on_host: bool = False
    """Whether they are offloaded."""
    passing: bool = False
    """Whether they are there during a step only."""


def states(shape: StepShape) -> list[State]:
    """Weights, gradients, moments and what ZeRO has beside them; counted from DeepSpeed 0.19.8 and looked at in tests."""
    stage, own, host = shape.zero_stage, 1 / shape.ranks, shape.offload_optimizer
    if stage == 0:
        return [State("weights", 1), State("moments", 2), State("gradients and a copy to sum", 2, passing=True)]
    found = [
        State("float32 weights and moments", 3 * own, host),
        State("reduced gradients", own, host, passing=not host and stage < 3),
    ]
    if stage == 3:
        found += [
            State("weights", own, shape.offload_param),
            State("a gathered block, and the next", 2 / shape.layers, passing=True),
        ]
        return found + ([State("gradients that AdamW reads", own, True)] if host else [])
    found += [State("weights", 1)]
    found += [State("gradients", 1, passing=True)] if stage == 1 else []
    if host:
        found += [State("updated weights on their way back", own, True)]
        found += [State("gradients of micro steps", own, True)] if stage == 2 and shape.accumulation > 1 else []
    return found


def offloaded(shape: StepShape) -> float:
    """Bytes of a rank's state in the host's memory."""
    return _FLOAT32 * parameters(shape.config) * sum(state.share for state in states(shape) if state.on_host)


def _state(shape: StepShape, on_cpu: bool) -> list[Held]:
    """The state of this rank on its device, which on a CPU is all of it, and ZeRO's bucket."""
    here = sum(state.share for state in states(shape) if on_cpu or not state.on_host)
    held = [Held("weights and optimizer", float(_FLOAT32 * parameters(shape.config)), here)]
    return [*held, Held("weights and optimizer", _BUCKET, 1)] if shape.zero_stage else held


def _kept_by_a_layer(shape: StepShape, unit: float, triton: bool = True) -> list[Held]:
    """From forward to backward: the residual at the block's input, and what the policy says."""
    policy = shape.activation_policy
    of_operator = unit / 2 if triton and shape.precision == "bfloat16" else unit
    kept = [Held("kept", unit, 1 + policy.keep_middle)]
    if policy.keep_convolution:  # spectra stand for its input
        kept.append(Held("kept", of_operator, 1 if policy.keep_spectra else 2))
    if policy.keep_projections:
        kept.append(Held("kept", 3 * of_operator * (1 + _HALO / shape.local_length), 1))
    if policy.keep_inner:
        kept.append(Held("kept", _inner(shape), 1))
    filters = 2 if shape.accumulation > 1 else 1 if policy.keep_filter else 0  # with its gradient, between micro steps
    kept.append(Held("kept", unit / shape.batch, filters))
    if policy.keep_spectra:
        n, group = sizes.fft_length(shape.context_length), channels_at_once(shape, True)
        groups = shape.own_channels / group
        kept.append(Held("kept", float(8 * group * (n // 2 + 1)), (shape.batch + 1) * groups))
    return kept


def _inner(shape: StepShape) -> float:
    of_each = 2 if shape.precision == "bfloat16" else 4
    return float(of_each * shape.batch * shape.local_length * shape.config.mlp_width)


def _transforms(shape: StepShape, kind: str, on_cpu: bool, after: int = 0) -> list[Held]:
    """Signals and spectra of a group of channels; a padded signal, its spectrum and a transform's output are of one size.

    Most at once: forward U, K and y; backward K, dY, dk and the output, with y made again one more; from spectra three.
    """
    B = shape.batch
    of_input, of_filter = {"forward": (2, 1), "backward": (2, 2), "again": (3, 2), "spectra": (2, 1)}[kind]
    size = float(_FLOAT32 * channels_at_once(shape, on_cpu, after) * sizes.fft_length(shape.context_length, on_cpu))
    held = [Held("transforms", B * size, of_input), Held("transforms", size, of_filter)]
    if not on_cpu:
        held.append(Held("transforms", B * size, 1))  # cuFFT's workspace
    return held


def _buffers(shape: StepShape, tensors: int, on_cpu: bool, after: int = 0) -> list[Held]:
    """Tensors of a group in channel layout, sent and received: as many tensors here, the next ones on their way, and results leaving."""
    if shape.sequence_parallel == 1:
        return []
    group = channels_at_once(shape, on_cpu, after)
    size = float(_FLOAT32 * shape.batch * group * shape.context_length)
    return [Held("exchange", size, (5 if shape.own_channels > group else 3) * tensors)]


def _tile(shape: StepShape, widest: int, cut: int, on_cpu: bool, floats: int | None = None) -> Held:
    """Tensors of a tile, of which a token has so many floats; by default several of the widest."""
    tokens = sizes.tokens_of_a_tile((1 if on_cpu else cut) * widest, on_cpu)
    tokens = min(shape.batch * shape.local_length, tokens)
    return Held("tiles", float(_FLOAT32 * tokens), _OF_A_TILE * widest if floats is None else floats)


def _chunk(shape: StepShape, on_cpu: bool) -> Held:
    widest = max(shape.width, shape.config.filter_width)
    tokens = min(shape.local_length, chunk_tokens(shape, on_cpu))
    return Held("tiles", float(_FLOAT32 * tokens * widest), _OF_A_CHUNK)
