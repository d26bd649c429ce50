"""`hyena-ds train` as a rank that trains the labelled Task; with KILL_STEP it dies as one of tests.training.killed_rank."""

from __future__ import annotations

import os

from hyena_ds.cli import run_process
from hyena_ds.tasks import next_token
from tests.tasks.labelled import LabelledTask
from tests.training import killed_rank

if __name__ == "__main__":
    if "KILL_STEP" in os.environ:
        killed_rank.plant()
    next_token.NextTokenTask = LabelledTask
    run_process()
