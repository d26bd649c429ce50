"""`hyena-ds data show RUN --step N`: which bases a step of a run consumed. Needs no torch."""

from __future__ import annotations

import argparse
import dataclasses
import json

from hyena_ds.data.provenance import Consumed, consumed, run_config
from hyena_ds.data.transfer import address_of, shown


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands to the parser of `hyena-ds data`; each sets `run`, a function of the parsed arguments."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    show = commands.add_parser("show", help="which bases a step of a run consumed")
    show.add_argument("directory", metavar="RUN", help="directory of a run, for instance runs/quickstart")
    show.add_argument("--step", type=int, required=True, help="a step as metrics.jsonl counts them, from 1")
    show.add_argument("--json", action="store_true", help="a JSON object a sample, one a line")
    show.set_defaults(run=_show)


def _show(parsed: argparse.Namespace) -> int:
    samples = consumed(run_config(parsed.directory), parsed.step - 1)
    print("\n".join(json.dumps(dataclasses.asdict(sample)) for sample in samples) if parsed.json else table(samples))
    return 0


def table(samples: list[Consumed]) -> str:
    """The samples of one step for reading, a line each."""
    first = samples[0]
    heading = ["sample", "assembly", "chromosome", "start", "end", "strand", "epoch", "shards"]
    rows = [
        [
            *(str(s.sample), s.assembly, s.chromosome, f"{s.start:,}", f"{s.end:,}", s.strand, str(s.epoch)),
            " ".join(shown(address_of(s.source, shard)) for shard in s.shards),
        ]
        for s in samples
    ]
    widths = [max(len(row[column]) for row in [heading, *rows]) for column in range(len(heading))]
    lines = [f"step {first.step}, stage {first.stage}: {len(samples)} samples of {first.tokens:,} tokens"]
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [heading, *rows]
    ]
    return "\n".join(lines)
