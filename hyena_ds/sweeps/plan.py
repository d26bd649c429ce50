"""A sweep: one YAML file that makes named runs of a base config.

    base + settings + (each of `rows`) x (each combination of `axes`) --> SweepRun: number, name, key.path=value ...

Every run is checked before the first one starts. Takes no torch.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

from hyena_ds.config.loading import as_yaml, load_yaml, require
from hyena_ds.config.names import check_new_name
from hyena_ds.config.nodes import compose, read_text_file
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line
from hyena_ds.redaction import redacted
from hyena_ds.runs.directory import RunDirectory
from hyena_ds.tasks.deriving import complete_run

_OURS = ("name", "output", "resume")
"""Settings that the sweep makes itself."""
_IN_BRACES = re.compile(r"\{([^{}]*)\}")
MOST_RUNS = 1000
"""Slurm's usual largest array has 1,001 tasks."""


@dataclass(frozen=True)
class SweepConfig:
    """A whole sweep. Keys of settings are dotted, as on the command line; their values are those of a run's config."""

    name: str
    """The runs live in `output`/`name`/NAME OF THE RUN."""
    base: str
    """Config of a run, from which all begin; a relative path counts from the sweep's file."""
    run: str = ""
    """Name of a run, with settings in braces, as context-{stages.0.context_length}. Left out, it is made of all settings
    that vary."""
    output: str = "runs"
    """Directory of runs."""
    settings: dict[str, str] = field(default_factory=dict)
    """Settings of every run."""
    rows: tuple[dict[str, str], ...] = ()
    """Settings that change together: a run, or a set of runs, for each row."""
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Settings that change on their own: every combination of their values is a run."""

    def __post_init__(self) -> None:
        plain = bool(self.name) and "/" not in self.name and not self.name.startswith(".")
        require(plain, "name", f"found '{self.name}', wanted a plain directory name")
        require(bool(self.rows or self.axes), "axes", "found neither axes nor rows, wanted settings to vary")
        for key, values in self.axes.items():
            require(bool(values), "axes", f"{key}: found an empty list, wanted values")
        keys = [set(row) for row in self.rows]
        for number, row in enumerate(keys):
            require(
                row == keys[0] and bool(row),
                "rows",
                f"row {number} has the keys {', '.join(sorted(row)) or 'none'}, wanted those of row 0: "
                f"{', '.join(sorted(keys[0])) or 'at least one'}",
            )
        counts = Counter([*self.settings, *self.axes, *(keys[0] if keys else ())])
        for key, count in counts.items():
            place = "axes" if key in self.axes else "rows" if keys and key in keys[0] else "settings"
            require(key not in _OURS, place, f"{key}: the sweep sets it itself; leave it out")
            require(count == 1, place, f"{key}: found it in more than one of settings, rows and axes; wanted one")
        for key in _IN_BRACES.findall(self.run):
            require(key in counts, "run", f"found {{{key}}}, wanted one of {', '.join(counts)}")

    @property
    def dimensions(self) -> tuple[tuple[str, ...], ...]:
        """Keys that vary: those of the rows together, then every axis alone."""
        rows = (tuple(self.rows[0]),) if self.rows else ()
        return (*rows, *((key,) for key in self.axes))


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    number: int
    """From 0, in the order of the sweep."""
    name: str
    varied: dict[str, str]
    """What is its own: values of the rows' and axes' keys."""
    arguments: tuple[str, ...]
    """What `hyena-ds train` is given: the config and its overrides."""
    config: RunConfig

    @property
    def paths(self) -> RunDirectory:
        """Files of the run."""
        return RunDirectory(self.config)

    @property
    def directory(self) -> Path:
        """Directory of the run."""
        return self.paths.path

    def is_complete(self) -> bool:
        """Whether it has trained to its end."""
        return self.paths.is_complete()

    def check_secrets(self) -> None:
        """Raise UserError where its arguments, which are about to be written down, hold a secret."""
        for argument in self.arguments:
            if redacted(argument) != argument:
                raise UserError(
                    f"run {self.name}: {redacted(argument)}: found a secret (user info, query or command), wanted ${{NAME}} in "
                    "its place, a variable of the environment: what is handed to Slurm is written down"
                )


@dataclass(frozen=True)
class Sweep:
    """A sweep whose runs are all valid."""

    file: str
    config: SweepConfig
    runs: tuple[SweepRun, ...]

    @property
    def directory(self) -> Path:
        """Directory of the sweep, beside those of its runs."""
        return Path(self.config.output) / self.config.name


def load_sweep(file: str, overrides: list[str]) -> Sweep:
    """Read a sweep; `overrides` are for all of its runs. Raises UserError, with the run's name where one is wrong."""
    config = load_yaml(file, SweepConfig)
    directory = Path(config.output) / config.name
    check_new_name(config.name, directory, f"{file}: name")
    total = math.prod([max(1, len(config.rows)), *(len(values) for values in config.axes.values())])
    if total > MOST_RUNS:
        raise UserError(f"{file}: rows and axes make {total:,} runs, wanted at most {MOST_RUNS:,}; split the sweep")
    base = os.path.normpath(Path(file).parent / config.base)
    base = f"./{base}" if base.startswith("-") else base  # or `hyena-ds train` would take it for an option
    root = compose(read_text_file(base, "the config", "a YAML file"), base)
    varied_keys = {key for keys in config.dimensions for key in keys}
    for override in overrides:
        key = override.partition("=")[0]
        if key in varied_keys or key in _OURS:
            raise UserError(f"override '{override}': the sweep sets {key} itself; change it in {file}")
    runs: dict[str, SweepRun] = {}
    for number, varied in enumerate(_varied(config)):
        name = _name(config, varied)
        settings = {**config.settings, **varied}
        ours = {"name": name, "output": str(directory)}
        arguments = [*(f"{key}={value}" for key, value in settings.items()), *overrides]
        arguments += [f"{key}={as_yaml(value)}" for key, value in ours.items()]
        try:
            run = complete_run(deepcopy(root), base, arguments)
            check_new_name(name, RunDirectory(run).config_file, "name")
        except UserError as error:
            raise UserError(f"{file}: run {in_one_line(name, MOST_QUOTED)}: {error}") from None
        if name in runs:
            raise UserError(
                f"{file}: runs {runs[name].number} and {number} are both named {name}; name all that varies in `run`"
            )
        varied = {key: redacted(value) for key, value in varied.items()}
        runs[name] = SweepRun(number, name, varied, (base, *arguments), run)
    return Sweep(file, config, tuple(runs.values()))


def _varied(config: SweepConfig) -> list[dict[str, str]]:
    """What each run has of its own, the axes' last key changing fastest."""
    return [
        {**row, **dict(zip(config.axes, values, strict=True))}
        for row in config.rows or ({},)
        for values in itertools.product(*config.axes.values())
    ]


def _name(config: SweepConfig, varied: dict[str, str]) -> str:
    known = {key: redacted(value) for key, value in {**config.settings, **varied}.items()}
    if config.run:
        text = _IN_BRACES.sub(lambda match: known[match[1]], config.run)
    else:
        text = "-".join(f"{key.rpartition('.')[2]}-{value}" for key, value in varied.items())
    return re.sub(r"[^\w.+=-]+", "_", text)
