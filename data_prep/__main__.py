"""`python -m data_prep`: the sub-commands of `hyena-ds prep` on their own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from data_prep.cli import add_commands
from hyena_ds.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; a user's mistake is one sentence on standard error and exit code 2."""
    parser = argparse.ArgumentParser(prog="data_prep", description="FASTA to WebDataset shards")
    add_commands(parser)
    args = parser.parse_args(arguments)
    try:
        return int(args.run(args))
    except UserError as error:
        print(f"hyena-ds: error: {error}", file=sys.stderr)
        return UserError.exit_code
    except KeyboardInterrupt:
        print("hyena-ds: interrupted; run the same command again to resume", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
