"""Which device and back end ranks take, and what they refuse; float32 that is IEEE's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
import torch.distributed as dist

from hyena_ds.config.model import ModelConfig
from hyena_ds.config.schedule import StageConfig
from hyena_ds.config.schema import DataConfig, RunConfig, SourceConfig
from hyena_ds.config.survival import WatchdogConfig
from hyena_ds.errors import UserError
from hyena_ds.parallel import devices
from hyena_ds.parallel.devices import Compute, compute_alone, device_count, peak_memory_gib
from hyena_ds.parallel.listening import free_port, interface_to
from hyena_ds.runtime.local_ranks import devices_here
from hyena_ds.runtime.watchdog import Pace, longest_exchange
from hyena_ds.training import clock, engine
from tests.paths import ROOT

SECONDS = timedelta(seconds=30)


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def test_deepspeeds_variable_decides_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert device_count() == 4
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    assert device_count() == 4
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert device_count() == devices_here() == 0
    monkeypatch.setenv("DS_ACCELERATOR", "xpu")
    with pytest.raises(UserError, match="DS_ACCELERATOR: found xpu, wanted cuda or cpu"):
        device_count()


def test_a_device_that_torch_cannot_use_is_not_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "_NVIDIA_DEVICES", str(tmp_path / "nvidia[0-9]*"))
    assert device_count() == 0
    (tmp_path / "nvidiactl").touch()
    assert device_count() == 0
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    with pytest.raises(UserError, match="DS_ACCELERATOR: found cuda on a machine without a CUDA device"):
        device_count()
    monkeypatch.delenv("DS_ACCELERATOR")
    (tmp_path / "nvidia0").touch()
    with pytest.raises(
        UserError, match=r"found an NVIDIA device that torch .* cannot use, wanted a working CUDA; .*=cpu"
    ):
        device_count()
    for name, value in (("DS_ACCELERATOR", "cpu"), ("CUDA_VISIBLE_DEVICES", ""), ("CUDA_VISIBLE_DEVICES", "-1")):
        with monkeypatch.context() as chosen:
            chosen.setenv(name, value)
            assert device_count() == 0


def agree(backends: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each rank, a thread of its own, is refused with."""
    port = free_port()
    held = []  # until all have read: one that goes takes its store with it
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))

    def rank(number: int) -> str:
        own = None
        if number == 0:
            own = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=SECONDS)
            held.append(own)
        compute = Compute(torch.device("cpu"), backends[number], number, len(backends), number)
        try:
            devices._agree_on_the_back_end(compute, SECONDS, own)
        except UserError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(backends)) as pool:
        return list(pool.map(rank, range(len(backends))))


def test_ranks_on_gpus_and_ranks_on_cpus_refuse_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assert agree(["gloo"] * 3, monkeypatch) == [""] * 3
    found = agree(["gloo", "nccl", "nccl"], monkeypatch)
    assert len(set(found)) == 1
    assert "found 2 that compute on GPUs and 1 on CPUs, wanted all on the same; set DS_ACCELERATOR=cpu" in found[0]


def test_float32_is_whole_whatever_the_image_says() -> None:
    show = (
        "import torch; from hyena_ds.parallel.devices import compute_alone; before = torch.get_float32_matmul_precision();"
        "compute_alone(); matmul = torch.backends.cuda.matmul; print(before, torch.get_float32_matmul_precision(),"
        "matmul.allow_tf32, torch.backends.cudnn.allow_tf32, matmul.allow_bf16_reduced_precision_reduction)"
    )
    environment = {**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1", "DS_ACCELERATOR": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", show], cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.split() == ["high", "highest", "False", "False", "False"]


HANDLING, MONITORING = "TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_ENABLE_MONITORING"


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What back ends are asked for, by ranks that take this machine for one with a GPU."""
    asked: list[dict[str, Any]] = []
    for name in ("DS_ACCELERATOR", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", HANDLING, MONITORING):
        monkeypatch.setenv(name, "restored after the test")
        monkeypatch.delenv(name)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(devices, "device_count", lambda: 1)
    monkeypatch.setattr(devices, "_device", lambda local_rank: torch.device("cpu"))
    monkeypatch.setattr(devices, "from_every_rank", lambda own: [own])
    monkeypatch.setattr(deepspeed, "init_distributed", lambda **given: asked.append(given))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **given: asked.append({"init": backend, **given}))
    return asked


@pytest.mark.parametrize("watched", [True, False])
def test_nccl_keeps_its_own_watchdog_where_ours_is_off(
    watched: bool, joined: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    devices.start_compute(watched=watched)
    assert [os.environ.get(name) for name in (HANDLING, MONITORING)] == (["0", "0"] if watched else [None, None])
    assert os.environ["NCCL_SOCKET_IFNAME"] == interface_to("127.0.0.1"), "all ranks are here"
    monkeypatch.setenv(HANDLING, "3")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth7")
    devices.start_compute(watched=watched)
    assert (os.environ[HANDLING], os.environ["NCCL_SOCKET_IFNAME"]) == ("3", "eth7"), "what somebody has set stays"


def test_a_group_lets_exchanges_last_longer_than_the_watchdog_does(joined: list[dict[str, Any]]) -> None:
    config = WatchdogConfig(silence=20.0, save=7200.0)
    ours = longest_exchange(config)
    assert ours is not None and ours.total_seconds() == 3 * 7200 + 20
    pace = Pace(config.step)
    pace.took(600.0, 1000)
    assert ours.total_seconds() > pace.allowed(1000, first_of_stage=True) > 5000
    devices.start_compute(ours, watched=True)
    devices.start_compute(ours, engine=False, watched=True)
    assert [each["timeout"] for each in joined] == [ours, ours]
    assert joined[0]["dist_backend"] == joined[1]["init"] == "nccl"


def test_without_a_watchdog_the_back_ends_own_limits_stay(
    joined: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert longest_exchange(WatchdogConfig(enabled=False, save=7200.0)) is None
    devices.start_compute(None)
    monkeypatch.setattr(devices, "device_count", lambda: 0)
    devices.start_compute(None)
    assert [each["timeout"] for each in joined] == [timedelta(minutes=10), timedelta(minutes=30)]
    assert timedelta(minutes=30) == dist.constants.default_pg_timeout


def test_a_limit_of_years_is_one_that_torch_can_wait_for() -> None:
    ours = longest_exchange(WatchdogConfig(save=1e9))
    assert ours is not None and ours.total_seconds() * 1e3 < 2**31


@pytest.fixture
def alone() -> Iterator[None]:
    """A gloo group of one rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def limit_of(group: Any) -> float:
    return float(group._get_backend(torch.device("cpu")).options._timeout.total_seconds())


def test_memory_of_a_device_is_taken_in_segments_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "restored after the test")
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    monkeypatch.setattr(devices, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert compute_alone(3).device == torch.device("cuda", 1)
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    compute_alone(0)
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "max_split_size_mb:64", "what somebody has set stays"
    assert chosen == [torch.device("cuda", 1), torch.device("cuda", 0)]


def test_the_peak_of_a_device_is_what_was_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1 << 30)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 3 << 29)
    compute = Compute(torch.device("cuda", 0), "nccl", 0, 1, 0)
    assert peak_memory_gib(compute) == 1.5
    monkeypatch.setattr(clock, "waits_take_time", lambda compute: True)
    monkeypatch.setattr(clock, "largest_of_ranks", lambda values, compute: list(values))
    steps = clock.StepClock(compute)
    steps.begin()
    assert steps.end(0.0).peak_memory_gib == 1.5, "and so it is in metrics.jsonl"


def test_groups_that_deepspeed_made_have_the_same_limit(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(deepspeed, "initialize", lambda **_: [made.append(dist.new_group([0])), None])
    monkeypatch.setattr(engine, "leave_out_compiler", lambda: None)
    for watchdog, seconds in ((WatchdogConfig(enabled=False), 1800.0), (WatchdogConfig(save=5000.0), 15030.0)):
        data = DataConfig((SourceConfig("shards"),))
        config = RunConfig("run", ModelConfig(8, 1, 8), data, (StageConfig(8, 1, 1, 1),), watchdog=watchdog)
        engine.build_engine(config, torch.nn.Linear(2, 2), 1, torch.optim.SGD([torch.zeros(1)]))  # type: ignore[arg-type]
        assert {limit_of(group) for group in (dist.group.WORLD, made[-1])} == {seconds}
