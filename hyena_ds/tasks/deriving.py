"""A run's config as it was written, and what follows from it for fine-tuning.

    file, overrides --> nodes --a task in it?--> + model (of the weights), stages, validation, checkpoint, learning rate (of the
    data) --overrides again--> RunConfig, whole: the run keeps it so

What the file says is never changed; only keys that it leaves out are filled in. Any other config is read as it stands.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from hyena_ds.config.loading import load_node, to_plain
from hyena_ds.config.nodes import compose, override_all, read_text_file, where
from hyena_ds.config.schema import OptimizerConfig, RunConfig
from hyena_ds.config.task import TaskConfig
from hyena_ds.errors import UserError

RANDOM = "random"
"""An `initialize_from` that names no weights."""
_MULTIPLE = 64
"""Contexts and buckets are multiples of so many tokens, so that a few ranks can share a sequence."""
_SMALLEST_BUCKET = 128
_NULL = "tag:yaml.org,2002:null"


def load_run(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """The config of a run, whole. Raises UserError, for a `task` also about its data and the weights that it begins from."""
    return complete_run(compose(read_text_file(path, "the config", "a YAML file"), str(path)), str(path), overrides)


def complete_run(root: yaml.Node | None, name: str, overrides: list[str] | None = None) -> RunConfig:
    """Like `load_run`, from what `compose` gives of the file `name`; what follows is written into it."""
    given = overrides or []
    if root is None or not isinstance(root, yaml.MappingNode):
        return load_node(root, name, RunConfig, given)
    late = [override for override in given if override.startswith("stages.")]  # of stages that may follow first
    override_all(root, [override for override in given if override not in late])
    if _child(root, "task") is not None:
        _complete(root, name)
    return load_node(root, name, RunConfig, late)


def _complete(root: yaml.MappingNode, name: str) -> None:
    task = load_node(_child(root, "task"), name, TaskConfig, path="task")
    begin = _said(root, "initialize_from")
    if begin == RANDOM:
        _set(root, "initialize_from", None, name)
        begin = None
    _fill(root, "name", Path(name).stem, name)
    model = _mapping(root, "model", name)
    if any(_child(model, key) is None for key in ("width", "layers", "maximum_context")):
        for key, value in _shape(task, begin, name).items():
            _fill(model, key, value, name)
    seed, maximum = _whole(root, "seed", RunConfig.seed), _whole(model, "maximum_context", 0)
    without_stages = _child(root, "stages") is None and _child(root, "warmup") is None
    cadences = [_mapping(root, key, name) for key in ("validation", "checkpoint")]
    if without_stages or any(_child(each, "every_steps") is None for each in cadences):
        _follow_data(root, cadences, task, seed, maximum, name, without_stages)
    optimizer = _mapping(root, "optimizer", name)
    try:
        rate = float(_said(optimizer, "learning_rate") or OptimizerConfig.learning_rate)
    except ValueError:
        return  # load_node says what is wrong with it
    _fill(optimizer, "minimum_learning_rate", rate / 10, name)


def _follow_data(
    root: yaml.MappingNode,
    cadences: list[yaml.MappingNode],
    task: TaskConfig,
    seed: int,
    maximum: int,
    name: str,
    stages: bool,
) -> None:
    from hyena_ds.tasks.labelled_sets import check_lengths, read_sets, rounded_up

    sets = read_sets(task, seed)
    rows = len(sets.train)
    for each in cadences:
        _fill(each, "every_steps", max(1, round(rows / task.batch)), name)
    if not stages:
        return
    for part in (sets.train, sets.valid):
        check_lengths(part, maximum, "model.maximum_context")
    context = min(rounded_up(sets.longest, _MULTIPLE), maximum)
    steps = math.ceil(task.epochs * rows / task.batch)
    _fill(root, "stages", [{"context_length": context, "steps": steps, "global_batch": task.batch}], name)
    lengths = sorted(map(len, sets.train.sequences))
    doubled = [_SMALLEST_BUCKET << power for power in range(40) if _SMALLEST_BUCKET << power < context]
    task_node = _child(root, "task")
    assert isinstance(task_node, yaml.MappingNode)
    _fill(task_node, "buckets", [bucket for bucket in doubled if bucket >= lengths[0]], name)


def _shape(task: TaskConfig, begin: str | None, name: str) -> dict[str, Any]:
    """The shape of the model that is fine-tuned, or of the one that it is to be like."""
    from hyena_ds.checkpoints.weights import find_weights
    from hyena_ds.weights.reading import read_weights

    source = task.like or begin
    if source is None:
        raise UserError(
            f"{name}: initialize_from: found none, wanted weights, a checkpoint or a run to fine-tune; name one, or with "
            "random weights task.like, whose shape the model takes, or a model"
        )
    found = to_plain(read_weights(find_weights(source)).config)
    return {key: value for key, value in found.items() if value is not None and "dropout" not in key}


def _child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    """What stands under a key; None where nothing does, or null."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value for key_node, value in pairs if key_node.value == key and value.tag != _NULL), None)


def _said(node: yaml.Node, key: str) -> str | None:
    """What a scalar says; None where there is none, or null."""
    found = _child(node, key)
    return str(found.value) if isinstance(found, yaml.ScalarNode) else None


def _whole(node: yaml.Node, key: str, otherwise: int) -> int:
    said = (_said(node, key) or "").replace("_", "")
    return int(said) if said.isascii() and said.isdecimal() and len(said) < 16 else otherwise


def _mapping(root: yaml.MappingNode, key: str, name: str) -> yaml.MappingNode:
    """The keys under `key`, which is made where it is missing."""
    found = _child(root, key)
    if found is None:
        _set(root, key, {}, name)
        found = _child(root, key)
    if not isinstance(found, yaml.MappingNode):
        raise UserError(
            f"{where(found) if found is not None else name}: {key}: found a single value or a list, wanted keys"
        )
    return found


def _fill(node: yaml.MappingNode, key: str, value: Any, name: str) -> None:
    if _child(node, key) is None:
        _set(node, key, value, name)


def _set(node: yaml.MappingNode, key: str, value: Any, name: str) -> None:
    made = compose(yaml.safe_dump({key: value}), f"{name} (what follows from its task)")
    assert isinstance(made, yaml.MappingNode)
    node.value = [pair for pair in node.value if pair[0].value != key] + made.value
