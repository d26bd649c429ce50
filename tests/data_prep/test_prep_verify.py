"""`verify` finds what was damaged, and says where."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from hyena_ds.data.shards import INDEX_NAME, read_index, sha256_of
from tests.data_prep.workshop import Outcome, Workshop, random_bases

SEQUENCE = random_bases(1500, letters="ACGTacgtN")


@pytest.fixture
def built(workshop: Workshop) -> Workshop:
    workshop.fasta({"a": SEQUENCE, "b": random_bases(200, seed=1)})
    workshop.build(splits={"by_chromosome": {"train": ["a"], "valid": ["b"]}})
    return workshop


def verify(workshop: Workshop, *overrides: str) -> Outcome:
    return workshop.run("verify", str(workshop.directory / "prep.yaml"), *overrides)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def rewrite_digest(workshop: Workshop, name: str) -> None:
    """As a malicious or careless hand would: the index agrees with the damaged bytes."""
    path = workshop.output / INDEX_NAME
    old = next(shard.sha256 for shard in read_index(workshop.output).shards if shard.file == name)
    path.write_text(path.read_text().replace(old, sha256_of(workshop.output / name)))


def test_whole_shards_verify_and_leave_nothing_behind(built):
    before = built.listing()
    outcome = verify(built)
    assert outcome.code == 0 and "1,700 bases in 17 chunks and 6 shards agree" in outcome.out
    assert built.listing() == before


@pytest.mark.parametrize("repaired_digest", [False, True])
def test_a_flipped_base_is_named_by_chromosome_and_place(built, repaired_digest):
    chunk = read_index(built.output).chunks[7]
    shard = read_index(built.output).shards[chunk.shard].file
    flip(built.output / shard, chunk.offset + 33)
    if repaired_digest:
        rewrite_digest(built, shard)
    outcome = verify(built)
    assert (
        outcome.code == 2 and f"{shard}: a:{chunk.start + 33} (byte {chunk.offset + 33} of the tar)" in outcome.sentence
    )
    assert ("the shard is damaged" in outcome.sentence) != repaired_digest


def test_an_id_that_is_no_token_is_named(built):
    index = read_index(built.output)
    chunk, shard = index.chunks[0], index.shards[0].file
    data = bytearray((built.output / shard).read_bytes())
    data[chunk.offset + 5] = 200
    (built.output / shard).write_bytes(data)
    rewrite_digest(built, shard)
    outcome = verify(built)
    assert f"{shard}: a:5 (byte {chunk.offset + 5} of the tar): found token 200 (unused)" in outcome.sentence


@pytest.mark.parametrize("damage", [b"\xff" * 512, b'{"assembly": [[[', b""])
def test_a_tar_that_is_none_is_one_sentence_though_its_digest_agrees(built, damage):
    """Headers and metadata of the first member: the tokens are where the index says."""
    name = "valid-000000.tar"
    data = (built.output / name).read_bytes()
    at = 512 if damage.startswith(b"{") else 0
    (built.output / name).write_bytes(data[:at] + (damage or bytes(512)) + data[at + (len(damage) or 512) :])
    rewrite_digest(built, name)
    outcome = verify(built)
    assert outcome.code == 2 and f"{name}: " in outcome.sentence and "prepare the shards again" in outcome.sentence


def test_a_disk_without_room_for_the_genome_is_one_sentence(built, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data_prep.verify.open_genome", full)
    before = built.listing()
    outcome = verify(built)
    assert outcome.code == 2 and "(No space left on device)" in outcome.sentence and built.listing() == before


@pytest.mark.parametrize(
    "record", ["[" * 100_000, '{"format": "hyena-ds prep 1", "settings": [], "fasta": 1, "bed": 2}']
)
def test_a_record_of_the_prep_that_is_none_is_named(built, record):
    (built.output / "prep.json").write_text(record)
    assert "found no readable prep.json" in verify(built).sentence


def test_a_flipped_base_of_the_fasta_is_named_too(built):
    at = 777
    other = "C" if SEQUENCE[at] != "C" else "G"
    built.fasta({"a": SEQUENCE[:at] + other + SEQUENCE[at + 1 :], "b": random_bases(200, seed=1)})
    outcome = verify(built)
    assert outcome.code == 2 and f"a:{at} " in outcome.sentence and f"for the letter {other}" in outcome.sentence
    assert "the FASTA is not the one" in outcome.sentence


@pytest.mark.slow
def test_every_byte_of_a_shard_counts(built):
    """Headers, padding, metadata: a flip anywhere is found, whatever the byte was for."""
    path = built.output / "valid-000000.tar"
    whole = path.read_bytes()
    for at in range(0, len(whole), 97):
        flip(path, at)
        outcome = verify(built)
        assert outcome.code == 2 and "valid-000000.tar" in outcome.sentence, at
        path.write_bytes(whole)
    assert verify(built).code == 0


def test_a_shard_that_was_cut_short_or_lost_is_named(built):
    path = built.output / "train-000002.tar"
    os.truncate(path, 1000)
    outcome = verify(built)
    assert outcome.code == 2 and re.search(r"train-000002.tar: found 1000 bytes, wanted \d+", outcome.sentence)
    path.unlink()
    outcome = verify(built)
    assert outcome.code == 2 and "train-000002.tar" in outcome.sentence and "missing" in outcome.sentence


@pytest.mark.parametrize("field", ["n_runs", "soft_masked", "split"])
def test_an_index_that_disagrees_with_the_fasta_is_found(built, field):
    path = built.output / INDEX_NAME
    raw = json.loads(path.read_text())
    raw["chunks"][2][field] = {"n_runs": [[0, 1]], "soft_masked": 0.125, "split": "test"}[field]
    path.write_text(json.dumps(raw))
    outcome = verify(built)
    assert outcome.code == 2 and raw["chunks"][2]["key"] in outcome.sentence


def test_metadata_that_differs_from_the_index_is_found(built):
    name = "valid-000000.tar"
    data = (built.output / name).read_bytes()
    (built.output / name).write_bytes(data.replace(b'"assembly": "tiny"', b'"assembly": "tinz"', 1))
    rewrite_digest(built, name)
    outcome = verify(built)
    assert outcome.code == 2 and ".json differs from the index" in outcome.sentence


def test_a_chunk_that_no_shard_has_is_found(built):
    path = built.output / INDEX_NAME
    raw = json.loads(path.read_text())
    lost = raw["shards"].pop()
    raw["chunks"] = [chunk for chunk in raw["chunks"] if chunk["shard"] < len(raw["shards"])]
    path.write_text(json.dumps(raw))
    (built.output / lost["file"]).unlink()
    outcome = verify(built)
    assert outcome.code == 2 and "no shard has it" in outcome.sentence


def test_verifying_with_another_config_names_the_difference(built):
    outcome = verify(built, "fold_case=false")
    assert outcome.code == 2 and "'fold_case' was true and is false" in outcome.sentence


def test_verifying_against_a_shorter_fasta_names_what_is_missing(built):
    built.fasta({"a": SEQUENCE[:300], "b": random_bases(200, seed=1)})
    outcome = verify(built)
    assert outcome.code == 2 and "which the FASTA does not have" in outcome.sentence


@pytest.mark.parametrize("kind", ["nothing", "index", "record"])
def test_a_directory_without_shards_of_ours_is_refused(built, kind):
    if kind == "nothing":
        outcome = verify(built, f"output={built.directory / 'nowhere'}")
    else:
        (built.output / {"index": INDEX_NAME, "record": "prep.json"}[kind]).unlink()
        outcome = verify(built)
    assert outcome.code == 2 and ("index.json" in outcome.sentence or "prep.json" in outcome.sentence)
