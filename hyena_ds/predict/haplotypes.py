"""Where a variant first changes what a strand reads, in which window it is computed, and what stands there.

    contig, reverse complemented for the reverse strand --Strand--> tokens in reading direction
    change (start, bases replaced, bases instead) --> first difference q --WindowRule--> Site: window, end, both ends' tokens

All positions are those of the strand in its own reading direction, from 0: what is left of a position is what the model
has read before it. The reverse strand's position t is the contig's length - 1 - t. Spellings of one variant give one
sequence, so they give one q, also within repeats.

    start of the window = the largest multiple of the grid step with `left` tokens before q, or 0
    end of the window   = q + right, or where the shorter of the two sequences ends
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyena_ds.errors import UserError
from hyena_ds.genome.fasta import Genome
from hyena_ds.genome.letters import Bytes
from hyena_ds.genome.tokenizer import reverse_complement
from hyena_ds.predict.windows import TOKENS

_FIRST_COMPARED, _MOST_COMPARED = 64, 1 << 20
"""Tokens that are compared at once: few at first, since almost every variant differs in its first few."""


@dataclass(frozen=True)
class Strand:
    """One contig, read along one of its strands."""

    genome: Genome
    contig: str
    length: int
    reverse: bool

    def read(self, start: int, end: int) -> Bytes:
        """Token ids of the positions [start, end), as far as there are any."""
        start, end = max(0, start), min(end, self.length)
        if not self.reverse:
            return TOKENS[self.genome.read(self.contig, start, end)]
        return reverse_complement(TOKENS[self.genome.read(self.contig, self.length - end, self.length - start)])

    def change(self, position: int, reference: str, alternative: str) -> Change:
        """A variant of the contig, `position` its first base's there, from 0, as this strand reads it."""
        instead = TOKENS[np.frombuffer(alternative.encode("ascii"), dtype=np.uint8)]
        if not self.reverse:
            return Change(position, len(reference), instead)
        return Change(self.length - position - len(reference), len(reference), reverse_complement(instead))


@dataclass(frozen=True, eq=False)
class Change:
    """`replaced` tokens from `start` on give way to others."""

    start: int
    replaced: int
    instead: Bytes

    def length(self, strand: Strand) -> int:
        """Tokens of the changed strand."""
        return strand.length - self.replaced + len(self.instead)

    def read(self, strand: Strand, start: int, end: int) -> Bytes:
        """Tokens [start, end) of the changed strand, as far as there are any."""
        behind, more = self.start + len(self.instead), self.replaced - len(self.instead)
        before = strand.read(start, min(end, self.start))
        within = self.instead[max(0, start - self.start) : max(0, end - self.start)]
        after = strand.read(max(start, behind) + more, end + more)
        return np.concatenate((before, within, after))

    def first_difference(self, strand: Strand) -> int | None:
        """The first position at which changed strand and strand have different tokens; None where one is the other's
        beginning."""
        first, size = self.start, _FIRST_COMPARED
        last = min(strand.length, self.length(strand))
        if len(self.instead) == self.replaced:
            last = self.start + self.replaced
        while first < last:
            end = min(first + size, last)
            different: NDArray[np.bool_] = strand.read(first, end) != self.read(strand, first, end)
            if different.any():
                return first + int(different.argmax())
            first, size = end, min(2 * size, _MOST_COMPARED)
        return None


@dataclass(frozen=True)
class Site:
    """Where a variant is computed on one strand."""

    window: int
    """Where the window starts."""
    first: int
    """The first position that differs."""
    end: int
    """Where the window ends: the same for reference and alternative."""
    edge: bool
    """Whether the contig's ends leave less context before or behind than the rule."""


@dataclass(frozen=True)
class WindowRule:
    """How windows are laid on a strand: by the contig's coordinates alone, so that no variant depends on another."""

    left: int
    """The least context before the first difference."""
    right: int
    """Tokens from the first difference to the window's end."""
    step: int
    """Windows start at multiples of it."""

    @classmethod
    def fit(cls, left: int | None, right: int | None, maximum_context: int) -> WindowRule:
        """The rule for a model; None: 131,072 bases left and 4,096 right, or an even share of what the model takes.

        Raises UserError where they do not fit.
        """
        right = min(4096, max(1, maximum_context // 8)) if right is None else right
        left = min(131072, maximum_context // 2, max(0, maximum_context - right)) if left is None else left
        if left < 0 or right < 1 or left + right > maximum_context:
            raise UserError(
                f"--left {left:,} --right {right:,}: found {left + right:,} tokens, wanted at least 0 and 1, and no more "
                f"than the model's maximum_context of {maximum_context:,} together; take fewer, or extend the model"
            )
        room = min(left, maximum_context - left - right)
        return cls(left, right, 1 << room.bit_length() - 1 if room else 1)

    @property
    def length(self) -> int:
        """Tokens of a window that serves every variant whose window starts where it does."""
        return self.left + self.step - 1 + self.right

    def site(self, strand: Strand, change: Change) -> Site | None:
        """None where strand and changed strand have no position at which they differ."""
        first = change.first_difference(strand)
        if first is None:
            return None
        window = max(0, first - self.left) // self.step * self.step
        end = min(first + self.right, strand.length, change.length(strand))
        return Site(window, first, end, first < self.left or end < first + self.right)
