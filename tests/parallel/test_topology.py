"""Groups of a grid: each rank makes its own and no other."""

from __future__ import annotations

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
