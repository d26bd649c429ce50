"""Workers that fail in a rank of the benchmark."""

from __future__ import annotations

import os
import signal
import time
from typing import Any


class FailingSide:
    """One rank; only the last of two fails."""

    def __init__(self, compute: Any, how: str):
        self.how = how
        self.last = True

    def step(self, last: bool) -> str:
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "memory":
            raise MemoryError
        if self.how == "hangs" and not last:
            time.sleep(3600)
        raise ValueError("planted")
