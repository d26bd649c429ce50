"""A user's mistake is one sentence, exit code 2, and nothing written: also when two ranks meet it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training.runs import make_shards, train, tree, write_config


@pytest.fixture()
def shards(tmp_path: Path) -> Path:
    return make_shards(tmp_path)


def refuse(config: Path, sentence: str, *overrides: str) -> None:
    """The command must end with code 2, say `sentence` once, print no traceback, and leave every file as it was."""
    before = tree(config.parent)
    result = train(config, *overrides)
    output = result.stdout + result.stderr
    assert result.returncode == 2, output
    assert output.count(sentence) == 1, output
    assert output.count("hyena-ds: error: ") == 1, output
    assert "Traceback" not in output
    assert tree(config.parent) == before


@pytest.mark.slow
def test_a_flipped_byte_in_a_shard_is_named_by_two_ranks_once(shards: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", shards)
    shard = shards / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    refuse(config, "train-000000.tar: the bytes do not match the SHA-256")


@pytest.mark.slow
def test_a_shard_cut_short_missing_or_not_in_the_index_is_named(shards: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", shards)
    shard = shards / "train-000000.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:-512])
    refuse(config, f"found {len(data) - 512} bytes, wanted {len(data)}")
    shard.unlink()
    refuse(config, "lists this shard, but the file is missing")
    shard.write_bytes(data)
    (shards / "train-000099.tar").write_bytes(data)
    refuse(config, "found a shard that index.json does not list")


@pytest.mark.slow
def test_shards_without_a_validation_split_are_refused(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, splits="{train: 1.0}", required="[train]")
    refuse(write_config(tmp_path / "config.yaml", shards), "found no 'valid' split (the shards hold: train)")


@pytest.mark.slow
def test_a_directory_that_holds_another_run_is_left_alone(shards: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", shards)
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    (run / "thesis.txt").write_text("mine")
    refuse(config, "found a directory that is no run")
    (run / "thesis.txt").unlink()
    other = json.loads(config.read_text()) | {"seed": 1}
    (run / "config.yaml").write_text(json.dumps(other))
    refuse(config, "holds another run")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("stages.1.sequence_parallel=3", "which sequence_parallel 3 does not divide"),
        ("model.maximum_context=48", "longer than model.maximum_context 48"),
        ("stages.0.global_batch=7", "wanted a multiple of 2"),
        ("local_ranks=3", "found 2 with 3 ranks"),
        ("stages.0.stepz=3", "did you mean 'steps'?"),
        ("optimizer.learning_rate=fast", "found 'fast', wanted a number"),
        ("optimizer.minimum_learning_rate=1", "wanted at most learning_rate"),
        ("model.width=17", "which does not divide model.width 17"),
    ],
)
def test_a_config_that_cannot_run_is_refused_before_a_rank_starts(override: str, sentence: str, tmp_path: Path) -> None:
    refuse(write_config(tmp_path / "config.yaml", tmp_path / "nowhere"), sentence, override)


def test_a_config_that_is_not_there_is_named(tmp_path: Path) -> None:
    refuse(tmp_path / "absent.yaml", "absent.yaml: cannot read the config")
