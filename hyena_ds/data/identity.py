"""What a run's data are, whatever their place: the list of its shards' digests, and its comparison with another.

    index of every source --> ShardList --text--> RUN/shards.json; its digest --> the manifest of every checkpoint

Two lists are equal when the same bytes would be trained on in the same order: the index is in it whole, with offsets and
coordinates. A digest of every chunk is kept so that a difference can be named.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hyena_ds.data.shards import Shard, ShardIndex, json_lines
from hyena_ds.errors import UserError

SHARDS = "shards.json"
_FORMAT = "hyena-ds shard list 1"
_MOST_BYTES = 1 << 28
_OTHER_SHARD = {
    "file": "found {new.file} in its place",
    "split": "found split {new.split}",
    "bytes": "found {new.bytes:,} bytes, wanted {old.bytes:,}",
    "sha256": "found SHA-256 {new.sha256:.12}, wanted {old.sha256:.12}",
}
"""What two lists must agree on besides the chunks, and what is said where they do not."""


@dataclass(frozen=True)
class ListedShard(Shard):
    """One shard of a source."""

    chunks: tuple[str, ...]
    """Key, and digest of what the index says of it, of each of its chunks, in their order."""


@dataclass(frozen=True)
class ListedSource:
    """The shards of one source."""

    index: str
    """SHA-256 of the index's canonical text (`ShardIndex.to_json`)."""
    shards: tuple[ListedShard, ...]


@dataclass(frozen=True)
class ShardList:
    """The data of a run, source by source in the config's order."""

    sources: tuple[ListedSource, ...]

    @classmethod
    def of(cls, indices: Sequence[ShardIndex]) -> ShardList:
        """The list of sources with these indices."""
        return cls(tuple(_listed(index) for index in indices))

    @property
    def text(self) -> str:
        """What shards.json holds: a shard a line."""
        sources = []
        for source in self.sources:
            shards = json_lines(json.dumps(vars(shard)) for shard in source.shards)
            sources.append(f'{{"index": {json.dumps(source.index)}, "shards": {shards}}}')
        return f'{{"format": {json.dumps(_FORMAT)}, "sources": [\n' + ",\n".join(sources) + "\n]}\n"

    @property
    def digest(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def count(self) -> int:
        """Shards of all sources."""
        return sum(len(source.shards) for source in self.sources)

    def difference(self, now: ShardList) -> str | None:
        """The first thing in which `now` is not this list; None when they are equal."""
        if len(self.sources) != len(now.sources):
            return f"data.sources: found {len(now.sources)} sources, wanted {len(self.sources)}"
        for number, (before, after) in enumerate(zip(self.sources, now.sources, strict=True)):
            if before != after:
                return f"data.sources.{number}: {_difference(before, after)}"
        return None


def read_shard_list(file: Path) -> ShardList | None:
    """The list in `file`; None where there is none. Raises UserError when it is damaged."""
    if not file.exists():
        return None
    try:
        if not file.is_file() or file.stat().st_size > _MOST_BYTES:
            raise ValueError("no plain file of a moderate size")
        text = file.read_text(encoding="utf-8")
        raw = json.loads(text)
        found = ShardList(tuple(_source(source) for source in raw["sources"]))
        if found.text != text:
            raise ValueError("not the text of a list")
        return found
    except (OSError, ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
        why = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise UserError(f"{file}: found no readable list of shards ({why}): the file is damaged; remove it") from None


def _listed(index: ShardIndex) -> ListedSource:
    chunks: list[list[str]] = [[] for _ in index.shards]
    rows = list(index.chunks.json_rows())
    for key, shard, row in zip(index.chunks.keys, index.chunks.shard.tolist(), rows, strict=True):
        chunks[shard].append(f"{key} {hashlib.sha256(row.encode()).hexdigest()[:12]}")
    pairs = zip(index.shards, chunks, strict=True)
    shards = (ListedShard(**dataclasses.asdict(shard), chunks=tuple(digests)) for shard, digests in pairs)
    return ListedSource(hashlib.sha256(index.to_json(rows).encode()).hexdigest(), tuple(shards))


def _difference(before: ListedSource, after: ListedSource) -> str:
    for old, new in zip_longest(before.shards, after.shards):
        if old is None:
            return f"shard {new.file} ({new.split}): it was not there"
        if new is None:
            return f"shard {old.file} ({old.split}): it is missing"
        for name, said in _OTHER_SHARD.items():
            if getattr(old, name) != getattr(new, name):
                return f"shard {old.file} ({old.split}): {said.format(old=old, new=new)}"
    for old, new in zip(before.shards, after.shards, strict=True):
        for was, now in zip(old.chunks, new.chunks, strict=False):
            if was != now:
                key = now.rpartition(" ")[0]
                return f"chunk {key} of shard {new.file}: the index has another offset, coordinates or runs of it"
        if len(old.chunks) != len(new.chunks):
            return f"shard {new.file}: the index has {len(new.chunks)} chunks of it, wanted {len(old.chunks)}"
    return "the index has another assembly, chunk length or order of its chunks"


def _source(raw: dict[str, Any]) -> ListedSource:
    shards = (ListedShard(**{**shard, "chunks": tuple(shard["chunks"])}) for shard in raw["shards"])
    return ListedSource(raw["index"], tuple(shards))
