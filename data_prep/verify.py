"""Compares a directory of shards with the FASTA it was made from: every base, every member, every checksum.

config --regions, plan--> what should be there --+
FASTA --letters to tokens--> expected ids -------+--> first difference as a UserError, or the counts
OUTPUT: index, tars, members --------------------+
"""

from __future__ import annotations

import dataclasses
import json
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.config import PrepConfig
from data_prep.identity import identify, read_identity
from data_prep.plan import NAME_LETTERS, PlannedChunk, plan_shards
from data_prep.regions import divide
from data_prep.writer import make_chunk
from hyena_ds.data.chunks import Chunk
from hyena_ds.data.shards import Shard, ShardIndex, map_tokens, read_index, sha256_of
from hyena_ds.errors import UserError
from hyena_ds.genome import tokenizer
from hyena_ds.genome.fasta import Genome, open_genome
from hyena_ds.genome.letters import Bytes, letter_name

_NAMES = {token: name for name, token in (*tokenizer.LETTERS.items(), *tokenizer.SPECIALS.items())}


def verify(config: PrepConfig, config_name: str) -> str:
    """Check `config.output` against `config.fasta`: UserError with the first difference, or what was checked."""
    output = Path(config.output)
    index = read_index(output)
    made = read_identity(output)
    if made is None:
        raise UserError(
            f"{output}: found no readable prep.json, wanted shards of `hyena-ds prep build`; prepare them again"
        )
    wanted = identify(config)
    if made.settings != wanted.settings:
        changed = made.difference(dataclasses.replace(wanted, fasta=made.fasta, bed=made.bed))
        raise UserError(f"{output}: was made with another config ({changed}); verify it with the config that made it")
    with _work_directory(output) as work:
        genome = open_genome(Path(config.fasta), Path(work), config.limits.fasta_bytes).genome
        plan = plan_shards(divide(config, config_name, genome).regions, config.chunk_length, config.chunks_per_shard)
        planned = {chunk.key: chunk for shard in plan for chunk in shard.chunks}
        comparison = _Comparison(output, index, genome, planned, config.token_table())
        comparison.check_shards()
        comparison.check_nothing_missing()
        genome.close()
    bases = sum(chunk.length for chunk in index.chunks)
    return (
        f"{output}: {bases:,} bases in {len(index.chunks):,} chunks and {len(index.shards):,} shards agree with "
        f"{config.fasta}, and so do all sizes and SHA-256 sums"
    )


@contextmanager
def _work_directory(output: Path) -> Iterator[str]:
    """A directory beside the shards for the duration of a check; a disk that has no room for it is one sentence."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{output.name[:NAME_LETTERS]}.verify-", dir=output.parent) as work:
            yield work
    except OSError as error:
        raise UserError(
            f"{error.filename or output}: cannot be read, or a copy of the FASTA not be laid beside the shards "
            f"({error.strerror}); make {output.parent} writable, with room for the genome"
        ) from None


@dataclass(frozen=True)
class _Comparison:
    """Shards, and what should be in them."""

    output: Path
    index: ShardIndex
    genome: Genome
    planned: dict[str, PlannedChunk]
    """By the chunk's key."""
    table: Bytes

    def check_shards(self) -> None:
        output, index = self.output, self.index
        by_shard: dict[int, list[Chunk]] = {}
        for chunk in index.chunks:
            by_shard.setdefault(chunk.shard, []).append(chunk)
        with tqdm(
            total=sum(chunk.length for chunk in index.chunks), unit="base", unit_scale=True, desc="verify"
        ) as bar:
            for position, shard in enumerate(index.shards):
                digest_agrees = sha256_of(output / shard.file) == shard.sha256
                tokens = map_tokens(output, shard)
                for chunk in by_shard.get(position, []):
                    self._check_chunk(output / shard.file, chunk, tokens, digest_agrees)
                    bar.update(chunk.length)
                if not digest_agrees:
                    raise UserError(
                        f"{output / shard.file}: its tokens agree with the FASTA, but its bytes do not match the SHA-256 "
                        "in the index: the tar's own structure or metadata is damaged; prepare the shards again"
                    )
                try:
                    _check_members(output, shard, by_shard.get(position, []))
                except (tarfile.TarError, ValueError, RecursionError) as error:
                    raise UserError(
                        f"{output / shard.file}: cannot be read as a tar of chunks ({error}); prepare the shards again"
                    ) from None

    def _check_chunk(self, path: Path, chunk: Chunk, tokens: Bytes, digest_agrees: bool) -> None:
        place = f"{chunk.chromosome}:{chunk.start}-{chunk.end}"
        if not 0 <= chunk.start < chunk.end <= self.genome.lengths().get(chunk.chromosome, 0):
            raise UserError(f"{path}: holds {place}, which the FASTA does not have; is it of another assembly?")
        text = self.genome.read(chunk.chromosome, chunk.start, chunk.end)
        expected = self.table[text]
        found = tokens[chunk.offset : chunk.offset + chunk.length]
        if not np.array_equal(found, expected):
            at = int(np.flatnonzero(found != expected)[0])
            blame = "the FASTA is not the one they were made from" if digest_agrees else "the shard is damaged"
            raise UserError(
                f"{path}: {chunk.chromosome}:{chunk.start + at} (byte {chunk.offset + at} of the tar): found token "
                f"{_token(found[at])}, wanted {_token(expected[at])} for the letter {letter_name(int(text[at]))}; {blame}, "
                "prepare the shards again"
            )
        item = self.planned.get(chunk.key)
        if item is None or PlannedChunk(chunk.chromosome, chunk.start, chunk.end, chunk.split, item.number) != item:
            raise UserError(
                f"{path}: the chunk '{chunk.key}' ({chunk.split} {place}) is not one that config and FASTA ask for; "
                "prepare the shards again"
            )
        made = make_chunk(item, chunk.assembly, text, self.table)
        again = None if made is None else dataclasses.replace(made[1], shard=chunk.shard, offset=chunk.offset)
        if again != chunk:
            raise UserError(f"{path}: the index is wrong about the chunk '{chunk.key}'; prepare the shards again")

    def check_nothing_missing(self) -> None:
        present = {chunk.key for chunk in self.index.chunks}
        for key, item in self.planned.items():
            if key not in present:
                text = self.genome.read(item.chromosome, item.start, item.end)
                if make_chunk(item, self.index.assembly, text, self.table) is not None:
                    raise UserError(
                        f"{self.output}: {item.chromosome}:{item.start}-{item.end} ({item.split}) holds bases, but no shard has "
                        "it; prepare the shards again"
                    )


def _token(token: np.uint8) -> str:
    return f"{int(token)} ({_NAMES.get(int(token), 'unused')})"


def _check_members(output: Path, shard: Shard, chunks: list[Chunk]) -> None:
    """The tar as its readers see it: a pair of members for each chunk, metadata as in the index."""
    path = output / shard.file
    wanted = [name for chunk in chunks for name in (f"{chunk.key}.json", f"{chunk.key}.tokens")]
    with tarfile.open(path, mode="r:") as tar:
        members = {member.name: member for member in tar}
        if list(members) != wanted:
            raise UserError(f"{path}: its members are not those of the index; prepare the shards again")
        for chunk in chunks:
            file = tar.extractfile(members[f"{chunk.key}.json"])
            metadata = json.loads(file.read()) if file else None
            if metadata != json.loads(json.dumps(chunk.metadata())):
                raise UserError(f"{path}: {chunk.key}.json differs from the index; prepare the shards again")
            place = members[f"{chunk.key}.tokens"]
            if (place.offset_data, place.size) != (chunk.offset, chunk.length):
                raise UserError(f"{path}: {chunk.key}.tokens is not where the index says; prepare the shards again")
