"""A run that goes on with other hosts than it began on: the grid of its stages there. Imports no torch.

    config, hosts --plan_stages--> it divides, and fits? as it stands
                  --else, for each row of stages and the warmup--> what changes fewest settings and fits, the fastest of those

The global batch and the steps stay as they are: what is changed gives the same training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product

from hyena_ds.config.arithmetic import StagePlan, divisors, plan_stages
from hyena_ds.config.loading import Invalid
from hyena_ds.config.policy import KEPT_UNITS, PolicyName
from hyena_ds.config.schedule import StageConfig, WarmupConfig
from hyena_ds.config.schema import RunConfig
from hyena_ds.cost.devices import Cluster, Device, device_called, published_device
from hyena_ds.cost.shape import shape_of_stage
from hyena_ds.errors import UserError
from hyena_ds.files.rows import STARTS, read_rows
from hyena_ds.planning.forecast import USABLE, predict
from hyena_ds.runs.directory import RunDirectory
from hyena_ds.runtime.hostfile import Host
from hyena_ds.runtime.roster import Layout

_OTHERWISE = "h200"
"""Whose rates compare grids on a device that no table has..."""
_ROOM = 1.05
"""...and which is taken to hold so many times what the run was predicted to need where it began."""
_MOST_SMALLER = 8
"""Micro batches that are tried: a batch may divide in many ways."""
_CUTS = ("sequence_parallel=", "tokens_per_rank=")


@dataclass(frozen=True)
class _Part:
    """A row of `stages`, or the whole warmup, by the overrides that lead to it."""

    config: RunConfig
    """With this part as its only stages."""
    overrides: tuple[str, ...] = ()


def layout(config: RunConfig, began_on: Sequence[Host], hosts: Sequence[Host]) -> Layout | None:
    """The stages of a run on `hosts`; None where a global batch divides on no grid. Its memory is that of the device that it
    last ran on; of an unknown one, what the run is predicted to need on the hosts that it began on."""
    last = (read_rows(RunDirectory(config).environment, STARTS) or [{}])[-1].get("device", "")
    devices = [device_called(name) for name in last.split(", ")]
    known = [device for device in devices if device is not None]
    if len(known) == len(devices):
        return layout_on(config, _cluster(hosts, min(known, key=lambda device: device.memory)))
    device = published_device(_OTHERWISE)
    before = _cluster(began_on, device)
    needed = max(_predicted(config, plan, before)[0] for plan in plan_stages(config, before.ranks))
    return layout_on(config, _cluster(hosts, replace(device, memory=_ROOM * needed / USABLE)), is_known=False)


def layout_on(config: RunConfig, cluster: Cluster, is_known: bool = True) -> Layout | None:
    """Like `layout`, on a cluster, whose memory `is_known`; else the config as it stands is taken to fit."""
    plans = _plans(config, cluster)
    if plans is not None and (not is_known or _fit(config, plans, cluster)):
        return Layout(plans)
    overrides: list[str] = []
    rows = list(config.stages)
    warmup = config.warmup
    if warmup is not None:
        best = _best(_warmups(config, warmup), cluster, is_known)
        if best is None:
            return None
        overrides, warmup = [*overrides, *best.overrides], best.config.warmup
    for number, row in enumerate(rows):
        best = _best(_rows(config, number, row, cluster.ranks), cluster, is_known)
        if best is None:
            return None
        overrides, rows[number] = [*overrides, *best.overrides], best.config.stages[0]
    changed = replace(config, stages=tuple(rows), warmup=warmup)
    plans = _plans(changed, cluster)
    if plans is None:
        return None
    return Layout(plans, tuple(overrides), not is_known or _fit(changed, plans, cluster))


def _cluster(hosts: Sequence[Host], device: Device) -> Cluster:
    """As many devices as the hosts have together; where they differ, all are taken to have the fewest."""
    ranks, fewest = sum(host.slots for host in hosts), min(host.slots for host in hosts)
    even = ranks == fewest * len(hosts)
    return Cluster(len(hosts) if even else ranks, fewest if even else 1, device)


def _plans(config: RunConfig, cluster: Cluster) -> tuple[StagePlan, ...] | None:
    try:
        return plan_stages(config, cluster.ranks)
    except UserError:
        return None


def _predicted(config: RunConfig, plan: StagePlan, cluster: Cluster) -> tuple[float, float]:
    """Bytes on a device, and seconds of all steps."""
    found = predict(shape_of_stage(config, plan, cluster.device.on_cpu), cluster)
    return found.memory.total, plan.config.step_count * found.time.seconds


def _fit(config: RunConfig, plans: Sequence[StagePlan], cluster: Cluster) -> bool:
    return all(predict(shape_of_stage(config, plan, cluster.device.on_cpu), cluster).fits for plan in plans)


def _best(parts: Iterator[_Part], cluster: Cluster, is_known: bool) -> _Part | None:
    """What keeps the cut, then changes fewest settings, then takes least time, of the parts that divide and fit. Where nothing
    fits, what needs least memory."""
    found: list[tuple[tuple[float, ...], _Part]] = []
    for part in parts:
        plans = _plans(part.config, cluster)
        if plans is None:
            continue
        needs = [_predicted(part.config, plan, cluster) for plan in plans]
        memory, seconds = max(each for each, _ in needs), sum(each for _, each in needs)
        cuts = any(key in override for override in part.overrides for key in _CUTS)
        fits = memory <= USABLE * cluster.device.memory
        if not part.overrides and (fits or not is_known):
            return part
        found.append(((0, cuts, len(part.overrides), seconds) if fits else (1, memory), part))
    return min(found, key=lambda each: each[0])[1] if found else None


def _rows(config: RunConfig, number: int, row: StageConfig, ranks: int) -> Iterator[_Part]:
    """A row on every grid, with every smaller micro batch and leaner policy; as it stands first."""
    width, length = config.model.width, row.context_length
    for sp in dict.fromkeys((row.sequence_parallel, *divisors(ranks))):
        if width % sp or length % sp or (sp > 1 and length < 2 * sp):
            continue
        for micro, policy in product(_micro_batches(row, ranks, sp), _policies(config, row)):
            other = replace(row, sequence_parallel=sp, micro_batch_size=micro, activation_policy=policy)
            yield _Part(replace(config, stages=(other,), warmup=None), _overrides(f"stages.{number}", row, other))


def _micro_batches(row: StageConfig, ranks: int, sp: int) -> list[int | None]:
    """What the config says, then the largest of the smaller ones that divide the sequences of a data-parallel row."""
    sequences, rows = row.sequences, max(1, ranks // sp)
    of_row = sequences // rows if sequences % rows == 0 else 1
    most = row.micro_batch_size if row.micro_batch_size is not None else of_row + 1
    smaller = [size for size in reversed(divisors(of_row)) if size < most]
    return [row.micro_batch_size, *smaller[:_MOST_SMALLER]]


def _warmups(config: RunConfig, warmup: WarmupConfig) -> Iterator[_Part]:
    """The ladder, cut over more ranks or fewer, and with every leaner policy; as it stands first."""
    lengths = (warmup.tokens_per_rank, *(length for length in reversed(warmup.lengths) if length >= 2))
    for tokens, policy in product(dict.fromkeys(lengths), _policies(config, warmup)):
        try:
            other = replace(warmup, tokens_per_rank=tokens, activation_policy=policy)
            alone = replace(config, stages=(), warmup=other)
        except Invalid:  # the width is not cut over so many ranks
            continue
        yield _Part(alone, _overrides("warmup", warmup, other))


def _policies(config: RunConfig, part: StageConfig | WarmupConfig) -> list[PolicyName | None]:
    """The part's own, or none, then all leaner ones."""
    policies = list(KEPT_UNITS)
    now = policies.index(part.activation_policy or config.activation_policy)
    return [part.activation_policy, *policies[now + 1 :]]


def _overrides(place: str, before: StageConfig | WarmupConfig, after: StageConfig | WarmupConfig) -> tuple[str, ...]:
    values = {field.name: getattr(after, field.name) for field in fields(after)}
    return tuple(f"{place}.{name}={value}" for name, value in values.items() if value != getattr(before, name))
