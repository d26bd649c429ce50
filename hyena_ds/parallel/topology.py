"""The grid of ranks of one context stage, and the process groups of all stages.

    rank = data-parallel row * sequence_parallel + sequence-parallel index

Ranks of one sequence-parallel group are neighbours, so a group stays inside a node when it fits. DeepSpeed is told
nothing of this: it sees one flat data-parallel world.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from hyena_ds.parallel.devices import exchange_options


@dataclass(frozen=True)
class Topology:
    """Axes of the grid."""

    data_parallel: int
    sequence_parallel: int

    def row(self, rank: int) -> int:
        """Data-parallel row of a rank: which sequences it works on."""
        return rank // self.sequence_parallel

    def index(self, rank: int) -> int:
        """Sequence-parallel index of a rank: which slice of a sequence it holds."""
        return rank % self.sequence_parallel


def create_groups(
    sizes: Iterable[int], rank: int, ranks: int, timeout: timedelta | None = None
) -> dict[int, dist.ProcessGroup]:
    """This rank's sequence-parallel group for every size above 1, whose exchanges may last for `timeout` (None: as long as the
    back end lets them, whatever the world's limit is). Collective.

    Every rank makes its own groups, the smaller first, and meets only their members: of 512 ranks nobody waits for the 448
    groups of the others.
    """
    groups: dict[int, dist.ProcessGroup] = {}
    for size in sorted({size for size in sizes if size > 1}):
        first = rank - rank % size
        members = list(range(first, first + size))
        options = exchange_options()
        group: Any = dist.new_group(members, timeout=timeout, use_local_synchronization=True, pg_options=options)
        groups[size] = group
    return groups
