"""The model in assets: it opens as it lies there, knows its training, and predicts human DNA better than counts of short words."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from hyena_ds.checkpoints.weights import load_model
from hyena_ds.genome.fasta import open_genome
from hyena_ds.predict.held_out import HELD_OUT, TRAINED_ON, verdict_of
from hyena_ds.predict.predictor import Predictor
from hyena_ds.predict.windows import Region, Window, tokens
from hyena_ds.runs.trained_on import trained_context
from hyena_ds.weights import huggingface
from tests.paths import GENOME, ROOT

MODEL = ROOT / "assets" / "hyenadna-chrx"
FIRST, LENGTH = 100_000, 8_192
"""A stretch of chr2 without N."""
ORDER_5 = 1.9285
"""Bits a base of a Markov model of order 5 on chr2; the stretch itself is no harder."""


def test_it_predicts_a_chromosome_that_it_never_saw(tmp_path: Path) -> None:
    with closing(open_genome(GENOME, tmp_path, 1 << 30).genome) as genome:
        ids_L = tokens(genome, Region("chr2", FIRST, FIRST + LENGTH, "+"), Window(0, 0, LENGTH, 0))
    predictor = Predictor(load_model(MODEL))
    assert predictor.model.config.maximum_context == 262_144
    log_p_BL = predictor.log_probabilities(torch.from_numpy(ids_L.astype(np.int64))[None])
    bits = -float(log_p_BL[:, : LENGTH - 1].mean()) / np.log(2)
    assert bits < ORDER_5, bits


def test_it_says_what_it_was_trained_on() -> None:
    assert trained_context(MODEL) == 32_768
    for contig, start, assembly, verdict in (
        ("chrX", 30_000_000, "hg19", TRAINED_ON),
        ("chrX", 62_000_000, "hg19", HELD_OUT),
        ("chr2", 30_000_000, "hg38", HELD_OUT),
    ):
        assert verdict_of(MODEL, {contig: [(start, start + 1000)]}, assembly).verdict == verdict


@pytest.mark.parametrize("name", ["configuration_hyenadna.py", "modeling_hyenadna.py", "heads_hyenadna.py"])
def test_its_code_is_the_one_that_is_exported(name: str) -> None:
    source = Path(str(huggingface.__file__)).parent / name
    assert (MODEL / name).read_bytes() == source.read_bytes(), f"copy {name} to {MODEL} again"
