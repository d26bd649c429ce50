"""`prep build` on genomes, BEDs and configs that are valid or wrong by construction.

Of a valid genome every base is known: each chunk's tokens are compared with the letters that were written, at the chunk's
own coordinates. A refused one leaves no shards.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from data_prep.config import PrepConfig
from hyena_ds.data.shards import read_index
from tests.data_prep.workshop import bgzip, gzipped
from tests.fuzz import mutants
from tests.fuzz.harness import accepted, fuzzed, refused

TOKENS = {"A": 7, "C": 8, "G": 9, "T": 10, "N": 11}
"""The published ids; any other letter is 6."""
UNKNOWN = 6

_NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.|-]{0,20}", fullmatch=True)
_BASES = st.text("ACGTacgtN", min_size=30, max_size=400)
_ANY = st.text("ACGTNacgtnRYSWKMBDHVUX*-", max_size=200)


@dataclass(frozen=True)
class Genome:
    """Two chromosomes, and a file that holds them."""

    records: dict[str, str]
    text: bytes


@st.composite
def genomes(draw: st.DrawFn) -> Genome:
    """Written with any width, line end and packing, with comments, descriptions and blanks that are no bases."""
    names = draw(st.lists(_NAMES, min_size=2, max_size=2, unique=True))
    records = {name: draw(_BASES) + "ACGT" + draw(_ANY).ljust(0) for name in names}
    records = {name: _mostly_bases(bases) for name, bases in records.items()}
    end = draw(st.sampled_from(["\n", "\r\n"]))
    blanks = draw(st.sampled_from(["", "", " ", "\t", "  "]))
    described = draw(st.sampled_from(["", " a description", "\tdna:chromosome"]))
    lines: list[str] = draw(st.sampled_from([[], [""]]))
    lines = [*lines]
    for name, bases in records.items():
        width = draw(st.integers(1, 90))
        lines.append(f">{name}{described}")
        lines += [bases[at : at + width] + blanks for at in range(0, len(bases), width)]
        lines += [""] * draw(st.integers(0, 2))
    text = end.join(lines).encode() + draw(st.sampled_from([b"", end.encode()]))
    text = draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"])) + text
    return Genome(records, draw(st.sampled_from([bytes, gzipped, bgzip]))(text))


def _mostly_bases(bases: str) -> str:
    """Not to be taken for a protein, and scored somewhere."""
    return "ACGT" * (len(bases) // 2 + 1) + bases


def prepared(directory: Path, genome: bytes, **changes: Any) -> Path:
    """A config in an empty workshop."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    (directory / "genome.fa").write_bytes(genome)
    config = {
        "fasta": str(directory / "genome.fa"),
        "assembly": "tiny",
        "output": str(directory / "shards"),
        "chunk_length": 100,
        "chunks_per_shard": 3,
        **changes,
    }
    file = directory / "prep.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture
def workshop(tmp_path: Path) -> Path:
    return tmp_path / "workshop"


@fuzzed(genomes(), st.integers(1, 700))
def test_every_base_of_a_valid_genome_arrives_at_its_coordinates(workshop: Path, genome: Genome, chunk: int) -> None:
    train, valid = genome.records
    splits = {"by_chromosome": {"train": [train], "valid": [valid]}}
    chunk = max(chunk, sum(map(len, genome.records.values())) // 200)  # a shard has three, and each goes to the disk
    accepted("prep", "build", str(prepared(workshop, genome.text, splits=splits, chunk_length=chunk)))
    found = {name: ["N"] * len(bases) for name, bases in genome.records.items()}
    for chunk_found in _chunks(workshop / "shards"):
        found[chunk_found[0]][chunk_found[1] : chunk_found[2]] = chunk_found[3]
    wanted = {name: [TOKENS.get(base, UNKNOWN) for base in bases.upper()] for name, bases in genome.records.items()}
    # Chunks of nothing but N are left out.
    assert {
        name: [TOKENS["N"] if token == "N" else token for token in tokens] for name, tokens in found.items()
    } == wanted


def _chunks(shards: Path) -> list[tuple[str, int, int, list[int]]]:
    index = read_index(shards)
    tars = [(shards / shard.file).read_bytes() for shard in index.shards]
    return [
        (c.chromosome, c.start, c.end, [*tars[c.shard][c.offset : c.offset + c.end - c.start]]) for c in index.chunks
    ]


_PROTEIN = b">p\nMEEPQSDPSVEPPLSQETFSDLWKLLPENNVLSPLPSQAMDDLMLSPDDIEQWFTEDPGP\n" * 3
_PLAIN = (">a\n" + "ACGT" * 40 + "\n>b\n" + "TTGCA" * 40 + "\n").encode()
_WRONG_GENOMES = st.one_of(
    st.sampled_from(
        [
            *(b"", b"\n", b">", b">a\n", b">a\n>b\n", b"ACGT\n", _PROTEIN, _PLAIN + b">a\nACGT\n", b">\nACGT\n"),
            *(_PLAIN.decode().encode("utf-16"), b"PK\x03\x04" + _PLAIN, b"\xfd7zXZ\x00" + _PLAIN, b"{}", b"%PDF-1.5\n"),
            *(_PLAIN.replace(b"T", b"\x00"), _PLAIN.replace(b">b", b">\xff\xfe"), b"\x1f\x8b", b"\x1f\x8b" + _PLAIN),
            *(b"@read\nACGT\n+\nIIII\n", gzipped(b""), gzipped(gzipped(_PLAIN)), b"LOCUS x\nORIGIN\n 1 acgt\n//\n"),
        ]
    ),
    st.integers(1, len(gzipped(_PLAIN)) - 1).map(lambda end: gzipped(_PLAIN)[:end]),
    st.integers(1, len(bgzip(_PLAIN, 100)) - 1).map(lambda end: bgzip(_PLAIN, 100)[:end]),
    st.binary(min_size=1, max_size=100).map(lambda data: b"\x00" + data),
)


@fuzzed(_WRONG_GENOMES)
def test_a_file_that_is_no_genome_is_refused_and_leaves_no_shards(workshop: Path, text: bytes) -> None:
    refused("prep", "build", str(prepared(workshop, text, splits={"by_fraction": {"train": 0.5, "valid": 0.5}})))
    assert not (workshop / "shards").exists()


_CUTS = st.lists(st.integers(1, 159), min_size=2, max_size=8, unique=True).map(sorted)
_BED_WRONG = st.sampled_from(
    [
        *(
            b"a\t0\t10",
            b"a\t0\t10\ttrain\tx",
            b"a\t-1\t10\ttrain",
            b"a\t1e1\t20\ttrain",
            b"a\t0\t1.5\ttrain",
            b"a\t10\t10\ttrain",
        ),
        *(
            b"a\t11\t10\ttrain",
            b"z\t0\t10\ttrain",
            b"a\t0\t161\ttrain",
            b"a\t0\t10\tnowhere",
            b"a\t\xc2\xb2\t10\ttrain",
        ),
        *(
            b"a\t0\t" + b"9" * 5000 + b"\ttrain",
            b"\x00\t0\t1\ttrain",
            b"\xff\xfe",
            "a\t१\t10\ttrain".encode(),
            b"x" * 5000,
        ),
    ]
)


@fuzzed(_CUTS, st.sampled_from(["\n", "\r\n"]), st.sampled_from([bytes, gzipped, bgzip]), st.sampled_from(["\t", " "]))
def test_a_valid_bed_gives_its_intervals(workshop: Path, cuts: list[int], end: str, pack: Any, blank: str) -> None:
    intervals = [(start, stop) for start, stop in zip(cuts[::2], cuts[1::2], strict=False)]
    lines = [blank.join(("a", str(start), str(stop), "train")) for start, stop in intervals]
    lines += ["# a comment", "", blank.join(("b", "0", "50", "valid"))]
    file = prepared(workshop, _PLAIN, splits={"bed": str(workshop / "splits.bed")})
    (workshop / "splits.bed").write_bytes(pack(end.join(lines).encode()))
    accepted("prep", "build", str(file))
    covered = {at for name, start, stop, _ in _chunks(workshop / "shards") if name == "a" for at in range(start, stop)}
    assert covered == {at for start, stop in intervals for at in range(start, stop)}


@fuzzed(_CUTS, _BED_WRONG, st.sampled_from([bytes, gzipped]))
def test_a_wrong_line_of_a_bed_is_refused(workshop: Path, cuts: list[int], wrong: bytes, pack: Any) -> None:
    lines = [f"a\t{start}\t{stop}\ttrain".encode() for start, stop in zip(cuts[::2], cuts[1::2], strict=False)]
    file = prepared(workshop, _PLAIN, splits={"bed": str(workshop / "splits.bed")})
    (workshop / "splits.bed").write_bytes(pack(b"\n".join([*lines, wrong, b"b\t0\t50\tvalid"])))
    refused("prep", "build", str(file))
    assert not (workshop / "shards").exists()


PREP = yaml.safe_load(
    json.dumps(
        {
            "fasta": "genome.fa",
            "assembly": "tiny",
            "output": "shards",
            "splits": {"by_fraction": {"train": 0.5, "valid": 0.5}},
            "chunk_length": 100,
            "chunks_per_shard": 3,
            "chromosomes": ["a"],
            "required_splits": ["train"],
            "overlap": "trim",
            "fold_case": True,
            "ambiguous_letters": "n",
            "other_letters": "refuse",
            "workers": 1,
        }
    )
)


@fuzzed(mutants.wrong_trees(PREP, PrepConfig).flatmap(lambda case: mutants.spelled(case[1])))
def test_a_wrong_prep_config_is_refused(workshop: Path, text: str) -> None:
    file = prepared(workshop, _PLAIN)
    file.write_text(text, encoding="utf-8")
    refused("prep", "build", str(file))
