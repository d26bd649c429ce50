"""An audit finds what was planted into random sets, says how much of it, and passes a clean set."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hyena_ds.errors import UserError
from hyena_ds.labelled.sets import Interval, LabelledSet
from hyena_ds.labelled.splitting import other_strand
from hyena_ds.suites import thresholds
from hyena_ds.suites.audit import Audit, audit
from tests.suites.drawn import LENGTH, clean, halves, labelled, mutated, replaced, sequences, shuffled


def said(found: Audit) -> list[str]:
    return [f"{one.level}: {one.text}" for one in found.reasons]


def test_a_clean_set_passes() -> None:
    found = audit(*clean())
    assert found.verdict == "OK" and said(found) == []
    assert {rule.name for rule in found.row_zero} == {
        "majority", "length and N", "GC and CpG", "nearest train sequence", "Markov", "k-mers", "bases in place"
    }  # fmt: skip
    assert all(abs(rule.skill) < 0.25 for rule in found.row_zero) and found.share_nothing.all()


def test_duplicates_across_and_within_sets_and_their_labels() -> None:
    train, test = clean()
    test = replaced(
        test,
        {
            0: train.sequences[10],
            3: train.sequences[20],
            4: other_strand(train.sequences[30]),
            5: test.sequences[6],
        },
    )
    train = replaced(train, {50: train.sequences[51], 52: other_strand(train.sequences[53])}, "train")
    found = audit(train, test)
    assert np.flatnonzero(found.duplicates.exact).tolist() == [0, 3]
    assert np.flatnonzero(found.duplicates.reverse).tolist() == [4]
    assert (found.duplicates.within_train, found.duplicates.within_test) == (2, 1)
    # rows 50 and 51 of train, 5 and 6 of test, and row 3 with row 20 of train have other labels
    assert found.duplicates.conflicting == 6
    assert found.duplicates.examples[0] == ("test.csv:2", "train.csv:12")
    assert said(found) == ["FAIL: 3 (1.5%) of the test sequences are in train, 1 of them on the other strand"]
    two = audit(train, replaced(test, {3: sequences(1, seed=9)[0]}))
    assert said(two) == ["WARN: 2 (1.0%) of the test sequences are in train, 1 of them on the other strand"]
    assert not two.share_nothing[0] and two.share_nothing[3]


def test_what_test_shares_with_dev_and_dev_with_train_is_judged_by_what_it_spoils() -> None:
    train, test = clean()
    dev = labelled(sequences(100, seed=5), halves(100), "dev")
    assert audit(train, test, dev).reasons == ()
    leaky = replaced(
        dev,
        {0: test.sequences[3], 1: other_strand(test.sequences[4]), 2: train.sequences[7], 3: test.sequences[9]},
        "dev",
    )
    leaky = replaced(leaky, {row: mutated(train.sequences[row], row) for row in range(10, 15)}, "dev")
    found = audit(train, test, leaky)
    assert said(found) == [
        "FAIL: 3 (1.5%) of the test sequences are in dev, on which a model is chosen",
        "WARN: 5 (5.0%) of the dev sequences besides share half or more of their 21-mers with one of train",
    ]
    assert found.verdict == "FAIL" and found.share_nothing.all(), "train and test share nothing"
    kept = found.as_dict()["dev"]
    assert kept["test_in_dev"] == {"exact": 2, "reverse_complement": 1, "twins": 0, "near": 3}
    assert kept["dev_in_train"] == {"exact": 1, "reverse_complement": 0, "twins": 0, "near": 6}
    assert "dev" not in audit(train, test).as_dict()
    half = audit(train, test, replaced(dev, {row: train.sequences[row] for row in range(50)}, "dev"))
    assert said(half) == [
        "WARN: 50 (50.0%) of the dev sequences are in train, so that a model is chosen that has learnt train by heart"
    ]
    one = audit(train, test, replaced(dev, {0: test.sequences[3]}, "dev"))
    assert said(one) == ["WARN: 1 (0.5%) of the test sequences are in dev, on which a model is chosen"]
    places = [Interval("1", 1000 * row, 1000 * row + LENGTH, "+") for row in range(200)]
    twins = labelled(test.sequences, test.targets, "test", places)
    moved = [Interval("1", place.start + 40, place.end + 40, "+") for place in places[:100]]
    texts = [text[40:] + sequences(1, seed=row)[0][:40] for row, text in enumerate(test.sequences[:100])]
    beside = audit(train, twins, labelled(texts, halves(100), "dev", moved))
    assert said(beside) == ["WARN: 100 (50.0%) of the test sequences overlap one of dev by half or more"]
    with pytest.raises(UserError, match="found a train and a dev set of other kinds or classes, wanted the same"):
        audit(train, test, labelled(dev.sequences, dev.targets, "dev", classes=("a", "b")))


def test_sequences_that_a_set_holds_many_times_or_with_two_labels_are_warned_of() -> None:
    train, test = clean()
    found = audit(replaced(train, {2 * n: train.sequences[300 + 2 * n] for n in range(6)}, "train"), test)
    assert said(found) == ["WARN: 6 (1.5%) of the train sequences stand in train before, on either strand"]
    found = audit(replaced(train, {2 * n: train.sequences[301 + 2 * n] for n in range(6)}, "train"), test)
    assert said(found)[1:] == ["WARN: 12 (2.0%) of all sequences have another label elsewhere"]


@pytest.mark.parametrize(("count", "level"), [(2, None), (8, "WARN"), (30, "FAIL")])
@pytest.mark.parametrize("other", [False, True])
def test_near_and_shifted_sequences_without_places(count: int, level: str | None, other: bool) -> None:
    train, test = clean()
    changes = {}
    for row in range(count):
        text = train.sequences[3 * row]
        text = mutated(text, row % 40) if row % 2 else text[40:] + test.sequences[row][:40]
        changes[row] = other_strand(text) if other else text
    found = audit(train, replaced(test, changes))
    assert np.flatnonzero(found.nearest.near).tolist() == list(range(count))
    assert found.nearest.row[:count].tolist() == [3 * row for row in range(count)]
    share = f"{count} ({count / 200:.1%}) of the test sequences"
    sentence = f"{level}: {share} share half or more of their 21-mers with one of train"
    assert said(found) == ([sentence] if level else [])


def placed(chromosome: str, starts: list[int], name: str, twisted: bool = False) -> LabelledSet:
    """Windows of a chromosome, every second one from the other strand."""
    texts = [chromosome[start : start + LENGTH] for start in starts]
    strands = ["-" if twisted and row % 2 else "+" for row in range(len(starts))]
    texts = [other_strand(text) if strand == "-" else text for text, strand in zip(texts, strands, strict=True)]
    places = [Interval("c1", start, start + LENGTH, strand) for start, strand in zip(starts, strands, strict=True)]
    return labelled(texts, halves(len(starts)), name, places)


def test_overlapping_places_are_twins_from_half_of_a_test_sequence_on() -> None:
    chromosome = sequences(1, seed=5, length=200_000)[0]
    train = placed(chromosome, [300 * n for n in range(400)], "train")
    shifts = {0: 60, 1: 61, 2: -60, 3: -61, 4: 10, 7: -30}  # of test row n, from row n of train; half are 60 bases
    starts = [300 * n + shifts[n] if n in shifts else 130_000 + 150 * n for n in range(200)]
    test = placed(chromosome, starts, "test", twisted=True)
    found = audit(train, test)
    assert np.flatnonzero(found.twins.any_label).tolist() == [0, 2, 4, 7]
    assert not found.twins.other_label.any() and found.twins.known == 200 and found.twins.unlike == 0
    assert said(found) == [
        "FAIL: 4 (2.0%) of the test sequences overlap one of train by half or more (4 of the same label, 0 of another)"
    ]
    assert found.twins.examples[0] == ("test.csv:2", "train.csv:2")


def test_twins_of_another_label_are_told_apart() -> None:
    chromosome = sequences(1, seed=5, length=200_000)[0]
    train = placed(chromosome, [300 * n for n in range(400)], "train")
    test = placed(chromosome, [300 * (n + 1) + 20 if n < 4 else 130_000 + 150 * n for n in range(200)], "test")
    found = audit(train, test)
    assert "4 (2.0%) of the test sequences overlap one of train by half or more (0 of the same label, 4 of an" in str(
        said(found)
    )


def test_equal_coordinates_in_two_genomes_are_no_twins() -> None:
    human, mouse = (sequences(1, seed=seed, length=70_000)[0] for seed in (5, 6))
    train = placed(human, [150 * n for n in range(400)], "train")
    test = placed(mouse, [150 * n for n in range(200)], "test")
    found = audit(train, test)
    assert found.verdict == "OK" and found.twins.unlike == 200 and not found.twins.any_label.any()


def test_intervals_of_all_sizes_are_compared() -> None:
    """A long interval of train covers a short one of test; a short one of train covers no half of a long one."""
    chromosome = sequences(1, seed=7, length=60_000)[0]

    def cut(spans: list[tuple[int, int]], name: str) -> LabelledSet:
        places = [Interval("c", *span) for span in spans]
        return labelled([chromosome[a:b] for a, b in spans], halves(len(spans)), name, places)

    train = cut([(0, 20_000), (30_000, 30_100), (40_000, 40_100), (20_100, 20_900)], "train")
    test = cut([(19_900, 20_050), (5, 105), (29_000, 32_000), (40_050, 40_150), (50_000, 50_100)], "test")
    assert audit(train, test).twins.any_label.tolist() == [True, True, False, True, False]


def test_a_gc_leak_is_a_warning_and_says_which_rule() -> None:
    train, test = (
        labelled(
            [text for pair in zip(sequences(n // 2, seed, gc=0.40), sequences(n // 2, seed + 1, gc=0.6), strict=True) for text in pair],
            halves(n),
            name,
        )
        for n, seed, name in ((400, 11, "train"), (200, 21, "test"))
    )  # fmt: skip
    found = audit(train, test)
    assert found.verdict == "WARN" and len(found.reasons) == 1
    assert found.reasons[0].text.startswith("composition alone (") and found.easy > thresholds.EASY
    gc = next(rule for rule in found.row_zero if rule.name == "GC and CpG")
    assert gc.skill > 0.8 and gc.metrics["auroc"] > 0.95


def test_length_that_tells_the_label_fails() -> None:
    train, test = clean()
    cut = {row: text[: 100 + 10 * (row % 2)] for row, text in enumerate(train.sequences)}
    train = replaced(train, cut, "train")
    test = replaced(test, {row: text[: 100 + 10 * (row % 2)] for row, text in enumerate(test.sequences)})
    assert said(audit(train, test)) == ["FAIL: the rule «length and N» alone reaches MCC 1.000"]


@pytest.mark.parametrize("how", ["shuffled dinucleotides", "shuffled bases", "parts in place"])
def test_negatives_that_are_made_from_positives_fail_and_a_rule_uses_them(how: str) -> None:
    draw = np.random.default_rng(3)
    positives = sequences(200, seed=2)
    texts = []
    for number, text in enumerate(positives):
        if how == "shuffled dinucleotides":
            made = shuffled(text, number)
        elif how == "shuffled bases":
            made = "".join(draw.permutation(list(text)))
        else:  # 8 of 20 parts stay
            kept = draw.permutation(20) < 8
            other = sequences(1, seed=1000 + number)[0]
            made = "".join((text if kept[at // 6] else other)[at] for at in range(LENGTH))
        texts += [made, text]
    order = draw.permutation(400)  # a negative and its positive are rarely in one set
    texts, targets = [texts[at] for at in order], halves(400)[order]
    found = audit(labelled(texts[:300], targets[:300]), labelled(texts[300:], targets[300:], "test"))
    reasons = [text for text in said(found) if text.startswith("FAIL")]
    assert len(reasons) == 1 and f"pair with another class by {how}: one was made from the other" in reasons[0]
    best = found.best()
    assert best.family == "made" and best.name.startswith(f"{how}, else ") and best.metrics["mcc"] > 0.5


def test_an_easy_task_with_twins_of_the_same_label_is_no_leak_where_composition_knows_them() -> None:
    """Human or worm: random windows of two genomes overlap now and then."""
    genomes = [sequences(1, seed, length=120_000, gc=gc)[0] for seed, gc in ((1, 0.3), (2, 0.6))]
    draw = np.random.default_rng(4)

    def windows(n: int, name: str) -> LabelledSet:
        starts = draw.integers(0, 120_000 - LENGTH, n).tolist()
        places = [Interval(f"c{row % 2}", start, start + LENGTH) for row, start in enumerate(starts)]
        return labelled(
            [genomes[row % 2][start : start + LENGTH] for row, start in enumerate(starts)], halves(n), name, places
        )

    found = audit(windows(300, "train"), windows(200, "test"))
    assert found.twins.any_label.mean() > 5 * thresholds.TWINS
    assert found.verdict == "WARN" and "the task is easy, and composition is wrong about 0 of them" in str(said(found))


def test_a_look_up_that_beats_composition_fails() -> None:
    """Every test sequence shares a third with one of train of its label: too little to be near, enough to be looked up."""
    train, test = clean()
    changes = {row: train.sequences[row][:40] + text[40:] for row, text in enumerate(test.sequences)}
    found = audit(train, replaced(test, changes))
    assert not found.nearest.near.any()
    assert said(found)[0] == "FAIL: the rule «nearest train sequence» alone reaches MCC 1.000"


def test_values_outputs_and_bases_are_audited_too() -> None:
    train, test = clean()
    texts = [*train.sequences, *test.sequences]
    content = np.array([text.count("G") + text.count("C") for text in texts], dtype=np.float32)
    found = audit(
        labelled(texts[:400], content[:400], classes=("gc",)), labelled(texts[400:], content[400:], classes=("gc",))
    )
    assert found.kind == "regression" and found.verdict == "WARN" and found.best().metrics["pearson"] > 0.95
    assert found.best("mse").metrics["mse"] == min(rule.metrics["mse"] for rule in found.row_zero)
    assert found.row_zero[0].name == "mean" and found.row_zero[0].skill == 0.0
    two = (content[:, None] > np.array([48.0, 53.0])).astype(np.uint8)
    found = audit(
        labelled(texts[:400], two[:400], classes=("a", "b")), labelled(texts[400:], two[400:], classes=("a", "b"))
    )
    assert found.kind == "multilabel" and found.best().metrics["median_auroc"] > 0.95
    bases = tuple(np.array([letter == "C" for letter in text], dtype=np.int8) for text in texts)
    found = audit(labelled(texts[:400], bases[:400]), labelled(texts[400:], bases[400:]))
    assert found.kind == "per_base" and found.best().name == "letters round the base"
    assert found.best().metrics["mcc"] == 1.0 and found.verdict == "WARN"


def test_all_that_is_found_is_json_without_nan() -> None:
    train, test = clean()
    one = labelled(test.sequences[:50], np.zeros(50, dtype=np.int64), "test")  # no AUROC can be said
    about = json.loads(json.dumps(audit(train, one).as_dict(), allow_nan=False))
    assert about["verdict"] == "OK" and about["row_zero"][0]["auroc"] is None
    assert about["thresholds"]["DUPLICATES"] == thresholds.DUPLICATES and about["test"]["classes"]["negative"] == 50


def test_sets_too_small_or_of_other_kinds_are_refused() -> None:
    train, test = clean()
    with pytest.raises(
        UserError, match="audit: found a train and a test set of other kinds or classes, wanted the same"
    ):
        audit(train, labelled(test.sequences, np.zeros(200, np.float32)))
    with pytest.raises(UserError, match="audit: found 1 sequences to test on, wanted two or more"):
        audit(train, test.take(np.arange(1)))


def test_a_few_short_or_unknown_sequences_are_audited_without_a_finding() -> None:
    for texts in (sequences(60, seed=1, length=24), ["N" * 30, *sequences(59, seed=1, length=30)]):
        found = audit(labelled(texts[:40], halves(40)), labelled(texts[40:], halves(20), "test"))
        assert not found.nearest.near.any() and found.verdict == "OK"
