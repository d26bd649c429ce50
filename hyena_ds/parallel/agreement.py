"""Ranks agree before they act: an error that one of them met is raised by all of them.

Without it the others would go on into the next collective and wait for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist

from hyena_ds.errors import UserError

T = TypeVar("T")


def agreed(work: Callable[[], T]) -> T:
    """Run `work` on every rank; if any raised a UserError or OSError, raise the lowest rank's on all. Collective.

    `work` must not itself run a collective.
    """
    results: list[T] = []
    problem: str | None = None
    try:
        results.append(work())
    except UserError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{error.filename or 'file system'}: {error.strerror or error}"
    first = next((text for text in from_every_rank(problem) if text is not None), None)
    if first is not None:
        raise UserError(first)
    return results[0]


def from_every_rank(value: T) -> list[T]:
    """The (picklable) values of all ranks, in their order, on every rank. Collective."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_rank_zero(work: Callable[[], T]) -> T:
    """Run `work` on rank 0 only and give its result (picklable) to all; its error is raised by all. Collective."""
    return from_rank(0, work)


def from_rank(source: int, work: Callable[[], T]) -> T:
    """As `from_rank_zero`, of rank `source`, which all must name alike. Collective."""
    box: list[T | None] = [agreed(work if dist.get_rank() == source else lambda: None)]
    dist.broadcast_object_list(box, src=source)
    return cast(T, box[0])
