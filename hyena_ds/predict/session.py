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
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from tqdm import tqdm

from hyena_ds.checkpoints.weights import find_weights, load_model
from hyena_ds.config.model import ModelConfig
from hyena_ds.cost.devices import GIB
from hyena_ds.cost.memory import predict_memory
from hyena_ds.cost.shape import Precision, StepShape
from hyena_ds.data.shards import sha256_of
from hyena_ds.errors import LocalError, UserError, say
from hyena_ds.files.whole import write_whole
from hyena_ds.genome.fasta import Genome, open_genome
from hyena_ds.parallel.agreement import agreed, from_rank_zero
from hyena_ds.parallel.devices import (
    Compute,
    broken_collective,
    compute_alone,
    largest_of_ranks,
    machine_memory_gib,
    peak_memory_gib,
    start_compute,
)
from hyena_ds.parallel.layout import Exchange
from hyena_ds.parallel.topology import Topology, create_groups
from hyena_ds.predict.held_out import verdict_of
from hyena_ds.predict.options import Options
from hyena_ds.predict.parts import Parts
from hyena_ds.predict.predictor import Predictor
from hyena_ds.predict.windows import into_batches
from hyena_ds.runs.trained_on import Spans
from hyena_ds.runtime.interruption import STOP_FILE
from hyena_ds.runtime.local_ranks import start_local_ranks, under_launcher
from hyena_ds.runtime.relay import relay_is_gone

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

STOPPED_CODE = 75
"""Exit code of a command that was asked to stop, and that goes on when it is repeated."""
_LONGEST_WAIT = timedelta(days=7)
"""For ranks whose share is done before the others'; of one that ends, the launcher ends the others."""
_LONGEST_FASTA = 1 << 40
_FAR_ABOVE = 1.25
"""Times the memory of a machine: up to there the estimate may be wrong."""


class Pass(NamedTuple):
    """A forward pass, for its memory."""

    sequences: int
    length: int
    """Tokens of each."""
    results: float = 0.0
    """Bytes of what comes of it."""
    held: float = 0.0
    """Bytes that a rank has beside it."""
    is_cut: bool = True
    """Whether the ranks of a sequence group share it; else each has one of its own."""


def start(parsed: argparse.Namespace, options: Options, work: Callable[[Session], bool]) -> int:
    """Run `work` here, or start this command's ranks, in which it runs; returns the exit code: whether `work` says that all
    is done."""
    if options.ranks > 1 and not under_launcher():
        return start_local_ranks(parsed.typed, options.ranks)
    with _session(options) as session:
        try:
            return 0 if work(session) else STOPPED_CODE
        except Exception as error:
            if not broken_collective(error):
                raise
            raise LocalError(f"rank {session.rank}: another rank has ended, which says why; correct that") from None


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
        model = self.agreed(lambda: load_model(self.options.model, self.options.shift)).to(self.device)
        return Predictor(model, self._exchange, getattr(torch, self.options.precision))

    def context(self, predictor: Predictor, least: int = 1) -> int:
        """Most bases that a pass looks at. Raises UserError for fewer than `least`, or more than the model takes."""
        maximum = predictor.model.config.maximum_context
        context = self.options.context or maximum
        if not least <= context <= maximum:
            raise UserError(f"--context: found {context:,}, wanted {least} to the model's maximum_context {maximum:,}")
        return context

    def settings(self, verb: str) -> dict[str, Any]:
        """What every verb's results depend on, but for its own options."""
        return {
            "verb": verb,
            "model": sha256_of(find_weights(self.options.model)),
            "shift": self.options.shift,
            "batch": self.options.batch,
            "precision": self.options.precision,
        }

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

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Those of the items that this rank's sequence group works on."""
        return items[self._topology.row(self.rank) :: self._topology.data_parallel]

    def largest_pass(self, lengths: Sequence[int], results: float = 0.0) -> Pass:
        """The first that sequences of these lengths are batched into; `results` are bytes a token of what comes of it."""
        numbers = into_batches(lengths, self.options.batch, self.device.type == "cpu")[0]
        B, L = len(numbers), lengths[numbers[0]]
        return Pass(B, L, results * B * L)

    def plan(self, config: ModelConfig, *passes: Pass) -> None:
        """Say what the pass that needs most needs. Raises UserError where that is far above what this machine has. Collective."""
        self.agreed(lambda: self._plan(config, passes))

    def _plan(self, config: ModelConfig, passes: Sequence[Pass]) -> None:
        on_cpu = self.device.type == "cpu"
        each, B, L = max((self._memory(config, one) / GIB, one.sequences, one.length) for one in passes)
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

    def _memory(self, config: ModelConfig, one: Pass) -> float:
        """Bytes that a rank needs for a pass."""
        P = self.options.sequence_parallel if one.is_cut else 1
        precision: Precision = "bfloat16" if self.options.precision == "bfloat16" else "float32"
        shape = StepShape(config, -(-one.length // P) * P, one.sequences, sequence_parallel=P, precision=precision)
        return predict_memory(shape, self.device.type == "cpu", one.results, one.held).total

    def agreed(self, work: Callable[[], T]) -> T:
        """`work` on every rank; a problem of one is raised by all. Collective."""
        return agreed(work) if self.ranks > 1 else work()

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """The (picklable) result of `work` on rank 0, on every rank; its problem is raised by all. Collective."""
        return from_rank_zero(work) if self.ranks > 1 else work()

    def in_parts(
        self, parts: Parts, settings: dict[str, Any], work: Callable[[], bool], beside: Path | None = None
    ) -> bool:
        """Make `parts` ready, and do `work`, unless its output is whole already; whether all is done. Collective.

        `beside` is what is written beside the output.

        Where it fails before a part is there, nothing of them remains.
        """
        again = self.options.resume, self.options.overwrite
        wanted = self.on_rank_zero(lambda: parts.claim(settings, *again, beside))
        if not wanted and self.rank == 0:
            say(f"{parts.output} is complete already")
        try:
            return not wanted or work()
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
        stopped = False
        # The bar is of rank 0's share, which is everybody's but for one part.
        for number in tqdm(self.share(missing), desc=what, unit="part", disable=None if self.rank == 0 else True):
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

    def held_out(self, spans: Spans, assembly: str | None) -> dict[str, Any]:
        """Say whether the model was trained on bases of `spans`, of `assembly`, and return it for --json. Collective."""
        verdict = self.on_rank_zero(lambda: verdict_of(self.options.model, spans, assembly))
        if self.rank == 0:
            verdict.say()
        return vars(verdict)

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
        yield Session(options, compute_alone(), Topology(1, 1), Exchange())
        return
    compute = start_compute(_LONGEST_WAIT, engine=False)
    sp = options.sequence_parallel
    if compute.ranks % sp:
        raise UserError(
            f"--sequence-parallel: found {sp}, wanted a divisor of the {compute.ranks} ranks that were started"
        )
    groups = create_groups((sp,), compute.rank, compute.ranks, _LONGEST_WAIT)
    yield Session(options, compute, Topology(compute.ranks // sp, sp), Exchange(groups.get(sp)))
