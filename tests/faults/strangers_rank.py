"""`hyena-ds train` whose rank 0 writes the heartbeat's port to PORT_FILE, and at the end what its monitor's thread cost.

KEEP_OPEN: the monitor waits for one rank more than there are, so that its port stays open.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from hyena_ds.cli import run_process
from hyena_ds.runtime import watchdog
from hyena_ds.runtime.heartbeat import Place
from hyena_ds.runtime.monitor import Monitor


class OpenMonitor(Monitor):
    """A monitor whose port is known."""

    def __init__(self, place: Place, ranks: int, *rest: Any):
        self._began = time.monotonic()
        super().__init__(place, ranks + bool(os.environ["KEEP_OPEN"]), *rest)
        file = Path(os.environ["PORT_FILE"])
        file.with_suffix(".partial").write_text(str(self.port))
        file.with_suffix(".partial").rename(file)

    def close(self) -> None:
        spent = time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident or 0))
        Path(os.environ["PORT_FILE"]).with_suffix(".cpu").write_text(
            json.dumps(spent / (time.monotonic() - self._began))
        )
        super().close()


if __name__ == "__main__":
    watchdog.Monitor = OpenMonitor
    run_process()
