"""Checkpoints on disks of the hosts' own: every host saves its part, and a run goes on from parts that make a whole.

    PLACE/NAME/step-00000050/    this host's files, and the manifest of all hosts' files, the same on every host
    RUN/checkpoints/local        which run's parts count, and the newest step of them

    save:   parts --all written--> manifest aside on every host --all there--> renamed; older ones go, on each host by itself
    choose: what each host has --newest step of which every file is somewhere--> checked, each file where it is

Parts belong together when their manifests are alike, byte for byte. Hosts may have changed places.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from hyena_ds.checkpoints.choice import problem_of_files
from hyena_ds.checkpoints.directory import (
    LOCAL,
    begin,
    checkpoints_in,
    clear,
    complete,
    hide,
    name_of,
    newest_whole,
    read_note,
    surplus,
    write_note,
)
from hyena_ds.checkpoints.manifest import (
    MANIFEST,
    RUN_STATE,
    Checkpoint,
    Manifest,
    Written,
    joined,
    read_manifest,
    read_outline,
    write_manifest,
)
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError
from hyena_ds.files.whole import remove
from hyena_ds.parallel.agreement import from_every_rank, from_rank, from_rank_zero
from hyena_ds.parallel.devices import Compute

T = TypeVar("T")

LINKS = ".upload-"
"""Begins the names of links to files whose copies are under way."""
_MARK = ".seen-"


@dataclass(frozen=True)
class _Offer:
    """What a host has of a step."""

    run: str
    digest: str
    """SHA-256 of the manifest's bytes."""
    files: tuple[str, ...]


@dataclass(frozen=True)
class _Shelf:
    """What a host has."""

    host: str
    offers: dict[int, _Offer] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class LocalTier:
    """The parts of one run's checkpoints on its hosts. All public methods but `of` are collective, and what they raise is raised by
    all ranks."""

    def __init__(self, config: RunConfig, directory: Path, compute: Compute):
        tier = config.checkpoint.local
        assert tier is not None and tier.directory is not None
        self.tier, self.path = tier, tier.directory / config.name
        self._directory, self._compute, self._host = directory, compute, socket.gethostname()
        self._manifests: dict[int, Manifest] = {}

    @staticmethod
    def of(config: RunConfig, directory: Path, compute: Compute) -> LocalTier | None:
        """None where no tier is local. `directory` is the run's `checkpoints/`."""
        return LocalTier(config, directory, compute) if config.checkpoint.local is not None else None

    def open(self) -> None:
        """Make the directory on every host. Raises UserError where that cannot be, or where two nodes see the same one."""
        token, rank = from_rank_zero(lambda: secrets.token_hex(4)), self._compute.rank
        mark = self.path / f"{_MARK}{token}-{rank}"

        def make() -> None:
            self.path.mkdir(parents=True, exist_ok=True)
            for left in [*self.path.glob(f"{_MARK}*"), *self.path.glob(f"{LINKS}*")]:
                if token not in left.name:
                    remove(left)
            mark.touch()

        _, problem = self._on_hosts(make)
        if problem is None:
            marks, problem = self._on_hosts(lambda: sorted(path.name for path in self.path.glob(f"{_MARK}{token}-*")))
            same = next((found for found in marks.values() if len(found) > 1), None)
            if same is not None:
                ranks = " and ".join(name.rpartition("-")[2] for name in same[:2])
                problem = f"the nodes of ranks {ranks} see the same directory {self.path}"
        if self._compute.leads:
            with suppress(OSError):
                mark.unlink()
        if problem is not None:
            raise UserError(
                f"checkpoint.tiers: {problem}, wanted a directory on a disk of each host's own; name another place, take local "
                "away, or let the launcher say how many ranks a host has (LOCAL_WORLD_SIZE)"
            )

    def belongs_to(self, run: str, step: int) -> None:
        """From now on the parts of rank 0's `run` count, which stands at `step`."""
        from_rank_zero(lambda: write_note(self._directory, run, step))

    def choose(self, above: int) -> tuple[Checkpoint | None, list[str]]:
        """(the newest checkpoint beyond step `above` whose parts are all there and right, what is to be said)."""
        run, shelves = from_rank_zero(self._run), self._shelves()
        news = [problem for shelf in shelves.values() for problem in shelf.problems]
        news += self._of_others(run, shelves.values())
        kinds = {
            (step, offer.digest)
            for shelf in shelves.values()
            for step, offer in shelf.offers.items()
            if offer.run == run
        }
        for step, digest in sorted(kinds, reverse=True):
            if step > above:
                found = self._put_together(step, digest, shelves)
                if isinstance(found, Checkpoint):
                    return found, news
                news.append(f"step {step} of {self.path} is passed over: {found}")
        return None, news

    def steps(self) -> set[int]:
        """Steps of the run that every host has something of."""
        run, shelves = from_rank_zero(self._run), self._shelves()
        own = ({step for step, offer in shelf.offers.items() if offer.run == run} for shelf in shelves.values())
        return set.intersection(*own)

    def remove_after(self, step: int) -> list[str]:
        """Remove parts of later steps, which a run that goes on from `step` leaves behind; what is to be said."""
        run, shelves = from_rank_zero(self._run), self._shelves()
        going = {
            later
            for shelf in shelves.values()
            for later, offer in shelf.offers.items()
            if later > step and offer.run == run
        }
        if not going:
            return []
        own = [later for later in going if self._is_of(run, self.path / name_of(later))]
        news, problem = self._on_hosts(lambda: _discard([self.path / name_of(later) for later in own]))
        lines = [line for said in news.values() for line in said]
        lines.append(f"{self.path}: parts of later steps were removed ({', '.join(map(str, sorted(going)))})")
        return lines + ([] if problem is None else [problem])

    def begin(self, step: int) -> Path | str:
        """An empty directory on this rank's host to write its part into; or why there is none on some host."""
        made, problem = self._on_hosts(lambda: begin(self.path, step))
        if problem is None:
            return made[self._compute.node[0]]
        self.drop(made.get(self._compute.node[0]))
        return problem

    def complete(
        self,
        partial: Path,
        run: str,
        step: int,
        written: Sequence[dict[str, Written]],
        shards: str | None,
    ) -> list[str] | str:
        """Make what each rank has `written` a checkpoint; what is to be said, or why there is none of that step.

        Of `run` and `shards`, which a manifest names, rank 0's count.
        """
        pieces: dict[str, list[Written]] = {}
        ranks: dict[str, int] = {}
        for rank, files in enumerate(written):
            for name, piece in files.items():
                pieces.setdefault(name, []).append(piece)
                ranks.setdefault(name, rank)
        said = from_every_rank((self._host, run, shards))
        by, (_, run, shards) = {name: said[rank][0] for name, rank in ranks.items()}, said[0]
        found = {name: joined(each) for name, each in pieces.items()}
        _, problem = self._on_hosts(lambda: write_manifest(partial, run, step, found, shards, by))
        if problem is None:
            _, problem = self._on_hosts(lambda: complete(partial, step))
        if problem is not None:
            self.drop(partial)
            return problem
        news, problem = self._on_hosts(lambda: self._retire(run, step))
        return [line for lines in news.values() for line in lines] + ([] if problem is None else [problem])

    def drop(self, partial: Path | None) -> None:
        """Remove a part that is no part of a checkpoint, on this rank's host."""
        if partial is not None and self._compute.leads:
            shutil.rmtree(partial, ignore_errors=True)

    def _on_hosts(self, work: Callable[[], T]) -> tuple[dict[int, T], str | None]:
        """Run `work` on the first rank of every node: (what it returned, by rank; the first one's error). Collective."""
        done: tuple[T, ...] = ()
        problem = None
        if self._compute.leads:
            try:
                done = (work(),)
            except OSError as error:
                problem = f"{self._host}: {error.filename or self.path}: {error.strerror or error}"
        everywhere = from_every_rank((done, problem))
        results = {rank: done[0] for rank, (done, _) in enumerate(everywhere) if done}
        return results, next((problem for _, problem in everywhere if problem is not None), None)

    def _run(self) -> str:
        """On rank 0: the run whose parts count."""
        run, _ = read_note(self._directory)
        newest = None if run else newest_whole(self._directory)
        return run if newest is None else newest.manifest.run

    def _shelves(self) -> dict[int, _Shelf]:
        """What every host has, by the first rank of each node. Collective."""
        found = from_every_rank(self._shelf() if self._compute.leads else None)
        return {rank: shelf for rank, shelf in enumerate(found) if shelf is not None}

    def _shelf(self) -> _Shelf:
        shelf = _Shelf(self._host)
        for path in checkpoints_in(self.path):
            try:
                manifest = read_manifest(path)
                digest = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
                with os.scandir(path) as entries:
                    sizes = {
                        entry.name: entry.stat().st_size for entry in entries if entry.is_file(follow_symlinks=False)
                    }
            except (UserError, OSError) as error:
                shelf.problems.append(f"{self._host}: passed over: {error}")
                continue
            whole = tuple(name for name, wanted in manifest.files.items() if sizes.get(name) == wanted.bytes)
            for name in sizes.keys() & manifest.files.keys() - set(whole):
                wanted = manifest.files[name].bytes
                problem = f"found {sizes[name]} bytes, wanted {wanted}: the part is damaged"
                shelf.problems.append(f"{self._host}: {path / name}: {problem}")
            shelf.offers[manifest.step] = _Offer(manifest.run, digest, whole)
            self._manifests[manifest.step] = manifest
        return shelf

    def _of_others(self, run: str, shelves: Iterable[_Shelf]) -> list[str]:
        """What is said of hosts that have parts of another run."""
        hosts: dict[tuple[int, ...], list[str]] = {}
        for shelf in shelves:
            others = tuple(sorted(step for step, offer in shelf.offers.items() if offer.run != run))
            hosts.setdefault(others, []).append(shelf.host)
        return [
            f"{found[0]}{f' and {len(found) - 1} more' if found[1:] else ''}: {self.path}: parts of another run are passed over "
            f"(steps {', '.join(map(str, steps))}); remove them when you no longer want them"
            for steps, found in hosts.items()
            if steps
        ]

    def _put_together(self, step: int, digest: str, shelves: dict[int, _Shelf]) -> Checkpoint | str:
        """The checkpoint of the parts that have this manifest, or why there is none."""
        nodes, held, having = self._compute.nodes, dict[str, int](), list[int]()
        for number, node in enumerate(nodes):
            offer = shelves[node[0]].offers.get(step)
            if offer is not None and offer.digest == digest:
                having.append(node[0])
                for name in offer.files:
                    held.setdefault(name, number)
        manifest = from_rank(having[0], lambda: self._manifests[step])
        missing = [name for name in manifest.files if name not in held]
        if missing:
            others = f" and {len(missing) - 1} other files" if missing[1:] else ""
            wrote = manifest.hosts.get(missing[0], "another host")
            return f"no host of this run has {missing[0]}{others}, written on {wrote}"
        path = self.path / name_of(step)
        try:
            # That a manifest lists a run state is found out there.
            first = nodes[held.get(RUN_STATE, 0)][0]
            record = from_rank(first, lambda: read_outline(path).record)
        except UserError as error:
            return str(error)
        checkpoint = Checkpoint(path, manifest, record, held)
        return problem_of_files(checkpoint, self._compute, sums=True) or checkpoint

    def _retire(self, run: str, step: int) -> list[str]:
        """On one host, now that all have their parts of `step`: older ones than are kept go. What is to be said."""
        news, tier = list[str](), self.tier
        there = checkpoints_in(self.path)
        news += _discard(surplus(there, step, tier.keep_last, tier.keep_every, None, partial(self._is_of, run)))
        if self._compute.rank == 0:
            try:
                write_note(self._directory, run, step)
            except OSError as error:
                news.append(
                    f"{self._directory / LOCAL}: cannot be written ({error.strerror}); tried again at the next save"
                )
        return news

    def _is_of(self, run: str, path: Path) -> bool:
        """Whether a part is of the run."""
        try:
            return read_manifest(path).run == run
        except UserError:
            return False


def _discard(paths: Sequence[Path]) -> list[str]:
    """Remove parts; what is to be said of those that are still there."""
    news, hidden = hide(paths)
    return [*news, *clear(hidden.values())]
