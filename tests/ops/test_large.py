"""Large tensors use each other's memory, one after the other and never two at once."""

from __future__ import annotations

import gc

import pytest
import torch

from hyena_ds.ops import large
from hyena_ds.ops.sizes import LARGE

CPU = torch.device("cpu")
SHAPE = (2, 3, LARGE // 16)


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    gc.collect()
    large.give_back()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("shape", [(3, 5), SHAPE, (1, LARGE + 1)])
def test_a_tensor_is_as_it_was_asked_for(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = large.empty(shape, CPU, dtype)
    assert x.shape == shape and x.dtype == dtype and x.is_contiguous() and x.data_ptr() % 64 == 0
    assert x.fill_(1).sum().real == torch.ones(shape, dtype=dtype).sum().real


def test_memory_is_used_again_once_the_last_reference_is_gone() -> None:
    x = large.empty(SHAPE, CPU)
    place, view = x.data_ptr(), x[1].view(-1)[5:]
    del x
    other = large.empty(SHAPE, CPU)
    assert other.data_ptr() != place  # a view is still there
    del view
    assert large.empty_like(other).data_ptr() == place


def test_autograd_holds_memory_until_backward_is_done() -> None:
    x = large.empty(SHAPE, CPU).fill_(3.0)
    place, weight = x.data_ptr(), torch.ones((), requires_grad=True)
    loss = (x * weight).sum()
    del x
    other = large.empty(SHAPE, CPU)
    assert other.data_ptr() != place
    loss.backward()
    assert weight.grad == 3.0 * torch.Size(SHAPE).numel()
    assert large.empty_like(other).data_ptr() == place


def test_other_sizes_and_small_tensors_get_other_memory() -> None:
    x = large.empty(SHAPE, CPU)
    place = x.data_ptr()
    del x
    assert large.empty((*SHAPE, 2), CPU).data_ptr() != place
    assert not large._free[LARGE // 2] and large.empty((4,), CPU).untyped_storage().resizable()


def test_what_is_given_back_is_held_no_more() -> None:
    before = _resident()
    x = large.empty((1 << 26,), CPU).fill_(1.0)
    del x
    assert _resident() - before > 1 << 27
    large.give_back()
    assert _resident() - before < 1 << 27


def test_a_devices_memory_is_given_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append("all"))
    large.give_back()
    assert given_back == [], "there is no device, and none is woken up"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    large.give_back()
    assert given_back == ["all"]


def test_plain_tensors_are_torchs_own() -> None:
    with large.plain():
        assert large.empty(SHAPE, CPU).untyped_storage().resizable()
    assert not large.empty(SHAPE, CPU).untyped_storage().resizable()


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096
