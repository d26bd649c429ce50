"""An end that is computed from a kept window is the end of the whole sequence, whatever the grid and where it begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hyena_ds.predict.predictor import Predictor
from hyena_ds.predict.shared_prefix import EndFilters, SharedPrefix
from tests.distributed.pool import Pool
from tests.distributed.work import TOLERANCE, Grid, lively_model, relative_error, run_config
from tests.model.plain import plain_hidden
from tests.predict import prefix_cases

Ranks = Callable[[int], Pool]
LENGTH = 61
"""A window that no grid divides."""
CONFIG = replace(run_config(Grid(1, 1)).model, maximum_context=64, layers=3)


def window() -> Tensor:
    return torch.randint(7, 12, (LENGTH,), generator=torch.Generator().manual_seed(3))


def jobs() -> list[tuple[list[int], Tensor]]:
    """Ends at the window's start and in it, across and within every slice, up to its end, and equal to the reference."""
    generator = torch.Generator().manual_seed(4)
    places = [([0, 0], 9), ([2, 3, 17, 30, 31, 44, 2], 9), ([40, 50, 41, 14], 11), ([60, 59], 1), ([2], 59)]
    made = [(begins, torch.randint(7, 12, (len(begins), S), generator=generator)) for begins, S in places]
    begins = [20, 21]
    return [*made, (begins, torch.stack([window()[begin : begin + 13] for begin in begins]))]


@pytest.mark.slow
@pytest.mark.parametrize("grid", [Grid(1, 1), Grid(1, 2), Grid(1, 4)], ids=str)
def test_an_end_is_that_of_the_whole_sequence_on_every_grid(ranks: Ranks, grid: Grid) -> None:
    model = lively_model(CONFIG).double()
    parameters = dict(model.named_parameters())
    found = ranks(grid.ranks).run(prefix_cases.hidden_states, grid=grid, config=CONFIG, window_L=window(), jobs=jobs())
    unchanged = plain_hidden(parameters, CONFIG, window().unsqueeze(0)).detach()[0]
    for rank in found:
        for (begins, ends_BS), (hidden, reference) in zip(jobs(), rank, strict=True):
            S = ends_BS.shape[1]
            for number, begin in enumerate(begins):
                whole = torch.cat((window()[:begin], ends_BS[number]))
                wanted = plain_hidden(parameters, CONFIG, whole.unsqueeze(0)).detach()[0]
                before = min(begin, 1)
                assert relative_error(hidden[number][1 - before :], wanted[begin - before :]) <= TOLERANCE
                there = unchanged[begin - before : begin + S]
                assert relative_error(reference[number][1 - before :], there) <= TOLERANCE


def test_what_is_kept_begins_at_the_halo_of_the_first_end() -> None:
    predictor = Predictor(lively_model(CONFIG))
    prefix = SharedPrefix(predictor, window(), 40, EndFilters(predictor))
    numbers = sum(tensor.numel() for kept in prefix._layers for tensor in kept) + prefix._last_lD.numel()
    assert numbers == (LENGTH - 38) * CONFIG.width * (3 * CONFIG.layers + 1)
