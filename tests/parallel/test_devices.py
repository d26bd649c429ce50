"""Which device and back end ranks take, and what they refuse; float32 that is IEEE's."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from hyena_ds.errors import UserError
from hyena_ds.parallel import devices
from hyena_ds.parallel.devices import Compute, device_count
from hyena_ds.parallel.listening import free_port
from hyena_ds.runtime.local_ranks import devices_here
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
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))

    def rank(number: int) -> str:
        own = None
        if number == 0:
            own = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=SECONDS)
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


@pytest.mark.parametrize("watched", [True, False])
def test_nccl_keeps_its_own_watchdog_where_ours_is_off(watched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DS_ACCELERATOR", *devices._UNWATCHED_NCCL):
        monkeypatch.setenv(name, "restored after the test")
        monkeypatch.delenv(name)
    monkeypatch.setattr(devices, "device_count", lambda: 1)
    monkeypatch.setattr(devices, "_device", lambda local_rank: torch.device("cpu"))
    monkeypatch.setattr(devices, "_join", lambda *_: None)
    devices.start_compute(watched=watched)
    assert [os.environ.get(name) for name in devices._UNWATCHED_NCCL] == (["0", "0"] if watched else [None, None])
