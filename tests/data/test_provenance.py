"""What is said of the bases that a step consumed is what the trainer reads."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hyena_ds.config.arithmetic import plan_stages
from hyena_ds.config.loading import dump_yaml
from hyena_ds.config.model import ModelConfig
from hyena_ds.config.remote import CacheConfig
from hyena_ds.config.schedule import StageConfig
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.identity import ShardList
from hyena_ds.data.loader import Slice, stage_steps
from hyena_ds.data.provenance import EPOCHS_RECORDED, consumed, write_order
from hyena_ds.data.remote.places import read_indices
from tests.data.genomes import GENOME, SEP, data_config, other_strand, tokens_of, write_shards
from tests.paths import ROOT

RANKS = 4
OTHER = {name: letters[::-1] for name, letters in GENOME.items()}
GENOMES = {"a": GENOME, "b": OTHER}


@pytest.fixture(scope="module", params=[False, True], ids=["bases", "with the end token"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    """A run of two sources, several epochs of each, on both strands; its directory holds nothing but its config."""
    directory = tmp_path_factory.mktemp("runs")
    shards = [write_shards(directory / name, records) for name, records in GENOMES.items()]
    config = RunConfig(
        name="run",
        model=ModelConfig(16, 2, 64),
        data=data_config(
            *shards, weights=(3.0, 1.0), reverse_complement=True, append_end_token=request.param, shuffle_shards=2
        ),
        stages=(
            StageConfig(16, 30, 1, global_batch=8),
            StageConfig(32, 5, 2, global_batch=4, sequence_parallel=2),
        ),
        seed=5,
    )
    (directory / "run").mkdir()
    (directory / "run" / "config.yaml").write_text(dump_yaml(config))
    return config, directory / "run"


def _show(directory: Path, step: int, *flags: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; sys.modules['torch'] = None; from hyena_ds.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "data", "show", str(directory), "--step", str(step), *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def _read(config: RunConfig, step: int) -> dict[int, list[int]]:
    """Sample number -> all its L + 1 tokens, put together from what every rank's loader hands out."""
    plan = next(p for p in plan_stages(config, RANKS) if p.first_step <= step - 1 < p.end_step)
    parts = plan.config.sequence_parallel
    length = plan.config.context_length // parts
    found: dict[int, list[int]] = {}
    for rank in range(RANKS):
        place = Slice(rank // parts, rank % parts * length, length)
        batch = next(stage_steps(config.data, config.seed, plan, place, step - 1))
        for micro in batch.micro_batches:
            for number, ids, targets in zip(micro.samples_B.tolist(), micro.token_ids_Bl, micro.targets, strict=True):
                last = targets[-1:] if place.offset + length == plan.config.context_length else targets[:0]
                found.setdefault(number, []).extend(torch.cat((ids, last)).tolist())
    return found


@pytest.mark.parametrize("step", [1, 17, 30, 31, 35])
def test_the_bases_that_are_shown_are_those_that_the_ranks_read(run: tuple[RunConfig, Path], step: int) -> None:
    config, directory = run
    shown = _show(directory, step, "--json")
    assert shown.returncode == 0, shown.stderr
    samples = [json.loads(line) for line in shown.stdout.splitlines()]
    read = _read(config, step)
    assert [sample["sample"] for sample in samples] == sorted(read)
    for sample in samples:
        letters = GENOMES[Path(sample["source"]).parent.name][sample["chromosome"]][sample["start"] : sample["end"]]
        tokens = tokens_of(other_strand(letters) if sample["strand"] == "-" else letters).tolist()
        tokens += [SEP] if config.data.append_end_token else []
        # An ignored last target hides its token; nothing else is hidden.
        hidden = read[sample["sample"]][-1] == -100
        assert read[sample["sample"]][: -1 if hidden else None] == tokens[: -1 if hidden else None]
        assert len(tokens) == sample["tokens"] + 1
        assert sample["step"] == step and sample["stage"] == (step > 30)
    if step == 17:
        assert len({s["strand"] for s in samples}) == len({s["source"] for s in samples}) == 2, (
            "a case that shows little"
        )


def _tars_with(sample: dict[str, Any]) -> set[str]:
    """Shards in which a sample's bases lie, by the index alone."""
    index = json.loads((Path(sample["source"]) / "index.json").read_text())
    return {
        index["shards"][chunk["shard"]]["file"]
        for chunk in index["chunks"]
        if chunk["chromosome"] == sample["chromosome"]
        and chunk["start"] < sample["end"]
        and sample["start"] < chunk["end"]
    }


def test_the_recorded_order_tells_when_each_epoch_begins_and_in_which_order_it_takes_the_shards(
    run: tuple[RunConfig, Path],
) -> None:
    config, directory = run
    write_order(directory / "stream.jsonl", config)
    rows = [json.loads(line) for line in (directory / "stream.jsonl").read_text().splitlines()]
    samples = [vars(sample) for step in range(config.total_steps) for sample in consumed(config, step)]
    seen: dict[tuple[int, str, int], list[dict[str, Any]]] = {}
    for sample in samples:
        assert set(sample["shards"]) == _tars_with(sample)
        seen.setdefault((sample["stage"], sample["source"], sample["epoch"]), []).append(sample)
    recorded = {(row["stage"], row["source"], row["epoch"]): row for row in rows}
    assert recorded.keys() == seen.keys()
    assert max(epoch for _, _, epoch in seen) > 0, "no source is read twice"
    for key, row in recorded.items():
        drawn = seen[key]
        assert row["first_step"] == drawn[0]["step"]
        assert len(drawn) <= row["windows"]
        if len(drawn) == row["windows"]:
            # Windows are shuffled within groups of two shards: those of the first group come first.
            assert {sample["shards"][0] for sample in drawn} == set(row["shards"])
            first = [sample["shards"][0] in row["shards"][:2] for sample in drawn]
            assert first == sorted(first, reverse=True)


def test_a_table_names_every_sample_and_its_shards(run: tuple[RunConfig, Path]) -> None:
    _, directory = run
    shown = _show(directory, 31)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0] == "step 31, stage 1: 4 samples of 32 tokens"
    assert len(lines) == 2 + 4 and all("/shards/train-0" in line for line in lines[2:])


def test_no_run_and_no_such_step_are_refused(run: tuple[RunConfig, Path], tmp_path: Path) -> None:
    _, directory = run
    absent = _show(tmp_path, 1)
    assert (absent.returncode, absent.stdout) == (2, "")
    assert "found no config.yaml, wanted the directory of a run" in absent.stderr
    for step in (0, 36):
        beyond = _show(directory, step)
        assert (beyond.returncode, beyond.stdout) == (2, "")
        assert beyond.stderr == f"hyena-ds: error: step {step}: the run 'run' has the steps 1 to 35\n"


def test_a_million_readings_of_a_small_genome_are_recorded_briefly_and_their_last_step_is_shown(
    run: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    config, _ = run
    steps = 10_000_000
    config = dataclasses.replace(config, stages=(StageConfig(16, steps, 1, global_batch=8),))
    write_order(tmp_path / "stream.jsonl", config)
    assert len((tmp_path / "stream.jsonl").read_text().splitlines()) == 2 * EPOCHS_RECORDED
    assert consumed(config, steps - 1)[0].epoch > 500_000


@pytest.mark.slow
def test_nothing_that_a_run_names_is_executed_or_fetched(run: tuple[RunConfig, Path], tmp_path: Path) -> None:
    config, _ = run
    places = [source.shards for source in config.data.sources]
    mark, directory = tmp_path / "executed", tmp_path / "run"
    directory.mkdir()
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/x"
    for bad in (f"pipe:touch {mark}; cat {places[0]}/{{shard}}", address, f"pipe:${{PWD}} {mark} {{shard}}"):
        sources = tuple(dataclasses.replace(source, shards=bad) for source in config.data.sources)
        cache = CacheConfig(str(tmp_path / "cache"))
        received = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources, cache=cache))
        (directory / "config.yaml").write_text(dump_yaml(received))
        shown = _show(directory, 1)
        assert (
            shown.returncode == 2 and "nothing that a run names is executed or fetched; give --shards" in shown.stderr
        )
        shown = _show(directory, 1, *(f"--shards={place}" for place in places))
        assert shown.returncode == 0, shown.stderr
        for command in (["report", str(directory)], ["checkpoints", str(directory)]):
            subprocess.run([sys.executable, "-m", "hyena_ds", *command], cwd=ROOT, capture_output=True, timeout=60)
    assert not mark.exists() and not (tmp_path / "cache").exists()
    with pytest.raises(BlockingIOError):
        listening.accept()
    listening.close()


@pytest.mark.parametrize("name", ["index.json", "shards.json", "config.yaml"])
def test_what_is_no_plain_file_is_not_waited_for(run: tuple[RunConfig, Path], tmp_path: Path, name: str) -> None:
    config, _ = run
    place, directory = tmp_path / "place", tmp_path / "run"
    place.mkdir()
    directory.mkdir()
    sources = tuple(dataclasses.replace(source, shards=str(place)) for source in config.data.sources)
    received = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources))
    if name != "config.yaml":
        (directory / "config.yaml").write_text(dump_yaml(received))
    os.mkfifo((place if name == "index.json" else directory) / name)
    shown = _show(directory, 1)
    assert shown.returncode == 2 and shown.stderr.startswith("hyena-ds: error: ") and name in shown.stderr


@pytest.mark.slow
def test_shards_that_are_given_are_compared_with_the_run_s_list(run: tuple[RunConfig, Path], tmp_path: Path) -> None:
    config, directory = run
    places = [source.shards for source in config.data.sources]
    unchecked = _show(directory, 1)
    assert unchecked.returncode == 0 and "has no shards.json, so nothing says whether" in unchecked.stderr
    list_ = directory / "shards.json"
    list_.write_text(ShardList.of(read_indices(config.data)).text)
    try:
        checked = _show(directory, 1)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, unchecked.stdout, "")
        copies = [shutil.copytree(place, tmp_path / str(number)) for number, place in enumerate(places)]
        elsewhere = _show(directory, 1, *(f"--shards={place}" for place in copies))
        assert elsewhere.returncode == 0 and "/0/train-0" in elsewhere.stdout
        swapped = _show(directory, 1, *(f"--shards={place}" for place in copies[::-1]))
        assert (swapped.returncode, swapped.stdout) == (2, "")
        assert "was trained on other data than these: data.sources.0: shard train-000000.tar" in swapped.stderr
        few = _show(directory, 1, f"--shards={places[0]}")
        assert few.returncode == 2 and "--shards: found 1 places, wanted 2" in few.stderr
        wrong = _show(directory, 1, "--shards=ftp://u:p@host", f"--shards={places[0]}")
        assert wrong.returncode == 2 and "--shards: found 'ftp://***@host', wanted a directory" in wrong.stderr
        list_.write_text(list_.read_text()[:-5])
        damaged = _show(directory, 1)
        assert damaged.returncode == 2 and f"{list_}: found no readable list of shards" in damaged.stderr
    finally:
        list_.unlink()
