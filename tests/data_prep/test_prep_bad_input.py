"""A user's mistake: one sentence that names the place, exit code 2, no traceback, and nothing written."""

from __future__ import annotations

import gzip
from typing import Any

import pytest

from tests.data_prep.workshop import Workshop, bgzip, fasta_text, gzipped, random_bases

GOOD = fasta_text({"a": random_bases(1000), "b": random_bases(300, seed=1)})
PROTEIN = ">sp|P1\nMKWVTFISLLFLFSSAYSRGVFRRDAHKSEVAHRFKDLGEENFKALVLIAFAQYLQQCPFEDHVK\n"
PACKED = gzip.compress(GOOD.encode(), mtime=0)


def refused(workshop: Workshop, config: str, *overrides: str) -> str:
    """The sentence of a build that must fail without leaving a trace."""
    before = sorted(workshop.directory.rglob("*")), workshop.listing()
    outcome = workshop.run("build", config, *overrides)
    assert outcome.code == 2, outcome
    assert outcome.err.count("hyena-ds: error:") == 1 and outcome.sentence.startswith("hyena-ds: error: ")
    assert (sorted(workshop.directory.rglob("*")), workshop.listing()) == before
    return outcome.sentence


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (None, "no such file"),
        (b"", "found an empty file"),
        (gzipped(b""), "found nothing in the gzip stream"),
        (PACKED[: len(PACKED) // 2], "the gzip stream is cut short or damaged"),
        (PACKED[:-4], "the gzip stream is cut short or damaged"),
        (PACKED[:100] + bytes([PACKED[100] ^ 255]) + PACKED[101:], "the gzip stream is cut short or damaged"),
        (bgzip(GOOD.encode())[:-28], "no end block, so it was cut short"),
        (bytes(range(256)) * 20, "found binary data"),
        (gzipped(b"\x00\x01\x02" * 50), "found binary data"),
        (b">a\n" + b"ACGT" * 20_000 + b"\x00\n", "record 'a' holds 1 bytes that are not text"),
        (PROTEIN.encode(), "'sp|P1' looks like protein"),
        ((GOOD + PROTEIN).encode(), "'sp|P1' looks like protein"),
        (b"ACGTACGT\nACGT\n", "found no '>' header"),
        (GOOD.encode() + b">a again\nACGT\n", "found the record name 'a' twice (records 1 and 3)"),
        (b">\nACGT\n", "found no name in the header of record 1"),
        (b">a\n>b\n", "without a base"),
        (b">a\nACGTACGT\nACG\nACGTACGT\n", "cannot be indexed"),
        (b">a \xff\nACGT\n", "record 1 is not UTF-8"),
    ],
)
def test_a_fasta_that_cannot_be_used_is_named(workshop, content, wanted):
    if content is not None:
        workshop.write("genome.fa", content)
    sentence = refused(workshop, workshop.config())
    assert wanted in sentence and str(workshop.directory / "genome.fa") in sentence


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("a 100 100 train", "found start 100 and end 100"),
        ("a 200 100 train", "found start 200 and end 100"),
        ("a 900 1001 train", "past the end of a (1000 bases)"),
        ("chrZ 0 10 train", "found the chromosome 'chrZ', which the FASTA does not have (it has a, b)"),
        ("a 1.5 10 train", "found '1.5' as a coordinate"),
        ("a -5 10 train", "found '-5' as a coordinate"),
        ("a 0 1e3 train", "found '1e3' as a coordinate"),
        ("a 0 10", "found 3 columns, wanted 4"),
        ("a 0 10 train 7", "found 5 columns, wanted 4"),
        ("a 0 10 fold7", "found the split 'fold7', wanted train or valid or test"),
    ],
)
def test_a_bad_line_of_the_bed_is_named_with_its_number(workshop, line, wanted):
    workshop.write("genome.fa", GOOD)
    bed = workshop.write("r.bed", f"# regions\nb 0 100 train\nb 100 200 valid\n{line}\n")
    sentence = refused(workshop, workshop.config(splits={"bed": str(bed)}))
    assert f"{bed}:4: " in sentence and wanted in sentence


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (None, "no such BED"),
        (b"", "found no regions"),
        (b"# nothing\n", "found no regions"),
        (b"b 0 100 train\n", "found no valid region"),
        (b"b 0 100 valid\n", "found no train region"),
        (b"b 0 100 test\n", "found no train and no valid region"),
        (gzipped(b"b 0 100 train\n" * 200)[:-9], "the gzip stream is cut short or damaged"),
        (b"\xff\xfe\x00", "found binary data"),
    ],
)
def test_a_bed_that_cannot_be_used_is_named(workshop, content, wanted):
    workshop.write("genome.fa", GOOD)
    bed = workshop.directory / "r.bed"
    if content is not None:
        bed.write_bytes(content)
    sentence = refused(workshop, workshop.config(splits={"bed": str(bed)}))
    assert str(bed) in sentence and wanted in sentence


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        (
            {"splits": {"by_chromosome": {"train": [], "valid": ["chr9"]}}},
            "by_chromosome.valid: found the chromosome 'chr9'",
        ),
        ({"splits": {"by_chromosome": {"train": ["a", "b"], "valid": []}}}, "found no valid region"),
        (
            {"splits": {"by_chromosome": {"train": [], "valid": ["b"]}}, "chromosomes": ["a"]},
            "found the chromosome 'b', which the list 'chromosomes' does not have",
        ),
        ({"chromosomes": ["a", "chrM"]}, "chromosomes: found the chromosome 'chrM'"),
        ({"splits": {"by_chromosome": {"train": ["a"], "valid": ["a"]}}}, "found 'a' in train and again in valid"),
        ({"splits": {"by_chromosome": {"train": [], "valid": []}}}, "found empty lists for train and valid"),
        (
            {"splits": {"by_fraction": {"train": 0.9, "valid": 0.2}}},
            "fractions that sum to 1.1, wanted at most 1",
        ),
        ({"splits": {"by_fraction": {"train": 0.9, "valid": -0.1}}}, "found -0.1 for valid"),
        (
            {"splits": {"by_fraction": {"train": 0.9, "dev": 0.1}}},
            "found the split 'dev', wanted train or valid or test",
        ),
        ({"splits": {"by_fraction": {"train": 1.0}}}, "found no valid region"),
        ({"splits": {"by_fraction": {}}}, "found no split"),
        ({"splits": {}}, "found none of them, wanted exactly one of by_fraction, by_chromosome, bed"),
        ({"splits": {"by_fraction": {"train": 1}, "bed": "x.bed"}}, "found by_fraction and bed, wanted exactly one"),
        ({"splits": {"by_fraction": {"train": 1}, "bed_names": {"x": "train"}}}, "found names without a BED"),
        ({"splits": {"bed": "x.bed", "bed_names": {"x": "dev"}}}, "found 'dev' for 'x'"),
        ({"required_splits": ["dev"]}, "found 'dev', wanted some of train, valid, test"),
        ({"chunk_length": 0}, "chunk_length: found 0, wanted at least 1"),
        ({"workers": 0}, "workers: found 0, wanted at least 1"),
        ({"chunks_per_shard": 0}, "chunks_per_shard: found 0"),
        ({"chromosomes": ["a", "a"]}, "found 'a' twice"),
        ({"output": ".."}, "output: found '..', wanted the name of a directory"),
        ({"assembly": " "}, "assembly: found an empty text"),
        ({"chunk_lenght": 10}, "did you mean 'chunk_length'?"),
        ({"overlap": "allow"}, "found 'allow', wanted refuse or trim"),
        ({"fasta": None}, "wanted the key 'fasta'"),
        ({"download": {"name": "hg38", "attempts": 0}}, "attempts: found 0"),
        ({"download": {"name": "hg38", "first_pause": -1}}, "first_pause: found -1"),
    ],
)
def test_a_config_that_asks_for_the_impossible_is_named(workshop, changes: dict[str, Any], wanted):
    workshop.write("genome.fa", GOOD)
    config = workshop.config(**changes)
    sentence = refused(workshop, config)
    assert (wanted in sentence and config in sentence) or "fasta does not" in wanted


def test_a_required_split_of_nothing_but_n_is_named(workshop):
    workshop.fasta({"a": random_bases(500), "gap": "N" * 500})
    sentence = refused(workshop, workshop.config(splits={"by_chromosome": {"train": ["a"], "valid": ["gap"]}}))
    assert "every chunk of the split valid holds only N" in sentence


def test_a_directory_that_cannot_be_made_is_named_and_no_parent_is_left(workshop):
    workshop.write("genome.fa", GOOD)
    workshop.write("file", "mine")
    sentence = refused(workshop, workshop.config(output=str(workshop.directory / "file" / "deep" / "shards")))
    assert "cannot make the directory" in sentence and "Not a directory" in sentence


def test_parents_made_for_a_build_that_fails_are_removed(workshop):
    workshop.write("genome.fa", PROTEIN)
    refused(workshop, workshop.config(output=str(workshop.directory / "new" / "deep" / "shards")))


def test_a_real_process_prints_one_line_and_no_traceback(workshop):
    workshop.write("genome.fa", PROTEIN)
    process = workshop.process("build", workshop.config())
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "") and len(err.strip().splitlines()) == 1


def test_a_directory_in_the_place_of_a_file_is_named(workshop):
    assert "cannot read the FASTA (Is a directory)" in refused(workshop, workshop.config(fasta=str(workshop.directory)))
    workshop.write("genome.fa", GOOD)
    config = workshop.config(splits={"bed": str(workshop.directory)})
    assert "cannot read the BED (Is a directory)" in refused(workshop, config)


def test_a_missing_config_is_named(workshop):
    assert "nowhere.yaml: cannot read the config" in refused(workshop, "nowhere.yaml")
