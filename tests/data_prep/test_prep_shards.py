"""What the shards hold, against oracles that share no code with the writer."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from hyena_ds.data.shards import map_tokens, read_index, verify_shard
from tests.data_prep.workshop import Workshop, bgzip, fasta_text, files_of, gzipped, random_bases

UNKNOWN, N = 6, 11
PUBLISHED = {"A": 7, "C": 8, "G": 9, "T": 10, "N": 11}
IUPAC = "RYSWKMBDHV"


def one_token(letter: str, fold_case: bool, ambiguous: int, other: int) -> int:
    """One letter at a time, as a person would read the rules."""
    if letter.islower():
        if not fold_case:
            return UNKNOWN
        letter = letter.upper()
    if letter in PUBLISHED:
        return PUBLISHED[letter]
    return ambiguous if letter in IUPAC else other


def samples(workshop: Workshop, shard: str = "*") -> Iterator[dict[str, object]]:
    urls = sorted(str(path) for path in workshop.output.glob(f"{shard}.tar"))
    yield from wds.WebDataset(urls, shardshuffle=False)


@pytest.mark.parametrize("fold_case", [True, False])
@pytest.mark.parametrize(("ambiguous", "other"), [("unknown", "n"), ("n", "unknown")])
def test_every_letter_becomes_the_token_a_person_would_give_it(workshop, fold_case, ambiguous, other):
    everything = "".join(chr(c) for c in range(33, 127) if chr(c) != ">")
    sequence = random_bases(400) + everything + random_bases(207, seed=1, letters="ACGTNacgtnRYk")
    workshop.fasta({"one": sequence})
    workshop.build(fold_case=fold_case, ambiguous_letters=ambiguous, other_letters=other)
    ids = {"unknown": UNKNOWN, "n": N}
    seen = 0
    for sample in samples(workshop):
        about = json.loads(sample["json"])
        text = sequence[about["start"] : about["end"]]
        wanted = [one_token(letter, fold_case, ids[ambiguous], ids[other]) for letter in text]
        assert list(sample["tokens"]) == wanted
        seen += len(text)
    assert seen >= len(sequence.strip("Nn"))


def test_webdataset_and_the_index_agree_about_every_chunk(workshop):
    workshop.fasta({"a.1": random_bases(950), "b": random_bases(333, seed=1)})
    workshop.build()
    index = read_index(workshop.output)
    read = {sample["__key__"]: sample for sample in samples(workshop)}
    assert len(read) == len(index.chunks) == sum(1 for _ in samples(workshop))
    for chunk in index.chunks:
        sample, shard = read[chunk.key], index.shards[chunk.shard]
        place = map_tokens(workshop.output, shard)[chunk.offset : chunk.offset + chunk.length]
        assert bytes(place) == sample["tokens"]
        assert json.loads(sample["json"]) == json.loads(json.dumps(chunk.metadata()))
        assert shard.split == chunk.split and "." not in chunk.key
    for shard in index.shards:
        verify_shard(workshop.output, shard)
    assert [(c.shard, c.offset) for c in index.chunks] == sorted((c.shard, c.offset) for c in index.chunks)


def test_the_tar_is_what_webdataset_itself_would_write(workshop):
    workshop.fasta({"a": random_bases(500)})
    workshop.build()
    path = workshop.output / "train-000000.tar"
    again = io.BytesIO()
    writer = wds.TarWriter(again, user="hyena-ds", group="hyena-ds", mode=0o644, mtime=0, encoder=False)
    for sample in wds.WebDataset(str(path), shardshuffle=False):
        writer.write({"__key__": sample["__key__"], "json": sample["json"], "tokens": sample["tokens"]})
    writer.close()
    assert again.getvalue() == path.read_bytes()


def test_short_last_chunks_are_kept_and_every_base_is_written_once(workshop):
    records = {"a": random_bases(1234), "b": random_bases(77, seed=1), "c": random_bases(100, seed=2)}
    workshop.fasta(records)
    workshop.build(splits={"by_chromosome": {"train": ["a", "c"], "valid": []}})
    found = {name: ["-"] * len(sequence) for name, sequence in records.items()}
    lengths = []
    for sample in samples(workshop):
        about = json.loads(sample["json"])
        lengths.append(len(sample["tokens"]))
        for place, token in enumerate(sample["tokens"], start=about["start"]):
            assert found[about["chromosome"]][place] == "-"
            found[about["chromosome"]][place] = "ACGTN"[token - 7]
    assert {name: "".join(letters) for name, letters in found.items()} == records
    assert sorted(lengths) == [34, 77, *[100] * 13]
    counts = [sum(1 for _ in samples(workshop, f"train-{n:06d}")) for n in range(5)]
    assert counts == [3, 3, 3, 3, 2]


def test_chunks_of_only_n_are_dropped_and_counted(workshop):
    sequence = random_bases(100) + "N" * 150 + "n" * 250 + random_bases(200, seed=1)
    workshop.fasta({"a": sequence, "gap": "N" * 500, "c": random_bases(9), "v": random_bases(9)})
    outcome = workshop.build(splits={"by_chromosome": {"train": [], "valid": ["v"]}})
    index = read_index(workshop.output)
    places = [(c.chromosome, c.start, c.end) for c in index.chunks if c.split == "train"]
    assert places == [("a", 0, 100), ("a", 500, 600), ("a", 600, 700), ("c", 0, 9)]
    # Of the five planned train shards the fourth holds only chunks of the gap: it is not written, nor its number used.
    assert [shard.file for shard in index.shards] == [*(f"train-{n:06d}.tar" for n in range(4)), "valid-000000.tar"]
    summary = (workshop.output / "SUMMARY.md").read_text()
    assert "train gap:0-100" in summary and "chunks of nothing but N: 9, 900 bases" in summary
    assert "9 dropped as only N" in outcome.out


def test_metadata_counts_soft_masked_n_and_unknown_bases(workshop):
    text = "acgtnACGTNRrUuNNAC"
    workshop.fasta({"a": text, "v": "ACGT"})
    workshop.build(splits={"by_chromosome": {"train": ["a"], "valid": ["v"]}})
    chunk = read_index(workshop.output).chunks[0]
    assert chunk.soft_masked == sum(letter.islower() for letter in text) / len(text)
    assert chunk.n_fraction == 4 / len(text)
    assert chunk.n_runs == ((4, 1), (9, 1), (14, 2))
    assert chunk.unknown_runs == ((10, 4),)
    summary = (workshop.output / "SUMMARY.md").read_text()
    assert "ambiguous (IUPAC), mapped to unknown: R 2" in summary and "other, mapped to unknown: U 2" in summary


def test_case_that_is_not_folded_keeps_the_soft_mask_in_the_metadata(workshop):
    workshop.fasta({"a": "acgtACGT", "v": "ACGT"})
    workshop.build(fold_case=False, splits={"by_chromosome": {"train": ["a"], "valid": ["v"]}})
    chunk = read_index(workshop.output).chunks[0]
    assert (chunk.soft_masked, chunk.unknown_runs) == (0.5, ((0, 4),))


def test_other_letters_are_refused_by_name_when_the_config_says_so(workshop):
    workshop.fasta({"a": random_bases(300) + "U*" + random_bases(300, seed=1)})
    outcome = workshop.run("build", workshop.config(other_letters="refuse"))
    assert outcome.code == 2 and "record 'a'" in outcome.sentence and "1 *, 1 U" in outcome.sentence
    assert not workshop.output.exists() and not workshop.partial.exists()


def test_plain_gzip_bgzip_and_windows_line_ends_give_the_same_shards(workshop):
    records = {"a": random_bases(3000, letters="ACGTacgtN"), "b": random_bases(500, seed=1)}
    made = []
    variants = {
        "genome.fa": fasta_text(records).encode(),
        "genome.fa.gz": gzipped(fasta_text(records).encode()),
        "genome.fa.bgz": bgzip(fasta_text(records, width=50).encode()),
        "plain.gz": fasta_text(records, width=7, end="\r\n").encode(),
    }
    for number, (name, content) in enumerate(variants.items()):
        path = workshop.write(name, content)
        output = workshop.directory / f"out{number}"
        workshop.build(fasta=str(path), output=str(output))
        made.append({n: data for n, data in files_of(output).items() if n.endswith((".tar", "index.json"))})
    assert all(other == made[0] for other in made) and len(made[0]) > 3


def test_nothing_is_written_beside_the_users_fasta(workshop):
    home = workshop.directory / "home"
    home.mkdir()
    path = home / "genome.fa"
    path.write_text(fasta_text({"a": random_bases(500)}))
    home.chmod(0o555)
    try:
        workshop.build(fasta=str(path))
    finally:
        home.chmod(0o755)
    assert [p.name for p in home.iterdir()] == ["genome.fa"]


@pytest.mark.slow
def test_the_number_of_workers_changes_no_byte(workshop):
    workshop.fasta({"a": random_bases(3000), "gap": "N" * 700, "b": random_bases(800, seed=1)})
    outputs = []
    for workers in (1, 2, 3):
        output = workshop.directory / f"w{workers}"
        # Relative order of completion differs; a real process, so that workers are spawned as users spawn them.
        process = workshop.process("build", workshop.config(output=str(output)), f"workers={workers}")
        assert process.wait(60) == 0, process.stderr.read()
        outputs.append(files_of(output))
    assert outputs[0] == outputs[1] == outputs[2]
    assert len(outputs[0]) > 10


def test_progress_goes_to_standard_error_and_the_summary_to_standard_output(workshop):
    workshop.fasta({"a": random_bases(500)})
    outcome = workshop.build()
    assert "shards: 100%" in outcome.err and "train: 400 bases in 4 chunks" in outcome.out


def test_a_build_does_not_import_torch():
    code = "import sys, data_prep.build, data_prep.verify, data_prep.download; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tokens_of_the_shipped_genome_match_its_text(workshop):
    source = Path(__file__).parents[2] / "assets" / "hg38_chr2_0-2333275.fa.gz"
    text = b"".join(gzip.decompress(source.read_bytes()).split(b"\n")[1:]).decode()
    workshop.build(fasta=str(source), chunk_length=1 << 20, splits={"by_fraction": {"train": 0.9, "valid": 0.1}})
    index = read_index(workshop.output)
    assert [(c.start, c.end) for c in index.chunks] == [(10000, 1058576), (1058576, 2100947), (2100947, 2333275)]
    for chunk in index.chunks:
        tokens = map_tokens(workshop.output, index.shards[chunk.shard])[chunk.offset : chunk.offset + chunk.length]
        letters = text[chunk.start : chunk.end]
        assert np.array_equal(np.array(tokens), np.array([PUBLISHED[letter] for letter in letters.upper()]))
        assert chunk.soft_masked == sum(map(str.islower, letters)) / len(letters)
