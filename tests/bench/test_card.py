"""The scripts of `make gpu`, as far as they go without a card."""

import json
import os
import re
import subprocess
import sys

import pytest

from bench.card import rows as rows_module
from bench.card.correct import convolution, same_dropout
from bench.card.ranks import beside_one_rank
from bench.card.rows import Rows
from tests.paths import ROOT


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_as_threads_have_the_gradients_of_one_rank(size: int) -> None:
    found = beside_one_rank(size)
    errors = [float(number) for number in re.findall(r"\d+e[-+]\d+", found)]
    assert len(errors) == 8 and max(errors) < 1e-6, found


def test_a_planted_error_in_an_exchange_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.card import ranks

    real = ranks._shift
    monkeypatch.setattr(ranks, "_shift", lambda rows, group, step, traffic=None: real(rows + 1e-3, group, step))
    assert max(float(number) for number in re.findall(r"\d+e[-+]\d+", beside_one_rank(2))) > 1e-6


def test_dropout_and_convolution_say_how_far_they_are() -> None:
    assert same_dropout() == "the same elements; what is kept differs by 0e+00"
    assert max(float(number) for number in re.findall(r"\d\.\de-\d+", convolution(5001))) < 1e-6


def test_a_row_that_fails_is_a_row_and_the_others_go_on(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(rows_module, "OUT", tmp_path)
    rows = Rows("some")
    rows.add("one", lambda: 1 / 0)
    rows.add("two", lambda: "well")
    assert rows.exit_code() == 1 and "failed: one" in capsys.readouterr().out
    written = json.loads((tmp_path / "some.json").read_text())
    assert written["one"].startswith("FAILED ZeroDivisionError") and written["two"] == "well"


@pytest.mark.slow
def test_measurements_run_without_a_card(tmp_path) -> None:
    for name in ("ceilings", "steps"):
        done = subprocess.run(
            [sys.executable, "-m", f"bench.card.{name}"],
            cwd=ROOT,
            env={**os.environ, "OUT": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0 and "failed: none" in done.stdout, done.stderr
