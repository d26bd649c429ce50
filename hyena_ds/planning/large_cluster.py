"""What a run on 512 devices does beside its steps: what it asks for, what is seen and lost, and the share of time that is left.

    counts of cost/beside_steps.py, keys of the config, a predicted step --cost/goodput.py--> three tables

A row says of which kind its number is; what is made with an assumed number is assumed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from hyena_ds.config.schema import RunConfig
from hyena_ds.cost import beside_steps as beside
from hyena_ds.cost.beside_steps import RANKS_OF_A_NODE, RESUME, SAVE, SAVE_AND_REMOVE, START, Asked, checkpoint_written
from hyena_ds.cost.devices import Cluster
from hyena_ds.cost.goodput import (
    FAILED_IN_HOURS,
    FAILED_OF_DEVICES,
    FAILURES,
    HOURS_BETWEEN_FAILURES,
    Interrupted,
)
from hyena_ds.cost.shape import parameters
from hyena_ds.cost.step_time import STEP_MESSAGES
from hyena_ds.cost.traffic import traffic
from hyena_ds.monitoring.stragglers import WINDOWS
from hyena_ds.planning.forecast import Prediction
from hyena_ds.planning.sources import Kind, Sourced, sourced_table
from hyena_ds.runtime.supervisor import FIRST_PAUSE
from hyena_ds.runtime.watchdog import SLOWER
from hyena_ds.text import number, show_duration

DEVICES = 512
_UNWATCHED = 1800.0
"""Seconds after which a collective gives up where no watchdog looks: assumed."""
_FORWARD = 1 / 3
"""Share of a step that a pass without gradients takes."""
_WORSE = 10
_NOBODY = "nobody looks"
_GIB = float(1 << 30)
_MACHINE = "an AMD EPYC"
_TEST = "`tests/training/test_scale.py`"
_SHARDS = "`hyena-ds bench shards`"
_WATCH = f"`hyena-ds bench watch`, CPU seconds of two ranks on {_MACHINE}"


class Lasting(NamedTuple):
    """A run on a cluster that fails now and then."""

    interrupted: Interrupted
    until_complete: float
    """Seconds from a save to a whole checkpoint."""
    watching: float
    """Share of a step that is added to it."""
    validating: float
    """The same, of validations."""

    def goodput(self, interval: float | None = None) -> float:
        """Share of the predicted tokens a second that is left; with another interval between checkpoints, in seconds."""
        found = self.interrupted if interval is None else replace(self.interrupted, interval=interval)
        return found.share / (1 + self.watching + self.validating)


def lasting(config: RunConfig, step: Prediction, cluster: Cluster) -> Lasting:
    """The run of `config`, whose steps are `step`, on `cluster`."""
    nodes, seconds, shape = cluster.nodes, step.time.seconds, step.shape
    written = checkpoint_written(config.model, config.zero_stage, nodes)
    # An exchange of lists is one of their sizes and one of their bytes.
    exchanges = 2 * (SAVE_AND_REMOVE.exchanges or 0) * cluster.device.rates.links.latency(nodes > 1)
    save = SAVE_AND_REMOVE.file_seconds(nodes) + exchanges + written.state_of_rank / beside.HOST_COPY
    complete = save + _file_seconds(written.node, written.total)
    seen = config.watchdog.silence if config.watchdog.enabled else _UNWATCHED
    start = seen + FIRST_PAUSE + beside.PROCESSES_START_IN + resume_seconds(config, cluster) + beside.FIRST_STEP_SECONDS
    between = 3600 * HOURS_BETWEEN_FAILURES / cluster.ranks
    interval = saved_every(config) * seconds
    intervals = [every for every in (config.stragglers.every_steps, config.corruption.every_steps) if every is not None]
    compared = 1 / min(intervals) if intervals else 0.0
    watching = beside.WATCHED_STEP - 1 + compared * (beside.COMPARED_STEP - beside.WATCHED_STEP) if intervals else 0.0
    of_a_row = -(-config.validation.windows // shape.data_parallel)
    of_a_step = shape.batch * shape.accumulation
    validating = of_a_row * _FORWARD / of_a_step / config.validation.every_steps
    return Lasting(Interrupted(interval, save, start + complete, between), complete, watching, validating)


def saved_every(config: RunConfig) -> int:
    """Steps between the checkpoints that a run goes on from after most failures: on hosts' own disks, where there is such a tier."""
    return (config.checkpoint.local or config.checkpoint).every_steps


def slow_for(config: RunConfig) -> int | None:
    """Steps in which a rank is slow before it is named; None where nobody looks."""
    every = config.stragglers.every_steps
    return None if every is None else every * WINDOWS


def resume_seconds(config: RunConfig, cluster: Cluster) -> float:
    """Seconds in which a checkpoint is found, read by one rank a file, and sent to all."""
    state = 12.0 * parameters(config.model)
    sent = state / (cluster.device.rates.links.between if cluster.nodes > 1 else cluster.device.rates.links.inside)
    return RESUME.file_seconds(cluster.nodes) + _file_seconds(state / cluster.nodes, state) + sent


def _size(count: float) -> str:
    unit, name = (_GIB, "GiB") if count >= _GIB else (float(1 << 20), "MiB")
    return f"{number(count / unit)} {name}"


def _file_seconds(of_node: float, of_all: float) -> float:
    return max(of_node / beside.FILE_RATE_OF_A_NODE, of_all / beside.FILE_RATE_OF_ALL)


def large_cluster(config: RunConfig, step: Prediction | None, cluster: Cluster) -> dict[str, str]:
    """The tables by their names in scaling.template; sentences in their places where no grid fits."""
    if step is None:
        return dict.fromkeys(("asked_table", "faults_table", "goodput_table"), f"No grid of {DEVICES} devices fits.")
    found = lasting(config, step, cluster)
    return {
        "asked_table": sourced_table(
            ("what", "busiest rank", "busiest node", "all"), _asked(config, step, cluster.nodes)
        ),
        "faults_table": sourced_table(
            ("what happens", "seen after at most", "lost at most"), _faults(config, step, found)
        ),
        "goodput_table": sourced_table(("what", "value"), _goodput(config, step, found, cluster)),
    }


def _asked(config: RunConfig, step: Prediction, nodes: int) -> list[Sourced]:
    shape, moved = step.shape, traffic(step.shape, on_cpu=False)
    gradients = 8.0 * parameters(config.model) * (shape.ranks - 1) / shape.ranks
    stop = beside.LOOKS_OF_A_STEP
    files = (beside.STATE_FILES_OF_A_NODE, beside.checkpoint_files(nodes))
    together = min(config.data.shuffle_shards, beside.TRAIN_SHARDS_OF_A_GENOME)
    cached, fetched = beside.CACHE_GIB * together * _GIB, beside.FETCHED_GIB * shape.tokens * _GIB
    a_second = fetched / step.time.seconds
    genomes = f"{beside.INDEX_GENOMES} genomes, {beside.INDEX_SHARDS:,} shards"

    def row(what: str, rank: object, node: object, of_all: object, kind: Kind, source: str) -> Sourced:
        cells = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in (rank, node, of_all))
        return Sourced((what, *cells), kind, source)

    def calls(what: str, asked: Asked) -> Sourced:
        return row(what, asked.rank, asked.node, asked.calls(nodes), "counted", _TEST)

    def of_ranks(what: str, size: float, source: str) -> Sourced:
        of_node = size * RANKS_OF_A_NODE
        return row(what, _size(size), _size(of_node), _size(of_node * nodes), "counted", source)

    def of_nodes(what: str, size: float, kind: Kind, source: str) -> Sourced:
        return row(what, "", _size(size), _size(size * nodes), kind, source)

    def checkpoint(name: str, stages: tuple[int, ...]) -> Sourced:
        written = checkpoint_written(config.model, stages[0], nodes)
        what = f"bytes of a checkpoint, ZeRO stage {name}" + (" (as configured)" if config.zero_stage in stages else "")
        sizes = (f"at most {_size(written.rank)}", f"at most {_size(written.node)}", _size(written.total))
        return row(what, *sizes, "counted", "`cost/beside_steps.py`, beside the shapes of a model")

    return [
        calls("calls to the file system, a start", START),
        calls("a save", SAVE),
        calls("a save that removes an older one", SAVE_AND_REMOVE),
        calls("a resume", RESUME),
        row("a step, beside reading", stop, stop, stop * nodes, "counted", f"{_TEST}: one rank a node, the stop file"),
        row("exchanges of lists, a start", START.exchanges, "", "", "counted", _TEST),
        row("exchanges of lists, a save", SAVE.exchanges, "", "", "counted", _TEST),
        row("files of a checkpoint", "", *files, "counted", f"{_TEST}: state, and {beside.OTHER_FILES} others"),
        checkpoint("0", (0,)),
        checkpoint("1 to 3", (1, 2, 3)),
        row(
            "exchanges of activations and halos, a step", round(moved.messages), "", "", "counted", "`cost/traffic.py`"
        ),
        of_ranks("sent in them", step.time.exchanged, "`cost/work.py`"),
        row(
            "small collectives, a step",
            STEP_MESSAGES,
            "",
            "",
            "assumed",
            "ZeRO's, the norm's, the loss's and the votes'",
        ),
        of_ranks("sent to sum gradients and share weights, a step", gradients, "a ring, `cost/devices.py`"),
        of_ranks(f"index of {genomes}", beside.INDEX_MIB * (1 << 20), _SHARDS),
        of_nodes("their shards, held in a cache", cached, "counted", f"{_SHARDS}, `data.shuffle_shards`"),
        of_nodes(
            "fetched of them from other machines, a step", fetched, "counted", f"{_SHARDS}: an epoch passes every node"
        ),
        of_nodes(
            "that is, a second",
            a_second,
            "assumed",
            f"by predicted seconds; {beside.FILE_RATE_OF_ALL / 1e9:g} GB/s of all are assumed above",
        ),
        row(
            "the first step comes after",
            f"{beside.FIRST_STEP_SECONDS:g} s",
            "",
            "",
            "measured",
            f"{_SHARDS}, a core of {_MACHINE}; a warm cache, the process group is up",
        ),
        row("watching, most steps", f"{beside.WATCHED_STEP:g} times", "", "", "measured", _WATCH),
        row("watching, a step at which ranks compare", f"{beside.COMPARED_STEP:g} times", "", "", "measured", _WATCH),
    ]


def _faults(config: RunConfig, step: Prediction, found: Lasting) -> list[Sourced]:
    seconds, saved = step.time.seconds, saved_every(config)

    def steps(count: float) -> str:
        return f"{count:,.0f} steps, {show_duration(count * seconds)}"

    slow, compared = slow_for(config), config.corruption.every_steps
    watchdog, tiers = config.watchdog, config.checkpoint.copies
    since = f"{steps(saved)}, and {show_duration(found.until_complete)} of a save under way"
    slow_seen = _NOBODY if slow is None else steps(slow)
    bit_seen = _NOBODY if compared is None else steps(min(compared, saved + 1))
    dead_seen = show_duration(watchdog.silence) if watchdog.enabled else _NOBODY
    stuck_seen = show_duration(max(watchdog.step, SLOWER * seconds)) if watchdog.enabled else _NOBODY
    flips = "a bit of a parameter flips" + (" in one of a rank's two copies" if config.zero_stage == 3 else "")
    copied = steps(min(tier.every_steps for tier in tiers) + saved) if tiers else "all steps: nothing is copied"
    rows = (
        (
            "a rank is slow",
            slow_seen,
            "the time it takes longer",
            "two windows of `stragglers.every_steps`; on a CPU that others use too, as many as last `stragglers.seconds`",
        ),
        (flips, bit_seen, steps(saved + 1), "`corruption.every_steps`, or the step after a checkpoint"),
        ("a host dies, its link is cut", dead_seen, since, "`watchdog.silence`, `checkpoint.every_steps`"),
        ("a rank is stuck", stuck_seen, since, f"`watchdog.step`, or {SLOWER:g} steps; `checkpoint.every_steps`"),
        ("the run's directory is lost", "the next start", copied, "`checkpoint.tiers`, the most frequent"),
    )
    return [Sourced((what, seen, lost), "counted", source) for what, seen, lost, source in rows]


def _goodput(config: RunConfig, step: Prediction, found: Lasting, cluster: Cluster) -> list[Sourced]:
    run, seconds = found.interrupted, step.time.seconds
    tokens = step.shape.tokens / seconds
    best = max(1, round(run.best_interval / seconds))
    worse = found._replace(interrupted=replace(run, between_failures=run.between_failures / _WORSE))
    interval = f"{saved_every(config):,} steps, {show_duration(run.interval)}"
    validated = (
        f"{config.validation.windows} windows every {config.validation.every_steps:,} steps, each a third of a step"
    )
    published = (
        f"as on {FAILED_OF_DEVICES:,} H100s: {FAILURES} unexpected interruptions in {FAILED_IN_HOURS // 24} days "
        "(The Llama 3 Herd of Models, 2024, section 3.3.4)"
    )
    copied = _file_seconds(16.0 * parameters(config.model) / cluster.nodes, 16.0 * parameters(config.model))
    row_left = f"{tokens * found.goodput():,.0f} tokens/s"
    rows: list[tuple[str, str, Kind, str]] = [
        (
            f"M, between failures of {cluster.ranks} devices",
            f"{number(run.between_failures / 3600)} h",
            "assumed",
            published,
        ),
        ("t, between checkpoints", interval, "counted", "`checkpoint.every_steps`"),
        (
            "d, for which a save holds the steps",
            f"{number(run.save)} s",
            "assumed",
            "its calls, exchanges, copy: nothing hidden",
        ),
        ("until the checkpoint is whole", f"{number(found.until_complete)} s", "assumed", "d, and its bytes"),
        (
            "until its copy in a tier is whole",
            f"{number(copied)} s",
            "assumed",
            "each node a share of its bytes, `checkpoint.tiers`",
        ),
        (
            "R, from a failure to the next step",
            f"{number(run.start)} s",
            "assumed",
            "seen, pause, processes, resume, first step, and a save under way",
        ),
        ("time in saves", f"{run.saving:.2%}", "assumed", "d / (t + d)"),
        ("time in lost steps and starts", f"{1 - run.share / (1 - run.saving):.2%}", "assumed", "Daly, without saves"),
        ("watching", f"{found.watching:.2%}", "measured", _WATCH),
        ("validation", f"{found.validating:.2%}", "assumed", validated),
        (
            "**of the row above, with saves and failures**",
            f"**{found.goodput():.1%}**, {row_left}",
            "assumed",
            "all of this",
        ),
        (f"where failures are {_WORSE} times as frequent", f"{worse.goodput():.1%}", "assumed", f"M / {_WORSE}"),
        (
            "best interval",
            f"{best:,} steps, {show_duration(best * seconds)}: {found.goodput(best * seconds):.1%}",
            "assumed",
            "Young: root of 2 d M",
        ),
    ]
    return [Sourced((what, value), kind, source) for what, value, kind, source in rows]
