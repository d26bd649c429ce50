"""Through channels and back: values, places, order of the exchanges, and how much is sent.

B batch, D width, L context length.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hyena_ds.config.policy import POLICIES, PolicyName
from tests.distributed import cases
from tests.distributed.pool import Pool
from tests.distributed.work import (
    TOLERANCE,
    Grid,
    make_batch,
    reference,
    run_config,
    series_error,
    worst_error,
)

Ranks = Callable[[int], Pool]
D = 12


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("at_once", [1, 2, D])
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("sp", [1, 2, 4])
def test_every_channel_sees_the_whole_sequence_and_lands_where_it_came_from(
    ranks: Ranks, sp: int, B: int, at_once: int, in_place: bool
) -> None:
    L = 5 * sp
    x_BDL = torch.randn(2, B, D, L, generator=torch.Generator().manual_seed(sp))
    everyone = ranks(sp).run(cases.through_channels, x=x_BDL, sp=sp, at_once=at_once, in_place=in_place)
    # The work: sums over all earlier tokens of the first, scaled by the channel; and the second reversed in time.
    wanted = (
        x_BDL[0].cumsum(-1) * torch.arange(1.0, D + 1).view(-1, 1),
        x_BDL[1].flip(-1),
    )
    for number, right in enumerate(wanted):
        torch.testing.assert_close(torch.cat([found["outputs"][number] for found in everyone], dim=-1), right)


@pytest.mark.parametrize("sp", [2, 4])
def test_the_next_channels_are_on_their_way_before_these_are_worked_on(ranks: Ranks, sp: int) -> None:
    x_BDL = torch.randn(2, 1, 12 * sp, 2 * sp)
    for found in ranks(sp).run(cases.through_channels, x=x_BDL, sp=sp, at_once=4, in_place=False):
        # Two tensors go in and two out, for each of three groups of channels.
        assert found["events"] == [
            *["start"] * 2, *["start"] * 2, "work", *["start"] * 2,
            *["start"] * 2, "work", *["start"] * 2,
            "work", *["start"] * 2,
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "forward", "backward"), [("fastest", 2, 2), ("balanced", 2, 2), ("lean", 2, 4), ("leanest", 2, 6)]
)
@pytest.mark.parametrize("sp", [2, 4])
def test_a_layer_sends_two_activation_shards_forward_and_what_its_policy_needs_backward(
    ranks: Ranks, sp: int, policy: PolicyName, forward: int, backward: int
) -> None:
    config = run_config(Grid(1, sp), activation_policy=policy)
    batch = make_batch(1, 3, 1)
    tokens = batch.token_ids_BL.numel()
    for found in ranks(sp).run(cases.bytes_sent, config=config, grid=Grid(1, sp), batch=batch):
        shard = tokens // sp * config.model.width * 4 * (sp - 1) // sp
        # Besides, the filter: of one sequence's length, in once and its gradient out once (leanest: in twice).
        filters = shard // 3
        layers = config.model.layers
        assert found["forward"] == layers * (forward * shard + filters)
        again = POLICIES[policy].keep_filter is False
        assert found["backward"] == layers * (backward * shard + filters * (2 if again else 1))


@pytest.mark.parametrize("policy", ["balanced", "lean", "leanest"])
@pytest.mark.parametrize(("sp", "context"), [(2, 26), (2, 4), (4, 36), (4, 8)])
def test_contexts_that_are_no_power_of_two_equal_one_process(
    ranks: Ranks, sp: int, context: int, policy: PolicyName
) -> None:
    config = run_config(Grid(1, sp), maximum_context=context, activation_policy=policy, zero_stage=1)
    batches = [make_batch(step, 6, 2, context) for step in range(2)]
    wanted = reference(config, batches, 0.05)
    for found in ranks(sp).run(cases.train, grid=Grid(1, sp), config=config, batches=batches, rate=0.05):
        error, name = worst_error(found.first_gradients, wanted.first_gradients)
        assert error <= TOLERANCE, f"gradient of {name}: {error:.1e}"
        assert series_error(found.losses, wanted.losses) <= TOLERANCE


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("sp", [2, 4])
def test_inside_torchs_activation_checkpointing_the_exchanges_give_the_same_gradients(
    ranks: Ranks, sp: int, policy: PolicyName
) -> None:
    config = run_config(Grid(1, sp), activation_policy=policy)
    for plain, again in ranks(sp).run(cases.checkpointed, config=config, grid=Grid(1, sp), batch=make_batch(3, 2, 1)):
        assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
        assert all(bool(gradient.any()) for gradient in plain)
