"""Decoding a token at a time gives the logits of a full forward pass, at every step, whatever the prompt, batch and grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hyena_ds.errors import UserError
from hyena_ds.predict.decoder import Decoder
from hyena_ds.predict.predictor import Predictor
from hyena_ds.predict.prefill import Prefix, prefill
from tests.distributed.pool import Pool
from tests.distributed.work import Grid, lively_model, run_config
from tests.model.plain import plain_logits
from tests.predict import cases

Ranks = Callable[[int], Pool]
CONFIG = run_config(Grid(1, 1), maximum_context=4096).model
TOLERANCE = 1e-4
"""Largest difference of a logit; the largest logit is between 1 and 10."""


def sequence(length: int, seed: int = 3) -> Tensor:
    """Random bases, N among them."""
    return torch.randint(7, 12, (length,), generator=torch.Generator().manual_seed(seed))


def begun(predictor: Predictor, ids_L: Tensor, tokens: int) -> Prefix:
    prefix = prefill(predictor, ids_L, tokens)
    assert prefix is not None
    return prefix


def decoded(predictor: Predictor, sequences: list[Tensor], prompts: list[int], tokens: int) -> Tensor:
    """Logits (B, tokens, V) of the tokens after the prompts, each fed what stands in its sequence."""
    prefixes = [begun(predictor, ids[:L], tokens) for ids, L in zip(sequences, prompts, strict=True)]
    decoding = Decoder(predictor, tokens).start(prefixes)
    logits = [decoding.logits_BV]
    for step in range(tokens - 1):
        logits.append(decoding.step(torch.stack([ids[L + step] for ids, L in zip(sequences, prompts, strict=True)])))
    return torch.stack(logits, 1)


@pytest.mark.parametrize("prompt", [1, 2, 3, 1001, 2048])
def test_logits_of_every_step_on_4k_are_those_of_full_recomputation(prompt: int) -> None:
    predictor, ids = Predictor(lively_model(CONFIG)), sequence(4096)
    found = decoded(predictor, [ids], [prompt], 4096 - prompt)[0]
    wanted = plain_logits(dict(predictor.model.double().named_parameters()), CONFIG, ids.unsqueeze(0))[
        0, prompt - 1 : -1
    ]
    assert wanted.abs().max() > 1.0
    assert (found - wanted).abs().max() <= TOLERANCE


def test_unequal_prompts_decode_together_as_each_does_alone_to_the_last_bit() -> None:
    predictor, tokens, prompts = Predictor(lively_model(CONFIG)), 200, [1, 2, 77, 300]
    sequences = [sequence(L + tokens, seed=L) for L in prompts]
    together = decoded(predictor, sequences, prompts, tokens)
    for row, (ids, L) in enumerate(zip(sequences, prompts, strict=True)):
        assert torch.equal(decoded(predictor, [ids], [L], tokens)[0], together[row])
        wanted = predictor.logits(ids.unsqueeze(0))[0, L - 1 : -1]
        assert (together[row] - wanted).abs().max() <= TOLERANCE


def test_prefixes_do_not_change_where_they_are_decoded_from() -> None:
    predictor, ids = Predictor(lively_model(CONFIG)), sequence(150)
    prefix, decoder = begun(predictor, ids[:10], 140), Decoder(predictor, 140)
    first, second = decoder.start([prefix]), decoder.start([prefix])
    for token in ids[10:-1]:
        first.step(token.unsqueeze(0))
    for token in ids[10:-1]:
        second.step(token.unsqueeze(0))
    assert torch.equal(first.logits_BV, second.logits_BV)


def test_bfloat16_projections_decode_as_they_predict() -> None:
    predictor, ids = Predictor(lively_model(CONFIG), precision=torch.bfloat16), sequence(200)
    found = decoded(predictor, [ids], [100], 100)[0]
    wanted = predictor.logits(ids.unsqueeze(0))[0, 99:-1]
    exact = Predictor(lively_model(CONFIG)).logits(ids.unsqueeze(0))[0, 99:-1]
    assert (found - wanted).abs().max() <= 2 * (wanted - exact).abs().max()


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    predictor = Predictor(lively_model(replace(CONFIG, maximum_context=32)))
    with pytest.raises(UserError, match="found a prompt of 30 bases and 3 to generate, wanted at most 32 together"):
        prefill(predictor, sequence(30), 3)


@pytest.mark.slow
@pytest.mark.parametrize("grid", [Grid(1, 2), Grid(1, 4)], ids=str)
def test_every_rank_of_a_grid_can_own_what_one_rank_would_make(ranks: Ranks, grid: Grid) -> None:
    """Prompts whose last two tokens lie on one rank, on two, and before padding; the owner alone gets the state."""
    config, tokens = replace(CONFIG, maximum_context=256), 40
    predictor = Predictor(lively_model(config))
    for length in (1, 2, 3, 9, 50, 53, 65):
        ids = sequence(length)
        owner = length % grid.sp
        found = ranks(grid.ranks).run(cases.prefix, grid=grid, config=config, ids_L=ids, tokens=tokens, owner=owner)
        wanted = begun(predictor, ids, tokens)
        assert [rank for rank, prefix in enumerate(found) if prefix is not None] == [owner]
        for ours, theirs in zip(wanted, found[owner], strict=True):
            assert ours.shape == theirs.shape
            assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, float(ours.abs().max())), length
