"""Checkpoints while training goes on: complete or not there.

    save: engine --copy of what this rank owns, in main memory (the only stall)--> a thread per rank writes, hashes, fsyncs
    after a later step, when no rank is busy any more: manifest --> rename --> `latest` --> old ones go

The ranks of a node write one file of the state, each its own piece. Threads run no collective: that all have ended is found out by votes that travel with the loss.
"""

from __future__ import annotations

import math
import shutil
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import deepspeed
import torch

from hyena_ds.checkpoints.choice import read_together
from hyena_ds.checkpoints.directory import begin, checkpoints_in, clear, complete, hide, surplus
from hyena_ds.checkpoints.engine_state import PARAMETER, fragments, frozen_parameters, updates_done
from hyena_ds.checkpoints.local_tier import LocalTier
from hyena_ds.checkpoints.manifest import (
    RUN_STATE,
    WEIGHTS,
    Manifest,
    Record,
    RunState,
    Written,
    joined,
    write_file,
    write_manifest,
)
from hyena_ds.checkpoints.saved_state import key_of, named_slices, state_file
from hyena_ds.checkpoints.upload import Uploads
from hyena_ds.checkpoints.weights_file import Export, WeightsFile
from hyena_ds.config.arithmetic import plan_stages
from hyena_ds.config.loading import to_plain
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError
from hyena_ds.parallel.agreement import agreed, from_every_rank, from_rank_zero
from hyena_ds.parallel.devices import Compute
from hyena_ds.redaction import kept
from hyena_ds.weights.published import published_sources
from hyena_ds.weights.tensor_file import data, header


class CheckpointWriter:
    """Saves a run's checkpoints, one at a time. All methods but `votes` are collective.

        writer.save(engine, state)                               copies, and writes in the background or at once
        result = train_step(..., votes=writer.votes)
        writer.after_step(result.votes)                          completes a checkpoint once every rank has written
        writer.finish()                                          waits for the one under way: at the end, or at a stop

    DeepSpeed's own asynchronous engines (async, decoupled, fast, datastates) are not used: they write DeepSpeed's layout,
    which only the same number of ranks and the same ZeRO stage load, without checksums and with a `latest` that is not
    moved atomically.
    """

    def __init__(
        self,
        directory: Path,
        config: RunConfig,
        compute: Compute,
        run: str,
        shards: str | None = None,
        say: Callable[[str], object] = print,
        exported: Export | None = None,
        uploads: Uploads | None = None,
        local: LocalTier | None = None,
    ):
        """`directory` is the run's `checkpoints/`, `run` its random name, of which rank 0's is used, and `shards` the
        digest of its data. `exported` says what weights.safetensors holds (by default the language model's
        own). On rank 0, `say` is given once what stood in the way of a checkpoint, or should have been removed
        and is still there. `uploads` copies what is complete to the tiers, `local` are the hosts' own disks."""
        self._directory, self._config, self._compute, self._run = directory, config, compute, run
        self._local = local
        self._shards = shards
        self._job: _Job | None = None
        self._say, self._said = say, set[str]()
        self._exported = exported or (lambda names: published_sources(config.model))
        self._uploads = uploads

    def save(
        self, engine: deepspeed.DeepSpeedEngine, state: RunState, selected: int | None = None, local: bool = False
    ) -> None:
        """Begin a checkpoint of `state`, after waiting for the one under way. Raises UserError when it cannot be written.

        The checkpoint of the step `selected`, this one or an earlier, is kept until another is. A run of `steps_only` has none at
        its end. A `local` one goes to the hosts' own disks, in place of the run's directory.
        """
        if self._config.steps_only and state.step == self._config.total_steps:
            return
        self.finish()
        if self._uploads:
            self._uploads.check()
        own = self._local if local else None
        aside = from_rank_zero(lambda: begin(self._directory, state.step)) if own is None else own.begin(state.step)
        if isinstance(aside, str):
            return self._without(f"{aside}: the checkpoint of step {state.step} could not begin")
        background = self._config.checkpoint.background
        weights = WeightsFile(engine, self._exported, self._compute.nodes[0])
        files = self._files(engine, state, weights, copy=background)
        self._job = _Job(aside, state.step, files, selected, own)
        if weights.streams:
            self._job.stream(WEIGHTS, weights.stream(), self._compute.rank == 0)
        if background:
            self._job.thread.start()
        else:
            self._job.write()
            self._conclude()

    @property
    def under_way(self) -> bool:
        """Whether a checkpoint is begun and not complete; the same on every rank."""
        return self._job is not None

    def votes(self) -> tuple[float]:
        """1 while this rank is writing, else 0; hand it to the step."""
        return (float(self._job is not None and self._job.thread.is_alive()),)

    def after_step(self, votes: Sequence[float]) -> None:
        """Complete the checkpoint under way if the votes of all ranks add up to none that is writing."""
        if self.under_way and votes[0] == 0:
            self._conclude()
        if self._uploads:
            self._uploads.tell()

    def finish(self) -> None:
        """Wait for the checkpoint under way, if there is one, and complete it."""
        if self.under_way:
            self._conclude()

    def leave(self, mark: Callable[[str], object]) -> None:
        """Wait for the checkpoint under way, and for its copies in the tiers; `mark` is given the progress."""
        self.finish()
        if self._uploads:
            self._uploads.leave(mark)

    def _files(
        self, engine: deepspeed.DeepSpeedEngine, state: RunState, weights: WeightsFile, copy: bool
    ) -> dict[str, _Piece]:
        """What this rank writes, by the names of the files."""
        rank = self._compute.rank
        own: dict[str, torch.Tensor] = {}
        for fragment in fragments(engine):
            own.update(named_slices(fragment))
        if copy:
            own = {key: tensor.to("cpu", copy=True) for key, tensor in own.items()}
        for name, whole in frozen_parameters(engine, copy):
            own[key_of(PARAMETER, name, 0)] = whole.view(-1)
        files = self._state_of_node(own)
        if not weights.streams:
            piece = weights.piece(copy)
            if piece is not None:
                files[WEIGHTS] = _Piece(piece[1], piece[0] if len(self._compute.nodes[0]) > 1 else None)
        if rank == 0:
            files[RUN_STATE] = _Piece([self._record(engine, state).text().encode()])
        return files

    def _state_of_node(self, own: dict[str, torch.Tensor]) -> dict[str, _Piece]:
        """This rank's piece of its node's file, whose first rank writes the header for all."""
        shapes = from_every_rank({key: tuple(tensor.shape) for key, tensor in own.items()})
        nodes, node = self._compute.nodes, self._compute.node
        before = header({key: shape for rank in node for key, shape in shapes[rank].items()}, {})
        start = len(before)
        for rank in node[: node.index(self._compute.rank)]:
            start += sum(4 * math.prod(shape) for shape in shapes[rank].values())
        name, chunks = state_file(nodes.index(node), len(nodes)), data(own.values())
        if self._compute.leads:
            return {name: _Piece(chain([before], chunks), 0)}
        return {name: _Piece(chunks, start)}

    def _record(self, engine: deepspeed.DeepSpeedEngine, state: RunState) -> Record:
        rows, ranks = self._config.schedule, self._compute.ranks
        sequence_parallel = plan_stages(self._config, ranks)[state.stage].config.sequence_parallel
        return Record(
            run=self._run,
            state=state,
            updates=updates_done(engine),
            ranks=ranks,
            grid={"data parallel": ranks // sequence_parallel, "sequence parallel": sequence_parallel},
            zero_stage=self._config.zero_stage,
            stages=to_plain(rows),
            config=kept(to_plain(self._config)),
        )

    def _conclude(self) -> None:
        job, self._job = self._job, None
        assert job is not None
        if job.thread.is_alive():
            job.thread.join()
        outcomes = from_every_rank((job.problem, job.written))
        problem = next((problem for problem, _ in outcomes if problem is not None), None)
        if job.local is not None:
            return self._conclude_local(job, job.local, problem, [written for _, written in outcomes])
        pieces: dict[str, list[Written]] = {}
        for _, own in outcomes:
            for name, written in own.items():
                pieces.setdefault(name, []).append(written)
        there = from_rank_zero(
            lambda: self._close(job, {name: joined(found) for name, found in pieces.items()}, problem)
        )
        self._retire(there, job)
        if self._uploads:
            self._uploads.completed(job.step, job.selected)

    def _conclude_local(
        self, job: _Job, local: LocalTier, problem: str | None, written: list[dict[str, Written]]
    ) -> None:
        """As `_close`, on every host's own disk. Collective."""
        news: list[str] | str = problem or ""
        if problem is None:
            news = local.complete(job.partial, self._run, job.step, written, self._shards)
        else:
            local.drop(job.partial)
        if isinstance(news, str):
            return self._without(news)
        if self._compute.rank == 0:
            self._tell(news)
        if self._uploads:
            self._uploads.completed(job.step, job.selected, local.path)

    def _without(self, problem: str) -> None:
        """Go on without a checkpoint on the hosts' disks. Raises UserError where it is required."""
        assert self._local is not None
        if self._local.tier.required:
            raise UserError(
                f"checkpoint.tiers: {problem}, which the run requires; earlier checkpoints are whole: see to that disk, or set "
                "required: false, and start the run again"
            )
        if self._compute.rank == 0:
            self._tell([f"{problem}; training goes on without it"])

    def _retire(self, there: list[Path], job: _Job) -> None:
        """Remove older checkpoints than are kept, each rank its share of their files. Collective."""
        kept, compute, whole = self._config.checkpoint, self._compute, dict[Path, Manifest]()

        def is_whole(path: Path) -> bool:
            found = read_together(path, compute)
            if isinstance(found, str):
                return False
            whole[path] = found.manifest
            return True

        going = surplus(there, job.step, kept.keep_last, kept.keep_every, job.selected, is_whole)
        if not going:
            return
        news, hidden = from_rank_zero(lambda: hide(going))

        def remove_share() -> None:
            for path, aside in hidden.items():
                for name in islice(whole[path].files, compute.rank, None, compute.ranks):
                    with suppress(OSError):  # rank 0 removes what is left, or says why it cannot
                        (aside / name).unlink()

        agreed(remove_share)
        from_rank_zero(lambda: self._tell([*news, *clear(hidden.values())]))

    def _close(self, job: _Job, files: dict[str, Written], problem: str | None) -> list[Path]:
        """On rank 0: the checkpoint is complete, or nothing of it is left. All that there are, the newest first."""
        if problem is None:
            try:
                write_manifest(job.partial, self._run, job.step, files, self._shards)
            except OSError as error:
                problem = _told(error, job)
        if problem is not None:
            shutil.rmtree(job.partial, ignore_errors=True)
            raise UserError(
                f"{problem}; earlier checkpoints are whole: make room (or lower checkpoint.keep_last) and start the run again"
            )
        self._tell(complete(job.partial, job.step, job.selected))
        return checkpoints_in(self._directory)

    def _tell(self, news: Iterable[str]) -> None:
        for line in news:
            if line not in self._said:
                self._said.add(line)
                self._say(line)


class _Piece(NamedTuple):
    """Bytes of a file, in chunks."""

    chunks: Iterable[Any]
    begin: int | None = None
    """Where in the file they begin, if others write it too."""


class _Job:
    """One rank's part of one checkpoint."""

    def __init__(
        self, partial: Path, step: int, files: dict[str, _Piece], selected: int | None, local: LocalTier | None
    ):
        self.step, self.partial, self.selected, self.local = step, partial, selected, local
        self.written: dict[str, Written] = {}
        self.problem: str | None = None
        self._files = files
        # A process that ends by an error does not wait for it: the next save clears what it leaves.
        self.thread = threading.Thread(target=self.write, name=f"checkpoint of step {step}", daemon=True)

    def stream(self, name: str, chunks: Iterator[Any], writes: bool) -> None:
        """Write a file of `chunks` that the ranks make together, on one of them. Never raises; goes on to their end."""
        try:
            if writes:
                self.written[name] = write_file(self.partial / name, chunks)
        except OSError as error:
            self.problem = _told(error, self)
        for _ in chunks:  # the others wait in what makes them
            pass

    def write(self) -> None:
        """Never raises: a problem is kept until the ranks meet."""
        try:
            while self._files:
                name, piece = next(iter(self._files.items()))
                self.written[name] = write_file(self.partial / name, piece.chunks, piece.begin)
                del self._files[name], piece  # and with them the copy of the state
        except Exception as error:
            self.problem = self.problem or _told(error, self)


def _told(error: Exception, job: _Job) -> str:
    where = error.filename if isinstance(error, OSError) else job.partial
    what = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    host = "" if job.local is None else f"{socket.gethostname()}: "
    return f"{host}{where}: the checkpoint of step {job.step} could not be written ({what})"
