"""Values of a variant, computed from a shared window, are those of two whole windows in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyena_ds.genome.fasta import Genome, open_genome
from hyena_ds.predict.effects import Effects, Placed, jensen_shannon
from hyena_ds.predict.haplotypes import Change, Site, Strand, WindowRule
from hyena_ds.predict.predictor import Predictor
from tests.distributed.work import TOLERANCE, Grid, lively_model, run_config
from tests.model.plain import plain_hidden

CONFIG = run_config(Grid(1, 1)).model
CONTIG = "ACGTTTTTTTTGCACACACACAGGGATCNNNNACGATCGATTACAAAATTGACCAGTAC"
RULE = WindowRule.fit(10, 9, CONFIG.maximum_context)
CHANGES = [
    (0, "A", "C"),
    (1, "C", "CGG"),
    (2, "GT", "G"),
    (12, "CA", "CACA"),
    (12, "ACAC", "AC"),
    (20, "CAG", "TTC"),
    (25, "T", "G"),
    (33, "CGATCG", "C"),
    (33, "C", "CTTTTTTTTTTTTTTT"),
    (46, "ATTG", "TTTT"),
    (len(CONTIG) - 1, "C", "G"),
    (len(CONTIG) - 3, "TAC", "T"),
]


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Genome:
    directory = tmp_path_factory.mktemp("genome")
    (directory / "in.fa").write_text(f">c\n{CONTIG}\n", encoding="ascii")
    return open_genome(directory / "in.fa", directory, 1 << 20).genome


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("batch", [1, 3, None])
def test_values_are_those_of_two_whole_windows(genome: Genome, reverse: bool, batch: int | None) -> None:
    strand = Strand(genome, "c", len(CONTIG), reverse)
    placed = []
    for position, reference, alternative in CHANGES:
        change = strand.change(position, reference, alternative)
        site = RULE.site(strand, change)
        if site is None:  # what is left is the beginning of what was there
            assert not reverse and position == len(CONTIG) - 3
            continue
        placed.append(Placed(change, site))
    parameters = dict(lively_model(CONFIG).double().named_parameters())
    effects = Effects(Predictor(lively_model(CONFIG)), RULE, batch)
    windows = sorted({each.site.window for each in placed})
    assert len(windows) > 2
    for window in windows:
        some = [each for each in placed if each.site.window == window]
        found = effects.of(strand, some, min(each.site.first for each in some))
        for row, each in zip(found, some, strict=True):
            wanted = plain_values(parameters, strand, each.change, each.site)
            assert torch.allclose(row, wanted, rtol=10 * TOLERANCE, atol=1e-6), (each.site, row, wanted)


def plain_values(parameters: dict[str, Tensor], strand: Strand, change: Change, site: Site) -> Tensor:
    """LLR, JSD, cosine and Euclidean distance from two whole forward passes."""
    sums, states, next_base = [], [], []
    head = parameters["backbone.embedding.weight"].detach()
    for read in (lambda s, e: change.read(strand, s, e), strand.read):
        ids = torch.from_numpy(read(site.window, site.end).astype(np.int64))
        hidden = plain_hidden(parameters, CONFIG, ids.unsqueeze(0)).detach()[0]
        log_p = F.log_softmax(hidden @ head.t(), -1)
        scored = (ids[1:] >= 7) & (ids[1:] <= 10)
        sums.append(float(log_p[:-1].gather(1, ids[1:, None])[:, 0][scored].sum()))
        at = site.first - site.window
        states.append(hidden[at])
        p = log_p[at, 7:11].exp()
        next_base.append(p / p.sum())
    middle = (next_base[0] + next_base[1]) / 2
    jsd = sum(float((p * (p / middle).log2()).sum()) for p in next_base) / 2
    cosine = 1 - float(states[0] @ states[1] / states[0].norm() / states[1].norm())
    return torch.tensor([sums[0] - sums[1], jsd, cosine, float((states[0] - states[1]).norm())], dtype=torch.float64)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=8, max_size=8).filter(lambda x: sum(x[:4]) > 0.1 and sum(x[4:]) > 0.1))
def test_divergence_is_symmetric_and_at_most_a_bit(values: list[float]) -> None:
    p, q = (torch.tensor([part], dtype=torch.float64) / sum(part) for part in (values[:4], values[4:]))
    one = float(jensen_shannon(p, q))
    assert math.isclose(one, float(jensen_shannon(q, p)), abs_tol=1e-12)
    assert 0.0 <= one <= 1.0 + 1e-12
    assert float(jensen_shannon(p, p)) <= 1e-12


def test_divergence_of_what_never_agrees_is_one_bit() -> None:
    assert math.isclose(float(jensen_shannon(torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[0, 1.0, 0, 0]]))), 1.0)
