"""Configs that are valid, or wrong, by construction: derived from the schema's dataclasses.

    plain tree of a valid config --valid_tree--> another one, every change within the schema's bounds
                                 --wrong_tree--> one value of a wrong type, an unknown key, a missing one
                                 --wrong_text--> bytes that are no such config: cut, doubled keys, aliases without end

A tree is what `to_plain` makes of a config: dicts, lists and scalars.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import types
import typing
from collections.abc import Iterator
from typing import Any

import yaml
from hypothesis import strategies as st

from hyena_ds.config.schema import RunConfig

Tree = Any
Path = tuple[str | int, ...]

_LETTERS = st.characters(categories=("Lu", "Ll", "Lo", "Nd"))
_REST = st.characters(categories=("Lu", "Ll", "Lo", "Nd"), include_characters=" ._-+=()'\"$`;&,#%@!")

names = st.builds(lambda first, rest: (first + rest).rstrip(), _LETTERS, st.text(_REST, max_size=40))
"""Names that a run may have."""
wrong_names = st.one_of(
    st.just(""),
    st.just("/etc/passwd"),
    st.sampled_from(["..", ".", ".hidden", "a/b", "-rf", " x", "a\nb", "a\x00b", "a\x1b[2Jb", "a\u2028b", "\u202eabc"]),
    st.text(_LETTERS, min_size=201, max_size=400),
)
"""Names that no new run may have."""


def spelled(tree: Tree) -> st.SearchStrategy[str]:
    """Texts of the same YAML: in blocks, in flow, as JSON, with equal parts as anchors and aliases."""
    return st.sampled_from(
        [
            yaml.safe_dump(tree, sort_keys=False, allow_unicode=True),
            yaml.safe_dump(tree, sort_keys=True, default_flow_style=True, allow_unicode=False),
            json.dumps(tree),
            "# a comment\n---\n" + yaml.safe_dump(tree, sort_keys=False) + "...\n",
        ]
    )


def put(tree: Tree, path: Path, value: Any) -> Tree:
    """A copy of `tree` with `value` at `path`."""
    changed = copy.deepcopy(tree)
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


def dotted(path: Path) -> str:
    return ".".join(map(str, path))


_POSITIVE = st.floats(1e-12, 1e6)
_COUNT = st.integers(1, 10**6)
_SETTINGS: dict[Path, st.SearchStrategy[Any]] = {
    ("name",): names,
    ("seed",): st.integers(0, 2**31 - 1),
    ("model", "layers"): st.integers(1, 64),
    ("model", "inner_width"): st.integers(0, 1 << 14),
    ("model", "filter_width"): st.integers(1, 1 << 10),
    ("model", "filter_features"): st.integers(1, 40).map(lambda half: 2 * half + 1),
    ("model", "filter_frequency"): st.floats(0.1, 100.0),
    ("model", "filter_shift"): st.floats(0.0, 1.0),
    ("model", "embedding_dropout"): st.floats(0.0, 0.99),
    ("model", "residual_dropout"): st.floats(0.0, 0.99),
    ("data", "reverse_complement"): st.booleans(),
    ("data", "random_offset"): st.booleans(),
    ("data", "append_end_token"): st.booleans(),
    ("data", "ignore"): st.lists(st.sampled_from(["n", "unknown"]), max_size=3),
    ("data", "shuffle_shards"): st.integers(1, 4096),
    ("data", "workers"): st.integers(0, 64),
    ("data", "verify"): st.booleans(),
    ("data", "sources", 0, "weight"): st.floats(1e-6, 1e6),
    ("data", "cache", "gib"): st.floats(0.01, 1e5),
    ("stages", 0, "steps"): _COUNT,
    ("stages", 1, "steps"): _COUNT,
    ("optimizer", "learning_rate"): st.floats(1e-3, 1.0),
    ("optimizer", "minimum_learning_rate"): st.floats(0.0, 1e-3),
    ("optimizer", "warmup_fraction"): st.floats(0.0, 0.99),
    ("optimizer", "warmup_learning_rate"): st.floats(0.0, 1e-2),
    ("optimizer", "weight_decay"): st.floats(0.0, 10.0),
    ("optimizer", "betas"): st.lists(st.floats(0.0, 0.9999), min_size=2, max_size=2),
    ("optimizer", "epsilon"): st.floats(1e-12, 1e-2),
    ("optimizer", "gradient_clipping"): st.floats(0.0, 100.0),
    ("validation", "every_steps"): _COUNT,
    ("validation", "windows"): st.integers(1, 4096),
    ("validation", "final_context"): st.sampled_from(["always", "boundaries", "never"]),
    ("checkpoint", "every_steps"): _COUNT,
    ("checkpoint", "keep_last"): st.integers(1, 1000),
    ("checkpoint", "keep_every"): st.one_of(st.none(), _COUNT),
    ("checkpoint", "background"): st.booleans(),
    ("watchdog", "enabled"): st.booleans(),
    ("watchdog", "silence"): st.floats(1.0, 1e5),
    ("supervisor", "restarts_without_progress"): st.integers(0, 1000),
    ("non_finite", "skips"): st.integers(0, 1000),
    ("non_finite", "roll_backs"): st.integers(0, 1000),
    ("monitors", "csv"): st.booleans(),
    ("zero_stage",): st.integers(0, 3),
    ("precision",): st.sampled_from(["float32", "bfloat16"]),
    ("activation_policy",): st.sampled_from(["fastest", "balanced", "lean", "leanest"]),
    ("convolution",): st.sampled_from(["auto", "fft", "cudnn", "fused"]),
    ("deepspeed_log",): st.booleans(),
    ("stop_after",): st.one_of(st.none(), st.sampled_from(["3h50m", "90s", "1d2h", "17.5s", "600"])),
}
"""Settings of a run with values of which every one is valid, whatever the others are."""

_BELOW_1, _BELOW_0 = st.integers(-(10**40), 0), st.integers(-(10**40), -1)
_ENORMOUS = st.integers(20, 4000).map(lambda digits: 10**digits)
_WRONG: dict[Path, st.SearchStrategy[Any]] = {
    ("name",): wrong_names.filter(lambda name: len(name) < 201),
    ("seed",): st.one_of(_BELOW_0, _ENORMOUS),
    ("model", "width"): st.one_of(_BELOW_1, _ENORMOUS),
    ("model", "layers"): st.one_of(_BELOW_1, _ENORMOUS),
    ("model", "maximum_context"): st.one_of(_BELOW_1, _ENORMOUS, st.integers(1, 8191)),
    ("model", "filter_features"): st.one_of(_BELOW_1, _ENORMOUS, st.integers(1, 1000).map(lambda half: 2 * half)),
    ("model", "embedding_dropout"): st.floats(1.0, 1e300),
    ("data", "sources"): st.just([]),
    ("data", "sources", 0, "shards"): st.sampled_from(["ftp://host/x", "pipe:cat x", "http://", "s3:///x"]),
    ("data", "shuffle_shards"): _BELOW_1,
    ("data", "workers"): _BELOW_0,
    ("stages",): st.just([]),
    ("stages", 0, "steps"): st.one_of(_BELOW_1, _ENORMOUS),
    ("stages", 0, "global_batch"): st.one_of(_BELOW_1, _ENORMOUS, st.just(3)),
    ("stages", 0, "context_length"): st.one_of(_BELOW_1, _ENORMOUS, st.integers(8193, 10**9)),
    ("stages", 0, "micro_batch_size"): st.one_of(_BELOW_1, _ENORMOUS, st.just(5)),
    ("stages", 1, "sequence_parallel"): st.one_of(_BELOW_1, _ENORMOUS, st.just(3)),
    ("stages", 1, "tokens"): st.integers(1, 10**9),
    ("optimizer", "learning_rate"): st.floats(-1e300, 0.0),
    ("optimizer", "warmup_fraction"): st.floats(1.0, 1e300),
    ("optimizer", "betas"): st.one_of(st.just([]), st.just([0.9]), st.just([0.9, 1.0]), st.just([0.1] * 3)),
    ("validation", "windows"): _BELOW_1,
    ("checkpoint", "every_steps"): _BELOW_1,
    ("checkpoint", "keep_last"): _BELOW_1,
    ("watchdog", "silence"): st.floats(-1e300, 0.99),
    ("local_ranks",): st.one_of(_BELOW_1, _ENORMOUS, st.integers(10**6, 10**9)),
    ("stop_after",): st.sampled_from(["", "soon", "-1s", "0", "1w", "९s", "1" * 500 + "d"]),
}
"""Settings of the quick start's config with values that it must not have."""


def wrong_settings(tree: Tree) -> st.SearchStrategy[Tree]:
    """Copies of the quick start's `tree` of which one value has the right type and is out of bounds."""
    return st.sampled_from([*_WRONG]).flatmap(lambda path: _WRONG[path].map(lambda value: put(tree, path, value)))


@st.composite
def settings_of_run(draw: st.DrawFn, most: int = 6) -> dict[Path, Any]:
    """Some settings with valid values."""
    paths = draw(st.lists(st.sampled_from([*_SETTINGS]), min_size=1, max_size=most, unique=True))
    return {path: draw(_SETTINGS[path]) for path in paths}


def with_settings(tree: Tree, settings: dict[Path, Any]) -> Tree:
    """A copy of `tree` with all of them."""
    for path, value in settings.items():
        tree = put(tree, path, value)
    return tree


@st.composite
def wrong_trees(draw: st.DrawFn, tree: Tree, schema: type = RunConfig) -> tuple[Path, Tree]:
    """(where, a copy of `tree` that is wrong there): a value of another type, an unknown key, or a missing one."""
    path, wanted, value = draw(st.sampled_from([*nodes(tree, schema)]))
    ways = [*_wrong_values(wanted)]
    if dataclasses.is_dataclass(wanted) and isinstance(value, dict):
        ways.append(st.just(value | {"unknown!": 1}))
        required = [f.name for f in dataclasses.fields(wanted) if _is_required(f) and f.name in value]
        ways += [st.just({k: v for k, v in value.items() if k != name}) for name in required]
    wrong = draw(st.one_of(*ways))
    return path, put(tree, path, wrong) if path else wrong


def nodes(value: Tree, wanted: Any, path: Path = ()) -> Iterator[tuple[Path, Any, Tree]]:
    """Every value of a tree that is there, with the type that the schema wants of it."""
    yield path, wanted, value
    inner = _not_none(wanted)
    origin, arguments = typing.get_origin(inner), typing.get_args(inner)
    if dataclasses.is_dataclass(inner) and isinstance(value, dict):
        hints = typing.get_type_hints(inner)
        for field in dataclasses.fields(inner):
            key = field.name.removesuffix("_")
            if key in value:
                yield from nodes(value[key], hints[field.name], (*path, key))
    elif origin is tuple and isinstance(value, list):
        for number, item in enumerate(value):
            yield from nodes(item, arguments[0], (*path, number))
    elif origin is dict and isinstance(value, dict):
        for key, item in value.items():
            yield from nodes(item, arguments[1], (*path, key))


def wrong_texts(tree: Tree) -> st.SearchStrategy[bytes]:
    """Files that are no config at all."""
    flow = json.dumps(tree)
    return st.one_of(
        st.integers(0, len(flow) - 1).map(lambda end: flow[:end].encode()),
        st.binary(max_size=200).map(lambda data: b"\x00" + data),
        st.binary(max_size=50).map(lambda data: flow.encode() + b"\n\xff\xfe" + data),
        st.sampled_from([*tree]).map(lambda key: f"{flow[:-1]}, {json.dumps(key)}: 1}}".encode()),
        st.tuples(st.integers(2, 40), st.integers(2, 12)).map(lambda size: _bomb(*size)),
        st.integers(1, 20_000).map(lambda depth: b"[" * depth + b"]" * depth),
        st.integers(1, 20_000).map(lambda depth: b"a: " + b"{b: " * depth + b"1" + b"}" * depth),
        st.just(b"name: &a [*a]\n"),
        st.just(b"&a {name: x, model: *a}\n"),
        st.just(b"a: 1\n---\nb: 2\n"),
        st.just(b"\tname: x\n"),
        st.just(b"!!python/object/apply:os.system ['true']\n"),
        st.just(b"? {a: 1}\n: 2\n"),
        st.just(b"<<: &a {name: x}\n"),
        st.just("name: x\n".encode("utf-16")),
    )


def _bomb(levels: int, width: int) -> bytes:
    """A billion laughs: every level is a list of aliases of the one before."""
    lines = ["a0: &a0 x"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines).encode()


def _wrong_values(wanted: Any) -> list[st.SearchStrategy[Any]]:
    inner = _not_none(wanted)
    ways: list[st.SearchStrategy[Any]] = [] if inner is not wanted else [st.none()]
    origin = typing.get_origin(inner)
    words = st.sampled_from(["", "x", "ten", "1.5.2", "0x10", "१२", "²", "1 2", "--1", "\u00a05"])
    if dataclasses.is_dataclass(inner) or origin is dict:
        return [*ways, st.integers(), st.text("abc", min_size=1, max_size=4), st.just([1, 2])]
    if origin is tuple:
        return [*ways, st.integers(), st.just("abc"), st.just({"a": 1})]
    if origin is typing.Literal:
        return [*ways, st.just("neither"), st.just([]), st.integers(10, 10**30)]
    if inner is str:
        return [*ways, st.just([]), st.just({"a": 1}), st.just([["x"]])]
    ways += [words, st.just([]), st.just({"a": 1}), st.sampled_from([float("nan"), float("inf"), -float("inf")])]
    if inner is int:
        ways += [st.floats(0.1, 0.9), st.just("7")]
    if inner is float:
        ways += [st.just("0.5")]
    if inner is bool:
        ways += [st.integers(2, 9), st.just("ja")]
    return ways


def _not_none(wanted: Any) -> Any:
    if typing.get_origin(wanted) in (typing.Union, types.UnionType):
        (wanted,) = (part for part in typing.get_args(wanted) if part is not type(None))
    return wanted


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
