"""A rank that ends in its own way: `python -m tests.launch.ending_rank ENDING ...`, the first for rank 0.

A number is its exit code; `kill` waits half a second and ends it by SIGKILL; `words` waits half a second, speaks and ends with code 5; `asked` stays until
SIGTERM, and says so; `deaf` stays.
"""

from __future__ import annotations

import os
import signal
import sys
import time


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")  # in one piece, where two ranks speak


def end(ending: str) -> int:
    if ending.isdigit():
        return int(ending)
    if ending == "kill":
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    if ending == "words":
        time.sleep(0.5)
        say("last words")
        return 5
    if ending == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(say("asked to end")))
    say("up")
    time.sleep(60)
    return 0


if __name__ == "__main__":
    sys.exit(end(sys.argv[1 + int(os.environ["RANK"])]))
