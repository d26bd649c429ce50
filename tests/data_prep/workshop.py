"""A workshop for prep tests: small genomes, configs and the command line, all in one temporary directory."""

from __future__ import annotations

import gzip
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from hyena_ds.cli import main

BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The last line on standard error, where the one error sentence stands."""
        return self.err.strip().splitlines()[-1]


class Workshop:
    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]):
        self.directory = directory
        self._capsys = capsys

    @property
    def output(self) -> Path:
        return self.directory / "shards"

    @property
    def partial(self) -> Path:
        return self.directory / "shards.partial"

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.directory / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def fasta(self, records: dict[str, str], name: str = "genome.fa", width: int = 60, end: str = "\n") -> Path:
        return self.write(name, fasta_text(records, width, end))

    def config(self, name: str = "prep.yaml", **changes: Any) -> str:
        """A config of small chunks over genome.fa; `changes` replace keys, None removes one."""
        keys: dict[str, Any] = {
            "fasta": str(self.directory / "genome.fa"),
            "assembly": "tiny",
            "output": str(self.output),
            "chunk_length": 100,
            "chunks_per_shard": 3,
            "splits": {"by_fraction": {"train": 0.8, "valid": 0.2}},
        }
        keys.update(changes)
        kept = {key: value for key, value in keys.items() if value is not None}
        return str(self.write(name, yaml.safe_dump(kept, sort_keys=False)))

    def run(self, *arguments: str) -> Outcome:
        """The command line, in this process."""
        self._capsys.readouterr()
        code = main(["prep", *arguments])
        captured = self._capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    def build(self, *overrides: str, **changes: Any) -> Outcome:
        outcome = self.run("build", self.config(**changes), *overrides)
        assert outcome.code == 0, outcome.err
        return outcome

    def process(self, *arguments: str) -> subprocess.Popen[str]:
        """The command line, in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "data_prep", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def listing(self) -> dict[str, bytes]:
        """Every file below the workshop, with its bytes."""
        return files_of(self.directory)


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def fasta_text(records: dict[str, str], width: int = 60, end: str = "\n") -> str:
    lines = []
    for name, sequence in records.items():
        lines.append(f">{name} of a test")
        lines += [sequence[start : start + width] for start in range(0, len(sequence), width)]
    return end.join(lines) + end


def random_bases(length: int, seed: int = 0, letters: str = "ACGT") -> str:
    return "".join(random.Random(seed).choices(letters, k=length))


def bgzip(data: bytes, block: int = 1000) -> bytes:
    """BGZF as the SAM specification has it: gzip members with their size in an extra field, and an empty last one."""
    members = []
    for start in range(0, len(data), block):
        piece = data[start : start + block]
        packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        body = packer.compress(piece) + packer.flush()
        size = len(body) + 25
        header = b"\x1f\x8b\x08\x04" + bytes(4) + b"\x00\xff" + struct.pack("<HBBHH", 6, 66, 67, 2, size)
        members.append(header + body + struct.pack("<II", zlib.crc32(piece), len(piece)))
    return b"".join([*members, BGZF_END])


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)
