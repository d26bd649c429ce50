"""Which checkpoint a run resumes from when copies of its checkpoints are in tiers.

    steps of every tier (rank 0) --one newer than the directory's newest whole one--> brought into the directory, whole or not
                                 --> choose_checkpoint, which knows no tiers

A copy is brought like a checkpoint is written: aside, checked against its manifest, renamed. One that is damaged is passed over for
the next older one of any tier. Where a node does not see what rank 0 brought, one rank of it brings it too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from hyena_ds.checkpoints.choice import choose_checkpoint
from hyena_ds.checkpoints.directory import LATEST, SELECTED, begin, complete, name_of, newest_whole
from hyena_ds.checkpoints.local_tier import LocalTier
from hyena_ds.checkpoints.manifest import MANIFEST, STEP_NAME, Checkpoint, read_checkpoint, read_manifest
from hyena_ds.checkpoints.tier_store import GivenUp, TierStore
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError, say
from hyena_ds.files.whole import aside, remove, write_whole
from hyena_ds.parallel.agreement import agreed, from_every_rank, from_rank_zero
from hyena_ds.parallel.devices import Compute

T = TypeVar("T")

_MOST_MANIFEST, _MOST_METRICS = 64 << 20, 1 << 40
"""Bytes."""


class Choice(NamedTuple):
    """Where a run goes on."""

    checkpoint: Checkpoint | None
    news: list[str]
    newest: tuple[int, ...]
    """Steps of the newest checkpoint of every tier, 0 where it has none."""


def choose_from_tiers(config: RunConfig, directory: Path, compute: Compute, metrics: Path) -> Choice:
    """What `config.resume` asks for: on the hosts' own disks, or in `directory`, brought from a tier where that has a newer one.
    Collective.

    With the first checkpoint of a lost directory comes the run's `metrics`. Raises UserError as `choose_checkpoint` does;
    where tiers cannot be read and nothing else is there; and where a tier holds another run.
    """
    if not config.checkpoint.tiers:
        return Choice(*choose_checkpoint(directory, config.resume, compute), ())
    local = LocalTier.of(config, directory, compute)
    if local is not None:
        local.open()
    tiers = _Tiers(config, directory, metrics)
    agreed(tiers.check_packages)
    if config.resume != "latest":
        newest = from_rank_zero(tiers.newest_unless_new)
        return Choice(*choose_checkpoint(directory, config.resume, compute), newest)
    in_directory = _newest_step(directory, compute)
    parts, passed_over = local.choose(in_directory) if local else (None, [])
    reached = max(in_directory, _step_of(parts))
    steps, news = from_rank_zero(lambda: tiers.look(may_do_without=reached >= 0))
    newest, news = tuple(max(own, default=0) for own in steps), passed_over + news
    if brought := _bring(tiers, steps, compute, reached):
        news, in_directory = news + brought, _newest_step(directory, compute)
    if parts is not None and in_directory < parts.record.state.step:
        return Choice(parts, news, newest)
    problem: UserError | None = None
    try:
        checkpoint, damaged = choose_checkpoint(directory, "latest", compute)
    except UserError as error:
        checkpoint, damaged, problem = None, [], error
    if damaged or problem:  # bytes of a newer one are wrong, whose copy may be right
        parts, _ = local.choose(_step_of(checkpoint)) if local else (None, [])
        brought = _bring(tiers, steps, compute, max(_step_of(checkpoint), _step_of(parts)))
        damaged += brought
        if brought:
            try:
                checkpoint, more = choose_checkpoint(directory, "latest", compute)
                damaged, problem = damaged + more, None
            except UserError as error:
                problem = error
        if parts is not None and _step_of(parts) > _step_of(checkpoint):
            damaged += [f"passed over: {problem}"] if problem else []
            checkpoint, problem = parts, None
        if problem:
            raise problem
    return Choice(checkpoint, [*news, *damaged], newest)


def newest_of_run(config: RunConfig, directory: Path, compute: Compute) -> Checkpoint | None:
    """The newest whole checkpoint in `directory` and on the hosts' own disks. Collective; raises UserError as `choose_checkpoint`."""
    checkpoint, _ = choose_checkpoint(directory, "latest", compute)
    local = LocalTier.of(config, directory, compute)
    parts, _ = local.choose(_step_of(checkpoint)) if local else (None, [])
    return parts or checkpoint


def set_aside_in_tiers(config: RunConfig, step: int) -> list[str]:
    """Make copies of later steps, which a run resumed from `step` leaves behind, no checkpoints; what is to be said."""
    news = []
    for tier in config.checkpoint.copies:
        store = TierStore(tier, config.name)
        try:
            news += store.patiently(lambda: store.set_aside_after(step), "later steps cannot be set aside", say)  # noqa: B023
        except GivenUp as error:
            news.append(f"{error}; tried again with the next copy")
    return news


def _newest_step(directory: Path, compute: Compute) -> int:
    """Step of the newest checkpoint that is whole by sizes, -1 where there is none. Collective."""
    try:
        return _step_of(choose_checkpoint(directory, "latest", compute, sums=False)[0])
    except UserError:
        return -1


def _step_of(checkpoint: Checkpoint | None) -> int:
    return -1 if checkpoint is None else checkpoint.record.state.step


def _bring(tiers: _Tiers, steps: list[list[int]], compute: Compute, above: int) -> list[str]:
    """Bring the newest whole copy of a step beyond `above`; what is to be said, nothing where there is none. Collective."""
    found, news = from_rank_zero(lambda: tiers.bring_newest(steps, above))
    if found is not None:
        lacks = from_every_rank(not (tiers.directory / name_of(found.step) / MANIFEST).is_file())
        if any(lacks):
            own = compute.leads and lacks[compute.rank]
            agreed(lambda: tiers.bring_again(found) if own else None)
    return news


@dataclass(frozen=True)
class _Found:
    """A copy that was brought."""

    tier: int
    step: int


class _Damaged(Exception):
    """A copy is not what its manifest says."""


class _AnotherRun(UserError):
    """A copy is not of the run whose checkpoints are in the directory."""


class _Tiers:
    """What one rank does with the tiers at a run's start."""

    def __init__(self, config: RunConfig, directory: Path, metrics: Path):
        self.directory, self._metrics, self._resume = directory, metrics, config.resume
        self._stores = [TierStore(tier, config.name) for tier in config.checkpoint.copies]

    def check_packages(self) -> None:
        """Raise UserError where a library is missing that a tier needs."""
        for store in self._stores:
            store.check_packages()

    def look(self, may_do_without: bool) -> tuple[list[list[int]], list[str]]:
        """(the steps of every tier's checkpoints, what is to be said of tiers that cannot be read).

        Raises UserError for a tier that is required, or where the run would begin anew because its tiers are out of reach.
        """
        steps: list[list[int]] = []
        news: list[str] = []
        for store in self._stores:
            try:
                found = store.patiently(store.steps, "its checkpoints cannot be listed", say)
            except GivenUp as error:
                if store.tier.required or not may_do_without:
                    raise UserError(
                        f"checkpoint.tiers: {error}; see to the place, or take it out of checkpoint.tiers to do without its "
                        "checkpoints"
                    ) from None
                news.append(f"{error}; going on without its checkpoints")
                found = {}
            steps.append([step for step, is_whole in found.items() if is_whole])
        return steps, news

    def newest_unless_new(self) -> tuple[int, ...]:
        """The newest step of every tier. Raises UserError where there are any and the run is to be a new one."""
        steps, _ = self.look(may_do_without=True)
        for store, own in zip(self._stores, steps, strict=True):
            if own and self._resume == "never":
                raise UserError(
                    f"{store}: holds checkpoints of a run of this name and resume is 'never'; choose another name or "
                    "resume: latest, or remove them"
                )
        return tuple(max(own, default=0) for own in steps)

    def bring_newest(self, steps: list[list[int]], above: int) -> tuple[_Found | None, list[str]]:
        """(the newest copy beyond `above` that is whole, after bringing it; what is to be said)."""
        news: list[str] = []
        candidates = {(step, -number) for number, own in enumerate(steps) for step in own if step > above}
        for step, minus in sorted(candidates, reverse=True):
            store = self._stores[-minus]
            try:
                self.bring(-minus, step)
                news.append(f"brought step {step} from {store}")
                self._bring_beside(-minus, step, set(steps[-minus]), news)
                return _Found(-minus, step), news
            except _Damaged as error:
                news.append(f"damaged copy passed over: {error}")
            except GivenUp as error:
                if store.tier.required:
                    raise UserError(f"checkpoint.tiers: {error}; see to the place, and start the run again") from None
                news.append(f"{error}; passed over")
        if candidates and above < 0:
            raise UserError(
                f"checkpoint.tiers: none of the copies of this run could be brought ({news[0]}); see to the places, or remove "
                "the run there to start afresh"
            )
        return None, news

    def bring_again(self, found: _Found) -> None:
        """Bring what rank 0 brought to a directory that this node does not share with it. Raises UserError."""
        try:
            self.bring(found.tier, found.step)
        except (_Damaged, GivenUp) as error:
            raise UserError(f"checkpoint.tiers: {error}; see to the place, and start the run again") from None

    def bring(self, number: int, step: int, selected: int | None = None) -> None:
        """Make a copy a checkpoint of the directory. Raises _Damaged or GivenUp, and OSError where it cannot be written."""
        store, name = self._stores[number], name_of(step)
        partial = begin(self.directory, step)
        try:
            raw = self._patiently(store, step, lambda: store.read(f"{name}/{MANIFEST}", _MOST_MANIFEST))
            (partial / MANIFEST).write_bytes(raw or b"")
            manifest = read_manifest(partial)
            if manifest.step != step:
                raise UserError(f"{store}/{name}: found the manifest of step {manifest.step}")
            self._check_run(store, manifest.run)
            for file, wanted in manifest.files.items():
                path = partial / file
                self._patiently(store, step, lambda: store.append(f"{name}/{file}", path, wanted.bytes))  # noqa: B023
            read_checkpoint(partial, first=0)
            complete(partial, step, selected)
        except _AnotherRun:
            raise
        except UserError as error:
            raise _Damaged(f"{store}: {error}") from None
        finally:
            remove(partial)

    def _bring_beside(self, number: int, step: int, there: set[int], news: list[str]) -> None:
        """The metrics of a lost directory, and the checkpoint whose weights are the run's; without them the run goes on."""
        store = self._stores[number]
        try:
            name = (self._patiently(store, step, lambda: store.read(SELECTED, 100)) or b"").decode("ascii", "replace")
            selected = int(found[1]) if (found := STEP_NAME.fullmatch(name.strip())) else -1
            if selected in there and not (self.directory / name_of(selected)).exists():
                self.bring(number, selected, selected=selected)
                write_whole(self.directory / LATEST, f"{name_of(step)}\n")
                news.append(f"brought step {selected}, whose weights are the run's, from {store}")
            if not self._metrics.exists():
                with aside(self._metrics) as partial:
                    self._patiently(store, step, lambda: store.append(self._metrics.name, partial, _MOST_METRICS))
                news.append(f"brought {self._metrics.name} from {store}")
        except (UserError, _Damaged, GivenUp) as error:
            news.append(f"{error}; going on without it")

    def _check_run(self, store: TierStore, run: str) -> None:
        own = newest_whole(self.directory)
        if own is not None and own.manifest.run != run:
            raise _AnotherRun(
                f"{store}: found checkpoints of another run than those of {self.directory}; choose another name or place, or "
                "remove those that you do not want"
            )

    def _patiently(self, store: TierStore, step: int, work: Callable[[], T]) -> T:
        return store.patiently(work, f"the copy of step {step}", say)
