"""Which bases go to which split."""

from __future__ import annotations

import random

import pytest

from data_prep.regions import _merged_and_trimmed
from hyena_ds.data.shards import read_index
from hyena_ds.genome.bed import Interval, find_leaks
from tests.data_prep.workshop import Workshop, gzipped, random_bases


def bases_by_split(workshop: Workshop) -> dict[str, set[tuple[str, int]]]:
    bases: dict[str, set[tuple[str, int]]] = {}
    written = 0
    for chunk in read_index(workshop.output).chunks:
        bases.setdefault(chunk.split, set()).update((chunk.chromosome, at) for at in range(chunk.start, chunk.end))
        written += chunk.length
    assert written == sum(map(len, bases.values())), "a base was written twice"
    return bases


def test_fractions_count_bases_that_are_not_n_and_no_split_begins_or_ends_with_n(workshop):
    sequence = "N" * 130 + random_bases(500) + "n" * 900 + random_bases(500, seed=1) + "N" * 270
    workshop.fasta({"a": sequence, "allgap": "N" * 300})
    workshop.build(splits={"by_fraction": {"train": 0.5, "test": 0.3, "valid": 0.2}})
    found = bases_by_split(workshop)
    real = {name: [at for _, at in bases if sequence[at] not in "Nn"] for name, bases in found.items()}
    assert {name: len(places) for name, places in real.items()} == {"train": 500, "test": 300, "valid": 200}
    for name, bases in found.items():
        places = sorted(at for _, at in bases)
        assert (places[0], places[-1]) == (min(real[name]), max(real[name]))
    assert max(real["train"]) < min(real["test"]) < max(real["test"]) < min(real["valid"])


def test_fractions_below_one_leave_the_end_out(workshop):
    workshop.fasta({"a": random_bases(1000)})
    workshop.build(splits={"by_fraction": {"train": 0.7, "valid": 0.1}})
    assert {name: len(bases) for name, bases in bases_by_split(workshop).items()} == {"train": 700, "valid": 100}


def test_an_empty_list_takes_every_chromosome_that_no_split_names(workshop):
    workshop.fasta({name: random_bases(150, seed=number) for number, name in enumerate("abcd")})
    workshop.build(splits={"by_chromosome": {"train": [], "valid": ["b"], "test": ["d"]}}, chromosomes=["a", "b", "d"])
    found = {split: {name for name, _ in bases} for split, bases in bases_by_split(workshop).items()}
    assert found == {"train": {"a"}, "valid": {"b"}, "test": {"d"}}


def test_regions_of_one_split_that_overlap_or_touch_are_merged_and_counted(workshop):
    workshop.fasta({"a": random_bases(1000), "b": random_bases(300, seed=1)})
    bed = "# a comment\na 0 150 train\na\t150\t300\ttrain\na 250 400 train\nb 0 300 valid\nb 20 30 valid\n"
    workshop.build(splits={"bed": str(workshop.write("r.bed", bed))})
    found = bases_by_split(workshop)
    assert found["train"] == {("a", at) for at in range(400)} and len(found["valid"]) == 300
    assert [c.length for c in read_index(workshop.output).chunks if c.split == "train"] == [100] * 4
    assert "2 that overlapped it, 1 that touched it" in (workshop.output / "SUMMARY.md").read_text()


def test_packed_beds_with_folds_are_read_by_the_names_of_the_config(workshop):
    workshop.fasta({"a": random_bases(1000), "b": random_bases(300, seed=1)})
    bed = workshop.write("r.bed.gz", gzipped(b"a 0 100 fold0\na 100 200 fold1\nb 5 300 fold2\n"))
    names = {"fold0": "test", "fold1": "valid", "fold2": "train"}
    workshop.build(splits={"bed": str(bed), "bed_names": names})
    assert {s: len(b) for s, b in bases_by_split(workshop).items()} == {"train": 295, "valid": 100, "test": 100}


LEAKY = "a 0 300 train\na 250 500 valid\na 400 600 test\nb 0 100 train\n"


def test_regions_that_overlap_another_split_are_refused_and_all_are_named(workshop):
    workshop.fasta({"a": random_bases(1000), "b": random_bases(300, seed=1)})
    bed = workshop.write("leaky.bed", LEAKY)
    config = workshop.config(splits={"bed": str(bed)})
    before = workshop.listing()
    outcome = workshop.run("build", config)
    assert outcome.code == 2 and workshop.listing() == before
    assert f"{bed}:1: regions of different splits overlap: a:250-300 (50 bases)" in outcome.sentence
    assert "2 such overlap(s)" in outcome.sentence and "overlap: trim" in outcome.sentence
    assert "valid 250-500 (line 2) overlaps test 400-600 (line 3)" in outcome.err


def test_trimming_keeps_what_is_held_out_whole_and_writes_the_leak_report(workshop):
    workshop.fasta({"a": random_bases(1000), "b": random_bases(300, seed=1)})
    workshop.build(splits={"bed": str(workshop.write("leaky.bed", LEAKY))}, overlap="trim")
    found = bases_by_split(workshop)
    assert found["test"] == {("a", at) for at in range(400, 600)}
    assert found["valid"] == {("a", at) for at in range(250, 400)}
    assert found["train"] == {("a", at) for at in range(250)} | {("b", at) for at in range(100)}
    report = (workshop.output / "LEAKS.txt").read_text()
    assert report.splitlines() == [
        "a:250-300 (50 bases): train 0-300 (line 1) overlaps valid 250-500 (line 2)",
        "a:400-500 (100 bases): valid 250-500 (line 2) overlaps test 400-600 (line 3)",
    ]
    assert "bases cut from the less guarded split: 150" in (workshop.output / "SUMMARY.md").read_text()


@pytest.mark.parametrize("seed", range(20))
def test_trimming_agrees_with_sets_of_bases(seed):
    draw = random.Random(seed)

    def intervals(split: str) -> list[Interval]:
        starts = [draw.randrange(60) for _ in range(draw.randrange(6))]
        return [Interval("a", s, s + draw.randrange(1, 15), split, line) for line, s in enumerate(starts)]

    train, test, valid = intervals("train"), intervals("test"), intervals("valid")

    def bases(group: list[Interval]) -> set[int]:
        return {at for i in group for at in range(i.start, i.end)}

    spans, (_, _, trimmed) = _merged_and_trimmed([*train, *valid, *test])
    left = {split: [at for span in spans.get(split, []) for at in range(*span)] for split in ("train", "valid", "test")}
    assert left["train"] == sorted(bases(train) - bases(test) - bases(valid))
    assert left["valid"] == sorted(bases(valid) - bases(test)) and left["test"] == sorted(bases(test))
    whole = sum(len(bases(group)) for group in (train, valid, test))
    assert trimmed == whole - sum(map(len, left.values()))
    leaks = find_leaks(train + test)
    assert {at for leak in leaks for at in range(leak.start, leak.end)} == bases(train) & bases(test)
    assert len(leaks) == sum(t.start < e.end and e.start < t.end for t in train for e in test)


def test_chromosomes_that_the_config_leaves_out_are_not_written(workshop):
    workshop.fasta({"a": random_bases(1000), "b": random_bases(300, seed=1)})
    bed = workshop.write("r.bed", "a 0 100 train\na 200 300 valid\nb 0 100 train\n")
    workshop.build(splits={"bed": str(bed)}, chromosomes=["a"])
    assert {name for bases in bases_by_split(workshop).values() for name, _ in bases} == {"a"}
    assert "config leaves out: 1" in (workshop.output / "SUMMARY.md").read_text()


def test_an_evaluation_set_may_do_without_train_and_valid_when_the_config_says_so(workshop):
    workshop.fasta({"a": random_bases(300)})
    workshop.build(splits={"by_chromosome": {"test": []}}, required_splits=["test"])
    assert set(bases_by_split(workshop)) == {"test"}
