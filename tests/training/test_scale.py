"""What a rank asks of the file system does not grow with the number of ranks: at start, save, resume and in a step."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyena_ds.checkpoints import writer as writing
from hyena_ds.checkpoints.engine_state import MOMENTS, PARAMETER, Fragment
from hyena_ds.checkpoints.local_tier import LocalTier
from hyena_ds.checkpoints.manifest import RunState
from hyena_ds.checkpoints.writer import CheckpointWriter
from hyena_ds.config.checkpoint import TierConfig
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.cost.beside_steps import (
    LOOKS_OF_A_STEP,
    RANKS_OF_A_NODE,
    RESUME,
    SAVE,
    SAVE_AND_REMOVE,
    SHARDS,
    START,
    Asked,
    checkpoint_files,
)
from hyena_ds.data import checksums
from hyena_ds.data.identity import ShardList
from hyena_ds.errors import UserError
from hyena_ds.parallel.devices import Compute
from hyena_ds.parallel.nodes import looker, nodes_of
from hyena_ds.runs.directory import RunDirectory
from hyena_ds.runtime.interruption import STOP_FILE, Interruption
from hyena_ds.tasks import labelled_sets
from hyena_ds.tasks.labelled import LabelledTask
from hyena_ds.tasks.shards import check_shards
from hyena_ds.training import starting
from hyena_ds.training.starting import early_check, start
from hyena_ds.weights.tensor_file import safetensors_chunks
from tests.data.genomes import GENOME, write_shards
from tests.training.many_ranks import Sums, World, rank_here
from tests.training.runs import write_config

RANKS, A_NODE = (8, 64, 512), RANKS_OF_A_NODE
ASKED = {"start": START, "save 3": SAVE, "save 6": SAVE_AND_REMOVE, "resume": RESUME}
"""What `hyena-ds plan --scaling` says of each phase."""
DISKS = {"save 7": 39, "resume from disks": 123}
"""Calls of the busiest rank where it saves to its node's own disk, and resumes from those."""
SIZE = 4096
"""Elements of the one trained parameter: a few for each of 512 ranks."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), GENOME)


class Small(nn.Module):
    """A trained parameter and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(SIZE))
        self.fixed = nn.Parameter(torch.zeros(3), requires_grad=False)


def value(kind: str, name: str) -> Tensor:
    """What was saved."""
    count = SIZE if name == "weight" else 3
    return torch.arange(count) + 10000.0 * (PARAMETER, *MOMENTS).index(kind)


def fragments(rank: int, ranks: int) -> Iterator[Fragment]:
    """An even part for each rank, as under ZeRO."""
    begin, end = (place * SIZE // ranks for place in (rank, rank + 1))
    yield Fragment("weight", begin, {kind: value(kind, "weight")[begin:end] for kind in (PARAMETER, *MOMENTS)})


class Weights:
    """In place of what an engine's parameters make of weights.safetensors."""

    streams = False

    def __init__(self, whole: dict[str, Tensor], compute: Compute, exported: Any, writers: Sequence[int]):
        self._whole, self._writes = whole, compute.rank == writers[0]

    def piece(self, copy: bool) -> tuple[int, Any] | None:
        return (0, safetensors_chunks(self._whole, {})) if self._writes else None


def load_all(loaded: list[Any], engine: Small, read: Any, updates: int) -> None:
    """In place of an engine's moments."""
    pieces: dict[str, Sequence[Tensor]] = {kind: [piece for _, piece in read(kind, "weight")] for kind in MOMENTS}
    loaded.append({kind: torch.cat([*found]) for kind, found in pieces.items()})


def life(ranks: int, config: RunConfig, root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Counter[str]]:
    """What the busiest rank asks, by phase: a start, two saves of which the second removes the first's, a resume.

    Checks on the way that each phase asks what `ASKED` says.
    """
    directory, states = RunDirectory(config), [RunState(step, 0, 0) for step in (3, 6)]
    whole = {"weight": value(PARAMETER, "weight"), "fixed": value(PARAMETER, "fixed")}
    monkeypatch.setattr(writing, "fragments", lambda compute: fragments(compute.rank, ranks))
    monkeypatch.setattr(writing, "WeightsFile", partial(Weights, whole))
    fixed = [("fixed", whole["fixed"])]
    monkeypatch.setattr(writing, "frozen_parameters", lambda compute, copy: fixed if compute.rank == 0 else [])
    monkeypatch.setattr(writing, "updates_done", lambda engine: 1)
    monkeypatch.setattr(starting, "build_engine", lambda config, objective, ranks: objective)
    loaded: list[dict[str, Tensor]] = []
    monkeypatch.setattr(starting, "load_moments", partial(load_all, loaded))
    task = SimpleNamespace(objective=Small)
    found: dict[str, Counter[str]] = {}
    data: list[ShardList] = []

    def phase(name: str, work: Any) -> list[Any]:
        world = World(ranks, A_NODE, root)
        results = world.run(work, monkeypatch)
        found[name] = world.most()
        if name in ASKED:
            assert (counts := world.in_sum()) == told(ASKED[name], counts, ranks), name
        else:
            assert found[name].total() == DISKS[name], name
        return results

    def begin(compute: Compute) -> None:
        assert early_check(config, compute, directory) is None
        _, listed = check_shards(config, compute)
        assert start(config, task, compute, directory, listed).state.step == 0  # type: ignore[arg-type]
        if compute.rank == 0:
            directory.create(config, listed)
            data.append(listed)

    def save(state: RunState, compute: Compute, local: LocalTier | None = None) -> None:
        saver = CheckpointWriter(directory.checkpoints, config, compute, "0" * 16, data[0].digest, local=local)
        saver.save(compute, state, local=local is not None)  # type: ignore[arg-type]
        saver.finish()

    def resume(config: RunConfig, step: int, compute: Compute) -> None:
        again = early_check(config, compute, directory)
        assert again is not None and again.record.state.step == 6
        _, listed = check_shards(config, compute)
        started = start(config, task, compute, directory, listed)  # type: ignore[arg-type]
        assert started.state.step == step
        for name, parameter in started.engine.named_parameters():
            assert torch.equal(parameter, value(PARAMETER, name))

    phase("start", begin)
    for state in states:
        phase(f"save {state.step}", partial(save, state))
    there = sorted(path.name for path in directory.checkpoints.glob("step-*"))
    assert there == ["step-00000006"]
    files = sorted(path.name for path in (directory.checkpoints / there[-1]).iterdir())
    assert sum(name.startswith("state-") for name in files) == ranks // A_NODE
    assert len(files) == checkpoint_files(ranks // A_NODE)
    phase("resume", partial(resume, config, 6))
    assert len(loaded) == ranks and all(
        torch.equal(each[kind], value(kind, "weight")) for each in loaded for kind in each
    )
    # Step 7 goes to the nodes' own disks.
    tier = TierConfig("/disk", every_steps=1, local=True)
    disks = replace(config, checkpoint=replace(config.checkpoint, tiers=(tier,)))
    place = property(lambda tier: root / directory.path.name / f"disk-{rank_here() // A_NODE}")
    monkeypatch.setattr(TierConfig, "directory", place)

    def save_to_disks(compute: Compute) -> None:
        local = LocalTier(disks, directory.checkpoints, compute)
        save(RunState(7, 0, 0), compute, local)

    phase("save 7", save_to_disks)
    phase("resume from disks", partial(resume, disks, 7))
    return found


def told(asked: Asked, counted: Sums, ranks: int) -> Sums:
    """What `asked` says of so many ranks; as `counted` where it says nothing."""
    nodes = ranks // A_NODE
    node = counted.node if nodes == 1 else asked.node
    exchanges = counted.exchanges if asked.exchanges is None else asked.exchanges
    return Sums(asked.rank, node, asked.calls(nodes), exchanges)


def test_no_rank_of_512_asks_more_of_the_file_system_than_one_of_8(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each node has a disk of its own for what it remembers, and remembers young files too.
    monkeypatch.setattr(checksums, "user_cache", lambda: tmp_path / f"cache-{rank_here() // A_NODE}")
    monkeypatch.setattr(checksums, "_YOUNG_NS", 0)
    (tmp_path / "runs").mkdir()
    assert len(list(shards.glob("*.tar"))) == SHARDS
    most: dict[int, dict[str, Counter[str]]] = {}
    for ranks in RANKS:
        stage = {"context_length": 32, "steps": 9, "global_batch": ranks, "micro_batch_size": 1}
        changed = {"name": f"run-{ranks}", "output": str(tmp_path / "runs"), "stages": [stage]}
        config = load_yaml(write_config(tmp_path / f"{ranks}.yaml", shards, **changed), RunConfig)
        config = replace(config, checkpoint=replace(config.checkpoint, keep_last=1, background=False))
        most[ranks] = life(ranks, config, tmp_path.parent, monkeypatch)
        for cache in tmp_path.glob("cache-*"):
            shutil.rmtree(cache)
    assert most[512] == most[64] == most[8]


def labelled_run(directory: Path) -> RunConfig:
    """A fine-tuning of which everything is said, on the classes of two directories with a file for each class."""
    for name, count in (("train", 12), ("valid", 4)):
        (directory / name).mkdir()
        for label, text in (("no", "TTGACCAG"), ("yes", "ACGTTGCA")):
            (directory / name / f"{label}.csv").write_text("sequence\n" + f"{text}\n" * count)
    task = {"kind": "classification", **{name: str(directory / name) for name in ("train", "valid")}}
    stage = {"context_length": 64, "steps": 2, "global_batch": 512, "micro_batch_size": 1}
    config = {
        "name": "run",
        "output": str(directory / "runs"),
        "task": task,
        "model": {"width": 16, "layers": 1, "maximum_context": 64},
        "stages": [stage],
        "validation": {"every_steps": 1},
        "checkpoint": {"every_steps": 1},
    }
    (directory / "labelled.yaml").write_text(json.dumps(config))
    return load_yaml(directory / "labelled.yaml", RunConfig)


def test_labelled_sequences_are_read_by_one_rank_and_summed_by_one_of_a_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, in_all = labelled_run(tmp_path), {}

    def look(compute: Compute) -> tuple[int, tuple[str, ...]]:
        task = LabelledTask(config)
        found = task.check_data(compute)
        return len(found.sources), task.sets.train.names

    alone = LabelledTask(config).sets.train.names
    for ranks in (8, 64):
        world = World(ranks, A_NODE, tmp_path)
        results = world.run(look, monkeypatch)
        assert [names for _, names in results] == [alone] * ranks
        leading = [rank for rank, calls in enumerate(world.calls) if calls]
        assert leading == list(range(0, ranks, A_NODE)), "the others of a node look at nothing"
        assert all(world.calls[rank].total() < world.calls[0].total() for rank in leading[1:])
        in_all[ranks] = world.calls[0]
    assert in_all[8] == in_all[64]


def test_a_node_with_other_labelled_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, own = labelled_run(tmp_path), labelled_sets.sha256_of
    monkeypatch.setattr(labelled_sets, "sha256_of", lambda path: own(path) if rank_here() < 8 else "0" * 64)
    with pytest.raises(UserError, match="train: rank 8 has other files than rank 0; copy the same files to every host"):
        World(16, A_NODE, tmp_path).run(lambda compute: LabelledTask(config).check_data(compute), monkeypatch)


def test_no_step_looks_at_a_file_but_the_first_rank_of_a_node_at_the_stop_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STOP_FILE, str(tmp_path / "stop"))
    (tmp_path / "stop").write_text("15")

    def votes(**launcher: str) -> float:
        with monkeypatch.context() as patched:
            for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
                patched.delenv(name, raising=False)
            for name, value in launcher.items():
                patched.setenv(name, value)
            return sum(Interruption().votes())

    assert votes(LOCAL_RANK="0", LOCAL_WORLD_SIZE="8") == votes() == votes(LOCAL_RANK="3") == LOOKS_OF_A_STEP == 1
    assert [votes(LOCAL_RANK=str(rank), LOCAL_SIZE="8") for rank in range(1, 8)] == [0] * 7


def test_ranks_are_of_one_node_where_their_launcher_says_so_and_it_agrees_with_itself() -> None:
    two = [("a", 0, 2), ("b", 0, 2), ("a", 1, 2), ("b", 1, 2)]
    assert nodes_of(two) == ((0, 2), (1, 3))
    assert nodes_of([("a", 0, None), ("a", 1, None)]) == ((0,), (1,)), "no number of ranks there"
    assert nodes_of([("a", 0, 2), ("a", 0, 2)]) == ((0,), (1,)), "two machines of one name"
    assert nodes_of([("a", 0, 2), ("a", 1, 3)]) == ((0,), (1,))


def test_files_go_round_the_nodes_and_then_round_their_ranks() -> None:
    nodes = ((0, 1), (2, 3))
    assert [looker(nodes, file) for file in range(6)] == [0, 2, 1, 3, 0, 2]
    assert [looker(nodes, 1, part) for part in range(3)] == [2, 3, 2]
