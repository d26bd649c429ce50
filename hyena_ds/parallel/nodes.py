"""Which ranks share a machine, and which of them looks at a file for all.

    (host, LOCAL_RANK, ranks there) of every rank --nodes_of--> nodes --looker--> one rank for each file, a few files a rank

A launcher that does not say how many ranks it starts on a machine leaves each rank a node of its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

Nodes = tuple[tuple[int, ...], ...]
"""Ranks of each node, ascending; nodes by their first rank."""


def ranks_said_here() -> int | None:
    """Ranks on this machine, as the launcher says (torchrun's variable, deepspeed's); None where it does not."""
    said = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
    return int(said) if said else None


def looks_for_others() -> bool:
    """Whether this process looks at what all ranks of its machine would see alike: the first there, or one that cannot know."""
    return not (ranks_said_here() and os.environ.get("LOCAL_RANK", "0") != "0")


def nodes_of(claims: Sequence[tuple[str, int, int | None]]) -> Nodes:
    """The nodes of ranks that say (host, local rank, ranks there).

    A host whose ranks are not numbered from 0 to the number that they say is no node: each of them is alone.
    """
    hosts: dict[tuple[str, int | None], list[tuple[int, int]]] = {}
    for rank, (host, local, here) in enumerate(claims):
        hosts.setdefault((host, here), []).append((local, rank))
    nodes: list[tuple[int, ...]] = []
    for (_, here), found in hosts.items():
        ranks = tuple(sorted(rank for _, rank in found))
        together = here is not None and sorted(local for local, _ in found) == list(range(here))
        nodes += [ranks] if together else [(rank,) for rank in ranks]
    return tuple(sorted(nodes))


def looker(nodes: Nodes, file: int, part: int = 0) -> int:
    """The rank that looks at a part of file number `file`: files go round the nodes, then round the ranks of each.

    So node k of a run looks at the k-th file where there is one a node, and no rank at more than a few.
    """
    ranks = nodes[file % len(nodes)]
    return ranks[(file // len(nodes) + part) % len(ranks)]
