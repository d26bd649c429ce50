"""weights.safetensors of a checkpoint, written by ranks of which none holds the whole model.

    parameters, one at a time (gathered under ZeRO-3) --copies of a share--> each rank of the first node, its piece of the file
                                                      --where that node has one rank--> the file itself, at once

A rank alone that has to gather writes while the others wait, and holds one parameter. The ranks of one node may share a file;
those of several may not: network file systems cache its pages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import accumulate, chain
from math import prod
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from hyena_ds.checkpoints.engine_state import gathers
from hyena_ds.weights.tensor_file import data, header

Export = Callable[[Collection[str]], tuple[dict[str, str], dict[str, str]]]
"""Names of parameters --> which of them each name in weights.safetensors has, and the header of the file."""


def shares(sizes: Sequence[int], count: int) -> list[range]:
    """Numbers of neighbours, in order, for each of `count` ranks, so that none has much more than its part of `sizes`.

    No share is larger than that part and one of the sizes.
    """
    whole, done, first, found = sum(sizes), 0, 0, []
    for rank in range(count):
        last = first
        while last < len(sizes) and done * count < whole * (rank + 1):
            done += sizes[last]
            last += 1
        found.append(range(first, last))
        first = last
    return found


class WeightsFile:
    """The file whose tensors are an engine's parameters, under the names and with the header that `exported` gives."""

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        exported: Export,
        writers: Sequence[int],
    ):
        """`writers` are ranks of one node."""
        self._parameters = dict(engine.module.named_parameters())
        sources, metadata = exported(self._parameters)
        self._engine, self._sources, self._writers = engine, sources, writers
        shapes = {theirs: _shape(self._parameters[ours]) for theirs, ours in sources.items()}
        self._header = header(shapes, metadata)
        self._sizes = [4 * prod(shape) for shape in shapes.values()]

    @property
    def streams(self) -> bool:
        """Whether it is written while its parameters are gathered, because one rank alone would hold all."""
        return gathers(self._engine) and len(self._writers) == 1 and dist.get_world_size() > 1

    def stream(self) -> Iterator[Any]:
        """The bytes of the file on its only writer, and on the others nothing. Collective: all ranks go through to the end."""
        writes = dist.get_rank() == self._writers[0]
        if writes:
            yield self._header
        for ours in self._sources.values():
            with self._whole(ours) as parameter:
                if writes:
                    yield from data([parameter.detach().float()])

    def piece(self, copy: bool) -> tuple[int, Iterable[Any]] | None:
        """(first byte, bytes) of what this rank writes, copied to main memory on request; None where it writes nothing.

        Collective under ZeRO-3: parameters are gathered, and each is copied where it is written.
        """
        rank, sources = dist.get_rank(), list(self._sources.values())
        parts = shares(self._sizes, len(self._writers))
        own = parts[self._writers.index(rank)] if rank in self._writers else range(0)
        collective = gathers(self._engine)
        if copy or collective:
            # One block: copies among what gathering takes and frees would leave it in pieces that nothing fits into.
            ends = [*accumulate((self._sizes[number] // 4 for number in own), initial=0)]
            block = torch.empty(ends[-1])
            for name in self._parameters if collective else dict.fromkeys(sources[number] for number in own):
                with self._whole(name) as parameter:
                    for place, number in enumerate(own):
                        if sources[number] == name:
                            block[ends[place] : ends[place + 1]] = parameter.detach().view(-1)
            chunks = data([block])
        else:
            chunks = data(self._parameters[sources[number]].float() for number in own)
        if not own and rank != self._writers[0]:
            return None
        if rank == self._writers[0]:
            return 0, chain([self._header], chunks)
        return len(self._header) + sum(self._sizes[: own.start]), chunks

    def _whole(self, name: str) -> Any:
        """A context with a parameter in its shape. Collective under ZeRO-3."""
        return _Gathered(self._parameters[name], gathers(self._engine))


class _Gathered:
    """A parameter, whole within the block."""

    def __init__(self, parameter: torch.nn.Parameter, gathered: bool):
        self._parameter = parameter
        self._context = deepspeed.zero.GatheredParameters([parameter], enabled=gathered)

    def __enter__(self) -> torch.nn.Parameter:
        self._context.__enter__()
        return self._parameter

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)


def _shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """The whole parameter's, also where ZeRO-3 holds a part of it here."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
