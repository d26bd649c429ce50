"""The sweep that `hyena-ds tune` makes of a run's config: rows are grids of one stage, each run a few of its steps.

    config, ranks --plan_stages--> the stage's own grid --every other that fits--> predicted --the most promising--> rows
    rows + the stage alone, steps_only --> OUTPUT/NAME-tune/sweep.yaml, which `hyena-ds sweep` runs too

The global batch stays, so that every row is the same training. Imports no torch.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from hyena_ds.config.arithmetic import StagePlan, plan_stages
from hyena_ds.config.limits import MOST_LOCAL_RANKS, MOST_STEPS
from hyena_ds.config.loading import dump_yaml, load_yaml
from hyena_ds.config.monitors import MonitorsConfig
from hyena_ds.config.schema import RunConfig
from hyena_ds.cost.devices import Cluster
from hyena_ds.cost.shape import StepShape, shape_of_stage
from hyena_ds.errors import UserError
from hyena_ds.files.whole import write_whole
from hyena_ds.planning.forecast import Prediction, Search, fitting_grids, predict
from hyena_ds.redaction import redacted
from hyena_ds.sweeps.plan import Sweep, SweepConfig, load_sweep

SWEEP = "sweep.yaml"
_SP, _MICRO, _POLICY = KEYS = tuple(
    f"stages.0.{name}" for name in ("sequence_parallel", "micro_batch_size", "activation_policy")
)
"""What a row sets."""
_NAME = f"sp{{{_SP}}}-micro{{{_MICRO}}}-{{{_POLICY}}}"
_UNLIKE = 0.05
"""How much slower a further micro batch of the same grid and policy counts, so that the most promising rows differ."""
_FULL = 0.03
"""How much slower a grid counts that fills the device: of nearly equal ones, the smaller goes first."""
_OURS = ("name", "output", "resume", "stages", "warmup", "local_ranks", "steps_only")
"""Settings that a measurement makes itself."""


@dataclass(frozen=True)
class Stage:
    """A stage of a config whose grids are measured."""

    file: str
    """The config's."""
    overrides: tuple[str, ...]
    config: RunConfig
    plan: StagePlan
    """As the config has it."""
    ranks: int
    directory: Path
    """Where the sweep and its runs are."""

    @property
    def sweep_file(self) -> Path:
        """Where the sweep is written."""
        return self.directory / SWEEP

    def shape(self, on_cpu: bool) -> StepShape:
        """A step on the config's own grid."""
        return shape_of_stage(self.config, self.plan, on_cpu)


def stage_of(file: str, overrides: list[str], config: RunConfig, ranks: int, number: int | None) -> Stage:
    """Stage `number` of the schedule on `ranks` ranks, None for the longest context.

    Raises UserError for what cannot be measured so: a task, a run that goes on from a checkpoint, and what `plan_stages` refuses.
    """
    if config.task is not None:
        raise UserError(f"{file}: task: found one, wanted a run on data.sources: tune measures steps of one length")
    if config.resume not in ("latest", "never"):
        raise UserError(
            f"{file}: resume: found '{config.resume}', wanted none: every grid is a run of its own, from its first step; take it out"
        )
    for override in overrides:
        if redacted(override) != override:
            raise UserError(
                f"override '{override}': found a secret (user info, query or command), wanted ${{NAME}} in its place, a "
                "variable of the environment: tune writes its sweep down"
            )
    plans = plan_stages(config, ranks)
    if number is not None and not 0 <= number < len(plans):
        raise UserError(f"--stage: found {number}, wanted 0 to {len(plans) - 1}, a stage of {file}")
    plan = max(plans, key=lambda plan: plan.config.context_length) if number is None else plans[number]
    return Stage(file, tuple(overrides), config, plan, ranks, directory_of(config, number))


def directory_of(config: RunConfig, number: int | None) -> Path:
    """Where the sweep of a stage is, None for the longest context."""
    return Path(config.output) / (f"{config.name}-tune" if number is None else f"{config.name}-tune-{number}")


def recorded_ranks(directory: Path) -> int | None:
    """The ranks that the sweep in a directory was made for; None where there is no sweep, or it does not say."""
    file = directory / SWEEP
    said = load_yaml(file, SweepConfig).settings.get("local_ranks", "") if file.exists() else ""
    return int(said) if said.isascii() and said.isdecimal() else None


def candidates(stage: Stage, cluster: Cluster, most: int) -> list[Prediction]:
    """The stage's own grid, then the most promising of all others that fit, at most `most` in all."""
    own = predict(stage.shape(cluster.device.on_cpu), cluster)
    others = [found for found in fitting_grids(own.shape, cluster, Search()) if found.shape != own.shape]
    seen = Counter([(own.shape.sequence_parallel, own.shape.policy)])
    weighed = []
    room = cluster.device.memory

    def seconds(found: Prediction) -> float:
        return found.time.seconds * (1 + _FULL * found.memory.total / room)

    for found in sorted(others, key=seconds):
        kind = found.shape.sequence_parallel, found.shape.policy
        weighed.append((seconds(found) * (1 + _UNLIKE * seen[kind]), found))
        seen[kind] += 1
    weighed.sort(key=lambda pair: pair[0])
    return [own, *(found for _, found in weighed[: most - 1])]


def row_of(shape: StepShape) -> dict[str, str]:
    """The grid as a row of the sweep."""
    return {_SP: str(shape.sequence_parallel), _MICRO: str(shape.batch), _POLICY: shape.policy}


def settings_of(stage: Stage, shape: StepShape) -> str:
    """What to write on a command line, or into the config, for the stage to run on this grid."""
    key, row = stage.config.place(stage.plan.number)
    if key == "stages":
        return " ".join(f"{name.replace('.0.', f'.{row}.')}={value}" for name, value in row_of(shape).items())
    settings = ", ".join(f"{name.rpartition('.')[2]}: {value}" for name, value in row_of(shape).items())
    return (
        f"a warmup chooses the grids of its rungs; in its place, rows of stages, of which this one has {{{settings}}}"
    )


def write_sweep(stage: Stage, found: list[Prediction], steps: int, most: int) -> Sweep:
    """Write the sweep down, and read it as `hyena-ds sweep` does. One that is there goes on, with more rows if there are fewer.

    Raises UserError where the one that is there is another.
    """
    file = stage.sweep_file
    rows = [row_of(prediction.shape) for prediction in found]
    wanted = SweepConfig(
        name=stage.directory.name,
        base=_from(stage.directory, stage.file),
        run=_NAME,
        output=str(stage.directory.parent),
        settings=_settings(stage, steps),
        rows=tuple(rows),
    )
    if file.exists():
        before = load_yaml(file, SweepConfig)
        if replace(before, rows=wanted.rows) != wanted or set(before.rows[0]) != set(KEYS):
            raise UserError(
                f"{file}: found a sweep with other settings than these; give the same, remove {stage.directory}, or choose "
                "another name (name=OTHER)"
            )
        new = [row for row in rows if row not in before.rows]
        kept = [row for row in new if row == rows[0]]
        kept += [row for row in new if row != rows[0]][: max(0, most - len(before.rows) - len(kept))]
        wanted = replace(wanted, rows=(*before.rows, *kept))
    file.parent.mkdir(parents=True, exist_ok=True)
    head = f"# Grids of stage {stage.plan.number}, written by hyena-ds tune; hyena-ds sweep runs the same.\n"
    write_whole(file, head + dump_yaml(wanted))
    return read_sweep(stage)


def read_sweep(stage: Stage) -> Sweep:
    """The sweep that is there. Raises UserError where there is none, or its runs were made of another config."""
    if not stage.sweep_file.exists():
        raise UserError(
            f"{stage.sweep_file}: found none, wanted the sweep of an earlier hyena-ds tune; leave out --table"
        )
    sweep = load_sweep(str(stage.sweep_file), [])
    for run in sweep.runs:
        changed = run.paths.changes(run.config, None)
        if changed:
            raise UserError(
                f"{run.directory}: was measured with other settings ({'; '.join(map(str, changed))}); set them back, or "
                f"remove {stage.directory} to measure again"
            )
    return sweep


def _settings(stage: Stage, steps: int) -> dict[str, str]:
    """The stage alone, and nothing but its steps."""
    row = stage.plan.config
    given = [override.partition("=")[::2] for override in stage.overrides]
    settings = {key: value for key, value in given if key.partition(".")[0] not in _OURS}
    settings["stages"] = f"[{{context_length: {row.context_length}, global_batch: {row.sequences}, steps: {steps}}}]"
    if stage.config.warmup is not None:
        settings["warmup"] = "null"
    if stage.ranks <= MOST_LOCAL_RANKS:
        settings["local_ranks"] = str(stage.ranks)
    if stage.config.monitors != MonitorsConfig():
        settings["monitors"] = "{}"
    settings["steps_only"] = "true"
    settings["checkpoint.every_steps"] = str(MOST_STEPS)
    settings["supervisor.restarts_without_progress"] = "0"  # what does not fit would not the next time
    return settings


def _from(directory: Path, file: str) -> str:
    """The config as a path from the sweep's directory; absolute where either is."""
    if os.path.isabs(file) or directory.is_absolute():
        return os.path.abspath(file)
    return os.path.relpath(file, directory)
