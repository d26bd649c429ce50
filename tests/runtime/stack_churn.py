"""A process whose main thread calls, returns and forks while another one asks where it is and finds garbage to collect."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time

from hyena_ds.runtime import heartbeat

alive = 0
asked = 0
over = threading.Event()


class Garbage:
    """In a cycle with itself; whoever collects it outside of the main thread gives the main thread the time to run on."""

    def __init__(self) -> None:
        global alive
        self.itself = self
        alive += 1

    def __del__(self) -> None:
        global alive
        alive -= 1
        if threading.current_thread() is not threading.main_thread():
            time.sleep(5e-5)


def ask() -> None:
    """Until the main thread is over."""
    global asked
    while not over.is_set():
        where, waiting = heartbeat.main_thread_place()
        assert where == "" or "tests/runtime/stack_churn.py:" in where, where
        assert waiting
        asked += 1


def narrow(depth: int) -> None:
    """A frame with one local name."""
    if alive < 30:
        Garbage()
    if depth:
        narrow(depth - 1)


def wide(depth: int, *rest: str) -> None:
    """A frame of another size: what lay in the place of a frame that ended is no frame."""
    a = b = c = d = e = f = g = h = i = j = k = l = m = n = "no frame"  # noqa: F841
    if alive < 30:
        Garbage()
    if depth:
        wide(depth - 1, *rest)


if __name__ == "__main__":
    heartbeat._COLLECTIVES = ("tests/runtime/",)
    gc.set_threshold(30)
    sys.setswitchinterval(1e-5)
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    end = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < end:
        for _ in range(200):
            narrow(40)
            wide(30)
        if not (child := os.fork()):
            os._exit(not gc.isenabled())
        assert os.waitpid(child, 0)[1] == 0, "a child that collects no garbage"
    over.set()
    asking.join()
    assert gc.isenabled()
    print(asked)
