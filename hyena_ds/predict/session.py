"""The processes of one verb: alone, or as ranks on a grid, working through numbered parts.

    command --ranks > 1--> the launcher --> every rank: Session
    part n --> sequence group n % groups --> Parts.write           after the last part: rank 0 writes the outputs

Each part is done by one sequence group from beginning to end, so that no result depends on how many groups there are.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from tqdm import tqdm

from hyena_ds.checkpoints.weights import find_weights, load_model
from hyena_ds.config.model import ModelConfig
from hyena_ds.cost.devices import GIB
from hyena_ds.cost.memory import predict_memory
from hyena_ds.cost.shape import Precision, StepShape
from hyena_ds.data.shards import sha256_of
from hyena_ds.errors import UserError, say
from hyena_ds.files.whole import write_whole
from hyena_ds.genome.fasta import Genome, open_genome
from hyena_ds.parallel.agreement import agreed, from_rank_zero
from hyena_ds.parallel.devices import (
    Compute,
    device_count,
    largest_of_ranks,
    machine_memory_gib,
    peak_memory_gib,
    start_compute,
)
from hyena_ds.parallel.layout import Exchange
from hyena_ds.parallel.topology import Topology, create_groups
from hyena_ds.predict.options import Options
from hyena_ds.predict.parts import Parts
from hyena_ds.predict.predictor import Predictor
from hyena_ds.predict.windows import into_batches
from hyena_ds.runtime.interruption import STOP_FILE
from hyena_ds.runtime.local_ranks import start_local_ranks, under_launcher
from hyena_ds.runtime.relay import relay_is_gone

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

STOPPED_CODE = 75
"""Exit code of a command that was asked to stop, and that goes on when it is repeated."""
_LONGEST_FASTA = 1 << 40
_FAR_ABOVE = 1.25
"""Times the memory of a machine: up to there the estimate may be wrong."""


def start(parsed: argparse.Namespace, options: Options, work: Callable[[Session], int]) -> int:
    """Run `work` here, or start this command's ranks, in which it runs; returns the exit code."""
    if options.ranks > 1 and not under_launcher():
        return start_local_ranks(parsed.typed, options.ranks)
    with _session(options) as session:
        return work(session)


class Session:
    """This process's part in a verb. Methods marked collective are called by all ranks."""

    def __init__(self, options: Options, compute: Compute, topology: Topology, exchange: Exchange):
        self.options = options
        self.rank, self.ranks = compute.rank, compute.ranks
        self.device = compute.device
        self._compute, self._topology, self._exchange = compute, topology, exchange
        self._begun = time.monotonic()

    def load(self) -> Predictor:
        """The model of the options on this rank's device. Collective."""
        model = self.agreed(lambda: load_model(self.options.model)).to(self.device)
        return Predictor(model, self._exchange, getattr(torch, self.options.precision))

    def model_hash(self) -> str:
        """SHA-256 of the weights file."""
        return sha256_of(find_weights(self.options.model))

    def genome(self, source: Path, parts: Parts, name: str = "genome") -> Genome:
        """A FASTA that was checked and indexed by rank 0, in the directory `name` of the parts. Collective."""
        work = parts.directory / name

        def prepare() -> None:
            work.mkdir(exist_ok=True)
            open_genome(source, work, _LONGEST_FASTA).genome.close()

        self.on_rank_zero(prepare)
        return Genome(work / "genome.fa", work / "genome.fai")

    @property
    def leads(self) -> bool:
        """Whether this rank writes what its sequence group has found."""
        return self._topology.index(self.rank) == 0

    def plan(self, config: ModelConfig, lengths: Sequence[int], results: float = 0.0) -> None:
        """Say what the largest pass over sequences of these lengths needs; `results` are bytes a token of what comes of it.

        Raises UserError where that is far above what this machine has.
        """
        on_cpu, P = self.device.type == "cpu", self.options.sequence_parallel
        numbers = into_batches(lengths, self.options.batch, on_cpu)[0]
        B, L = len(numbers), -(-lengths[numbers[0]] // P) * P
        precision: Precision = "bfloat16" if self.options.precision == "bfloat16" else "float32"
        shape = StepShape(config, L, B, sequence_parallel=P, precision=precision)
        each = predict_memory(shape, on_cpu, results * B * L).total / GIB
        has, here = machine_memory_gib(self._compute), self.ranks if on_cpu else 1
        if self.rank == 0:
            say(
                f"largest pass: {B:,} x {L:,} tokens, about {each:.1f} GiB"
                + (f" in each of {self.ranks} processes" if self.ranks > 1 else "")
                + f", of {has:.1f} GiB here"
            )
        if each * here > _FAR_ABOVE * has:
            raise UserError(
                f"a pass of {B:,} x {L:,} tokens: needs about {each * here:,.1f} GiB, and this machine has {has:.1f}; take a "
                "smaller --batch or --context, or more ranks with --sequence-parallel on a larger machine"
            )

    def agreed(self, work: Callable[[], T]) -> T:
        """`work` on every rank; a problem of one is raised by all. Collective."""
        return agreed(work) if self.ranks > 1 else work()

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """The (picklable) result of `work` on rank 0, on every rank; its problem is raised by all. Collective."""
        return from_rank_zero(work) if self.ranks > 1 else work()

    @contextmanager
    def claimed(self, parts: Parts, settings: dict[str, Any]) -> Iterator[bool]:
        """Make `parts` ready; gives False where there is nothing to do. Collective.

        Where the block fails before a part is there, nothing of them remains.
        """
        wanted = self.on_rank_zero(lambda: parts.claim(settings, self.options.resume, self.options.overwrite))
        if not wanted and self.rank == 0:
            say(f"{parts.output} is complete already")
        try:
            yield wanted
        except UserError:
            if self.rank == 0 and parts.are_empty():
                parts.remove()
            raise

    def work_through(self, parts: Parts, count: int, work: Callable[[int], pa.Table], what: str) -> bool:
        """Compute the parts of `count` that are missing, this group's share; False when asked to stop first. Collective."""
        missing = self.agreed(lambda: parts.missing(count))
        if self.ranks > 1:
            dist.barrier()  # nobody writes before all have looked
        if self.rank == 0 and len(missing) < count:
            say(f"{count - len(missing)} of {count} parts are there already")
        groups, row = self._topology.data_parallel, self._topology.row(self.rank)
        stopped = False
        # The bar is of rank 0's share, which is everybody's but for one part.
        for number in tqdm(missing[row::groups], desc=what, unit="part", disable=None if self.rank == 0 else True):
            if stopped := self._asked_to_stop():
                break
            table = work(number)
            if self.leads:
                parts.write(number, table)
        stopped = self._most(float(stopped)) > 0  # and nobody goes on before all are here
        if stopped and self.rank == 0:
            say("stopped; the same command goes on from here")
        return not stopped

    def summary(self, facts: dict[str, Any]) -> None:
        """Write what --json asks for: `facts`, and how the command ran. Collective."""
        peak = self._most(peak_memory_gib(self._compute))
        if self.rank == 0 and self.options.json is not None:
            how = {
                "ranks": self.ranks,
                "sequence_parallel": self.options.sequence_parallel,
                "precision": self.options.precision,
                "seconds": round(time.monotonic() - self._begun, 3),
                "peak_memory_gib": round(peak, 3),
            }
            write_whole(self.options.json, json.dumps({**facts, **how}, indent=1) + "\n")

    def _most(self, own: float) -> float:
        """The largest of all ranks' numbers. Collective."""
        return largest_of_ranks([own], self._compute)[0] if self.ranks > 1 else own

    def _asked_to_stop(self) -> bool:
        """Whether a signal reached the relay, or it is gone: the group's first rank looks, and the others do as it does.
        Collective."""
        file = os.environ.get(STOP_FILE)
        asked = relay_is_gone() or (file is not None and Path(file).exists())
        stop = torch.tensor([float(asked)], device=self.device)
        if self._exchange.group is not None:
            dist.broadcast(stop, group=self._exchange.group, group_src=0)
        return bool(stop)


@contextmanager
def _session(options: Options) -> Iterator[Session]:
    """A session of this process alone, or of the launcher's ranks."""
    if not under_launcher():
        device = torch.device("cuda", 0) if device_count() else torch.device("cpu")
        compute = Compute(device, "", 0, 1, 0)
        yield Session(options, compute, Topology(1, 1), Exchange())
        return
    compute = start_compute(engine=False)
    sp = options.sequence_parallel
    if compute.ranks % sp:
        raise UserError(
            f"--sequence-parallel: found {sp}, wanted a divisor of the {compute.ranks} ranks that were started"
        )
    groups = create_groups((sp,), compute.rank, compute.ranks)
    yield Session(options, compute, Topology(compute.ranks // sp, sp), Exchange(groups.get(sp)))
