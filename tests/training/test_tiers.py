"""A run whose directory is lost with its host goes on from a bucket, as if nothing had happened."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hyena_ds.checkpoints.tier_store import TierStore
from hyena_ds.config.checkpoint import TierConfig
from tests.checkpoints.bucket import NAME, bucket
from tests.training.runs import make_shards, rows, train, tree, write_config


@pytest.mark.slow
def test_a_lost_directory_comes_back_from_a_bucket_and_the_rest_is_equal_bit_for_bit(tmp_path: Path) -> None:
    place = f"s3://{NAME}/runs"
    tiers = [{"place": place, "every_steps": 3, "keep_last": 9}, {"place": str(tmp_path / "shared"), "every_steps": 9}]
    config = write_config(
        tmp_path / "config.yaml", make_shards(tmp_path), zero_stage=2, checkpoint={"every_steps": 3, "tiers": tiers}
    )
    run = tmp_path / "runs" / "run"
    with bucket() as door:
        whole = train(config)
        assert whole.returncode == 0, whole.stderr
        assert f"{place}/run: the copy of step 10 is complete" in whole.stdout
        before, saved = rows(run), tree(run / "checkpoints" / "step-00000010")
        shutil.rmtree(run)
        shutil.rmtree(tmp_path / "shared")
        store = TierStore(TierConfig(place), "run")
        newest = sorted(store.steps())
        assert newest[-2:] == [9, 10] and 6 in newest
        for step in (9, 10):  # as if the host had gone after step 8
            store.remove(step)
        door.every = 3
        resumed = train(config)
        assert resumed.returncode == 0, resumed.stderr
        assert door.broken > 0
        assert f"brought step 6 from {place}/run" in resumed.stdout
        assert "resuming after step 6 from " in resumed.stdout
        assert rows(run) == before
        assert tree(run / "checkpoints" / "step-00000010") == saved
        assert {9, 10} <= store.steps().keys()
