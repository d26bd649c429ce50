"""`hyena-ds data show RUN --step N [--shards PLACE]...`: which bases a step of a run consumed. Needs no torch.

A run may come from somebody else: nothing that its files name is executed or fetched. Of its config only a plain directory is
read; any other place has to be given, and what is read there has to be the run's data by its list of digests.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from dataclasses import replace
from pathlib import Path

from hyena_ds.config.loading import Invalid
from hyena_ds.config.remote import CacheConfig, is_afar
from hyena_ds.config.schema import DataConfig, RunConfig
from hyena_ds.data.identity import SHARDS, ShardList, read_shard_list
from hyena_ds.data.provenance import Consumed, consumed, run_config
from hyena_ds.data.remote.places import read_indices
from hyena_ds.data.remote.transfer import named
from hyena_ds.data.shards import ShardIndex
from hyena_ds.errors import UserError
from hyena_ds.redaction import shown
from hyena_ds.text import aligned


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands to the parser of `hyena-ds data`; each sets `run`, a function of the parsed arguments."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    show = commands.add_parser("show", help="which bases a step of a run consumed")
    show.add_argument("directory", metavar="RUN", help="directory of a run, for instance runs/quickstart")
    show.add_argument("--step", type=int, required=True, help="a step as metrics.jsonl counts them, from 1")
    show.add_argument(
        "--shards",
        action="append",
        metavar="PLACE",
        help="where the run's shards are, as in data.sources[].shards; once for each source, in the config's order "
        "(default: the directories that the run names)",
    )
    show.add_argument("--json", action="store_true", help="a JSON object a sample, one a line")
    show.set_defaults(run=_show)


def _show(parsed: argparse.Namespace) -> int:
    config = run_config(parsed.directory)
    if config.task is not None:
        raise UserError(
            f"{parsed.directory}: was trained on labelled sequences ({shown(config.task.train)}), wanted a run on shards; its "
            "stream.jsonl has the order of the sequences"
        )
    config = _placed(parsed.directory, config, parsed.shards)
    known = read_shard_list(Path(parsed.directory) / SHARDS)
    indices = _checked(parsed.directory, known, config.data)
    samples = consumed(config, parsed.step - 1, indices)
    if known is None:
        said = "so nothing says whether these are the data that it was trained on"
        print(f"{parsed.directory}: has no {SHARDS}, {said}", file=sys.stderr)
    print("\n".join(json.dumps(dataclasses.asdict(sample)) for sample in samples) if parsed.json else table(samples))
    return 0


def _placed(run: str, config: RunConfig, places: list[str] | None) -> RunConfig:
    """The run's config with its shards at `places`, and a cache of ours."""
    sources = config.data.sources
    if places is None:
        for number, source in enumerate(sources):
            if is_afar(source.shards):
                raise UserError(
                    f"{run}: data.sources.{number}: {shown(source.shards)} is no directory, and nothing that a run names is "
                    "executed or fetched; give --shards PLACE, once for each source"
                )
        places = [source.shards for source in sources]
    if len(places) != len(sources):
        raise UserError(
            f"--shards: found {len(places)} places, wanted {len(sources)}, one for each of the run's sources, in their order"
        )
    try:
        sources = tuple(replace(source, shards=place) for source, place in zip(sources, places, strict=True))
    except Invalid as error:
        raise UserError(f"--shards: {error.problem}") from None
    return replace(config, data=replace(config.data, sources=sources, cache=CacheConfig()))


def _checked(run: str, known: ShardList | None, data: DataConfig) -> list[ShardIndex]:
    """The indices of the run's data. Raises UserError where they are not those that are `known` of it."""
    indices = read_indices(data)
    found = None if known is None else known.difference(ShardList.of(indices))
    if found is not None:
        raise UserError(
            f"{run}: was trained on other data than these: {found}; give --shards PLACE, where the run's own shards are"
        )
    return indices


def table(samples: list[Consumed]) -> str:
    """The samples of one step for reading, a line each."""
    first = samples[0]
    heading = ["sample", "assembly", "chromosome", "start", "end", "strand", "epoch", "shards"]
    rows = [
        [
            *(str(s.sample), s.assembly, s.chromosome, f"{s.start:,}", f"{s.end:,}", s.strand, str(s.epoch)),
            " ".join(named(s.source, shard) for shard in s.shards),
        ]
        for s in samples
    ]
    lines = [f"step {first.step}, stage {first.stage}: {len(samples)} samples of {first.tokens:,} tokens"]
    return "\n".join([*lines, *aligned([heading, *rows], left=range(len(heading)))])
