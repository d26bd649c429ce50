"""The windows of one context length on a track, and the order in which an epoch draws them.

    segment --tiled every L bases--> slots --those with nothing to score dropped--> kept slots
    epoch --> shards permuted --> groups of `shuffle_shards` shards --> the group's slots shuffled --> window number i

With `random_offset` every epoch shifts the tiling of every segment by its own offset; the last window of a segment is
pulled back to end inside it. A slot whose shifted window has nothing to score falls back to its place in the tiling, so
the number of windows never changes and none is empty.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hyena_ds.data.order import Shuffle, hash64, permutation
from hyena_ds.data.track import Positions, Track
from hyena_ds.errors import UserError

_SHARDS, _WINDOWS, _OFFSET = range(3)  # what a hash is for


class Windows:
    """Windows of `bases` bases (context length L, plus one for the last target) at every L-th base of `track`."""

    def __init__(self, track: Track, context_length: int, bases: int):
        self.track = track
        self.context_length = context_length
        self.bases = bases
        room = track.segment_ends - track.segment_starts - bases
        per_segment = np.where(room >= 0, room // context_length + 1, 0)
        self._first_slot: Positions = np.concatenate(([0], np.cumsum(per_segment)))
        self._shard_bounds = self._slots_by_shard()
        self._first_dropped, self._end_dropped = self._nothing_to_score()
        self._dropped_before: Positions = np.concatenate(([0], np.cumsum(self._end_dropped - self._first_dropped)))
        self.kept_before: Positions = self._kept_before(self._shard_bounds)
        """Kept slots before each of the track's shards, and of all."""
        self.kept_per_shard: Positions = np.diff(self.kept_before)
        self.count = int(self.kept_per_shard.sum())
        if self.count == 0:
            longest = int((track.segment_ends - track.segment_starts).max())
            raise UserError(
                f"{track.place}: found no window of {bases} bases with something to score in the '{track.split}' split "
                f"(its longest gap-free run has {longest}); shorten the context or prepare longer regions"
            )

    def kept(self, numbers: Positions) -> Positions:
        """The slots that hold something to score and have these numbers among those that do."""
        # A dropped range lies before all kept slots whose number is at least that of the slot which begins it.
        ranges = np.searchsorted(self._first_dropped - self._dropped_before[:-1], numbers, side="right")
        found: Positions = numbers + self._dropped_before[ranges]
        return found

    def starts(self, slots: Positions, offsets: Positions | int = 0) -> Positions:
        """First position of each slot's window, shifted by `offsets` as far as its segment allows."""
        segment = self.segment(slots)
        tiled = self.track.segment_starts[segment] + (slots - self._first_slot[segment]) * self.context_length
        return np.minimum(tiled + offsets, self.track.segment_ends[segment] - self.bases)

    def segment(self, slots: Positions) -> Positions:
        """Numbers of the segments that hold the slots."""
        return np.searchsorted(self._first_slot, slots, side="right") - 1

    def _worth(self, starts: Positions) -> NDArray[np.bool_]:
        """Whether windows hold a scored target on either strand: looked for where both strands have targets."""
        return self.track.scored(starts + 1, starts + self.context_length) > 0

    def _slots_by_shard(self) -> Positions:
        """Bounds of the slots of each shard; slots and chunks are both ordered by position."""
        shards = self.track.chunk_shards
        shard_starts = self.track.chunk_starts[np.flatnonzero(np.diff(shards, prepend=-1))]
        return np.append(self._slot_from(shard_starts), self._first_slot[-1])

    def _slot_from(self, positions: Positions) -> Positions:
        """The first slot whose window in the tiling begins at or after each position."""
        segment = np.maximum(np.searchsorted(self.track.segment_starts, positions, side="right") - 1, 0)
        into_segment = np.maximum(positions - self.track.segment_starts[segment], 0)
        slots = self._first_slot[segment] - (-into_segment // self.context_length)
        found: Positions = np.minimum(slots, self._first_slot[segment + 1])
        return found

    def _nothing_to_score(self) -> tuple[Positions, Positions]:
        """Ranges of slots without a scored target on either strand: all of the context's inner tokens lie in one stretch that
        is not scored. As many as there are such stretches, however many slots there are."""
        if self.context_length == 1:  # the one token may be the first of its strand
            return np.zeros(1, np.int64), self._first_slot[-1:]
        begin, end = self.track.ignored_stretches(self.context_length - 1)
        first, beyond = self._slot_from(begin - 1), self._slot_from(end - self.context_length + 1)
        some = first < beyond
        return first[some], beyond[some]

    def _kept_before(self, slots: Positions) -> Positions:
        """How many slots that hold something to score come before each of `slots`."""
        ranges = np.searchsorted(self._first_dropped, slots, side="right")
        last = np.maximum(ranges - 1, 0)
        over = np.maximum(self._end_dropped[last] - slots, 0) if len(self._end_dropped) else np.zeros_like(slots)
        found: Positions = slots - self._dropped_before[ranges] + np.where(ranges > 0, over, 0)
        return found


class EpochOrder:
    """Window number `i` of epoch `e`, as a pure function of the key."""

    def __init__(self, windows: Windows, shuffle_shards: int, random_offset: bool, key: tuple[int, ...]):
        self.windows = windows
        self.key = key
        self.random_offset = random_offset
        self.shuffle_shards = shuffle_shards
        self._epoch_groups = lru_cache(maxsize=2)(self._epoch_groups_uncached)
        self._group_order = lru_cache(maxsize=2)(self._group_order_uncached)

    def start(self, position: int) -> int:
        """First base of the window that is drawn as number `position` (counted over all epochs)."""
        epoch, group, within = self._place(position)
        slot = self._group_slot(epoch, group, self._group_order(epoch, group)[within])
        tiled = self.windows.starts(slot)
        if not self.random_offset:
            return int(tiled[0])
        segment = self.windows.segment(slot)
        offset = hash64(*self.key, _OFFSET, epoch, segment) % np.uint64(self.windows.context_length)
        shifted = self.windows.starts(slot, offset.astype(np.int64))
        return int(np.where(self.windows._worth(shifted), shifted, tiled)[0])

    def shards(self, epoch: int) -> list[str]:
        """Files of the shards that hold windows, in the order in which the epoch takes them."""
        files = self.windows.track.shard_files
        order = (int(shard) for group in self._epoch_groups(epoch)[1] for shard in group)
        return [files[shard] for shard in order if self.windows.kept_per_shard[shard]]

    def groups(self, position: int) -> tuple[list[str], list[str]]:
        """Files of the group of shards that window number `position` is drawn from, and of the group after it."""
        epoch, group, _ = self._place(position)
        groups = self._epoch_groups(epoch)[1]
        after = groups[group + 1] if group + 1 < len(groups) else self._epoch_groups(epoch + 1)[1][0]
        files = self.windows.track.shard_files
        return [files[shard] for shard in groups[group]], [files[shard] for shard in after]

    def nbytes(self, position: int) -> int:
        """Memory that is held of the order of the group that window number `position` is drawn from."""
        return self._group_order(*self._place(position)[:2]).nbytes

    def _place(self, position: int) -> tuple[int, int, int]:
        """Epoch and group of a window, and its number within the group."""
        epoch, i = divmod(position, self.windows.count)
        bounds, _ = self._epoch_groups(epoch)
        group = int(np.searchsorted(bounds, i, side="right")) - 1
        return epoch, group, i - int(bounds[group])

    def _epoch_groups_uncached(self, epoch: int) -> tuple[Positions, list[Positions]]:
        shards = permutation(len(self.windows.kept_per_shard), *self.key, _SHARDS, epoch)
        groups = [shards[i : i + self.shuffle_shards] for i in range(0, len(shards), self.shuffle_shards)]
        sizes = [int(self.windows.kept_per_shard[group].sum()) for group in groups]
        return np.concatenate(([0], np.cumsum(sizes)[:-1])).astype(np.int64), groups

    def _group_slot(self, epoch: int, group: int, number: int) -> Positions:
        """The slot, as an array of one, that is number `number` of its group before the group is shuffled."""
        shards = self._epoch_groups(epoch)[1][group]
        before = np.cumsum(self.windows.kept_per_shard[shards])
        place = int(np.searchsorted(before, number, side="right"))
        within = number - (int(before[place - 1]) if place else 0)
        return self.windows.kept(self.windows.kept_before[shards[place] : shards[place] + 1] + within)

    def _group_order_uncached(self, epoch: int, group: int) -> Shuffle:
        """The order in which a group's kept slots are drawn; they are counted shard by shard."""
        size = int(self.windows.kept_per_shard[self._epoch_groups(epoch)[1][group]].sum())
        return Shuffle(size, *self.key, _WINDOWS, epoch, group)
