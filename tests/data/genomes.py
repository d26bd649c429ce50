"""Small genomes as shards, and what the shards must hold, worked out from the letters alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.build import build
from data_prep.config import PrepConfig, SplitsConfig
from hyena_ds.config.arithmetic import StagePlan
from hyena_ds.config.schedule import StageConfig
from hyena_ds.config.schema import DataConfig, SourceConfig
from hyena_ds.data.track import Track

TOKENS = {"A": 7, "C": 8, "G": 9, "T": 10, "N": 11}
UNKNOWN, SEP, IGNORED = 6, 1, -100
IGNORED_TOKENS = {"n": 11, "unknown": UNKNOWN}
CHUNK = 64


def _bases(length: int, seed: int) -> str:
    return "".join(random.Random(seed).choices("ACGTacgt", k=length))


GENOME = {
    # N over all of the chunks at 128 and 192, so that the track has a gap there; a few letters of unknown.
    "chrA": _bases(120, 1) + "N" * 140 + _bases(70, 2) + "RYk" + _bases(200, 3) + "n" * 9 + _bases(300, 4),
    "chrB": "N" * 30 + _bases(90, 5) + "S" + _bases(220, 6),
    "chrC": _bases(20, 7),
    # Longer than a window of 16, and nothing to score in most of them.
    "chrD": "NNN" + _bases(2, 8) + "N" * 55 + _bases(4, 9),
    "chrV": "N" * 20 + _bases(250, 10) + "N" * 3 + _bases(100, 11),
}


def write_shards(
    directory: Path, records: dict[str, str], valid: tuple[str, ...] = ("chrV",), chunk: int = CHUNK
) -> Path:
    """Shards of 3 chunks of `chunk` bases in DIRECTORY/shards."""
    directory.mkdir(parents=True, exist_ok=True)
    fasta = directory / "genome.fa"
    fasta.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in records.items()))
    output = directory / "shards"
    splits = SplitsConfig(by_chromosome={"valid": valid, "train": ()})
    build(PrepConfig(str(fasta), "tiny", str(output), splits, chunk_length=chunk, chunks_per_shard=3), "prep.yaml")
    return output


def tokens_of(letters: str) -> NDArray[np.uint8]:
    return np.array([TOKENS.get(letter, UNKNOWN) for letter in letters.upper()], dtype=np.uint8)


def other_strand(letters: str) -> str:
    return letters.upper().translate(str.maketrans("ACGT", "TGCA"))[::-1]


def letters_at(track: Track, start: int, length: int) -> str:
    """What the FASTA has where the track says a window lies; it must lie in one chromosome without a gap."""
    origin = track.origin(start, length, "+")
    return GENOME[origin.chromosome][origin.start : origin.end]


def track_letters(track: Track) -> str:
    return "".join(GENOME[chunk.chromosome][chunk.start : chunk.end] for chunk in track.chunks)


def scored_mask(tokens: NDArray[np.uint8], ignore: tuple[str, ...]) -> NDArray[np.bool_]:
    return ~np.isin(tokens, [IGNORED_TOKENS[name] for name in ignore])


def data_config(*shards: Path, weights: tuple[float, ...] = (), **changes: Any) -> DataConfig:
    sources = zip(shards, weights or (1.0,) * len(shards), strict=True)
    return DataConfig(tuple(SourceConfig(str(path), weight) for path, weight in sources), **changes)


def plan(
    context_length: int,
    sequences: int = 4,
    dp: int = 1,
    sp: int = 1,
    micro: int = 1,
    steps: int = 6,
    number: int = 0,
    first_step: int = 0,
) -> StagePlan:
    stage = StageConfig(context_length, steps, micro, global_batch=sequences, sequence_parallel=sp)
    return StagePlan(number, stage, dp, sequences // (dp * micro), first_step, micro, "balanced")
