"""Runs whose shards come from a server: the same numbers as from a directory, and an end when a shard does not come."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.shards import read_index
from hyena_ds.errors import UserError
from hyena_ds.parallel.devices import Compute
from hyena_ds.runtime.heartbeat import FAULT_CODE
from hyena_ds.tasks.shards import check_shards
from tests.data.remote.afar_server import serving
from tests.distributed.pool import Pool
from tests.training.runs import ends_of_ranks, make_shards, rows, write_config

STAGES = [
    {"context_length": 32, "steps": 3, "global_batch": 4, "micro_batch_size": 1},
    {"context_length": 64, "steps": 2, "global_batch": 2, "micro_batch_size": 1, "sequence_parallel": 2},
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"))


def data(place: str, cache: Path, **changes: object) -> dict[str, object]:
    return {
        "sources": [{"shards": place}],
        "shuffle_shards": 1,
        "cache": {"directory": str(cache), "stall": 1.0, "patience": 5.0},
        **changes,
    }


@pytest.mark.slow
def test_a_run_from_a_server_that_breaks_connections_has_the_numbers_of_one_from_the_directory(
    shards: Path, tmp_path: Path
) -> None:
    found = []
    with serving(shards) as server:
        for shard in read_index(shards).shards:
            server.faults[shard.file] = ["break 500", 503]
        for name, place in (("near", str(shards)), ("far", server.place)):
            config = write_config(
                tmp_path / f"{name}.yaml", shards, name=name, stages=STAGES, data=data(place, tmp_path / "cache")
            )
            ends = ends_of_ranks("hyena_ds", ["train", str(config)], 2)
            assert [code for code, _ in ends] == [0, 0], ends
            found.append(rows(tmp_path / "runs" / name))
        assert found[0] == found[1] and len(found[0]) >= 5
        whole = [file for file, wanted in server.asked if wanted is None]
        assert whole.count("index.json") == 1  # the ranks of a node share it, and the shards
        assert all(whole.count(shard.file) == 1 for shard in read_index(shards).shards)


@pytest.mark.slow
def test_a_shard_that_does_not_come_ends_the_run_and_is_named(shards: Path, tmp_path: Path) -> None:
    with serving(shards) as server:
        for shard in read_index(shards).shards:
            if shard.split == "train":
                server.always[shard.file] = 404
        stage = {"context_length": 32, "steps": 1_000_000, "global_batch": 4, "micro_batch_size": 1}
        config = write_config(
            tmp_path / "config.yaml", shards, stages=[stage], data=data(server.place, tmp_path / "cache", workers=1)
        )
        ends = ends_of_ranks("hyena_ds", ["train", str(config)], 2)
    assert [code for code, _ in ends] == [FAULT_CODE, FAULT_CODE], ends
    output = "".join(text for _, text in ends)
    (sentence,) = (line for line in output.splitlines() if line.startswith("hyena-ds: error: "))
    assert (
        f"{server.place}/train-00000" in sentence and "the shard cannot be fetched: the server answers 404" in sentence
    )
    assert "Traceback" not in output


def check_with(compute: Compute, configs: list[str]) -> str:
    """What check_shards says where each rank has a config of its own."""
    try:
        check_shards(load_yaml(configs[compute.rank], RunConfig), compute)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_ranks_with_other_shards_are_refused_before_the_first_step(shards: Path, tmp_path: Path, ranks) -> None:
    directory = tmp_path / "other"
    directory.mkdir()
    other = make_shards(directory, splits="{train: 0.7, valid: 0.3}")
    pool: Pool = ranks(2)
    configs = [str(write_config(tmp_path / f"{name}.yaml", place)) for name, place in (("a", shards), ("b", other))]
    said = pool.run(check_with, configs=[configs[0], configs[0]])
    assert said == ["", ""]
    said = pool.run(check_with, configs=configs)
    for sentence in said:
        assert sentence.startswith("data.sources.0: ") and "has another index.json than rank 0 on " in sentence
