"""Seeded damage to configs of a prep: what is accepted divides the genome, the rest is one sentence."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest

from data_prep.config import PrepConfig, SplitsConfig
from data_prep.regions import divide
from hyena_ds.config.loading import Invalid, parse_yaml
from hyena_ds.errors import UserError
from hyena_ds.genome.fasta import open_genome
from tests.genome.test_damaged import FASTA, SEED, damaged

YAML = b"fasta: g.fa\nassembly: x\noutput: o\nchunk_length: 9\nsplits:\n  by_fraction: {train: 0.5, valid: 0.25}\nworkers: 2\n"


def test_a_damaged_config_is_refused_or_divides_the_genome(tmp_path: Path) -> None:
    source = tmp_path / "g.fa"
    source.write_bytes(FASTA)
    genome = open_genome(source, tmp_path, 10_000).genome
    rng, accepted = random.Random(SEED), 0
    for number in range(300):
        text = damaged(YAML, rng).decode("utf-8", "replace")
        try:
            config = parse_yaml(text, "prep.yaml", PrepConfig)
            division = divide(config, "prep.yaml", genome)
        except UserError:
            continue
        accepted += 1
        assert 1 <= config.chunk_length <= 2**30 and 1 <= config.workers <= 1024, (SEED, number)
        spans = sorted((region.chromosome, region.start, region.end) for region in division.regions)
        assert all(l[0] != r[0] or l[2] <= r[1] for l, r in pairwise(spans)), (SEED, number)
    assert 30 < accepted < 280


@pytest.mark.parametrize("value", ["", " ", "a\0", "\ud800"])
def test_a_name_that_no_file_can_hold_is_refused_by_the_schema(value: str) -> None:
    with pytest.raises(Invalid):
        PrepConfig("g.fa", value, "o", SplitsConfig(by_fraction={"train": 1.0}))
