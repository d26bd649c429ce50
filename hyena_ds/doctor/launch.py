"""Starts the ranks of the collective part as a run's are started, and listens to them until they end or are late.

local: runtime/launcher.py         --+
hosts: deepspeed launcher, pdsh, ssh-+--> hyena_ds.doctor.ranks --lines--> findings
"""

from __future__ import annotations

import json
import queue
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hyena_ds.doctor.hosts import Speaker
from hyena_ds.runtime.session import end_session

_GRACE_SECONDS = 20.0
"""Beyond what the ranks have, for the launcher."""


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
    launcher, heard = Speaker(command, environment), Heard()
    deadline = time.monotonic() + seconds + _GRACE_SECONDS
    try:
        while (finding := launcher.answers.get(timeout=max(0.0, deadline - time.monotonic()))) is not None:
            heard.findings.append(json.loads(finding))
        heard.code = launcher.process.wait(_GRACE_SECONDS)
    except (queue.Empty, subprocess.TimeoutExpired):
        pass
    finally:
        # Not reaped before, so that its number is still its own.
        end_session(launcher.process.pid)
        launcher.process.wait()
    heard.others = list(launcher.said)
    return heard
