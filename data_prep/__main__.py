"""`python -m data_prep`: `hyena-ds prep` under another name."""

from __future__ import annotations

import sys

from hyena_ds.cli import main

if __name__ == "__main__":
    sys.exit(main(["prep", *sys.argv[1:]]))
