"""Memory by part: against counts by hand, the published numbers of weights, and the live tensors of a real step."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch

from hyena_ds.bench.measure import live_memory_gib
from hyena_ds.config.model import ModelConfig
from hyena_ds.config.policy import KEPT_UNITS, PolicyName
from hyena_ds.cost.devices import GIB, Device, Links, Rates
from hyena_ds.cost.memory import Memory, moments, peak_memory
from hyena_ds.cost.shape import StepShape, checkpoint_bytes, parameters
from hyena_ds.model.backbone import build_model
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.parallel.layout import Layout
from hyena_ds.tasks.next_token import NextToken

MIB = 1 << 20
UNIT = 4 * 1024 * 1024 * 128
"""Bytes of a million tokens at width 128: 512 MiB."""
MILLION = StepShape(ModelConfig(width=128, layers=2, maximum_context=1 << 20), 1 << 20, policy="leanest")
RATES = Rates(1e11, 2e11, 1e10, 1e10, Links(1e9, 1e9, 1e-4, 1e-4))
CPU = Device("a processor", 24 * GIB, RATES, 0.3 * GIB, 0.5, on_cpu=True)


@pytest.mark.parametrize("policy", KEPT_UNITS)
def test_a_policy_keeps_the_units_that_it_names(policy: PolicyName) -> None:
    for name, held in moments(replace(MILLION, policy=policy), True).items():
        kept = sum(size * count for part, size, count in held if part == "kept")
        if name in ("loss", "backward of the MLP"):
            assert kept == pytest.approx(2 * KEPT_UNITS[policy] * UNIT, rel=1e-4)


def test_the_leanest_step_of_a_million_tokens_holds_seven_units_and_five_signals() -> None:
    """The count of bench/RESULTS.md: two residuals, two gradients, the convolution's input and its gradient, the filter."""
    memory = peak_memory(MILLION, CPU)
    assert memory.moment == "backward of the convolution"
    assert memory.parts["kept"] + memory.parts["layer at work"] == 7 * UNIT
    signal = 2 * 4 * 2 * (1 << 20)  # 2 transforms of 2 M points
    assert memory.parts["transforms"] == 5 * signal
    assert memory.parts["exchange"] == 0


def test_a_cut_step_holds_half_of_it_and_the_buffers_of_two_tensors_each_way() -> None:
    whole, cut = peak_memory(MILLION, CPU), peak_memory(replace(MILLION, sequence_parallel=2), CPU)
    assert cut.parts["kept"] == whole.parts["kept"] / 2
    group = 2 * 4 * (1 << 20)  # 2 channels, all tokens
    assert cut.parts["exchange"] == (3 * 2 + 2 * 2) * group


def test_micro_steps_keep_the_filters_and_their_gradients() -> None:
    one, more = (moments(replace(MILLION, policy="balanced", accumulation=M), True)["loss"] for M in (1, 2))
    kept = [sum(size * count for part, size, count in held if part == "kept") for held in (one, more)]
    assert kept[1] - kept[0] == 2 * UNIT  # one more a layer


@pytest.mark.parametrize(("stage", "floats"), [(0, 5.0), (1, 2 + 4 / 4), (2, 1 + 4 / 4), (3, 5 / 4 + 2 / 2)])
def test_zero_shards_what_its_stage_says(stage: int, floats: float) -> None:
    shape = replace(MILLION, zero_stage=stage, data_parallel=4)  # type: ignore[arg-type]
    bucket = 64 * MIB if stage else 0
    assert peak_memory(shape, CPU).parts["weights and optimizer"] == pytest.approx(floats * 4 * 436_096 + bucket)


@pytest.mark.parametrize(
    ("width", "layers", "published"), [(128, 2, 436_096), (256, 4, 3_277_568), (256, 8, 6_550_528)]
)
def test_the_number_of_weights_is_the_published_one(width: int, layers: int, published: int) -> None:
    config = ModelConfig(width=width, layers=layers, maximum_context=1024)
    assert parameters(config) == published
    assert checkpoint_bytes(config) == 16 * published


def live(memory: Memory) -> float:
    """Bytes without the process and the allocator's slack."""
    return memory.total - memory.parts["process"] - memory.parts["slack"]


def test_transforms_leave_holes_on_a_cpu_and_everything_on_a_gpu() -> None:
    found = peak_memory(replace(MILLION, context_length=1 << 18), CPU)
    # 32 groups of four channels.
    assert found.parts["slack"] == 0.5 * found.parts["transforms"] * (1 + 5) > 0
    # Those of a million tokens have 16 MiB, and go back to the system.
    assert peak_memory(MILLION, CPU).parts["slack"] == 0
    # The holes of the transforms are still there when another moment is the highest.
    other = peak_memory(replace(MILLION, policy="fastest", context_length=1 << 16), CPU)
    assert other.parts["transforms"] == 0 and other.parts["slack"] > 0
    on_gpu = peak_memory(MILLION, replace(CPU, on_cpu=False))
    assert on_gpu.parts["slack"] == pytest.approx(0.5 * live(on_gpu))


@pytest.mark.slow
@pytest.mark.parametrize("policy", KEPT_UNITS)
def test_predicted_live_tensors_are_those_of_a_real_step(policy: PolicyName) -> None:
    shape = StepShape(
        ModelConfig(width=64, layers=2, maximum_context=16384, embedding_dropout=0.0), 16384, policy=policy
    )
    model = build_model(shape.config, 1)
    objective = NextToken(model)
    ids_BL = torch.randint(7, 11, (1, shape.context_length))

    def step() -> None:
        call = ForwardPass(Layout.whole(shape.context_length), policy=shape.activation_policy)
        objective.loss(ids_BL, ids_BL, call)[0].backward()
        model.zero_grad()

    step()
    gc.collect()
    found = live_memory_gib(step) - live_memory_gib(lambda: None)
    wanted = peak_memory(shape, CPU)
    wanted_gib = (live(wanted) - wanted.parts["weights and optimizer"]) / GIB
    assert found == pytest.approx(wanted_gib, rel=0.1), wanted
