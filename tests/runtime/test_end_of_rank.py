"""How a rank ends."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import atexit, os, sys, threading
from hyena_ds.runtime.local_ranks import end_rank

class Backend:
    def __del__(self):
        os.abort()

backend = Backend()
atexit.register(print, "closed")
print("said", end="\\n")
end_rank(3)
"""


def test_a_rank_ends_with_its_code_whatever_the_interpreter_would_take_apart() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "said\nclosed\n", "")


def test_a_rank_that_nobody_listens_to_any_more_still_ends_with_its_code() -> None:
    # What is said waits in the stream, so that its end is where nobody takes it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ended = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, env=environment)
    assert ended.stdout is not None
    ended.stdout.close()
    assert ended.wait(timeout=60) == 3
