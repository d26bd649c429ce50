"""How a run's config may change when the run is resumed.

    config then, config now --> every setting that differs; those among them that what was trained so far forbids

What made the state must stay: the model, the data, the seed, the stages as far as they were trained. All else may change.
The data are what they hold: where the shards are may change, and the run compares their digests (data/identity.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from hyena_ds.config.loading import to_plain
from hyena_ds.config.schedule import StageConfig
from hyena_ds.config.task import TaskConfig

FIXED = ("model.", "data.", "task", "seed")
"""Beginnings of keys that must not change..."""
FREE = ("data.workers", "data.verify", "data.cache.", "task.test", "task.patience", "task.epochs", "task.like")
"""...but for what begins with these..."""
_PLACE = re.compile(r"data\.sources\.\d+\.shards|task\.(train|genome)")
"""...and for these, where the data themselves can be compared."""
_UNSAID = ("resume",)
"""How a run is started is no setting of it."""


@dataclass(frozen=True)
class Change:
    """A setting that differs."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.before} -> {self.after}"


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """Every setting that differs between two plain configs; a setting of a task that was not known then had its default."""
    old, new = (_flat(_whole(config)) for config in (before, after))
    keys = sorted(key for key in old.keys() | new.keys() if key not in _UNSAID)
    found = [Change(key, old.get(key, "not set"), new.get(key, "not set")) for key in keys]
    return [change for change in found if change.before != change.after]


def _whole(config: dict[str, Any]) -> dict[str, Any]:
    task = config.get("task")
    if not isinstance(task, dict):
        return config
    known = {one.name: one.default for one in fields(TaskConfig) if one.default is not MISSING}
    known |= {one.name: one.default_factory() for one in fields(TaskConfig) if one.default_factory is not MISSING}
    return {**config, "task": {**{name: to_plain(value) for name, value in known.items()}, **task}}


def forbidden(
    found: Sequence[Change],
    before: Sequence[StageConfig],
    after: Sequence[StageConfig],
    step: int,
    places_are_free: bool = True,
) -> list[Change]:
    """The changes, among those `found` and those of the stages' rows, that a run after `step` steps does not allow.

    `places_are_free` says that the data are compared by their digests, so that the shards may be elsewhere now.
    """
    fixed = [change for change in found if change.key.startswith(FIXED) and not change.key.startswith(FREE)]
    if places_are_free:
        fixed = [change for change in fixed if not _PLACE.fullmatch(change.key)]
    return fixed + _forbidden_of_stages(before, after, step)


def _forbidden_of_stages(before: Sequence[StageConfig], after: Sequence[StageConfig], step: int) -> list[Change]:
    """Changes of finished stages' context length, batch and steps; the stage under way may get other steps, not fewer than are done."""
    fixed: list[Change] = []
    first = 0
    for number, old in enumerate(before):
        if step <= first:
            break
        done = min(old.step_count, step - first)
        if number >= len(after):
            fixed.append(Change(f"stages.{number}", f"{done} steps done", "not set"))
        else:
            new = after[number]
            pairs = [("context_length", old.context_length, new.context_length)]
            pairs += [("global_batch", old.sequences, new.sequences)]
            if done == old.step_count or new.step_count < done:
                pairs += [("steps", old.step_count, new.step_count)]
            fixed += [Change(f"stages.{number}.{name}", was, now) for name, was, now in pairs if was != now]
        first += old.step_count
    return fixed


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {path: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat.update(_flat(item, f"{path}.{key}" if path else str(key)))
    return flat
