"""What the machine does to a run ends it at once, with one sentence that says what to do."""

from __future__ import annotations

import ast
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed.ops
import pytest
import torch

from hyena_ds.config.arithmetic import plan_stages
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.model import ModelConfig
from hyena_ds.config.schedule import StageConfig
from hyena_ds.config.schema import DataConfig, RunConfig, SourceConfig
from hyena_ds.data.shards import ShardReader, read_index
from hyena_ds.errors import LocalError, UserError
from hyena_ds.parallel.devices import check_ranks_here, start_compute
from hyena_ds.runs.directory import RunDirectory
from hyena_ds.runtime.heartbeat import FAULT_CODE
from hyena_ds.training.machine_faults import in_a_sentence, out_of_memory
from tests.paths import ROOT
from tests.training.runs import ends_of_ranks, make_shards, train, tree, write_config

HOURS = {"context_length": 32, "steps": 1_000_000, "global_batch": 4, "micro_batch_size": 1}
"""A stage that no test waits for: a run that went on, or hung, would meet the time limit of `ends_of_ranks`."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"))


def _fail(config: Path, fault: str, step: int = 0, **environment: str) -> str:
    """What is said when the fault comes to rank 1 before that step, by the rank that speaks for all. Both must end."""
    environment |= {"FAULT": fault, "FAULT_STEP": str(step), "FAULT_RANK": "1"}
    ends = ends_of_ranks("tests.training.faulty_rank", ["train", str(config)], 2, **environment)
    assert [code for code, _ in ends] == [FAULT_CODE, FAULT_CODE], ends
    output = "".join(output for _, output in ends)
    assert "Traceback" not in output
    (sentence,) = (line for line in output.splitlines() if line.startswith("hyena-ds: error: "))
    return sentence


@pytest.mark.slow
def test_out_of_memory_on_one_rank_ends_the_run_and_says_what_would_take_less(shards: Path, tmp_path: Path) -> None:
    stage = {**HOURS, "global_batch": 1024, "micro_batch_size": 512}
    config = write_config(tmp_path / "config.yaml", shards, stages=[stage])
    sentence = _fail(config, "memory")
    assert "ended the run: stage 0: out of memory at context_length 32, micro_batch_size 512" in sentence
    assert "set activation_policy: lean (about" in sentence


@pytest.mark.slow
def test_a_reading_process_that_is_killed_ends_the_run(shards: Path, tmp_path: Path) -> None:
    data = {"sources": [{"shards": str(shards)}], "workers": 1}
    config = write_config(tmp_path / "config.yaml", shards, stages=[HOURS], data=data)
    sentence = _fail(config, "reader")
    assert "ended the run: stage 0: the process that reads ahead (pid " in sentence
    assert "was killed (Killed); start again: the run continues from its last checkpoint" in sentence


@pytest.mark.slow
def test_a_shard_cut_short_in_the_middle_of_a_run_is_named(tmp_path: Path) -> None:
    own = make_shards(tmp_path)
    data = {"sources": [{"shards": str(own)}], "workers": 1}
    config = write_config(tmp_path / "config.yaml", own, stages=[HOURS], data=data)
    # Before the first step the other rank may not have looked at the files yet, and would refuse them as it starts.
    sentence = _fail(config, "shard", step=3, FAULT_SHARDS=str(own))
    assert f" ended the run: {own}/train-00000" in sentence
    assert ".tar: the shard became unreadable (it ends at byte " in sentence


def test_a_shard_that_cannot_be_opened_or_read_is_named(shards: Path, tmp_path: Path) -> None:
    shard = read_index(shards).shards[0]
    with pytest.raises(UserError, match=rf"{shard.file}: the shard became unreadable \(No such file"):
        ShardReader(tmp_path, shard)
    (tmp_path / shard.file).symlink_to("/proc/self/mem")  # opens, and reading its first page is an input/output error
    reader = ShardReader(tmp_path, shard)
    with pytest.raises(UserError, match=rf"{shard.file}: the shard became unreadable \(Input/output error"):
        reader.read_into(torch.zeros(8, dtype=torch.uint8).numpy(), 0)


@pytest.mark.slow
def test_a_port_that_another_program_holds_is_named(shards: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", shards, stages=[HOURS])
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = str(other.getsockname()[1])
        ((code, output),) = ends_of_ranks("hyena_ds", ["train", str(config)], 1, MASTER_PORT=port)
    assert code == 2, output
    assert f"hyena-ds: error: MASTER_PORT {port}: another program listens on this port" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("port", ["70000", "-1", "ssh"])
def test_a_port_that_cannot_be_is_a_sentence(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with pytest.raises(UserError, match=f"MASTER_PORT {port}: cannot be listened on .* choose another"):
        start_compute()


def test_fewer_gpus_than_ranks_are_refused() -> None:
    with pytest.raises(UserError, match="found 4 ranks and 2 GPUs, wanted a GPU for each rank; start at most 2 here"):
        check_ranks_here(4, 2)
    check_ranks_here(2, 2)
    check_ranks_here(4, 0)  # on the CPU, ranks are as many as they like


@pytest.mark.slow
def test_locks_that_killed_builds_of_extensions_left_behind_hold_up_nothing(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extensions = tmp_path / "extensions"
    names = [name.removeprefix("deepspeed_not_implemented_") for name in deepspeed.ops.__compatible_ops__]
    assert {"deepspeed_shm_comm", "fused_adam", "cpu_adam"} <= set(names)
    for name in names:
        (extensions / name).mkdir(parents=True)
        (extensions / name / "lock").touch()
    before = tree(extensions)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(extensions))
    config = write_config(tmp_path / "config.yaml", shards, stages=[{**HOURS, "steps": 2}], local_ranks=1, zero_stage=3)
    done = train(config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert tree(extensions) == before


def _config(policy: Any, micro: int, sp: int, width: int = 128) -> RunConfig:
    stage = StageConfig(1 << 20, 10, micro, global_batch=8, sequence_parallel=sp)
    data = DataConfig((SourceConfig("shards"),))
    return RunConfig("run", ModelConfig(width, 2, 1 << 20), data, (stage,), activation_policy=policy)


@pytest.mark.parametrize(
    ("policy", "micro", "sp", "ranks", "cure"),
    [
        ("fastest", 2, 1, 2, "set activation_policy: balanced (about 10 GiB)"),
        ("balanced", 2, 1, 2, "set activation_policy: lean (about 6 GiB)"),
        ("lean", 2, 1, 2, "set activation_policy: leanest (about 2 GiB)"),
        ("leanest", 4, 1, 2, "set stages.0.micro_batch_size: 2, with the same results"),
        ("leanest", 1, 1, 2, "set stages.0.sequence_parallel: 2, or shorten"),
        ("leanest", 1, 2, 2, "set stages.0.sequence_parallel: 4 on 4 ranks or more, or shorten"),
    ],
)
def test_the_cheapest_cure_for_too_little_memory_comes_first(
    policy: str, micro: int, sp: int, ranks: int, cure: str
) -> None:
    config = _config(policy, micro, sp)
    (plan,) = plan_stages(config, ranks)
    assert cure in out_of_memory(config, plan)
    assert f"context_length 1,048,576, micro_batch_size {micro}, sequence_parallel {sp}" in out_of_memory(config, plan)


@pytest.mark.parametrize(
    "changed",
    [
        {"activation_policy": "lean"},
        {"data": DataConfig((SourceConfig("shards"),), workers=2)},
        {"micro": 1},
        {"sp": 2},
    ],
    ids=str,
)
def test_a_run_may_go_on_with_what_the_sentences_propose_but_not_with_other_samples(
    changed: dict[str, Any], tmp_path: Path
) -> None:
    config = replace(_config("balanced", 2, 1), output=str(tmp_path))
    RunDirectory(config).create(config)
    shape = {"micro": 2, "sp": 1} | {k: v for k, v in changed.items() if k in ("micro", "sp")}
    stages = _config("balanced", **shape).stages
    now = replace(config, stages=stages, **{k: v for k, v in changed.items() if k not in shape})
    assert now != config
    RunDirectory(now).check(now)
    with pytest.raises(UserError, match="holds another run"):
        RunDirectory(now).check(replace(now, seed=1))


def test_no_sequence_parallel_is_proposed_beyond_the_width() -> None:
    config = _config("leanest", 1, 8, width=8)
    (plan,) = plan_stages(config, 8)
    assert "; shorten the context or narrow the model, then" in out_of_memory(config, plan)


def test_other_errors_are_left_as_they_are() -> None:
    config = _config("lean", 1, 1)
    (plan,) = plan_stages(config, 1)
    others = (RuntimeError("shapes do not match"), RuntimeError("cuFFT error: CUFFT_INVALID_SIZE"), UserError("yours"))
    for error in (*others, KeyError("k")):
        with pytest.raises(type(error)) as caught, in_a_sentence(config, plan):
            raise error
        assert caught.value is error
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried"),
        MemoryError(),
        RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),
    ):
        with pytest.raises(LocalError, match=r"^stage 0: out of memory"), in_a_sentence(config, plan):
            raise error


AGES = {ROOT / "hyena_ds" / "data" / name for name in ("checksums.py", "remote/shard_cache.py")}
"""Modules that compare the clock with the times of files, which have no other."""


def test_durations_are_not_measured_with_a_clock_that_can_be_set() -> None:
    found = []
    assert all(path.exists() for path in AGES)
    for path in {*(ROOT / "hyena_ds").rglob("*.py"), *(ROOT / "data_prep").rglob("*.py")} - AGES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            imported = isinstance(node, ast.ImportFrom) and node.module == "time" and {"time", "time_ns"} & set(names)
            called = (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and (node.value.id, node.attr) in {("time", "time"), ("time", "time_ns")}
            )
            if imported or called:
                found.append(f"{path}:{node.lineno}")  # type: ignore[attr-defined]
    assert not found, "use time.monotonic() or time.perf_counter()"


@pytest.mark.parametrize(
    "text", ["cuFFT error: CUFFT_ALLOC_FAILED", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"]
)
def test_libraries_of_a_device_run_out_of_memory_in_words_of_their_own(text: str) -> None:
    config = load_yaml(ROOT / "configs" / "large-1m.yaml", RunConfig)
    plan = plan_stages(config, 8)[-1]
    with (
        pytest.raises(LocalError, match="stage 10: out of memory at context_length 1,000,000"),
        in_a_sentence(config, plan),
    ):
        raise RuntimeError(text)
