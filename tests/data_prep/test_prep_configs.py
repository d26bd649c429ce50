"""Every shipped prep config parses, and the one whose genome is shipped builds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_prep.config import load_config
from data_prep.download import ASSEMBLIES
from hyena_ds.data.shards import read_index
from tests.data_prep.test_prep_bad_input import refused
from tests.data_prep.workshop import Workshop

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "prep").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_prep_config_parses_and_can_find_its_genome(path):
    config = load_config(str(path))
    named = (ROOT / config.fasta).is_file() or (config.download and config.download.name in ASSEMBLIES)
    assert named or f"{Path(config.fasta).name} of Debian's package" in path.read_text()
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


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"chunk_length": 10**18}, "chunk_length: found 1000000000000000000, wanted 1 to"),
        ({"chunk_length": 10**400}, "chunk_length: found '1000"),
        ({"workers": 10**6}, "workers: found 1000000, wanted at most 1024"),
        ({"chunks_per_shard": 10**18}, "chunks_per_shard: found 1000000000000000000, wanted at most"),
        ({"assembly": "x" * 256}, "assembly: found 256 bytes, wanted at most 255"),
        ({"assembly": "a\0b"}, "assembly: found the character 0x0"),
        ({"output": "a\nb"}, "output: found a control character"),
        ({"fasta": "a\x1bb"}, "fasta: found a control character"),
        ({"splits": {"bed": "\x7f"}}, "splits.bed: found a control character"),
        ({"output": "x" * 300}, "File name too long"),
        ({"output": "new/" + "x" * 250}, "File name too long"),
        ({"fasta": "x" * 300}, "File name too long"),
        ({"splits": {"by_fraction": {"train": float("nan")}}}, "found '.nan', wanted a number"),
        ({"limits": {"fasta_gib": 0}}, "limits.fasta_gib: found 0, wanted a number above 0"),
        ({"limits": {"bed_mib": float("inf")}}, "limits.bed_mib: found '.inf', wanted a number"),
        ({"limits": {"bed_mib": 1e300}}, "limits.bed_mib: found 1e+300"),
        ({"download": {"name": "x", "attempts": 10**9}}, "attempts: found 1000000000, wanted at most"),
        ({"download": {"name": "x", "gib": -1}}, "gib: found -1, wanted a number above 0"),
    ],
)
def test_a_config_of_absurd_values_is_one_sentence(
    workshop: Workshop, monkeypatch, changes: dict[str, Any], wanted: str
) -> None:
    monkeypatch.chdir(workshop.directory)
    workshop.fasta({"a": "ACGT" * 300})
    assert wanted in refused(workshop, workshop.config(**changes))
