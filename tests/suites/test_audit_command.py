"""`hyena-ds audit` prints what was found, ends with 0, 1 or 2, and takes no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hyena_ds.cli import main
from tests.paths import ROOT
from tests.suites.drawn import clean, labelled, replaced, sequences, write_csv


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    train, test = clean(120, 60)
    return str(write_csv(tmp_path / "train.csv", train)), str(write_csv(tmp_path / "test.csv", test))


def test_a_clean_set_is_ok_and_the_table_shows_row_zero(files: tuple[str, str], capsys: pytest.CaptureFixture) -> None:
    assert main(["audit", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["train", "120", "120", "120", "120", "negative", "60,", "positive", "60"]
    assert lines[4].split() == ["test", "in", "train", "within", "train", "within", "test"]
    assert next(line for line in lines if line.startswith("row zero")).split()[2:] == ["accuracy", "MCC", "AUROC", "F1"]
    assert [*map(str.split, lines)][10][:1] == ["majority"] and lines[-1] == "OK: nothing was found"


def test_a_leak_fails_with_code_1_names_one_and_is_in_the_json(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train, test = clean(120, 60)
    test = replaced(test, {7: train.sequences[3]})
    paths = [str(write_csv(tmp_path / "train.csv", train)), str(write_csv(tmp_path / "test.csv", test))]
    assert main(["audit", *paths, "--json", str(tmp_path / "found.json")]) == 1
    *_, verdict, reason, example = capsys.readouterr().out.splitlines()
    assert (verdict, reason) == ("FAIL", "  FAIL  1 (1.7%) of the test sequences are in train")
    assert example == f"  for instance {paths[1]}:9 is in train as {paths[0]}:5"
    about = json.loads((tmp_path / "found.json").read_text())
    assert about["verdict"] == "FAIL" and about["duplicates"]["exact"] == 1 and about["test_file"] == paths[1]


def test_a_dev_set_stands_beside_the_two(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train, test = clean(120, 60)
    dev = replaced(labelled(sequences(40, seed=7), np.arange(40, dtype=np.int64) % 2), {0: test.sequences[5]}, "dev")
    paths = [
        str(write_csv(tmp_path / f"{name}.csv", data)) for name, data in zip("abc", (train, test, dev), strict=True)
    ]
    assert main(["audit", *paths[:2], "--dev", paths[2], "--json", str(tmp_path / "found.json")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split()[:2] == ["dev", "40"]
    assert lines[5].split()[-6:] == ["dev", "in", "train", "test", "in", "dev"]
    assert lines[6].split()[-4:] == ["0", "(0.0%)", "1", "(1.7%)"]
    assert "  FAIL  1 (1.7%) of the test sequences are in dev, on which a model is chosen" in lines
    about = json.loads((tmp_path / "found.json").read_text())
    assert about["dev_file"] == paths[2] and about["dev"]["test_in_dev"]["exact"] == 1


def test_a_warning_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sets = []
    for name, n, seed in (("train", 120, 1), ("test", 60, 3)):
        pairs = zip(sequences(n // 2, seed, gc=0.3), sequences(n // 2, seed + 1, gc=0.6), strict=True)
        data = labelled([text for pair in pairs for text in pair], np.arange(n, dtype=np.int64) % 2)
        sets.append(str(write_csv(tmp_path / f"{name}.csv", data)))
    assert main(["audit", *sets]) == 0
    assert "\nWARN\n  WARN  composition alone (" in capsys.readouterr().out


def test_values_and_columns_by_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, n, seed in (("train", 80, 1), ("test", 40, 3)):
        rows = [f"{text},{text.count('G') / 10}\n" for text in sequences(n, seed)]
        (tmp_path / f"{name}.csv").write_text("bases,psi\n" + "".join(rows))
    files = [str(tmp_path / "train.csv"), str(tmp_path / "test.csv")]
    assert main(["audit", *files, "--kind", "regression", "--sequence", "bases", "--label", "psi"]) == 0
    out = capsys.readouterr().out
    assert "R2  pearson  spearman" in out and "mean" in out and "reaches Pearson" in out


@pytest.mark.parametrize(
    ("train", "test", "sentence"),
    [
        ("", "sequence,label\nA,1\n", "train.csv: found an empty file, wanted labelled sequences"),
        ("sequence,y\nA,1\n", "x", "train.csv: found no column 'label' among sequence, y; name the column that holds"),
        ("sequence,label\nA,1\nC,1\n", "x", "train.csv:2: found the one class '1' in all 2 rows, wanted two or more"),
        ("sequence,label\nA,1\nC!,2\n", "x", "train.csv:3: found '!' in the sequence, wanted A C G T N or IUPAC codes"),
        (
            "sequence,label\nAC,1\nCC,2\n",
            "sequence,label\nAC,3\nAG,1\n",
            "test.csv:2: found the class '3', which the train set does not have, wanted one of 1, 2",
        ),
        ("sequence,label\nAC,1\nCC,2\n", "sequence,label\nAC,2\n", "found 1 sequences to test on, wanted two or more"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture, train: str, test: str, sentence: str
) -> None:
    (tmp_path / "train.csv").write_text(train)
    (tmp_path / "test.csv").write_text(test)
    found = tmp_path / "found.json"
    assert main(["audit", str(tmp_path / "train.csv"), str(tmp_path / "test.csv"), "--json", str(found)]) == 2
    said = capsys.readouterr()
    assert sentence in said.err and said.err.count("\n") == 1 and not said.out and not found.exists()


def test_a_directory_that_is_not_there_is_said_before_the_work(
    files: tuple[str, str], capsys: pytest.CaptureFixture
) -> None:
    assert main(["audit", *files, "--json", "nowhere/found.json"]) == 2
    assert "--json: nowhere: no such directory; make it first" in capsys.readouterr().err


def test_it_takes_no_torch_and_says_what_is_missing_without_scikit_learn(files: tuple[str, str]) -> None:
    run = "from hyena_ds.cli import main; code = main(sys.argv[1:]); assert 'torch' not in sys.modules; sys.exit(code)"
    for program, code, said in (
        (f"import sys; {run}", 0, ""),
        (
            f"import sys; sys.modules['sklearn'] = None; {run}",
            2,
            "sklearn is not installed; pip install 'hyena-ds[predict]'",
        ),
    ):
        command = [sys.executable, "-c", program, "audit", *files]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == code and said in done.stderr, done.stderr


def test_the_help_says_the_exit_codes(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["audit", "--help"])
    assert "code 0 for OK and WARN, 1 for FAIL, 2 for input" in " ".join(capsys.readouterr().out.split())


def test_names_of_classes_move_no_cursor(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, seed in (("train", 1), ("test", 2)):
        rows = [f"{text},{'no' if row % 2 else chr(27) + '[2J'}\n" for row, text in enumerate(sequences(40, seed))]
        (tmp_path / f"{name}.csv").write_text("sequence,label\n" + "".join(rows))
    assert main(["audit", str(tmp_path / "train.csv"), str(tmp_path / "test.csv")]) == 0
    out = capsys.readouterr().out
    assert chr(27) not in out and "\\x1b[2J 20, no 20" in out
