"""Groups of a grid: each rank makes its own and no other."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from hyena_ds.bench.bytes import fake_ranks
from hyena_ds.parallel.topology import create_groups


def test_a_rank_of_512_makes_a_group_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    new_group = dist.new_group

    def counted(ranks: list[int], **options: Any) -> Any:
        made.append(ranks)
        return new_group(ranks, **options)

    monkeypatch.setattr(dist, "new_group", counted)
    with fake_ranks(512) as rank:
        groups = create_groups([1, 2, 8, 8, 64, 1, 2], rank, 512)
        assert {size: (dist.get_world_size(g), dist.get_rank(g)) for size, g in groups.items()} == {
            2: (2, 1),
            8: (8, 1),
            64: (64, 1),
        }
    assert made == [[0, 1], [*range(8)], [*range(64)]]


def test_groups_of_a_device_go_first_and_have_the_limit_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(dist, "new_group", lambda ranks, **options: made.append({"ranks": ranks, **options}))
    monkeypatch.setattr(dist, "ProcessGroupNCCL", SimpleNamespace(Options=lambda **given: given), raising=False)
    hour = timedelta(hours=1)
    for backend in ("nccl", "gloo"):
        monkeypatch.setattr(dist, "get_backend", lambda group=None, backend=backend: backend)
        create_groups([1, 2, 4], 5, 8, hour)
    first = {"is_high_priority_stream": True}
    found = [(each["ranks"], each["timeout"], each["pg_options"]) for each in made]
    assert found == [
        ([4, 5], hour, first),
        ([4, 5, 6, 7], hour, first),
        ([4, 5], hour, None),
        ([4, 5, 6, 7], hour, None),
    ]
