"""Fetches shards from afar before they are read: a thread of the training process.

    step reached --> the group of shards under way, then the next one --those not here yet--> ShardCache

Each rank of a node has one; what one fetches the others pass over, so a node fetches as many shards at once as it has
ranks. A shard that does not come is left to whoever reads it, who says so. Nothing waits for this thread.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue

from hyena_ds.config.remote import is_afar
from hyena_ds.data.remote.fetching import Stopped
from hyena_ds.data.remote.shard_cache import ShardCache
from hyena_ds.data.shards import Shard
from hyena_ds.data.stream import StageStream
from hyena_ds.errors import UserError

_LEAVES_SECONDS = 2.0


class Ahead:
    """Fetching for one stage. The stream is the thread's own."""

    def __init__(self, stream: StageStream):
        self._stream = stream
        self._cache = ShardCache(stream.sources.config.cache)
        self._room = stream.sources.config.cache.bytes
        self._steps: SimpleQueue[int | None] = SimpleQueue()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="shards ahead")
        self._thread.start()

    def reached(self, step: int) -> None:
        """The reader is at `step`, numbered within the stage."""
        self._steps.put(step)

    def close(self) -> None:
        """End the thread; one in the middle of a silent connection is left to end by itself."""
        self._over.set()
        self._steps.put(None)
        self._thread.join(_LEAVES_SECONDS)

    def _run(self) -> None:
        done: list[tuple[str, Shard]] = []
        for step in iter(self._steps.get, None):
            if not self._steps.empty():  # the reader is further by now
                continue
            wanted = self._wanted(step)
            if wanted != done:
                self._fetch(wanted)
                done = wanted

    def _wanted(self, step: int) -> list[tuple[str, Shard]]:
        """The shards of the group under way, and of the next one where the cache has room for both."""
        now: list[tuple[str, Shard]] = []
        later: list[tuple[str, Shard]] = []
        for source, groups in enumerate(self._stream.groups(step)):
            place = self._stream.sources.config.sources[source].shards
            if is_afar(place):
                shards = self._stream.sources.tracks[source].index_by_file
                now += [(place, shards[file]) for file in groups[0]]
                later += [(place, shards[file]) for file in groups[1] if file not in groups[0]]
        fits = sum(shard.bytes for _, shard in now + later) <= self._room
        return now + later if fits else now

    def _fetch(self, wanted: list[tuple[str, Shard]]) -> None:
        for place, shard in wanted:
            if self._over.is_set():
                return
            try:
                self._cache.fetch(place, shard, wait=False, stopped=self._over)
            except (UserError, Stopped):
                return
