"""`hyena-ds train` as a rank whose loss (with POISON=gradient: its gradient) is spoilt by every window that holds an N."""

from __future__ import annotations

import os

from hyena_ds.cli import run_process
from hyena_ds.genome.tokenizer import N
from hyena_ds.tasks import next_token
from tests.poison import poisoned_by

if __name__ == "__main__":
    next_token.NextToken = poisoned_by(N, os.environ.get("POISON") == "gradient")
    run_process()
