"""Benchmarks whose leaks are known: the audit finds them by what they hold, and agrees with seqleak, which others wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hyena_ds.labelled import LabelledSet, read_labelled
from hyena_ds.suites.audit import Audit, audit
from tests.paths import DATA
from tests.suites.drawn import clean, replaced

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="the real sets are not here; HYENA_DATA names their directory"
)
_GUE, _GENOMIC = DATA / "gue", DATA / "genomic_benchmarks_subset"


def both(name: str) -> tuple[LabelledSet, LabelledSet]:
    directory = (_GUE if (_GUE / name).is_dir() else _GENOMIC) / name
    files = [
        directory / side if (directory / side).is_dir() else directory / f"{side}.csv.xz" for side in ("train", "test")
    ]
    train = read_labelled(files[0], "classification")
    return train, read_labelled(files[1], "classification", classes=train.classes)


@pytest.fixture(scope="module")
def audited() -> dict[str, Audit]:
    """Audits that more than one test looks at."""
    return {}


VERDICTS = {
    "mouse/0": "FAIL",
    "mouse/2": "FAIL",
    "mouse/3": "FAIL",
    "prom/prom_300_tata": "WARN",
    "human_nontata_promoters": "FAIL",
    "human_enhancers_ensembl": "FAIL",
    "human_enhancers_cohn": "WARN",
    "demo_human_or_worm": "WARN",
}
LARGE = {"prom/prom_core_notata": "FAIL", "tf/0": "WARN", "tf/1": "WARN", "tf/2": "WARN"}


@pytest.mark.parametrize("name", VERDICTS)
def test_the_verdict_on_a_known_set(name: str, audited: dict[str, Audit]) -> None:
    audited[name] = audit(*both(name))
    assert audited[name].verdict == VERDICTS[name], audited[name].reasons


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_the_verdict_on_a_large_known_set(name: str) -> None:
    found = audit(*both(name))
    assert found.verdict == LARGE[name], found.reasons


def test_the_reasons_are_those_that_were_measured_elsewhere(audited: dict[str, Audit]) -> None:
    found = {name: audited.get(name) or audit(*both(name)) for name in VERDICTS}
    for name in ("mouse/0", "mouse/2", "mouse/3"):  # negatives are dinucleotide shuffles
        assert found[name].best().name.startswith("shuffled dinucleotides") and found[name].best().metrics["mcc"] > 0.9
    assert found["human_nontata_promoters"].best().name == "nearest train sequence"
    assert found["human_nontata_promoters"].best().metrics["mcc"] == pytest.approx(0.989, abs=0.01)
    assert found["human_enhancers_ensembl"].duplicates.exact.mean() > 0.3
    assert not found["human_enhancers_cohn"].twins.any_label.any()
    assert found["demo_human_or_worm"].easy > 0.8


def of_seqleak(train: LabelledSet, test: LabelledSet, directory: Path) -> dict[str, dict[str, object]]:
    """Its checks by name."""
    run = pytest.importorskip("seqleak.cli", reason="seqleak is not installed (extra dev)")
    import json

    for name, data in (("train", train), ("test", test)):
        rows = zip(data.sequences, np.asarray(data.targets).tolist(), strict=True)
        (directory / f"{name}.csv").write_text("sequence,label\n" + "".join(f"{text},{at}\n" for text, at in rows))
    arguments = [f"--{name}={directory / name}.csv" for name in ("train", "test")]
    run.main(["audit", *arguments, f"--out={directory / 'out.json'}"])
    return json.loads((directory / "out.json").read_text())["checks"]


@pytest.mark.parametrize("name", ["mouse/3", "human_enhancers_ensembl", "planted"])
def test_seqleak_counts_the_same(name: str, tmp_path: Path) -> None:
    if name == "planted":
        train, test = clean()
        test = replaced(test, {row: train.sequences[row] for row in range(7)} | {9: train.sequences[9][50:] + "A" * 50})
    else:
        train, test = both(name)
    theirs = of_seqleak(train, test, tmp_path)
    ours = audit(train, test)
    assert (ours.duplicates.exact | ours.duplicates.reverse).mean() == pytest.approx(theirs["overlap.exact"]["value"])
    assert ours.nearest.near.mean() == pytest.approx(theirs["overlap.near"]["value"], abs=0.01)
    shuffled = next(one for one in ours.made if one.how == "shuffled dinucleotides")
    n = len(train)
    across = shuffled.pairs[(shuffled.pairs < n).any(1) & (shuffled.pairs >= n).any(1)]
    partnered = np.zeros(len(test), dtype=bool)
    partnered[across.max(1) - n] = True
    assert partnered.mean() == pytest.approx(theirs["construction.shuffle"]["value"], abs=1 / len(test))
