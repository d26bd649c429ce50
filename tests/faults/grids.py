"""Resume from every grid and ZeRO stage to every other: the same bases, the same losses as the run that was never cut.

    python -m tests.faults.grids --all --seed 1          every pair
    python -m tests.faults.grids --count 40 --seed 1     so many of them

Ranks live in a pool, so a pair costs seconds; `spanning` has every grid and every ZeRO stage once on either side.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import NamedTuple

from tests.distributed.pool import Pool
from tests.faults.grid_work import train_part
from tests.training.runs import make_shards, rows, write_config

GRIDS = ((1, 1), (2, 1), (1, 2), (2, 2), (1, 4))
ZERO_STAGES = (0, 1, 2, 3)
CUT, TOTAL = 3, 13
"""Steps before the checkpoint, and in all: ten after it are compared."""
TOLERANCE = 1e-5
TIMEOUT = 240.0


class Place(NamedTuple):
    """Where a run runs: data parallel, sequence parallel, ZeRO stage."""

    data_parallel: int
    sequence_parallel: int
    zero_stage: int

    @property
    def ranks(self) -> int:
        return self.data_parallel * self.sequence_parallel

    @property
    def overrides(self) -> list[str]:
        return [f"stages.0.sequence_parallel={self.sequence_parallel}", f"zero_stage={self.zero_stage}"]

    def __str__(self) -> str:
        return f"{self.data_parallel}x{self.sequence_parallel} ZeRO {self.zero_stage}"


PLACES = [Place(*grid, stage) for grid, stage in product(GRIDS, ZERO_STAGES)]


def spanning() -> list[tuple[Place, Place]]:
    """Every grid and every ZeRO stage once as source and once as target, never the same on both sides."""
    count = len(GRIDS)
    return [
        (Place(*GRIDS[i], ZERO_STAGES[i % 4]), Place(*GRIDS[(i + 2) % count], ZERO_STAGES[(i + 1) % 4]))
        for i in range(count)
    ]


class Grids:
    """One uninterrupted run, and runs cut after `CUT` steps by the place they ran at; below `directory`."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._pools: dict[int, Pool] = {}
        self._cut: set[Place] = set()
        stages = [{"context_length": 64, "steps": TOTAL, "global_batch": 4, "micro_batch_size": 1}]
        self._config = write_config(
            directory / "config.yaml",
            make_shards(directory),
            stages=stages,
            validation={"every_steps": 100, "windows": 2},
            checkpoint={"every_steps": CUT, "background": False},
            watchdog={"enabled": False},  # it ends processes, and these are a pool's
        )
        self._train("whole", Place(1, 1, 0))

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()

    def resume(self, source: Place, target: Place) -> float:
        """The worst relative difference of the ten losses after the checkpoint; raises AssertionError beyond the bound."""
        cut = f"cut-{PLACES.index(source)}"
        if source not in self._cut:
            self._train(cut, source, stop_before=CUT)
            self._cut.add(source)
        shutil.rmtree(self._path("resumed"), ignore_errors=True)
        shutil.copytree(self._path(cut), self._path("resumed"))
        self._train("resumed", target)
        wanted, found = self._losses("whole"), self._losses("resumed")
        assert list(found) == list(wanted) == list(range(1, TOTAL + 1)), f"{source} -> {target}: steps {list(found)}"
        worst = max(abs(found[step] - wanted[step]) / wanted[step] for step in range(CUT + 1, TOTAL + 1))
        assert worst <= TOLERANCE, f"{source} -> {target}: losses differ by {worst:.1e}"
        assert self._consumed("resumed") == self._consumed("whole"), f"{source} -> {target}: other bases were read"
        return worst

    def _train(self, name: str, place: Place, stop_before: int | None = None) -> None:
        pool = self._pools.setdefault(place.ranks, Pool(place.ranks))
        # The config belongs to the run, whose name the copy has kept.
        overrides = [f"name={name}", *place.overrides]
        pool.run(train_part, timeout=TIMEOUT, config=self._config, overrides=overrides, stop_before=stop_before)

    def _path(self, name: str) -> Path:
        return self._directory / "runs" / name

    def _losses(self, name: str) -> dict[int, float]:
        return {row["step"]: row["loss"] for row in rows(self._path(name)) if "loss" in row}

    def _consumed(self, name: str) -> dict[int, str]:
        lines = (self._path(name) / "consumed.jsonl").read_text().splitlines()
        return {row["step"]: row["sha256"] for row in map(json.loads, lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    options = parser.parse_args()
    pairs = list(product(PLACES, PLACES))
    if not options.all:
        pairs = sorted(random.Random(options.seed).sample(pairs, options.count))
    print(f"seed {options.seed}: {len(pairs)} pairs", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        grids = Grids(Path(directory))
        try:
            worst = 0.0
            for number, (source, target) in enumerate(pairs, 1):
                difference = grids.resume(source, target)
                worst = max(worst, difference)
                print(f"{number} of {len(pairs)}: {source} -> {target}: {difference:.1e}", flush=True)
        finally:
            grids.close()
    print(json.dumps({"pairs": len(pairs), "worst": worst, "minutes": round((time.monotonic() - began) / 60, 1)}))


if __name__ == "__main__":
    main()
