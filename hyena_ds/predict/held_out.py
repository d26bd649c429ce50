"""Whether a model was trained on the bases that it is tested on, as far as what lies beside it can tell.

model --runs/trained_on--> training bases by assembly and chromosome
targets, the FASTA's assembly --> how many of their bases are among these; or why nobody can know
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line, say
from hyena_ds.predict.windows import Region, Window
from hyena_ds.runs.trained_on import Spans, merged, training_of

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

    def say(self) -> None:
        """Say it on stderr, as a warning where bases were trained on."""
        say(f"{'warning: ' if self.shared else 'unknown: ' if self.verdict == UNKNOWN else ''}{self.why}")


def verdict_of(model: Path, spans: Spans, assembly: str | None) -> Verdict:
    """Compare the training bases of a model with targets of a FASTA, of `assembly` where that is known."""
    try:
        training = training_of(model)
    except UserError as error:
        return Verdict(UNKNOWN, None, f"nobody can say which bases the model was trained on: {error}")
    shared, apart, common = 0, [], set()
    for of, own in training.bases.items():
        if assembly is None or _same(assembly, of):
            shared += shared_bases(spans, own)
        elif both := {name for name in spans if _plain(name) in map(_plain, own)}:
            apart.append(of)
            common |= both
    total = sum(end - start for each in spans.values() for start, end in merged(each))
    named = " and ".join(sorted(training.bases))
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
    if training.beginning:
        return Verdict(
            UNKNOWN,
            None,
            f"the model began from the weights {training.beginning}, whose training bases are not recorded",
        )
    if training.tuned_on:
        files = ", ".join(sorted({file for file, _ in training.tuned_on}))
        return Verdict(
            UNKNOWN,
            None,
            f"the model was fine-tuned on {in_one_line(files, MOST_QUOTED)}, of whose bases nobody knows where they lie",
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


def whole_regions(regions: Iterable[Region]) -> dict[str, list[tuple[int, int]]]:
    """Where regions lie on the forward strand."""
    found = defaultdict(list)
    for region in regions:
        found[region.contig].append((region.start, region.end))
    return dict(found)


def shared_bases(spans: Spans, others: Spans) -> int:
    """Bases of `spans` that `others` have too; `chr` before a chromosome's name does not count."""
    beside: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for name, each in others.items():
        beside[_plain(name)] += each
    return sum(_shared(own, beside[_plain(name)]) for name, own in spans.items())


def _shared(own: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> int:
    total, beside = 0, merged(others)
    at = 0
    for start, end in merged(own):
        while at < len(beside) and beside[at][1] <= start:
            at += 1
        for other_start, other_end in beside[at:]:
            if other_start >= end:
                break
            total += min(end, other_end) - max(start, other_start)
    return total


def _plain(chromosome: str) -> str:
    return chromosome.casefold().removeprefix("chr")


def _same(one: str, other: str) -> bool:
    one, other = (_SYNONYMS.get(name.casefold(), name.casefold()) for name in (one, other))
    return one == other
