"""The bases that a perplexity is measured on, and the windows that look at them from less or more context.

    regions --blocks_of--> target blocks, evenly spread, each with at least `context` bases of its region before it
    block, C --context_windows--> windows that score every base of the block, each base with C bases before it, or a few less
    block, gap --repeat_windows--> the block's first bases in their place, with and without a copy of them before the gap

Every context length scores the same bases. Windows read on the strand of their region, and leave it nowhere.

n bases of a window.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hyena_ds.baselines.backoff import UNKNOWN, Codes, Floats, Integers, codes_of
from hyena_ds.errors import UserError
from hyena_ds.genome.fasta import Genome
from hyena_ds.predict.score import is_base, log_probabilities
from hyena_ds.predict.windows import Region, Window, tokens

if TYPE_CHECKING:
    from hyena_ds.predict.predictor import Predictor

CONTEXT, POSITION, ALONE, REPEATED = "context", "position", "alone", "repeated"
"""What a row of sums is about: a context length, a position in the window, a repeat's second copy without and with a first."""
COLUMNS = ("block", "about", "at", "loss", "targets", "before")
"""Columns of a part: sums of a block's losses in nats, of the bases that they are of, and of the bases before those."""
Row = tuple[int, str, int, float, int, int]
_PART_TOKENS = 1 << 18
_SPREAD = 4
"""The bases that one window scores differ in context by less than a quarter."""


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    context: int
    """Most bases before a target."""
    block: int
    """Bases of a block of targets."""
    targets: int
    """Bases of all blocks, at most."""
    segment: int
    """Bases that are repeated."""

    @property
    def contexts(self) -> list[int]:
        """Powers of two up to the context, and the context itself."""
        return _powers(self.context)

    @property
    def gaps(self) -> list[int]:
        """Bases between a segment and its repeat: powers of two up to what the context holds, and that itself."""
        return _powers(self.context - 2 * self.segment + 1)

    @property
    def tokens_of_block(self) -> int:
        """Tokens of all windows of one block."""
        of_contexts = sum(-(-self.block // self.scored_at_once(c)) * (c + 1) for c in self.contexts)
        return of_contexts + sum(2 * (gap + 2 * self.segment) for gap in self.gaps)

    def windows_at_once(self, blocks: int) -> list[list[int]]:
        """Lengths of the windows of so many blocks, those together that go through the model together."""
        of_contexts = [[c + 1] * (-(-self.block // self.scored_at_once(c)) * blocks) for c in self.contexts]
        return of_contexts + [[gap + 2 * self.segment] * blocks for gap in self.gaps]

    def scored_at_once(self, context: int) -> int:
        """Targets of one window of this context length."""
        return min(self.block, max(1, context // _SPREAD))

    def in_parts(self, blocks: Sequence[Window]) -> list[dict[int, Window]]:
        """The blocks with their numbers, in parts of about equal work."""
        size = max(1, _PART_TOKENS // self.tokens_of_block)
        numbered = list(enumerate(blocks))
        return [dict(numbered[at : at + size]) for at in range(0, len(blocks), size)]


def _powers(most: int) -> list[int]:
    found = [1 << power for power in range(most.bit_length())]
    return found if found[-1] == most else [*found, most]


def blocks_of(regions: Sequence[Region], plan: Plan) -> list[Window]:
    """Blocks of targets in the order of the regions, evenly spread over all that have the context before them.

    Raises UserError where no region is long enough.
    """
    counts = [max(0, region.end - region.start - plan.context) // plan.block for region in regions]
    total = sum(counts)
    if not total:
        longest = max(region.end - region.start for region in regions)
        raise UserError(
            f"regions: found at most {longest:,} bases in one, wanted {plan.context + plan.block:,}: a block of "
            f"{plan.block:,} targets and a context of {plan.context:,} before it; give longer regions, or a smaller "
            "--context or --block"
        )
    wanted = min(total, max(1, plan.targets // plan.block))
    ends = np.cumsum(counts)
    found = []
    for number in range(wanted):
        place = (2 * number + 1) * total // (2 * wanted)
        region = int(np.searchsorted(ends, place, side="right"))
        within = place - int(ends[region]) + counts[region]
        first = plan.context + within * plan.block
        found.append(Window(region, first, first + plan.block, first))
    return found


def check_known(genome: Genome, regions: Sequence[Region], blocks: Sequence[Window]) -> None:
    """Raise UserError unless one of the targets at least is a known base."""
    if not any(is_base(tokens(genome, regions[block.region], block)).any() for block in blocks):
        raise UserError(f"regions: found no A, C, G or T among {len(blocks):,} blocks of targets; give other regions")


def context_windows(block: Window, context: int, plan: Plan) -> Iterator[Window]:
    """Windows of `context` + 1 bases whose last ones are the block's, the very last with `context` bases before it."""
    step = plan.scored_at_once(context)
    for first in range(block.first, block.last, step):
        last = min(first + step, block.last)
        yield Window(block.region, last - 1 - context, last, first)


def repeat_window(block: Window, gap: int, plan: Plan) -> Window:
    """The block's first bases, the gap before them, and as many bases before that as the segment has."""
    return Window(block.region, block.first - gap - plan.segment, block.first + plan.segment, block.first)


class Measurement:
    """Sums of losses over the windows of blocks. On a grid all ranks of a sequence group call its methods: collective."""

    def __init__(self, predictor: Predictor, genome: Genome, regions: Sequence[Region], plan: Plan, batch: int | None):
        self._predictor, self._genome, self._regions = predictor, genome, regions
        self._plan, self._batch = plan, batch

    def rows(self, blocks: Mapping[int, Window]) -> list[Row]:
        """What is measured of some blocks, which have numbers."""
        plan = self._plan
        # The longest windows first: filters are held as the longest so far has them, whichever part a process begins with.
        lengths = [(context + 1, CONTEXT, context) for context in plan.contexts]
        lengths += [(gap + 2 * plan.segment, ALONE, gap) for gap in plan.gaps]
        found = []
        for _, about, at in sorted(lengths, reverse=True):
            found += self._by_context(blocks, at) if about == CONTEXT else self._by_gap(blocks, at)
        return found

    def _by_context(self, blocks: Mapping[int, Window], context: int) -> list[Row]:
        plan = self._plan
        owned = [(number, window) for number in blocks for window in context_windows(blocks[number], context, plan)]
        sums: defaultdict[tuple[int, str, int], _Sums] = defaultdict(_Sums)
        results = self._losses([window for _, window in owned])
        for (number, window), (before_m, loss_m) in zip(owned, results, strict=True):
            target_m = before_m >= window.scored - window.first
            sums[number, CONTEXT, context].add(loss_m[target_m], before_m[target_m])
            if context == plan.context:
                bin_m = bins(before_m)
                for each in np.unique(bin_m).tolist():
                    sums[number, POSITION, 1 << each].add(loss_m[bin_m == each], before_m[bin_m == each])
        return [(*key, each.loss, each.targets, each.before) for key, each in sums.items()]

    def _by_gap(self, blocks: Mapping[int, Window], gap: int) -> list[Row]:
        plan = self._plan
        windows = [repeat_window(block, gap, plan) for block in blocks.values()]
        found: list[Row] = []
        for about, copied in ((ALONE, 0), (REPEATED, plan.segment)):
            for number, (before_m, loss_m) in zip(blocks, self._losses(windows, copied), strict=True):
                second_m = before_m >= plan.segment + gap
                sums = _Sums()
                sums.add(loss_m[second_m], before_m[second_m])
                found.append((number, about, gap, sums.loss, sums.targets, sums.before))
        return found

    def _losses(self, windows: Sequence[Window], copied: int = 0) -> Iterator[tuple[Integers, Floats]]:
        """For each window, of its known bases but the first: how many bases precede each, and its loss in nats.

        With `copied` its first bases are first overwritten by as many of its last ones.
        """
        ids = [tokens(self._genome, self._regions[window.region], window) for window in windows]
        if copied:
            ids = [np.concatenate((ids_n[-copied:], ids_n[copied:])) for ids_n in ids]
        for ids_n, log_p_n in zip(ids, log_probabilities(self._predictor, ids, self._batch), strict=True):
            before_m = np.flatnonzero(is_base(ids_n) & ~np.isnan(log_p_n))
            yield before_m, -log_p_n[before_m].astype(np.float64)


@dataclass
class _Sums:
    """Sums over bases."""

    loss: float = 0.0
    targets: int = 0
    before: int = 0

    def add(self, loss_m: Floats, before_m: Integers) -> None:
        self.loss += float(loss_m.sum())
        self.targets += len(loss_m)
        self.before += int(before_m.sum())


def bins(before_m: Integers) -> Integers:
    """0 for 1 base before, 1 for 2, 2 for 3 to 4, 3 for 5 to 8 ...: the bin k ends with 2^k."""
    return np.frexp(before_m - 1)[1].astype(np.int64)


def stream_of(
    genome: Genome, regions: Sequence[Region], blocks: Sequence[Window], context: int
) -> tuple[Codes, NDArray[np.int32]]:
    """(n), (n): codes of all blocks and the `context` bases before each, every base once, in order, with an unknown one
    wherever bases are left out; and for each the number of the block that it is a target of, or -1."""
    codes: list[Codes] = []
    numbers: list[NDArray[np.int32]] = []
    region, done = -1, 0
    for number, block in enumerate(blocks):
        first = block.first - context
        if block.region != region or first > done:
            codes.append(np.array([UNKNOWN], dtype=np.uint8))
            numbers.append(np.array([-1], dtype=np.int32))
        else:
            first = done
        window = Window(block.region, first, block.last, block.first)
        codes.append(codes_of(tokens(genome, regions[block.region], window)))
        own_n = np.full(block.last - first, -1, dtype=np.int32)
        own_n[block.first - first :] = number
        numbers.append(own_n)
        region, done = block.region, block.last
    return np.concatenate(codes), np.concatenate(numbers)
