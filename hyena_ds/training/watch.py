"""Slow ranks, and ranks with other numbers: seen by all of them in what each hands in beside the loss, now and then.

    every rank: its compute and wait times, its digest --rows of zeros but for its own, summed with the loss--> all ranks'
    all ranks: times --monitoring/stragglers.py--> who is slow;  digests --training/digest.py--> who differs

It costs no exchange of its own, and on a device nothing waits for it: what is handed in was computed there.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from hyena_ds.config.schema import RunConfig
from hyena_ds.monitoring.stragglers import Spent, Stragglers
from hyena_ds.parallel.agreement import from_every_rank
from hyena_ds.parallel.devices import Compute, device_name, send
from hyena_ds.runtime.interruption import DEADLINE_CODE, Stop
from hyena_ds.text import number
from hyena_ds.training.clock import StepClock
from hyena_ds.training.digest import NUMBERS, Digest, differing

_TIMES = len(Spent._fields)


@dataclass(frozen=True)
class Seen:
    """What a step brought to light; the same on every rank."""

    columns: dict[str, Any] = field(default_factory=dict)
    """For the step's row in metrics.jsonl."""
    slow: tuple[str, ...] = ()
    """The ranks that are slow, each in a few words."""
    stop: Stop | None = None
    """Where a slow rank ends the run."""
    corrupted: str | None = None
    """Which ranks differ from the others, and what of theirs."""
    suspects: tuple[int, ...] = ()


class Watch:
    """One rank's part of it."""

    def __init__(self, config: RunConfig, compute: Compute, clock: StepClock):
        self._config, self._compute, self._clock = config, compute, clock
        self._stragglers = Stragglers(config.stragglers.slower, config.stragglers.seconds)
        self._digest: Digest | None = None
        self.alike = 0
        """The newest step after which all numbers that are compared were found to agree."""
        self._step = 0
        self._times_due = self._digests_due = self._is_owed = False

    def of_engine(self, engine: deepspeed.DeepSpeedEngine, step: int) -> None:
        """Look at this engine, made from the state after `step`."""
        several = self._compute.ranks > 1 or engine.zero_optimization_stage() > 0
        self._digest = (
            Digest(self._compute.device) if self._config.corruption.every_steps is not None and several else None
        )
        self.alike, self._is_owed = step, True
        self._clock.pace.window()  # what came before has other sizes, or another pace

    def saved(self) -> None:
        """Note that what the next step begins with is a checkpoint: it is compared, so that one knows whether it is good."""
        self._is_owed = True

    def begin(self, step: int) -> None:
        """A step begins after `step` steps were done."""
        self._step = step
        every, compared = self._config.stragglers.every_steps, self._config.corruption.every_steps
        several = self._compute.ranks > 1
        self._times_due = several and every is not None and step > 0 and step % every == 0
        due = self._is_owed or (compared is not None and step % compared == 0)
        self._digests_due = due and self._digest is not None

    def before_update(self, engine: deepspeed.DeepSpeedEngine) -> None:
        """Take in the numbers that the update is about to change."""
        if self._digest is not None:
            self._digest.note(engine, self._digests_due)

    def at_the_end(self, engine: deepspeed.DeepSpeedEngine, step: int) -> Seen:
        """What the weights after the last `step` show, in an exchange of its own. Collective."""
        if self._digest is None:
            return Seen()
        self._step, self._times_due, self._digests_due = step, False, True
        self.before_update(engine)
        handed_in = self.handed_in()
        assert handed_in is not None
        dist.all_reduce(handed_in)
        return self.seen(handed_in.tolist())

    def handed_in(self) -> Tensor | None:
        """What this rank adds to the exchange of a step: float64 on the device, zeros where the others' are; None mostly."""
        parts = []
        if self._times_due:
            times = torch.tensor(self._clock.pace.window(), dtype=torch.float64)
            parts.append(send(times, self._compute.device))
        if self._digests_due and self._digest is not None:
            parts.append(self._digest.handed_in())
        if not parts:
            return None
        own = torch.cat(parts)
        rows = own.new_zeros((self._compute.ranks, len(own)))
        rows[self._compute.rank] = own
        return rows.view(-1)

    def seen(self, gathered: Sequence[float]) -> Seen:
        """What the ranks' numbers mean, all handed in by `handed_in`. Collective where a rank is to be named."""
        if not gathered:
            return Seen()
        size = len(gathered) // self._compute.ranks
        rows = [tuple(gathered[at : at + size]) for at in range(0, len(gathered), size)]
        times = self._slow([Spent(*row[:_TIMES]) for row in rows]) if self._times_due else Seen()
        if not self._digests_due:
            return times
        self._is_owed = False
        digests = [row[size - NUMBERS :] for row in rows]
        unlike = [rank for rank, row in enumerate(digests) if row[-1]]
        others = differing([row[:-1] for row in digests])
        if not unlike and not others:
            self.alike = self._step
            return times
        return Seen(times.columns, times.slow, times.stop, *self._corrupted(unlike, others))

    def _slow(self, rows: Sequence[Spent]) -> Seen:
        window, named = self._stragglers.add(rows)
        columns: dict[str, Any] = window.columns()
        if not named:
            return Seen(columns)
        places, stop = self._places(), None
        words = tuple(
            f"{places[rank]} is slow: it computes {number(slow.compute)} s a step, "
            + (f"in {number(slow.queued)} s of which others have its core, " if slow.queued else "")
            + f"{slow.times:.2g} times the others' median, and waits {number(rows[rank].wait)} s (the median rank "
            f"{number(window.wait_seconds)} s)"
            for rank, slow in named.items()
        )
        ends_at = self._config.stragglers.ends_at
        worst = max(named, key=lambda rank: named[rank].times)
        if ends_at is not None and named[worst].times >= ends_at:
            times = f"{named[worst].times:.2g} times slower than the others"
            stop = Stop(f"{places[worst]}, which is {times} (stragglers.ends_at {ends_at:g})", DEADLINE_CODE)
        return Seen({**columns, "slow_ranks": list(words)}, words, stop)

    def _corrupted(self, unlike: list[int], others: list[int]) -> tuple[str, tuple[int, ...]]:
        """What differs, in words, and whose."""
        places, found = self._places(), []
        if unlike:
            found.append(f"two copies of the same parameters differ on {' and '.join(places[rank] for rank in unlike)}")
        if others:
            what = "parameters or reduced gradients" if self._config.zero_stage == 0 else "parameters"
            who = " and ".join(places[rank] for rank in others)
            found.append(
                f"{who} and no majority have the same {what}"
                if len(others) == len(places)
                else f"{who} {'has' if len(others) == 1 else 'have'} other {what} than the other ranks"
            )
        return "; ".join(found), tuple(sorted({*unlike, *others}))

    def _places(self) -> list[str]:
        """Every rank with its host and device. Collective."""
        compute = self._compute
        on_device = f"{device_name(compute)}, device {compute.local_rank}" if compute.device.type != "cpu" else "CPU"
        return from_every_rank(f"rank {compute.rank} on {socket.gethostname()} ({on_device})")
