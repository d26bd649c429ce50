"""Which ALTs of a file are computed, where, and in which parts: those that share a window together.

    records --contig known, REF as in the FASTA--> Alleles --on each strand, by window--> parts of 1,024 at most

A part follows from the file, the FASTA and the rule alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line
from hyena_ds.genome.bed import some
from hyena_ds.genome.fasta import Genome
from hyena_ds.genome.variant_file import MISMATCH, Record, VariantFile
from hyena_ds.predict.effects import Placed
from hyena_ds.predict.haplotypes import Change, Strand, WindowRule

_MOST_OF_A_PART = 1024
_MOST_SHOWN = 20
"""Bases of an allele in a message."""
STRANDS = (False, True)
"""Whether a strand is the reverse one."""


class Allele(NamedTuple):
    """An ALT that is computed; `number` counts all ALTs of the file."""

    number: int
    contig: str
    position: int
    reference: str
    alternative: str


@dataclass(frozen=True)
class Part:
    """Alleles that share the window at `window` of a strand; `kept_from` is the first position that any of them changes."""

    contig: str
    reverse: bool
    window: int
    kept_from: int
    alleles: list[Allele]


@dataclass
class Plan:
    """A file of variants, read through once."""

    parts: list[Part] = field(default_factory=list)
    windows: int = 0
    filters: list[str | None] = field(default_factory=list)
    """For every ALT of the file why it has no values; None where it has."""
    alike: dict[tuple[int, bool], bool] = field(default_factory=dict)
    """ALTs, by number and strand, that nowhere differ from the reference, and whether the contig's end is why."""
    counts: Counter[str] = field(default_factory=Counter)
    """Records and ALTs of each kind, for the account."""

    def spans(self) -> dict[str, list[tuple[int, int]]]:
        """Where the REFs that are computed lie."""
        found = defaultdict(list)
        for part in self.parts:
            for allele in part.alleles:
                found[part.contig].append((allele.position, allele.position + len(allele.reference)))
        return dict(found)


class Planner:
    """Places the records of a file on a genome."""

    def __init__(self, source: VariantFile, genome: Genome, aliases: Mapping[str, str], skip_mismatch: bool):
        """`aliases` are the FASTA's names of contigs that the file names otherwise. Raises UserError where the FASTA has them not."""
        self._source, self._genome, self._skip = source, genome, skip_mismatch
        self.lengths, self.aliases = genome.lengths(), aliases
        for name, contig in aliases.items():
            if contig not in self.lengths:
                raise UserError(
                    f"--alias {name}={contig}: found no contig '{contig}' in the FASTA ({some(self.lengths)}); name one "
                    "that it has"
                )

    def strand(self, contig: str, reverse: bool) -> Strand:
        """A strand of a contig of the FASTA."""
        return Strand(self._genome, contig, self.lengths[contig], reverse)

    def changed(self, allele: Allele, reverse: bool) -> tuple[Strand, Change]:
        """A strand of an allele's contig, and what the allele is on it."""
        strand = self.strand(allele.contig, reverse)
        return strand, strand.change(allele.position, allele.reference, allele.alternative)

    def lengths_by_any_name(self) -> dict[str, int]:
        """Bases of each contig, under the FASTA's names and under aliases."""
        return {**self.lengths, **{name: self.lengths[contig] for name, contig in self.aliases.items()}}

    def plan(self, rule: WindowRule) -> Plan:
        """What is computed, and where. Raises UserError for a contig or a REF that the FASTA does not have."""
        plan = Plan()
        by_window: dict[tuple[int, bool, int], list[tuple[Allele, int]]] = defaultdict(list)
        order = {contig: number for number, contig in enumerate(self.lengths)}
        for record, _ in self._source.records():
            for allele in self._alleles(record, plan):
                for reverse in STRANDS:
                    site = rule.site(*self.changed(allele, reverse))
                    if site is None:
                        plan.alike[allele.number, reverse] = len(allele.reference) != len(allele.alternative)
                    else:
                        by_window[order[allele.contig], reverse, site.window].append((allele, site.first))
        contigs = list(self.lengths)
        plan.windows = len(by_window)
        for (contig, reverse, window), found in sorted(by_window.items(), key=lambda item: item[0]):
            kept_from = min(first for _, first in found)
            for at in range(0, len(found), _MOST_OF_A_PART):
                alleles = [allele for allele, _ in found[at : at + _MOST_OF_A_PART]]
                plan.parts.append(Part(contigs[contig], reverse, window, kept_from, alleles))
        return plan

    def placed(self, part: Part, rule: WindowRule) -> tuple[Strand, list[Placed]]:
        """The strand of a part, and its alleles on it."""
        strand = self.strand(part.contig, part.reverse)
        placed = []
        for allele in part.alleles:
            _, change = self.changed(allele, part.reverse)
            site = rule.site(strand, change)
            assert site is not None and site.window == part.window
            placed.append(Placed(change, site))
        return strand, placed

    def contig(self, record: Record) -> str:
        """The FASTA's name of a record's contig. Raises UserError where it has none."""
        contig = self.aliases.get(record.contig, record.contig)
        if contig not in self.lengths:
            raise UserError(
                f"{self._source.path}:{record.line}: found the contig '{record.contig}', which the FASTA does not have "
                f"({some(self.lengths)}); if it has another name there, say so with --alias {record.contig}=NAME"
            )
        return contig

    def _alleles(self, record: Record, plan: Plan) -> list[Allele]:
        problems = [record.problem(alternative) for alternative in record.alternatives]
        first = len(plan.filters)
        alleles = []
        if None in problems:
            contig = self.contig(record)
            if not self._is_there(record, contig):
                problems = [problem or MISMATCH for problem in problems]
            alleles = [
                Allele(first + at, contig, record.position, record.reference.upper(), alternative.upper())
                for at, (alternative, problem) in enumerate(zip(record.alternatives, problems, strict=True))
                if problem is None
            ]
        plan.filters += problems
        self._count(record, problems, plan.counts)
        return alleles

    def _is_there(self, record: Record, contig: str) -> bool:
        """Whether the FASTA has a record's REF; where it has not, and that is no reason to go on, raises UserError."""
        end = min(record.position + len(record.reference), self.lengths[contig])
        found = self._genome.read(contig, max(0, record.position), end).tobytes().decode("latin-1")
        if record.position >= 0 and found.upper() == record.reference.upper():
            return True
        if self._skip:
            return False
        name = f" ({in_one_line(record.identifier, MOST_QUOTED)})" if record.identifier not in ("", ".") else ""
        raise UserError(
            f"{self._source.path}:{record.line}: found REF {_short(record.reference)} at {record.contig}:"
            f"{record.position + 1:,}{name}, where the FASTA has {_short(found.upper()) or 'no base'}; is the file of another "
            "assembly? --skip-mismatch passes over such records"
        )

    def _count(self, record: Record, problems: Sequence[str | None], counts: Counter[str]) -> None:
        counts["records"] += 1
        counts["alts"] += len(problems)
        counts["multi_allelic"] += len(problems) > 1
        for alternative, problem in zip(record.alternatives, problems, strict=True):
            if problem is not None:
                counts[problem] += 1
            elif len(alternative) != len(record.reference):
                counts["indels"] += 1
            else:
                counts["snvs" if len(alternative) == 1 else "mnvs"] += 1


def _short(bases: str) -> str:
    return in_one_line(
        bases if len(bases) <= _MOST_SHOWN else f"{bases[:_MOST_SHOWN]}… ({len(bases):,} bases)", MOST_QUOTED
    )
