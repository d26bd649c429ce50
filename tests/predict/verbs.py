"""What tests of the verbs share: a small lively model, a genome with N and lower case, commands that run, on ranks or killed."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from hyena_ds.cli import main
from hyena_ds.config.model import ModelConfig
from hyena_ds.model.backbone import HyenaDNA
from hyena_ds.weights.published import write_weights
from tests.distributed.work import lively_model
from tests.paths import ROOT

TIMEOUT = 240
CONFIG = ModelConfig(width=16, layers=2, maximum_context=512, filter_features=5, filter_width=8)
FULL = bool(os.environ.get("HYENA_FULL"))
GRIDS = ((2, 2), (4, 2)) if FULL else ((4, 2),)
"""(ranks, sequence parallel): two sequence groups of two ranks; in full, one of them too. Other grids: test_predictor.py."""
CONTIGS = {"chrA": 1500, "chrB": 700, "tiny": 1}


def save_model(directory: Path) -> tuple[Path, HyenaDNA]:
    """A weights file, and its model."""
    model = lively_model(CONFIG)
    path = directory / "weights.safetensors"
    write_weights(path, CONFIG, dict(model.named_parameters()))
    return path, model


def save_inputs(directory: Path, packed: bool = False) -> tuple[Path, HyenaDNA, Path, dict[str, str]]:
    """Weights and genome: `save_model` and `save_genome`."""
    return *save_model(directory), *save_genome(directory, packed)


def save_genome(directory: Path, packed: bool = False) -> tuple[Path, dict[str, str]]:
    """A FASTA, and its sequences by name."""
    generator = np.random.default_rng(7)
    letters = {name: "".join(generator.choice(list("ACGTacgt"), size)) for name, size in CONTIGS.items()}
    letters["chrA"] = letters["chrA"][:300] + "N" * 40 + letters["chrA"][340:900] + "R" + letters["chrA"][901:]
    text = "".join(f">{name} of a test\n{_lines(sequence)}" for name, sequence in letters.items())
    path = directory / ("genome.fa.gz" if packed else "genome.fa")
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if packed else text.encode())
    return path, letters


def _lines(sequence: str) -> str:
    return "".join(sequence[at : at + 60] + "\n" for at in range(0, len(sequence), 60))


def run(*arguments: object) -> int:
    """`hyena-ds ARGUMENTS` in this process; its exit code."""
    return main([str(argument) for argument in arguments])


def check_refused(
    capfd: pytest.CaptureFixture[str], said: str, *arguments: object, after_all_parts: bool = False
) -> None:
    """`hyena-ds ARGUMENTS` ends with a sentence, and leaves nothing of an output called out in the working directory, but
    its parts where they were all there before."""
    capfd.readouterr()
    assert run(*arguments) == 2
    error = capfd.readouterr().err
    assert said in error and "Traceback" not in error
    assert [path.suffix for path in Path().glob("out*")] == [".parts"] * after_all_parts


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`hyena-ds ARGUMENTS` as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "hyena_ds", *map(str, arguments)],
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def on_ranks(ranks: int, sequence_parallel: int, *arguments: object) -> None:
    """Run `hyena-ds ARGUMENTS` on a grid."""
    done = command(*arguments, "--ranks", ranks, "--sequence-parallel", sequence_parallel)
    assert done.returncode == 0, done.stderr


def check_kill(output: Path, *arguments: object, beside: Sequence[Path] = ()) -> dict[str, bytes]:
    """Kill `hyena-ds ARGUMENTS` on its way to `output`, repeat it, and compare all files with those of a whole run; they are
    returned."""
    killed_after_a_part(output, *arguments)
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert "parts are there already" in done.stderr
    resumed = [files_under(path) for path in (output, *beside)]
    assert command(*arguments, "--overwrite").returncode == 0
    assert [files_under(path) for path in (output, *beside)] == resumed
    return resumed[0]


def killed_after_a_part(output: Path, *arguments: object) -> None:
    """Start `hyena-ds ARGUMENTS`, and end it with SIGKILL, its ranks too, when the first part of `output` is there."""
    parts = output.with_name(f"{output.name}.parts")
    process = subprocess.Popen(
        [sys.executable, "-m", "hyena_ds", *map(str, arguments)],
        cwd=ROOT,
        env=_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + TIMEOUT
    try:
        while not any(parts.glob("*.arrow")):
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not output.exists()


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def files_under(path: Path) -> dict[str, bytes]:
    """A file's bytes, or those of all files of a directory, by their names within it."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def rows_of(path: Path) -> list[dict[str, str]]:
    """Rows of a table with tabs."""
    head, *lines = path.read_text().splitlines()
    return [dict(zip(head.split("\t"), line.split("\t"), strict=True)) for line in lines]


def complement(sequence: str) -> str:
    """The other strand, read in its own direction."""
    return sequence[::-1].translate(str.maketrans("ACGTacgt", "TGCAtgca"))


def ids_of(sequence: str) -> torch.Tensor:
    """(1, L): ids of letters in either case; R is unknown."""
    return torch.tensor([["ACGTN".find(letter) + 7 if letter != "R" else 6 for letter in sequence.upper()]])
