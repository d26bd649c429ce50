"""`hyena-ds report RUN`: one HTML page about a run, finished or not. Takes no torch and no network."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `hyena-ds report`; sets `run`, a function of the parsed arguments."""
    parser.add_argument("directory", metavar="RUN", help="directory of a run, for instance runs/quickstart")
    parser.add_argument("--output", metavar="FILE", help="where to write the page (default: RUN/report.html)")
    parser.set_defaults(run=_report)


def _report(parsed: argparse.Namespace) -> int:
    from hyena_ds.report.page import page
    from hyena_ds.report.records import read_records

    records = read_records(Path(parsed.directory))
    output = Path(parsed.output or Path(parsed.directory) / "report.html")
    partial = output.with_name(f".{output.name}.partial")
    partial.write_text(page(records), encoding="utf-8")
    partial.replace(output)
    print(f"written: {output}")
    return 0
