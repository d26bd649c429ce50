"""What one prep run is: the schema of the files in `configs/prep/`.

    YAML + key.path=value overrides --hyena_ds.config.loading--> PrepConfig --> build, verify, download

Every path is relative to the current directory. Lengths and coordinates are in bases, 0-based and half-open.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from hyena_ds.config.limits import ABOVE_0, MOST_SECONDS, MOST_WORKERS, Bound, Bounded
from hyena_ds.config.loading import load_yaml, require, to_plain
from hyena_ds.genome.letters import Bytes, token_table
from hyena_ds.genome.scan import LONGEST_NAME
from hyena_ds.genome.splits import SPLITS

LONGEST_CHUNK = 2**30
"""A chunk is held in memory as one piece; a tar member must stay below 8 GiB."""
MOST_ATTEMPTS = 1000
MOST_CHUNKS_PER_SHARD = 2**20
MOST_GIB = 2**20
"""Bounds every limit: a pebibyte."""
_Size = Annotated[float, Bound(ABOVE_0, MOST_GIB)]


@dataclass(frozen=True)
class LimitsConfig(Bounded):
    """What an input may hold. One that goes beyond is refused as soon as it does, before it fills memory or disk."""

    fasta_gib: _Size = 256.0
    """GiB of the FASTA, unpacked."""
    bed_mib: _Size = 64.0
    """MiB of the BED, unpacked: some millions of lines. Each takes about 200 bytes of memory."""

    @property
    def fasta_bytes(self) -> int:
        """Bytes that a FASTA file may have once it is unpacked."""
        return int(self.fasta_gib * 2**30)

    @property
    def bed_bytes(self) -> int:
        """Bytes that a BED file may have once it is unpacked."""
        return int(self.bed_mib * 2**20)


@dataclass(frozen=True)
class SplitsConfig:
    """Which bases belong to train, valid and test: exactly one of `by_fraction`, `by_chromosome` and `bed`."""

    by_fraction: dict[str, float] | None = None
    """Split -> fraction of each chromosome's bases that are not N, in the order of the keys, from its start.

    Every region begins and ends with a base that is not N. Fractions may sum to less than 1: the rest is left out.
    """
    by_chromosome: dict[str, tuple[str, ...]] | None = None
    """Split -> its chromosomes; an empty list means every chromosome that no other split names (once at most)."""
    bed: str | None = None
    """A file of `chromosome start end split`, plain or gzip. Regions of one split that overlap or touch are merged."""
    bed_names: dict[str, str] = field(default_factory=dict)
    """Word of the BED's fourth column -> split, for files with folds: `{fold0: test, fold1: valid, fold2: train}`."""

    def __post_init__(self) -> None:
        rules = {"by_fraction": self.by_fraction, "by_chromosome": self.by_chromosome, "bed": self.bed}
        given = [name for name, rule in rules.items() if rule is not None]
        found, field = " and ".join(given) or "none of them", given[1] if len(given) > 1 else "by_fraction"
        require(len(given) == 1, field, f"found {found}, wanted exactly one of {', '.join(rules)}")
        if self.by_fraction is not None:
            _check_fractions(self.by_fraction)
        if self.by_chromosome is not None:
            _check_chromosomes(self.by_chromosome)
        if self.bed is not None:
            _check_text("bed", self.bed)
        named = not self.bed_names or self.bed is not None
        require(named, "bed_names", "found names without a BED, wanted the key 'bed' beside them")
        for name, split in self.bed_names.items():
            require(split in SPLITS, "bed_names", f"found '{split}' for '{name}', wanted {' or '.join(SPLITS)}")


def _check_fractions(fractions: dict[str, float]) -> None:
    _check_split_names("by_fraction", fractions)
    for split, fraction in fractions.items():
        problem = f"found {fraction} for {split}, wanted a number above 0 and at most 1"
        require(0 < fraction <= 1, "by_fraction", problem)
    total = math.fsum(fractions.values())
    require(total <= 1 + 1e-9, "by_fraction", f"found fractions that sum to {total:g}, wanted at most 1")


def _check_chromosomes(splits: dict[str, tuple[str, ...]]) -> None:
    _check_split_names("by_chromosome", splits)
    rest = [split for split, names in splits.items() if not names]
    problem = f"found empty lists for {' and '.join(rest)}, wanted one at most"
    require(len(rest) <= 1, "by_chromosome", problem)
    owner: dict[str, str] = {}
    for split, names in splits.items():
        for name in names:
            problem = f"found '{name}' in {owner.get(name)} and again in {split}, wanted it in one split"
            require(name not in owner, "by_chromosome", problem)
            owner[name] = split


def _check_text(name: str, value: str) -> None:
    """Raise Invalid unless `value` can be the name of something, in a file and on a terminal."""
    require(bool(value.strip()), name, "found an empty text, wanted a name")
    plain = not any(ord(letter) < 32 or ord(letter) == 127 or "\ud800" <= letter <= "\udfff" for letter in value)
    require(plain, name, "found a control character, wanted a name without any")


def _check_split_names(rule: str, splits: Collection[str]) -> None:
    require(bool(splits), rule, f"found no split, wanted some of {', '.join(SPLITS)}")
    for name in splits:
        require(name in SPLITS, rule, f"found the split '{name}', wanted {' or '.join(SPLITS)}")


@dataclass(frozen=True)
class DownloadConfig(Bounded):
    """Where `hyena-ds prep download` gets the FASTA that the key `fasta` names."""

    name: str
    """A published assembly (`hg38`, `hs1`), or any word when `url` is given."""
    url: str | None = None
    """Another place to read from, for instance a mirror."""
    checksums: str | None = None
    """Address of the list of MD5 sums; without it, `md5sum.txt` beside the file."""
    attempts: Annotated[int, Bound(1, MOST_ATTEMPTS)] = 8
    """Attempts in a row that bring no byte before giving up; the pauses between them grow."""
    first_pause: Annotated[float, Bound(0, MOST_SECONDS)] = 1.0
    """Seconds before the second attempt; each further pause is twice as long, 60 at most."""
    gib: _Size = 64.0
    """GiB that the file may have; the download of a longer one is stopped there and thrown away."""


@dataclass(frozen=True)
class PrepConfig(Bounded):
    """One prep run: a FASTA, a rule that splits it, and a directory of shards."""

    fasta: str
    """The genome: plain text, gzip or bgzip, recognised by its first bytes, not by its name."""
    assembly: str
    """Name of the assembly, written into every chunk's metadata."""
    output: str
    """Directory of the shards. It is complete or does not exist; unfinished work lies in `OUTPUT.partial`."""
    splits: SplitsConfig
    chunk_length: Annotated[int, Bound(1, LONGEST_CHUNK)] = 1048576
    """Bases of a chunk. The last chunk of a region is shorter, and kept."""
    chunks_per_shard: Annotated[int, Bound(1, MOST_CHUNKS_PER_SHARD)] = 16
    """Chunks planned for each tar; those that hold only N are then dropped."""
    chromosomes: tuple[str, ...] = ()
    """The records to use; empty means all of them."""
    required_splits: tuple[str, ...] = ("train", "valid")
    """Splits that must not come out empty."""
    overlap: Literal["refuse", "trim"] = "refuse"
    """When BED regions of two splits overlap: stop, or leave the bases to test before valid before train."""
    fold_case: bool = True
    """Read lower-case (soft-masked) letters as upper case. When false they become unknown, as published."""
    ambiguous_letters: Literal["unknown", "n"] = "unknown"
    """What R Y S W K M B D H V become."""
    other_letters: Literal["unknown", "n", "refuse"] = "unknown"
    """What any other letter (U and gaps included) becomes; `refuse` stops and names the first one."""
    workers: Annotated[int, Bound(1, MOST_WORKERS)] = 1
    """Processes that write shards. The bytes do not depend on it."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    download: DownloadConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("fasta", "assembly", "output"):
            _check_text(name, getattr(self, name))
        size = len(self.assembly.encode())
        require(size <= LONGEST_NAME, "assembly", f"found {size} bytes, wanted at most {LONGEST_NAME}")
        named = Path(self.output).name not in ("", "..")
        require(named, "output", f"found '{self.output}', wanted the name of a directory to make")
        for split in self.required_splits:
            require(split in SPLITS, "required_splits", f"found '{split}', wanted some of {', '.join(SPLITS)}")
        for name, count in Counter(self.chromosomes).items():
            require(count == 1, "chromosomes", f"found '{name}' twice, wanted it once")

    def settings(self) -> dict[str, Any]:
        """What the bytes of the shards depend on, beside the contents of the input files."""
        plain: dict[str, Any] = to_plain(self)
        for place in ("fasta", "output", "workers", "limits", "download"):
            del plain[place]
        plain["splits"]["bed"] = self.splits.bed is not None
        # Sets of names: their order changes nothing, the order of `by_fraction` does.
        plain["chromosomes"] = sorted(self.chromosomes)
        plain["splits"]["by_fraction"] = self.splits.by_fraction and [*map(list, self.splits.by_fraction.items())]
        return plain

    def token_table(self) -> Bytes:
        """The token of each letter, by the rules of the config."""
        return token_table(self.fold_case, self.ambiguous_letters == "n", self.other_letters == "n")


def load_config(path: str, overrides: list[str] | None = None) -> PrepConfig:
    """Read a file of `configs/prep/`; UserError names file, line and key of what is wrong."""
    return load_yaml(path, PrepConfig, overrides)
