"""`hyena-ds bench generate`: rows of small lengths, values that are compared first, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hyena_ds.bench.generate import Generator, _recomputation
from hyena_ds.bench.processes import WrongValue
from hyena_ds.cli import main
from hyena_ds.parallel.devices import compute_alone
from hyena_ds.predict.decoder import Decoding

SMALL = ["--prompt-length", "40", "--tokens", "20", "--length", "30", "15", "--width", "16", "--rounds", "1"]


@pytest.mark.slow
def test_rows_say_what_a_base_costs_beside_recomputation_and_how_it_grows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "generate", *SMALL, "--json", str(tmp_path / "rows.json")]) == 0
    beside, short, long = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (beside["prompt"], beside["tokens"]) == (40, 20) and list(beside["forward_seconds"]) == [
        "40",
        "45",
        "50",
        "55",
        "60",
    ]
    assert beside["times_faster"] > 0 and beside["largest_difference_of_a_logit"] <= 1e-4 < beside["largest_logit"]
    assert (short["tokens"], long["tokens"]) == (15, 30) and short["times_the_shortest"] == 1.0
    assert "one forward pass at 40, 45, 50, 55, 60 bases" in capsys.readouterr().out


def test_seconds_of_recomputation_are_integrated_over_the_places() -> None:
    found = _recomputation([10, 20, 40], [1.0, 3.0, 4.0], 0.5)
    assert found["recomputed_seconds_a_base"] == pytest.approx((10 * 2.0 + 20 * 3.5) / 30)
    assert found["times_faster"] == pytest.approx(6.0)


def test_a_decoding_that_differs_from_recomputation_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator(compute_alone(), 16, 2, 60)
    worst, largest = generator.check(40, 20, [40, 50, 60])
    assert worst <= 1e-6 < largest
    original = Decoding.step

    def off(self: Decoding, token_ids_B: Tensor) -> Tensor:
        self.logits_BV = torch.add(original(self, token_ids_B), 2e-4)
        return self.logits_BV

    monkeypatch.setattr(Decoding, "step", off)
    with pytest.raises(WrongValue, match=r"a logit differs by 2.0e-04 from recomputation, wanted at most 1e-04"):
        generator.check(40, 20, [40, 50, 60])


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--tokens", "0"], "--tokens: found 0, wanted at least 1"),
        (["--prompt-length", "-1"], "--prompt-length: found -1, wanted at least 1"),
        (["--length", "0", "5"], "--length: found 0, wanted at least 1"),
        (["--width", "70000"], "bench: width: found 70000, wanted at most 65,536"),
    ],
)
def test_a_wrong_option_is_one_sentence(option: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "generate", *SMALL, *option]) == 2
    assert said in capsys.readouterr().err
