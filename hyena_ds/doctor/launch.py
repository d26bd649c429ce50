"""Starts the ranks of the collective part as a run's are started, and listens to them until they end or are late.

local: deepspeed launcher          --+
hosts: deepspeed launcher, pdsh, ssh-+--> hyena_ds.doctor.ranks --lines--> findings
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hyena_ds.doctor.probe import MARK
from hyena_ds.runtime.relay import end_session

_GRACE_SECONDS = 20.0
"""Beyond what the ranks have, for the launcher."""
_LAST_LINES = 5


@dataclass
class Heard:
    """What the ranks said."""

    findings: list[dict[str, Any]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """Last lines of what launchers and libraries said."""
    code: int | None = None
    """The launcher's; None where it was late and was ended."""

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The findings of one kind."""
        return [finding for finding in self.findings if finding["kind"] == kind]


def listen(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> Heard:
    """Run the launcher `command`; whatever it does, this returns soon after `seconds`."""
    launcher = subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(launcher, lines), daemon=True).start()
    heard = Heard()
    deadline = time.monotonic() + seconds + _GRACE_SECONDS
    try:
        while (line := lines.get(timeout=max(0.0, deadline - time.monotonic()))) is not None:
            _, mark, finding = line.partition(MARK)
            if mark:
                heard.findings.append(json.loads(finding))
            elif line:
                heard.others = [*heard.others, line][-_LAST_LINES:]
        heard.code = launcher.wait(_GRACE_SECONDS)
    except (queue.Empty, subprocess.TimeoutExpired):
        pass
    finally:
        # Not reaped before, so that its number is still its own.
        end_session(launcher.pid)
        launcher.wait()
    return heard


def _read(launcher: subprocess.Popen[bytes], lines: queue.Queue[str | None]) -> None:
    assert launcher.stdout is not None
    for raw in launcher.stdout:
        lines.put(raw.decode("utf-8", "replace").strip())
    lines.put(None)
