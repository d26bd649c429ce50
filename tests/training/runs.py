"""Small real runs: shards of a made genome, a config, and the command that trains on them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hyena_ds.parallel.listening import free_port
from tests.paths import ROOT

TIMEOUT = 180
UNREPEATABLE = (
    *("tokens_per_second", "peak_memory_gib", "exchange_share", "input_wait_seconds", "mfu", "limit_share"),
    *("compute_seconds", "wait_seconds", "slowest_rank", "slowest_times", "slow_ranks"),
)
"""Fields of metrics.jsonl that depend on the machine's mood."""


def make_shards(directory: Path, splits: str = "{train: 0.8, valid: 0.2}", required: str = "[train, valid]") -> Path:
    """Shards of one chromosome of 6,000 bases with an N run in it."""
    letters = "".join(random.Random(1).choices("ACGT", k=6000))
    fasta = directory / "genome.fa"
    fasta.write_text(f">chr1\n{letters[:2000]}{'N' * 40}{letters[2040:]}\n")
    config = directory / "prep.yaml"
    config.write_text(
        f"fasta: {fasta}\nassembly: toy\noutput: {directory / 'shards'}\nchunk_length: 500\nchunks_per_shard: 4\n"
        f"splits:\n  by_fraction: {splits}\nrequired_splits: {required}\n"
    )
    subprocess.run(
        [sys.executable, "-m", "hyena_ds", "prep", "build", str(config)], check=True, cwd=ROOT, timeout=TIMEOUT
    )
    return directory / "shards"


def write_config(path: Path, shards: Path, **changes: Any) -> Path:
    """Two stages, data parallel then sequence parallel, several micro steps each, dropout on."""
    config = {
        "name": "run",
        "output": str(path.parent / "runs"),
        "local_ranks": 2,
        "model": {"width": 16, "layers": 2, "maximum_context": 64, "embedding_dropout": 0.1, "residual_dropout": 0.1},
        "data": {"sources": [{"shards": str(shards)}], "reverse_complement": True},
        "stages": [
            {"context_length": 32, "steps": 4, "global_batch": 6, "micro_batch_size": 1},
            {"context_length": 64, "steps": 6, "global_batch": 4, "micro_batch_size": 1, "sequence_parallel": 2},
        ],
        "validation": {"every_steps": 3, "windows": 5},
        "checkpoint": {"every_steps": 3},
    }
    config.update(changes)
    path.write_text(json.dumps(config))  # JSON is YAML
    return path


def train(config: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """`hyena-ds train` as a user runs it."""
    command = [sys.executable, "-m", "hyena_ds", "train", str(config), *overrides]
    return subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=TIMEOUT)


def start_ranks(module: str, arguments: list[str], ranks: int, **environment: str) -> list[int]:
    """Run `python -m module arguments` as bare ranks; their exit codes."""
    return [code for code, _ in ends_of_ranks(module, arguments, ranks, **environment)]


def ends_of_ranks(module: str, arguments: list[str], ranks: int, **environment: str) -> list[tuple[int, str]]:
    """Run `python -m module arguments` as bare ranks; exit code, and what was printed, of each."""
    port = str(free_port())
    processes: list[subprocess.Popen[str]] = []
    with ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(ranks)]
        try:
            for rank, output in enumerate(outputs):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
                own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **environment}
                command, env = [sys.executable, "-m", module, *arguments], _environment() | own
                processes.append(
                    subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT, text=True)
                )
            codes = [process.wait(TIMEOUT) for process in processes]
        finally:
            for process in processes:
                process.kill()
        for output in outputs:
            output.seek(0)
        return [(code, output.read()) for code, output in zip(codes, outputs, strict=True)]


def rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what no two runs share."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in UNREPEATABLE} for line in lines]


def tree(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
