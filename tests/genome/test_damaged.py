"""Seeded damage to genomes and BEDs: what is accepted holds the bases that are there, the rest is one sentence."""

from __future__ import annotations

import random
from pathlib import Path

from hyena_ds.errors import UserError
from hyena_ds.genome.bed import read_bed
from hyena_ds.genome.fasta import open_genome
from tests.data_prep.workshop import bgzip, fasta_text, gzipped, random_bases

SEED = 20
RECORDS = {"a": random_bases(241), "b": random_bases(60, seed=1), "c": random_bases(7, seed=2)}
LENGTHS = {name: len(sequence) for name, sequence in RECORDS.items()}
FASTA = fasta_text(RECORDS, width=30).encode()
BED = b"# regions\na 0 100 train\na 100 150 valid\nb 0 60 train\nb 59 60 train\n"
DAMAGE = (
    b"\0",
    b"\xff",
    b"\x1b",
    b">",
    b";",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b"9",
    b"-",
    b"\xef\xbb\xbf",
    b"\xc2\xa0",
    b"[",
    b"*",
)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The data with one to three pieces changed, inserted, repeated, moved or lost."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((0, 1, 1, 8, 40)))
        new = rng.choice((b"", data[at:end] * 2, rng.choice(DAMAGE), rng.choice(DAMAGE) * 300, rng.randbytes(3)))
        data = data[:at] + new + data[end:]
    return data


def spoilt(data: bytes, rng: random.Random) -> bytes:
    return rng.choice((lambda d: d, gzipped, bgzip))(data)


def bases_of(data: bytes) -> dict[str, str]:
    """What a person would read in a text that was accepted."""
    records: dict[str, str] = {}
    name = ""
    for line in data.decode("utf-8-sig", "surrogateescape").replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if line.startswith(">"):
            name = line[1:].split()[0]
            records[name] = ""
        elif name:
            records[name] += line.replace(" ", "").replace("\t", "")
    return records


def test_a_damaged_genome_is_refused_or_read_as_it_stands(tmp_path: Path) -> None:
    rng, accepted = random.Random(SEED), 0
    for number in range(150):
        data = damaged(FASTA, rng)
        packed = spoilt(data, rng)
        intact = rng.random() < 0.8
        work = tmp_path / str(number)
        work.mkdir()
        source = tmp_path / "genome.fa"
        source.write_bytes(packed if intact else damaged(packed, rng))
        try:
            opened = open_genome(source, work, 10_000)
        except UserError as error:
            assert str(error).startswith(f"{source}: "), (SEED, number)
            assert {path.suffix for path in work.iterdir()} <= {".fa", ".fai"}, (SEED, number)
            continue
        accepted += 1
        genome = opened.genome
        read = {name: genome.read(name, 0, length).tobytes().decode() for name, length in genome.lengths().items()}
        genome.close()
        assert [record.name for record in opened.records] == list(read), (SEED, number)
        assert not intact or read == bases_of(data), (SEED, number)
        assert source.read_bytes() == (packed if intact else source.read_bytes()), (SEED, number)
    assert 15 < accepted < 140


def test_a_damaged_bed_is_refused_or_lies_within_its_chromosomes(tmp_path: Path) -> None:
    rng, accepted = random.Random(SEED), 0
    source = tmp_path / "r.bed"
    for number in range(300):
        data = spoilt(damaged(BED, rng), rng)
        source.write_bytes(data if rng.random() < 0.8 else damaged(data, rng))
        try:
            found = read_bed(source, LENGTHS, {}, 10_000)
        except UserError as error:
            assert str(error).startswith(f"{source}:"), (SEED, number)
            continue
        accepted += 1
        for interval in found:
            assert 0 <= interval.start < interval.end <= LENGTHS[interval.chromosome], (SEED, number)
            assert interval.split in ("train", "valid", "test"), (SEED, number)
    assert 30 < accepted < 250
