"""`hyena-ds doctor` on this machine alone, as a user reads it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hyena_ds.cli import main
from hyena_ds.config.model import ModelConfig
from hyena_ds.config.schedule import StageConfig
from hyena_ds.config.schema import DataConfig, RunConfig, SourceConfig
from hyena_ds.data.shards import read_index
from hyena_ds.doctor import command
from hyena_ds.doctor.parity import cut_stages
from hyena_ds.doctor.verdict import Verdict
from tests.paths import ROOT
from tests.training.runs import TIMEOUT, make_shards, write_config


@pytest.mark.slow
def test_one_damaged_shard_is_all_that_is_wrong_here(tmp_path: Path) -> None:
    shards = make_shards(tmp_path)
    # Two ranks and one sequence a step, which a run therefore cuts in two.
    stage = {"context_length": 64, "steps": 2, "global_batch": 1}
    config = write_config(tmp_path / "config.yaml", shards, stages=[stage], local_ranks=2)
    shard = shards / read_index(shards).shards[1].file
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    command = [sys.executable, "-m", "hyena_ds", "doctor", "--config", str(config), "--seconds", "300", "name=other"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2 * TIMEOUT)
    assert done.returncode == 1, done.stdout + done.stderr
    wrong = [line for line in done.stdout.splitlines() if line.startswith("WRONG")]
    assert len(wrong) == 1 and wrong[0].startswith("WRONG  shards") and "this machine" in wrong[0]
    assert shard.name in done.stdout and "-> copy them again to this host" in done.stdout
    for check in ("versions", "devices", "clock", "run directory", "ranks", "exchange", "parity"):
        assert any(check in line for line in done.stdout.splitlines() if not line.startswith("WRONG")), done.stdout
    assert "64 tokens in 2 slices" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("1 wrong, 0 warnings") or "1 warning" in done.stdout
    assert "doctor: starting 2 ranks" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_sequences_are_compared_in_the_slices_that_a_run_cuts_them_into() -> None:
    stages = (
        StageConfig(256, 1, global_batch=1),
        StageConfig(512, 1, global_batch=8),
        StageConfig(128, 1, global_batch=2, activation_policy="lean"),
        StageConfig(1024, 1, global_batch=2, sequence_parallel=2),
    )
    config = RunConfig("run", ModelConfig(8, 1, 1024), DataConfig((SourceConfig("shards"),)), stages)

    def cut(ranks: int) -> dict[int, list[int]]:
        return {size: [stage.context_length for stage in found] for size, found in cut_stages(config, ranks).items()}

    assert cut(8) == {8: [256], 4: [128, 1024]}, "rows would outnumber sequences"
    assert cut(2) == {2: [256, 1024]}
    assert cut(3) == {2: [1024]}, "no run can be on three ranks; what is configured is said to be not looked at"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a", "b"], "wanted at most one hostfile"),
        (["name=x"], "key.path=value beside --config"),
        (["nowhere"], "nowhere: cannot read the hostfile"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: cannot read the config"),
    ],
)
def test_words_that_make_no_sense_are_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *words]) == 2
    assert said in capsys.readouterr().err


def test_changes_and_the_hostfile_may_stand_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts, options = tmp_path / "hosts", ["--config", str(write_config(tmp_path / "config.yaml", tmp_path))]
    hosts.write_text("node0 slots=3\n")
    asked: list[command.Patient] = []

    def examine(patient: command.Patient) -> list[Verdict]:
        asked.append(patient)
        return []

    monkeypatch.setattr(command, "examine", examine)
    words = ["name=x", "seed=5"]
    for typed in (
        [str(hosts), *words, *options],
        [str(hosts), *options, *words],
        [*options, *words, str(hosts)],
        [words[0], *options, words[1], str(hosts)],
    ):
        assert main(["doctor", *typed, "--json"]) == 0
    assert len(asked) == 4 and all(patient == asked[0] for patient in asked)
    assert asked[0].overrides == words and [host.slots for host in asked[0].hosts] == [3]


def test_what_is_no_change_is_refused_behind_options_as_before_them(capsys: pytest.CaptureFixture[str]) -> None:
    for typed in (["doctor", "--json", "name=x", "--no-such-option"], ["report", "runs/x", "--output", "y", "z"]):
        with pytest.raises(SystemExit, match="2"):
            main(typed)
        assert "unrecognized arguments: " in capsys.readouterr().err


def test_changes_may_stand_behind_the_options_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(ROOT / "configs" / "quickstart.yaml"), "--ranks", "2", "name=other"]) == 0
    behind = capsys.readouterr().out
    assert main(["check", str(ROOT / "configs" / "quickstart.yaml"), "name=other", "--ranks", "2"]) == 0
    assert capsys.readouterr().out == behind and behind.startswith("other: ")
