"""`hyena-ds report RUN`: one HTML page about a run, finished or not. Takes no torch and no network."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from hyena_ds.errors import UserError
from hyena_ds.files.whole import write_whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hyena-ds report`; sets `run`, a function of the parsed arguments."""
    parser.add_argument("directory", metavar="RUN", help="directory of a run, for instance runs/quickstart")
    parser.add_argument("--output", metavar="FILE", help="where to write the page (default: RUN/report.html)")
    parser.set_defaults(run=_report)


def _report(parsed: argparse.Namespace) -> int:
    from hyena_ds.report.page import page
    from hyena_ds.runs.records import read_records

    records = read_records(Path(parsed.directory))
    output = Path(parsed.output or Path(parsed.directory) / "report.html")
    try:
        _write(output, page(records))
    except OSError as error:
        raise UserError(
            f"{output}: the page cannot be written there ({error.strerror}); name another file with --output FILE"
        ) from None
    print(f"written: {output}")
    return 0


def _write(output: Path, text: str) -> None:
    """The whole page or nothing of it. Raises OSError."""
    data = text.encode("utf-8", errors="replace")
    if os.path.lexists(output) and not output.is_file():  # a terminal, a pipe; a directory is refused
        output.write_bytes(data)
        return
    write_whole(output, data, own=True)
