"""Every shipped prep config parses, and the one whose genome is shipped builds."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.config import load_config
from data_prep.download import ASSEMBLIES
from hyena_ds.data.shards import read_index

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "prep").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_prep_config_parses_and_can_find_its_genome(path):
    config = load_config(str(path))
    assert (ROOT / config.fasta).is_file() or (config.download and config.download.name in ASSEMBLIES)
    assert not Path(config.output).is_absolute() and not Path(config.fasta).is_absolute()


def test_there_are_configs_for_the_shipped_genome_the_whole_one_and_intervals():
    assert {"quickstart", "hg38", "hg38-basenji"} <= {path.stem for path in CONFIGS}


def test_the_quickstart_builds_and_verifies(workshop, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = ["configs/prep/quickstart.yaml", f"output={workshop.output}"]
    assert workshop.run("build", *arguments).code == 0
    assert workshop.run("verify", *arguments).code == 0
    index = read_index(workshop.output)
    assert [(c.split, c.start, c.end) for c in index.chunks][-1] == ("valid", 2100947, 2333275)


def test_hg38_holds_out_the_chromosomes_of_the_paper():
    splits = load_config(str(ROOT / "configs" / "prep" / "hg38.yaml")).splits.by_chromosome
    assert splits == {"test": ("chr14", "chrX"), "valid": ("chr8",), "train": ()}
