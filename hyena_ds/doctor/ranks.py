"""What the ranks look at together:  python -m hyena_ds.doctor.ranks SECONDS [CONFIG key.path=value ...]

    meet --> exchanges inside every host, between hosts, of all --> the config's model, whole and cut --> lines on stdout

Started as a run's ranks are. Values are checked before anything is timed. A rank that is not done after SECONDS says
where it stands, and ends.

P ranks of a group, B batch, L context length.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import combinations, pairwise
from typing import Any

import torch
import torch.distributed as dist

from hyena_ds.config.schema import RunConfig
from hyena_ds.doctor.parity import cut_stages, parity
from hyena_ds.doctor.probe import say
from hyena_ds.errors import UserError
from hyena_ds.parallel.agreement import from_every_rank
from hyena_ds.parallel.collectives import start_all_to_all
from hyena_ds.parallel.devices import Compute, largest_of_ranks, start_compute, synchronize
from hyena_ds.runtime.heartbeat import FAULT_CODE, this_place
from hyena_ds.runtime.local_ranks import end_rank
from hyena_ds.tasks.deriving import load_run
from hyena_ds.training.engine import quiet

MEETING_SECONDS = 60
"""Within which all ranks have to have met."""
_LEAST_BYTES, _MOST_BYTES = 1 << 20, 1 << 26
_TIMED_SECONDS = 0.2
"""How long one exchange should take, so that its time means something."""
_ALL_PAIRS = 8
"""Up to so many hosts every pair is looked at; beyond it each host and the next, and each and the first."""


class _Step:
    """Where this rank stands, for the thread that ends it."""

    def __init__(self, seconds: float):
        self.name = "start"
        self.rank, self.host = int(os.environ.get("RANK", 0)), socket.gethostname()
        timer = threading.Timer(seconds, self._late, (seconds,))
        timer.daemon = True
        timer.start()

    def tell(self, kind: str, **found: Any) -> None:
        say({"kind": kind, "rank": self.rank, "host": self.host, **found})

    def problem(self, text: str) -> None:
        self.tell("problem", step=self.name, text=text)

    def _late(self, seconds: float) -> None:
        self.problem(f"not done after {seconds:.0f} s")
        os._exit(FAULT_CODE)


def main(arguments: list[str]) -> int:
    """One rank; its exit code."""
    step = _Step(float(arguments[0]))
    step.tell("started")
    try:
        config = load_run(arguments[1], arguments[2:]) if len(arguments) > 1 else None
        _look(config, step)
    except UserError as error:
        step.problem(str(error))
        return error.exit_code
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        step.problem(f"{type(error).__name__}: {text}"[:1500])
        return FAULT_CODE
    return 0


def _look(config: RunConfig | None, step: _Step) -> None:
    quiet()
    step.name = "meeting the other ranks"
    compute = start_compute(timedelta(seconds=MEETING_SECONDS))
    places = from_every_rank((this_place(compute.rank).machine, socket.gethostname()))
    step.tell("met", backend=compute.backend, device=str(compute.device), ranks=compute.ranks)
    for what, name, members in _exchanges(places):
        step.name = f"exchange, {name}"
        group = dist.new_group(members)
        found = _measured(group, members, compute) if compute.rank in members else None
        dist.barrier()  # nobody else uses the links meanwhile
        if found is not None and compute.rank == members[0]:
            step.tell("exchange", what=what, between=name, size=len(members), **found)
    if config is not None:
        for size, stages in sorted(cut_stages(config, compute.ranks).items()):
            step.name = f"parity, sequence parallel {size}"
            compared = parity(config, compute, stages) if compute.ranks % size == 0 else None
            if compute.rank == 0:
                step.tell("parity", size=size, **(compared or {"ranks": compute.ranks}))
    if compute.rank == 0:
        step.tell("end")
    step.name = "end"
    dist.barrier()
    dist.destroy_process_group()


def _exchanges(places: list[tuple[str, str]]) -> list[tuple[str, str, list[int]]]:
    """All that is measured, the same on every rank: inside, between or all; a name; the ranks that exchange."""
    hosts: dict[str, list[int]] = {}
    for rank, (machine, _) in enumerate(places):
        hosts.setdefault(machine, []).append(rank)
    names = {machine: places[ranks[0]][1] for machine, ranks in hosts.items()}
    wanted = [("inside", names[machine], ranks) for machine, ranks in hosts.items() if len(ranks) > 1]
    pairs = list(combinations(hosts, 2))
    if len(hosts) > _ALL_PAIRS:
        first, _, *others = hosts
        pairs = [*pairwise(hosts), *((first, other) for other in others)]
    wanted += [("between", f"{names[a]} - {names[b]}", [hosts[a][0], hosts[b][0]]) for a, b in pairs]
    if len(hosts) > 1 and len(places) > 2:
        wanted.append(("all", f"all {len(places)} ranks", list(range(len(places)))))
    return wanted


def _measured(group: Any, members: list[int], compute: Compute) -> dict[str, Any]:
    """Values and time of all-to-alls in a group. Collective in it."""
    P, index = len(members), members.index(compute.rank)
    size = _LEAST_BYTES
    while True:
        elements = size // 4 // P
        ramp = torch.arange(elements, device=compute.device).remainder(251).float()
        numbers = torch.arange(P, device=compute.device).float().view(P, 1)
        pieces_P = ramp + 1000 * (index * P + numbers)
        received = _exchanged(pieces_P, group)
        wrong = float((received != ramp + 1000 * (numbers * P + index)).any())
        seconds = min(_timed(compute, _exchanged, pieces_P, group) for _ in range(3))
        # The slowest and the worst of the group's ranks: all of them go on, or none.
        seconds, wrong = largest_of_ranks((seconds, wrong), compute, group)
        if seconds >= _TIMED_SECONDS or size >= _MOST_BYTES or wrong:
            break
        size = min(_MOST_BYTES, size * (16 if seconds < _TIMED_SECONDS / 16 else 4))
    one = torch.zeros(1, device=compute.device)
    latency = min(_timed(compute, dist.all_reduce, one, dist.ReduceOp.SUM, group) for _ in range(20))
    sent = size // P * (P - 1)
    return {"right": not wrong, "bytes": sent, "seconds": seconds, "rate": sent / seconds, "latency": latency}


def _exchanged(pieces_P: torch.Tensor, group: Any) -> torch.Tensor:
    return start_all_to_all(pieces_P, group).wait()


def _timed(compute: Compute, work: Callable[..., Any], *given: Any) -> float:
    """Seconds of a call, whatever it queues on the device included."""
    synchronize(compute)
    began = time.perf_counter()
    work(*given)
    synchronize(compute)
    return time.perf_counter() - began


if __name__ == "__main__":
    end_rank(main(sys.argv[1:]))
