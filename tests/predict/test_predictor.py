"""What a Predictor returns is the model's, whatever the grid, the batch, the padding and the sequences before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import hyena_ds
from hyena_ds.errors import UserError
from hyena_ds.model import block
from hyena_ds.model.filter_cache import HeldFilters
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.parallel.layout import Layout
from hyena_ds.predict.predictor import Predictor
from hyena_ds.tasks.next_token import NextToken
from tests.checkpoints import cases as checkpoint_cases
from tests.distributed.pool import Pool
from tests.distributed.work import CONTEXT, TOLERANCE, Grid, lively_model, relative_error, run_config
from tests.model.plain import plain_logits
from tests.predict import cases

Ranks = Callable[[int], Pool]
CONFIG = run_config(Grid(1, 1)).model


def batches() -> list[Tensor]:
    """Lengths that no grid divides, short ones after long ones and long ones after short ones."""
    generator = torch.Generator().manual_seed(5)
    sizes = [(2, 5), (1, CONTEXT), (3, 1), (2, CONTEXT - 1), (1, 9), (4, CONTEXT // 2)]
    return [torch.randint(7, 12, size, generator=generator) for size in sizes]


@pytest.mark.slow
@pytest.mark.parametrize("grid", [Grid(1, 1), Grid(1, 2), Grid(2, 2), Grid(1, 4)], ids=str)
def test_logits_are_those_of_the_plain_model_on_every_grid(ranks: Ranks, grid: Grid) -> None:
    parameters = dict(lively_model(CONFIG).double().named_parameters())
    found = ranks(grid.ranks).run(cases.logits, grid=grid, config=CONFIG, batches=batches())
    for rank in found:
        for ids_BL, logits_BLV in zip(batches(), rank, strict=True):
            wanted = plain_logits(parameters, CONFIG, ids_BL).detach()
            assert relative_error(logits_BLV, wanted) <= TOLERANCE, ids_BL.shape


def test_a_sequence_has_the_same_logits_alone_in_a_batch_and_with_something_behind_it() -> None:
    predictor = Predictor(lively_model(CONFIG))
    ids_BL = batches()[5]
    together = predictor.logits(ids_BL)
    longer = predictor.logits(torch.cat((ids_BL, ids_BL), 1))[:, : ids_BL.shape[1]]
    assert relative_error(longer, together) <= 1e-6
    for row, ids_L in enumerate(ids_BL):
        assert relative_error(predictor.logits(ids_L.unsqueeze(0))[0], together[row]) <= 1e-6


def test_filters_are_evaluated_again_only_for_a_longer_context(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated, original = [], block.evaluate_filter
    monkeypatch.setattr(block, "evaluate_filter", lambda *a: evaluated.append(a[3]) or original(*a))
    predictor = Predictor(lively_model(CONFIG))
    for ids_BL in batches():
        predictor.logits(ids_BL)
    assert evaluated == [5] * CONFIG.layers + [CONTEXT] * CONFIG.layers


def test_values_do_not_depend_on_the_sequences_before() -> None:
    generator = torch.Generator().manual_seed(6)
    used = Predictor(lively_model(CONFIG))
    used.logits(torch.randint(7, 12, (1, CONTEXT), generator=generator))
    for length in range(1, CONTEXT):
        ids_BL = torch.randint(7, 12, (1, length), generator=generator)
        assert torch.equal(used.logits(ids_BL), Predictor(lively_model(CONFIG)).logits(ids_BL)), length


def test_held_filters_have_no_backward() -> None:
    ids_BL = batches()[1]
    loss, _ = NextToken(lively_model(CONFIG)).loss(
        ids_BL, ids_BL, ForwardPass(Layout.whole(CONTEXT), filters=HeldFilters())
    )
    with pytest.raises(RuntimeError, match="filters that are held"):
        loss.backward()


@pytest.mark.parametrize("length", [0, CONTEXT + 1])
def test_a_sequence_that_the_model_cannot_take_is_refused(length: int) -> None:
    with pytest.raises(UserError, match=f"found a sequence of {length} tokens, wanted 1 to {CONTEXT}"):
        Predictor(lively_model(CONFIG)).logits(torch.full((1, length), 7))


@pytest.mark.slow
@pytest.mark.parametrize(("length", "said"), [(28, "nothing"), (29, "wanted 1 to 28 in 4 equal slices")])
def test_slices_that_would_reach_beyond_the_filter_are_refused(ranks: Ranks, length: int, said: str) -> None:
    config = replace(CONFIG, maximum_context=30)
    found = ranks(4).run(cases.refused_length, grid=Grid(1, 4), config=config, length=length)
    assert all(said in sentence for sentence in found), found


@pytest.mark.slow
def test_ranks_that_do_not_divide_the_channels_are_refused(ranks: Ranks) -> None:
    said = ranks(4).run(cases.refused, grid=Grid(1, 4), config=replace(CONFIG, width=18))
    assert said == ["sequence_parallel: found 4 ranks, wanted a divisor of the model's width 18; take fewer"] * 4


@pytest.mark.slow
def test_a_model_comes_from_a_run_a_checkpoint_or_a_weights_file(ranks: Ranks, tmp_path: Path) -> None:
    ranks(1).run(checkpoint_cases.save, directory=tmp_path / "checkpoints", zero_stage=1, steps=[1, 2])
    newest = tmp_path / "checkpoints" / "step-00000002"
    places = (tmp_path, newest, newest / "weights.safetensors")
    found = [Predictor.load(place).logits(batches()[1]) for place in places]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert torch.equal(found[0], hyena_ds.load_model(tmp_path)(batches()[1]).detach())
    older = hyena_ds.load_model(tmp_path / "checkpoints" / "step-00000001")(batches()[1])
    assert not torch.equal(found[0], older)
    with pytest.raises(
        UserError,
        match=r"found no weights.safetensors, model.safetensors, pytorch_model.bin or weights.ckpt; name a weights",
    ):
        hyena_ds.load_model(tmp_path / "nowhere")
