"""Whether a model was trained on the bases that it is tested on, as far as what lies beside it can tell.

checkpoint or run --manifest, config, shards.json--> index of its shards, by digest --> training bases by assembly and chromosome
target blocks, the FASTA's assembly --> how many of their bases are among these; or why nobody can know
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hyena_ds.config.remote import is_afar
from hyena_ds.data.identity import SHARDS, ShardList, read_shard_list
from hyena_ds.data.shards import ShardIndex, read_index
from hyena_ds.errors import UserError
from hyena_ds.predict.windows import Region, Window
from hyena_ds.redaction import shown
from hyena_ds.runs.origin import find_checkpoint, run_of

Spans = Mapping[str, Sequence[tuple[int, int]]]
"""Bases [start, end) by chromosome, on the forward strand."""

_NAMES = {
    "grch37": ("hg19", "hs37", "hs37d5", "b37", "human_g1k_v37"),
    "grch38": ("hg38", "hs38", "b38"),
    "grcm38": ("mm10",),
    "grcm39": ("mm39",),
}
"""Assemblies, and what else they are called; their chromosomes have the same coordinates."""
_SYNONYMS = {name: assembly for assembly, names in _NAMES.items() for name in names}

TRAINED_ON, HELD_OUT, UNKNOWN = "trained on", "held out", "unknown"


@dataclass(frozen=True)
class Verdict:
    """What is known of targets and training bases."""

    verdict: str
    shared: int | None
    """Target bases that were trained on; None where nobody can know."""
    why: str
    """A sentence without its first capital and full stop."""


def verdict_of(model: Path, spans: Spans, assembly: str | None) -> Verdict:
    """Compare the training bases of a model with targets of a FASTA, of `assembly` where that is known."""
    try:
        trained, beginning = _training_of(model)
    except UserError as error:
        return Verdict(UNKNOWN, None, f"nobody can say which bases the model was trained on: {error}")
    shared, apart, common = 0, [], set()
    for of, own in trained.items():
        if assembly is None or _same(assembly, of):
            shared += shared_bases(spans, own)
        elif both := {name for name in spans if _plain(name) in map(_plain, own)}:
            apart.append(of)
            common |= both
    total = sum(end - start for each in spans.values() for start, end in each)
    named = " and ".join(sorted(trained))
    taken = "" if assembly is not None else f", if the FASTA is of {named} (say so with --assembly)"
    if shared:
        return Verdict(
            TRAINED_ON, shared, f"{shared:,} of the {total:,} target bases are among the model's training bases{taken}"
        )
    if apart:
        return Verdict(
            UNKNOWN,
            None,
            f"the model was trained on {', '.join(sorted(common))} of {' and '.join(apart)}, whose coordinates do not compare "
            f"with those of {assembly}",
        )
    if beginning:
        return Verdict(
            UNKNOWN, None, f"the model began from the weights {beginning}, whose training bases are not recorded"
        )
    return Verdict(HELD_OUT, 0, f"none of the {total:,} target bases is among the model's training bases{taken}")


def spans_of(regions: Sequence[Region], blocks: Iterable[Window]) -> dict[str, list[tuple[int, int]]]:
    """Where blocks of regions lie on the forward strand."""
    found = defaultdict(list)
    for block in blocks:
        region = regions[block.region]
        forward = region.strand == "+"
        start = region.start + block.first if forward else region.end - block.last
        found[region.contig].append((start, start + block.last - block.first))
    return dict(found)


def shared_bases(spans: Spans, others: Spans) -> int:
    """Bases of `spans` that `others` have too; `chr` before a chromosome's name does not count."""
    beside: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for name, each in others.items():
        beside[_plain(name)] += each
    return sum(_shared(own, beside[_plain(name)]) for name, own in spans.items())


def _shared(own: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> int:
    total, merged = 0, _merged(others)
    at = 0
    for start, end in _merged(own):
        while at < len(merged) and merged[at][1] <= start:
            at += 1
        for other_start, other_end in merged[at:]:
            if other_start >= end:
                break
            total += min(end, other_end) - max(start, other_start)
    return total


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def _plain(chromosome: str) -> str:
    return chromosome.casefold().removeprefix("chr")


def _same(one: str, other: str) -> bool:
    one, other = (_SYNONYMS.get(name.casefold(), name.casefold()) for name in (one, other))
    return one == other


def _training_of(model: Path) -> tuple[dict[str, Spans], str | None]:
    """(training bases by assembly, the weights that training began from). Raises UserError where they are not known."""
    checkpoint = find_checkpoint(model)
    if checkpoint is None:
        raise UserError(f"{model}: weights on their own, without the run that trained them")
    run = run_of(checkpoint)
    listed = read_shard_list(run / SHARDS)
    if listed is None or listed.digest != checkpoint.manifest.shards:
        found = "there is no list" if listed is None else "found another list"
        raise UserError(f"{run / SHARDS}: {found} of the shards that {checkpoint} was trained on")
    try:
        places = [str(source["shards"]) for source in checkpoint.record.config["data"]["sources"]]
    except (KeyError, TypeError):
        raise UserError(f"{checkpoint}: its config does not say where its shards are") from None
    if len(places) != len(listed.sources):
        raise UserError(f"{run / SHARDS}: found {len(listed.sources)} sources, and {len(places)} in the config")
    trained: dict[str, Spans] = {}
    for number, place in enumerate(places):
        index = _index(place, run, listed, number)
        spans: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for chunk in index.chunks:
            if chunk.split == "train":
                spans[chunk.chromosome].append((chunk.start, chunk.end))
        for name, each in trained.get(index.assembly, {}).items():
            spans[name] += each
        trained[index.assembly] = spans
    return trained, checkpoint.record.config.get("initialize_from")


def _index(place: str, run: Path, listed: ShardList, number: int) -> ShardIndex:
    """The index of a source of a run: at the place of its config, which counts from where training was started."""
    if is_afar(place):
        raise UserError(f"{shown(place)}: its shards are on another machine")
    for start in (Path(), *run.parents):
        directory = start / place
        if (directory / "index.json").is_file():
            index = read_index(directory)
            if ShardList.of([index]).sources[0].index == listed.sources[number].index:
                return index
    raise UserError(f"{place}: its shards are not here")
