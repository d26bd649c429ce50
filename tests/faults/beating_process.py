"""A rank without torch and without a model: `python -m tests.faults.beating_process RANK RANKS DIRECTORY TROUBLE`.

It marks progress until it is killed. TROUBLE `RANK:KIND` befalls one rank after its fifth mark: sleep, raise (an error),
broken (an error out of a collective), leave, bug (in its heartbeat or monitor). KIND late: the rank never joins. KIND alone:
a bug in the thread that watches the start. KIND patient: no rank is silent for too long before ten minutes are over.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from hyena_ds.config.survival import WatchdogConfig
from hyena_ds.runtime import heartbeat, monitor
from hyena_ds.runtime import watchdog as watching
from hyena_ds.runtime.interruption import Stop
from hyena_ds.runtime.relay import RELAY
from hyena_ds.runtime.watchdog import Watchdog

assert "torch" not in sys.modules
rank, ranks, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
troubled, _, trouble = sys.argv[4].partition(":")
mine = trouble if troubled == str(rank) else ""
os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")


def bug(*_: Any) -> Any:
    raise KeyError("planted")


if mine == "alone":
    os.environ[RELAY] = str(os.getppid())
    watching.relay_is_gone = bug
patient = WatchdogConfig(
    silence=600.0 if trouble == "patient" else 2.0,
    start=2.0 if trouble == "late" else 30.0,
    step=2.0 if trouble == "sleep" else 60.0,
)
watchdog = Watchdog(patient, directory / "faults.jsonl")


def share(value: Any) -> Any:
    box = directory / "address.json"
    if rank == 0:
        partial = directory / "address.partial"
        partial.write_text(json.dumps(value))
        partial.rename(box)
    while not box.exists():
        time.sleep(0.02)
    return json.loads(box.read_text())


if mine == "late":
    time.sleep(60)
watchdog.join(ranks, share, lambda work: work())
(directory / f"joined-{rank}").touch()
while not all((directory / f"joined-{other}").exists() for other in range(ranks)):
    time.sleep(0.02)
for mark in range(1_000_000):
    if mark == 0:
        watchdog.begin_step(1, 0, 1)
        watchdog.end_step()
        watchdog.begin_step(2, 0, 1)
    if mark == 5 and trouble == "sleep" and not mine:
        time.sleep(60)  # it waits for the rank that does not come
    if mark == 4 and mine == "sleep":
        time.sleep(60)
    if mark == 5 and mine in ("raise", "broken"):
        try:
            raise (
                ValueError("not a number")
                if mine == "raise"
                else ConnectionError(errno.EPIPE, "Connection closed by peer")
            )
        except Exception as error:
            watchdog.failed(error, mine == "broken")
    if mark == 5 and mine == "bug":
        heartbeat.main_thread_place = monitor.main_thread_place = bug
    if mark == 5 and mine == "leave":
        watchdog.leave(Stop("SIGTERM", 143))
    watchdog.mark(f"mark {mark}")
    if mark == 3:
        (directory / f"ready-{rank}").touch()
    time.sleep(0.1)
