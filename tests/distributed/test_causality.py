"""No logit sees a later base, also across the cut between ranks; and the check notices a filter one token too early.

R rows, each with another base changed; L context length.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hyena_ds.config.policy import POLICIES, PolicyName
from tests.distributed import cases
from tests.distributed.pool import Pool
from tests.distributed.work import Grid, run_config

CONTEXT = 1024
LEAK = 10 * 1.8e-7
"""Ten times what the FFT of the reference leaks at this length, relative to the largest logit."""
CHANGED = sorted({1, 100, CONTEXT - 1} | {cut + near for cut in (256, 512, 768) for near in (-1, 0, 1)})

Ranks = Callable[[int], Pool]


def _worst_leak(ranks: Ranks, sp: int, plant: bool, policy: PolicyName = "balanced") -> float:
    """The largest change of a logit before the changed base, relative to the largest logit."""
    ids_L = torch.randint(7, 11, (CONTEXT,), generator=torch.Generator().manual_seed(5))
    ids_RL = ids_L.repeat(len(CHANGED) + 1, 1)
    for row, t in enumerate(CHANGED, start=1):
        ids_RL[row, t] = 7 + (ids_L[t] - 7 + 1) % 4
    grid = Grid(1, sp)
    config = run_config(grid, maximum_context=CONTEXT, activation_policy=policy)
    parts = ranks(sp).run(cases.logits, config=config, grid=grid, token_ids_BL=ids_RL, plant=plant)
    logits_RLV = torch.cat(parts, dim=1)
    assert logits_RLV.shape[:2] == ids_RL.shape
    change_RL = (logits_RLV[1:] - logits_RLV[0]).abs().amax(-1) / logits_RLV.abs().max()
    leaks = []
    for row, t in enumerate(CHANGED):
        assert change_RL[row, t] > 1000 * LEAK, f"a change at {t} shows nowhere: the check would see nothing"
        leaks.append(float(change_RL[row, :t].max()))
    return max(leaks)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("sp", [1, 2, 4])
def test_no_logit_before_a_changed_base_changes_at_and_beside_every_cut(
    ranks: Ranks, sp: int, policy: PolicyName
) -> None:
    assert _worst_leak(ranks, sp, plant=False, policy=policy) <= LEAK


@pytest.mark.parametrize("sp", [1, 2, 4])
def test_a_planted_tap_one_token_ahead_fails_the_same_check(ranks: Ranks, sp: int) -> None:
    assert _worst_leak(ranks, sp, plant=True) > 1000 * LEAK
