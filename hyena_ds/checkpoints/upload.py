"""Copies of checkpoints on their way to the tiers, while training goes on.

    checkpoint complete --links to its files--> a thread of one rank a node: this node's share --> parts/NODE
                                                the first node's, last: metrics, manifest, old copies go

A step waits for none of it: what it costs the step is the links. The links keep the files when the run's own directory has no
room for the checkpoint any more. Threads run no collective; which copies are made, the ranks agree on when a
checkpoint is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue

from hyena_ds import errors
from hyena_ds.checkpoints.directory import LATEST, SELECTED, name_of
from hyena_ds.checkpoints.local_tier import LINKS
from hyena_ds.checkpoints.manifest import MANIFEST, Manifest, read_manifest
from hyena_ds.checkpoints.tier_store import ABANDONED, GivenUp, TierStore
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError
from hyena_ds.files.whole import remove
from hyena_ds.parallel.agreement import agreed, from_every_rank, from_rank_zero
from hyena_ds.parallel.devices import Compute

_LOOK_SECONDS = 0.5
_MOST_PART_BYTES = 64 << 20


class Uploads:
    """The copies of one run's checkpoints. `completed`, `check` and `leave` are collective; without tiers all do nothing."""

    def __init__(
        self,
        config: RunConfig,
        directory: Path,
        compute: Compute,
        say: Callable[[str], object],
        metrics: Path,
        newest: tuple[int, ...] = (),
        resumed: int = 0,
    ):
        """`newest` are the steps of the newest checkpoints of the tiers, 0 where there are none, `resumed` that of the
        checkpoint in `directory` that the run goes on from; `metrics` the file that goes with the copies. On rank 0 `say` is
        given what happens. Collective."""
        self._directory, self._metrics, self._say = directory, metrics, say
        self._stores = [TierStore(tier, config.name) for tier in config.checkpoint.copies]
        self._last = list(newest or [0] * len(self._stores))
        self._newest = resumed
        self._selected: int | None = None
        self._local: Path | None = None
        self._under_way: list[_Upload | None] = [None] * len(self._stores)
        self._news: SimpleQueue[str] = SimpleQueue()
        self._given_up: str | None = None
        if self._stores:
            self._rank, self._nodes = compute.rank, len(compute.nodes)
            self._node = compute.nodes.index(compute.node) if compute.leads else None
            if not from_rank_zero(lambda: self._cleared(resumed)):
                self._newest = 0
            self._begin_due()

    def completed(self, step: int, selected: int | None = None, local: Path | None = None) -> None:
        """A checkpoint is complete: begin the copies that are due. `selected` is the step of the run's weights.

        Where each host has a part of it on a disk of its own, the part is in the directory `local` there."""
        self._newest, self._selected, self._local = step, selected, local
        self._last = [min(last, step - 1) for last in self._last]  # a run that was rolled back trains a step again
        self.tell()
        self._begin_due()

    def _cleared(self, resumed: int) -> bool:
        """Remove the links of a killed run; whether the checkpoint that the run goes on from is in its directory."""
        for left in self._directory.glob(f"{LINKS}*"):
            remove(left)
        return (self._directory / name_of(resumed) / MANIFEST).is_file()

    def _begin_due(self) -> None:
        due = []
        for number, store in enumerate(self._stores):
            every, last = store.tier.every_steps, self._last[number]
            if self._newest // every > last // every or last < self._newest == self._selected:
                due.append(number)
        if due:
            busy = self._busy()
            for number in due:
                if not busy[number]:
                    self._begin(number)

    def tell(self) -> None:
        """Say what happened since the last time."""
        while True:
            try:
                line = self._news.get_nowait()
            except Empty:
                return
            (self._say if self._rank == 0 else errors.say)(line)

    def check(self) -> None:
        """Raise UserError on all ranks when a copy that is required was given up on any."""
        if any(store.tier.required for store in self._stores):
            agreed(self._raise_given_up)

    def leave(self, mark: Callable[[str], object] = lambda doing: None) -> None:
        """Copy the newest checkpoint to every tier that lacks it, and wait for what is under way.

        `mark` is given the progress. Raises what `check` raises.
        """
        looks = 0
        while self._stores:
            busy = self._busy()
            wanted = [self._newest > last for last in self._last]
            for number, is_busy in enumerate(busy):
                if wanted[number] and not is_busy:
                    self._begin(number)
            self.tell()
            if not any(busy) and not any(wanted):
                break
            looks += 1
            mark(f"look {looks} at the copies under way")
            time.sleep(_LOOK_SECONDS)
        self.check()

    def _busy(self) -> list[bool]:
        """For every tier, whether any node is still sending a copy. Collective."""
        own = [upload is not None and upload.thread.is_alive() for upload in self._under_way]
        return [any(flags) for flags in zip(*from_every_rank(own), strict=True)]

    def _begin(self, number: int) -> None:
        self._last[number] = self._newest
        if self._node is None:
            return
        share = self._node, self._nodes
        store, where, has_part = self._stores[number], self._local or self._directory, self._local is not None
        source, links = where / name_of(self._newest), where / f"{LINKS}{number}-{self._newest:08d}-{self._node}"
        try:
            upload = _Upload(store, source, has_part, links, share, self._selected, self._metrics, self._fate)
        except (OSError, UserError) as error:
            self._fate(f"{store}: the copy of step {self._newest} could not begin ({error})", store.tier.required)
        else:
            self._under_way[number] = upload
            upload.thread.start()

    def _fate(self, line: str, ends: bool = False) -> None:
        """Called by the threads too."""
        self._news.put(line)
        if ends and self._given_up is None:
            self._given_up = line

    def _raise_given_up(self) -> None:
        if self._given_up is not None:
            raise UserError(
                f"checkpoint.tiers: {self._given_up}, which the run requires; the run's own checkpoints are whole: see to the "
                "place, or set required: false, and start the run again"
            )


class _Progress(Exception):
    """Files have arrived: so many."""


class _Upload:
    """One node's share of one copy."""

    def __init__(
        self,
        store: TierStore,
        checkpoint: Path,
        has_part: bool,
        links: Path,
        share: tuple[int, int],
        selected: int | None,
        metrics: Path,
        fate: Callable[..., None],
    ):
        """Links its files: all that are in `checkpoint`, where that is this node's part. Raises OSError or UserError."""
        self._store, self._links, self._fate = store, links, fate
        (self._node, self._nodes), self._selected, self._metrics = share, selected, metrics
        self._manifest: Manifest = read_manifest(checkpoint)
        self._step = self._manifest.step
        self._own = sorted(self._manifest.files)[self._node :: self._nodes]
        if has_part:
            self._own = sorted(self._manifest.files.keys() & set(os.listdir(checkpoint)))
        self._source = _linked(checkpoint, links, [*self._own, MANIFEST])
        self.thread = threading.Thread(target=self._run, name=f"copy of step {self._step}", daemon=True)

    def _run(self) -> None:
        what, began = f"the copy of step {self._step}", time.monotonic()
        try:
            self._send()
            if self._node == 0:
                size = self._manifest.bytes / 2**20
                seconds = time.monotonic() - began
                self._fate(f"{self._store}: {what} is complete ({size:,.1f} MiB, {seconds:.1f} s)")
        except GivenUp as error:
            self._fate(str(error), self._store.tier.required)
        except Exception as error:  # whatever it is, training goes on
            text = f"{self._store}: {what}: given up ({type(error).__name__}: {error})"
            self._fate(text, self._store.tier.required)
        finally:
            shutil.rmtree(self._links, ignore_errors=True)

    def _send(self) -> None:
        name = name_of(self._step)
        if self._node == 0:
            self._patiently(self._clear_the_way)
        for file in self._own:
            self._patiently(lambda file=file: self._store.put(self._source / file, f"{name}/{file}"))  # type: ignore[misc]
        if self._node > 0:
            part = json.dumps({file: self._manifest.files[file].sha256 for file in self._own}).encode()
            self._patiently(lambda: self._store.write(f"{name}/parts/{self._node:05d}", part))
            return
        if self._nodes > 1:
            self._await_parts()
        if self._metrics.is_file():
            self._patiently(lambda: self._store.put(self._metrics, self._metrics.name))
        self._patiently(lambda: self._store.put(self._source / MANIFEST, f"{name}/{MANIFEST}"))
        self._patiently(self._tidy)

    def _patiently(self, work: Callable[[], None]) -> None:
        self._store.patiently(work, f"the copy of step {self._step}", self._fate)

    def _clear_the_way(self) -> None:
        """A copy of the same step is none while its files are replaced; later ones are of a run that went another way."""
        self._store.remove_file(f"{name_of(self._step)}/{MANIFEST}")
        for line in self._store.set_aside_after(self._step):
            self._fate(line)

    def _await_parts(self) -> None:
        """Return once every node's share is there; files that arrive meanwhile are progress."""
        there = 0
        while True:
            try:
                what = f"the copy of step {self._step}"
                return self._store.patiently(partial(self._check_parts, there), what, lambda line: None)
            except _Progress as progress:
                (there,) = progress.args

    def _check_parts(self, there: int) -> None:
        """Raise OSError unless every node's share is there, and _Progress where more than `there` files are."""
        name, found = name_of(self._step), set(self._own)
        for node in range(1, self._nodes):
            part = self._store.read(f"{name}/parts/{node:05d}", _MOST_PART_BYTES)
            content = json.loads(part or b"{}")
            if all(self._manifest.files[file].sha256 == digest for file, digest in content.items()):
                found |= content.keys()
        missing = self._manifest.files.keys() - found
        if missing:
            now = len(self._store.files(self._step))
            if now > there:
                raise _Progress(now)
            raise OSError(f"another node has not brought {min(missing)}")

    def _tidy(self) -> None:
        """Say which step is selected; remove what is older than the tier keeps, and what earlier copies left unfinished."""
        store, tier, steps = self._store, self._store.tier, self._store.steps()
        if self._selected in steps:
            store.write(SELECTED, f"{name_of(self._selected)}\n".encode())
        store.write(LATEST, f"{name_of(self._step)}\n".encode())
        for node in range(1, self._nodes):
            store.remove_file(f"{name_of(self._step)}/parts/{node:05d}")
        whole = sorted((step for step, is_whole in steps.items() if is_whole), reverse=True)
        for step in whole[tier.keep_last :]:
            if step not in (self._step, self._selected) and not (tier.keep_every and step % tier.keep_every == 0):
                store.remove(step)
        for step, is_whole in steps.items():
            if not is_whole and step < self._step and ABANDONED not in store.files(step):
                store.remove(step)


def _linked(checkpoint: Path, links: Path, names: list[str]) -> Path:
    """A directory with links to the files, which stay when the checkpoint goes; the checkpoint itself where there are no links."""
    remove(links)
    links.mkdir()
    try:
        for name in names:
            os.link(checkpoint / name, links / name)
    except OSError:
        return checkpoint
    return links
