"""What a plan says of the hosts that its ranks are on."""

from __future__ import annotations

import pytest

from hyena_ds.cli import main
from hyena_ds.config.arithmetic import describe_hosts
from tests.config.test_warmup import parse
from tests.paths import ROOT

ROWS = "[{context_length: 16, global_batch: 8, steps: 2}, {context_length: 64, global_batch: 8, steps: 2, sequence_parallel: 4}]"
CONFIG = parse("warmup=null", f"stages={ROWS}")


def test_sequences_that_lie_across_hosts_are_said_aloud() -> None:
    assert describe_hosts(CONFIG, ["a"] * 4) == []
    assert describe_hosts(CONFIG, ["a"] * 4 + ["b"] * 4) == ["hosts: a (ranks 0 to 3), b (ranks 4 to 7)"]
    uneven = describe_hosts(CONFIG, ["a"] * 5 + ["b"] * 2 + ["c"])
    assert uneven[0] == "hosts: a (ranks 0 to 4), b (ranks 5 to 6), c (rank 7)"
    assert len(uneven) == 2
    assert uneven[1].startswith("stage 1: 1 of 2 sequence-parallel groups of 4 ranks lie across hosts")
    assert uneven[1].endswith("divides the ranks of each (the smallest has 1)")


def test_check_says_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "configs" / "quickstart.yaml")
    assert main(["check", config, "--ranks", "2"]) == 0
    assert "hosts" not in capsys.readouterr().out
    assert main(["check", config, "--ranks", "2", "--ranks-per-host", "1"]) == 0
    said = capsys.readouterr().out
    assert "hosts: host 0 (rank 0), host 1 (rank 1)" in said
    assert "1 of 1 sequence-parallel groups of 2 ranks lie across hosts" in said
