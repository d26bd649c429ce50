"""Steps of the stream as tensors of one rank, read ahead by worker processes if the config says so.

    StageStream.samples(step) --this rank's rows and slice--> StepBatch(micro batches, scored count of the whole step)

B sequences of a micro batch, l local length.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hyena_ds.config.arithmetic import StagePlan
from hyena_ds.config.schema import DataConfig
from hyena_ds.data.remote.ahead import Ahead
from hyena_ds.data.shards import ShardIndex
from hyena_ds.data.stream import Sample, Sources, StageStream, row_samples
from hyena_ds.errors import LocalError, UserError
from hyena_ds.genome.tokenizer import UNKNOWN, N
from hyena_ds.ops.cross_entropy import IGNORED
from hyena_ds.parallel.devices import send, start_of_readers

_NOT_HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""By processes that read ahead."""


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """One forward pass on one rank."""

    token_ids_Bl: Tensor
    """int64."""
    targets: Tensor
    """What the objective scores: of next tokens (B, l) int64, IGNORED where nothing is."""
    samples_B: Tensor
    """int64: numbers of the sequences within the step's global batch."""
    lengths_B: Tensor | None = None
    """int64: tokens of each whole sequence that are no padding; None where none is padding."""

    def to(self, device: torch.device) -> MicroBatch:
        """The same batch on `device`; the host goes on before it is there."""
        return self._each(lambda tensor: send(tensor, device))

    def rows(self, rows: slice) -> MicroBatch:
        """Some of its sequences."""
        return self._each(lambda tensor: tensor[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> MicroBatch:
        lengths_B = None if self.lengths_B is None else change(self.lengths_B)
        return MicroBatch(change(self.token_ids_Bl), change(self.targets), change(self.samples_B), lengths_B)


@dataclass(frozen=True, eq=False)
class StepBatch:
    """One optimizer step on one rank."""

    step: int
    """Number within the run, from 0."""
    micro_batches: list[MicroBatch]
    """They may have fewer tokens than the stage's context length, the same on all ranks of a micro step: the longest comes
    first."""
    scored: float
    """Losses that the whole step adds up, over all ranks; where they are weighed, the sum of their weights."""


@dataclass(frozen=True)
class Slice:
    """Which part of the global batch a rank reads: its data-parallel row, and tokens [offset, offset + length)."""

    row: int
    offset: int
    length: int


def make_micro_batch(
    sources: Sources, context_length: int, numbers: list[int], samples: Sequence[Sample | None], part: Slice
) -> MicroBatch:
    """Read `part` of each sample; None stands for padding, of which nothing is scored."""
    ids = np.zeros((len(samples), part.length + 1), dtype=np.int64)
    for row, sample in enumerate(samples):
        if sample is not None:
            ids[row] = sources.tokens(sample, context_length, part.offset, part.length + 1)
    targets = ids[:, 1:].copy()
    for name, token in (("n", N), ("unknown", UNKNOWN)):
        if name in sources.config.ignore:
            targets[targets == token] = IGNORED
    targets[[row for row, sample in enumerate(samples) if sample is None]] = IGNORED
    return MicroBatch(torch.from_numpy(ids[:, :-1].copy()), torch.from_numpy(targets), torch.tensor(numbers))


def stage_steps(
    config: DataConfig,
    seed: int,
    plan: StagePlan,
    part: Slice,
    from_step: int,
    indices: list[ShardIndex] | None = None,
) -> Iterator[StepBatch]:
    """The steps of a stage from `from_step` (of the run) on, in order. `indices` are read where they are left out.

    With `config.workers` > 0 processes read ahead; one that dies is a RuntimeError in the training process, raised
    wherever that is. Raises LocalError when a shard cannot be read: the other ranks may have read theirs.
    """
    dataset = _StepDataset(config, seed, plan, part, indices)
    steps = range(from_step, plan.end_step)
    items = _items(dataset, steps, config.workers)
    ahead = None
    with contextlib.ExitStack() as stack:
        # After the reading processes were started: forked ones would inherit what a thread holds.
        if config.is_afar and from_step < plan.end_step:
            ahead = stack.enter_context(contextlib.closing(Ahead(_open_stream(config, seed, plan, indices))))
        for step in steps:
            if ahead is not None:
                ahead.reached(step - plan.first_step)
            item = next(items)
            if isinstance(item, LocalError):
                raise item
            yield item


def _open_stream(config: DataConfig, seed: int, plan: StagePlan, indices: list[ShardIndex] | None) -> StageStream:
    """Raises LocalError when an index cannot be had."""
    try:
        return StageStream(Sources(config, "train", indices), seed, plan)
    except UserError as error:
        raise LocalError(str(error)) from None


def _items(dataset: _StepDataset, steps: range, workers: int) -> Iterator[StepBatch | LocalError]:
    start = start_of_readers() if workers else None
    settings: dict[str, Any] = {"batch_size": None, "num_workers": workers, "worker_init_fn": _deaf}
    reader = DataLoader(dataset, sampler=steps, multiprocessing_context=start, **settings)
    if start is None:
        return iter(reader)
    # A signal of the launcher would end a process that is still importing, before it is deaf. This one hears it afterwards.
    resource_tracker.ensure_running()  # it would unblock two of them itself
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_HEARD)
    try:
        return iter(reader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _deaf(worker: int) -> None:
    """A launcher signals readers too; they end with their rank, which may still finish its step."""
    signal.set_wakeup_fd(-1)
    for number in _NOT_HEARD:
        signal.signal(number, signal.SIG_IGN)
    hook = sys.excepthook

    def said(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        # A rank that left while it took a batch from here has said why; this end of the connection need not.
        if not isinstance(error, ConnectionError | EOFError):
            hook(kind, error, traceback)

    sys.excepthook = said


class _StepDataset(Dataset[Any]):
    """Map-style: item = step of the run. Opens the shards on first use, in the process that reads."""

    def __init__(
        self, config: DataConfig, seed: int, plan: StagePlan, part: Slice, indices: list[ShardIndex] | None = None
    ):
        self.config, self.seed, self.plan, self.part, self.indices = config, seed, plan, part, indices
        self._stream: StageStream | None = None

    def __getitem__(self, step: int) -> StepBatch | LocalError:
        """A step that cannot be read gives its error: one that is raised comes from a worker with its traceback as text."""
        context_length, micro_batches = self.plan.config.context_length, []
        try:
            if self._stream is None:
                self._stream = _open_stream(self.config, self.seed, self.plan, self.indices)
            samples = self._stream.samples(step - self.plan.first_step)
            for micro_step in range(self.plan.accumulation):
                numbers, mine = row_samples(samples, self.plan, self.part.row, micro_step)
                micro_batches.append(make_micro_batch(self._stream.sources, context_length, numbers, mine, self.part))
            return StepBatch(step, micro_batches, self._stream.sources.scored(samples, context_length))
        except UserError as error:
            return LocalError(str(error))
