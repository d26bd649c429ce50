"""Strict YAML into frozen dataclasses.

    text --nodes.py--> nodes with line marks --+ overrides--> load(node, type) --> dataclass

The dataclass is the whole schema: unknown, duplicate, missing and mistyped keys are errors that name the file, the
line, the dotted path and the nearest known key. Scalars are read by the type that is wanted, so `6e-4` is a float and
`no` stays a string where a string is wanted.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from hyena_ds.config.nodes import compose, override_all, read_text_file, where
from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line
from hyena_ds.redaction import shown

T = TypeVar("T")

_BOOLEANS = {"true": True, "false": False, "yes": True, "no": False}


class Invalid(ValueError):
    """Raised by a dataclass's `__post_init__`: which of its fields is wrong, and how. The loader adds file and line."""

    def __init__(self, field: str, problem: str):
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


def require(holds: bool, field: str, problem: str) -> None:
    """Raise Invalid unless `holds`."""
    if not holds:
        raise Invalid(field, problem)


def load_yaml(path: str | Path, schema: type[T], overrides: list[str] | None = None) -> T:
    """Read `path` as a `schema` (a dataclass), after applying `key.path=value` overrides.

    Raises UserError with `file:line: path: what was found, what was wanted`.
    """
    return parse_yaml(read_text_file(path, "the config", "a YAML file"), str(path), schema, overrides)


def parse_yaml(text: str, name: str, schema: type[T], overrides: list[str] | None = None) -> T:
    """Like `load_yaml`, from a string; `name` stands for the file in messages."""
    return load_node(compose(text, name), name, schema, overrides)


def load_node(
    root: yaml.Node | None, name: str, schema: type[T], overrides: list[str] | None = None, path: str = ""
) -> T:
    """Like `parse_yaml`, from what `compose` gives of the file; the overrides are written into it.

    `path` is where `root` stands in the file, for messages.
    """
    if root is None:
        raise UserError(f"{name}:1: found an empty file, wanted the keys of a {schema.__name__}")
    override_all(root, overrides or [])
    loaded: T = _Loader().load(root, schema, path)
    return loaded


def to_plain(value: Any) -> Any:
    """A dataclass tree as dicts, lists and scalars that `yaml.safe_dump` and `json.dumps` accept."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {_key(f): to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def dump_yaml(value: Any) -> str:
    """The resolved config as YAML text that `parse_yaml` reads back."""
    return yaml.safe_dump(to_plain(value), sort_keys=False, allow_unicode=True)


def as_yaml(text: str) -> str:
    """A scalar of YAML, in one line, that is read back as `text`: `text` itself, or what quotes make of it."""
    try:
        node = compose(text, "text")
        if isinstance(node, yaml.ScalarNode) and node.value == text and node.tag == "tag:yaml.org,2002:str":
            return text
    except UserError:
        pass
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf).rstrip("\n")


def _describe(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "keys"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return f"'{in_one_line(shown(node.value), MOST_QUOTED)}'"


class _Loader:
    def load(self, node: yaml.Node, wanted: Any, path: str) -> Any:
        origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
        if dataclasses.is_dataclass(wanted):
            return self._dataclass(node, typing.cast(type, wanted), path)
        if origin in (typing.Union, types.UnionType):
            return self._optional(node, arguments, path)
        if origin is typing.Literal:
            return self._literal(node, arguments, path)
        if origin is tuple:
            return self._list(node, arguments[0], path)
        if origin is dict:
            return self._dict(node, arguments[1], path)
        return self._scalar(node, wanted, path)

    def _fail(self, node: yaml.Node, path: str, problem: str) -> UserError:
        return UserError(f"{where(node)}: {in_one_line(path, MOST_QUOTED) or 'the file'}: {problem}")

    def _dataclass(self, node: yaml.Node, wanted: type, path: str) -> Any:
        nodes = self._mapping(node, path, f"the keys of {wanted.__name__}")
        types_by_name = _types_of(wanted)
        fields = {_key(f): f for f in dataclasses.fields(wanted)}
        for name, (key_node, _) in nodes.items():
            if name not in fields:
                nearest = difflib.get_close_matches(name[:MOST_QUOTED], fields, n=1, cutoff=0.5)
                hint = f"did you mean '{nearest[0]}'?" if nearest else f"known keys: {', '.join(fields)}"
                raise self._fail(key_node, _join(path, name), f"found an unknown key; {hint}")
        for name, f in fields.items():
            if name not in nodes and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise self._fail(node, path, f"wanted the key '{name}', found {', '.join(nodes) or 'no keys'}")
        values = {
            fields[name].name: self.load(child, types_by_name[fields[name].name], _join(path, name))
            for name, (_, child) in nodes.items()
        }
        try:
            return wanted(**values)
        except Invalid as error:
            at = nodes[error.field][1] if error.field in nodes else node
            raise self._fail(at, _join(path, error.field), error.problem) from None

    def _mapping(self, node: yaml.Node, path: str, wanted: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            raise self._fail(node, path, f"found {_describe(node)}, wanted {wanted}")
        nodes: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._fail(key, path, f"found {_describe(key)} as a key, wanted a word")
            if key.value in nodes:
                first = nodes[key.value][0].start_mark.line + 1
                raise self._fail(key, _join(path, key.value), f"found the key twice (first on line {first})")
            nodes[key.value] = (key, child)
        return nodes

    def _optional(self, node: yaml.Node, arguments: tuple[Any, ...], path: str) -> Any:
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return self.load(node, inner, path)

    def _literal(self, node: yaml.Node, choices: tuple[Any, ...], path: str) -> Any:
        if isinstance(node, yaml.ScalarNode):
            for choice in choices:
                if node.value == str(choice):
                    return choice
        raise self._fail(node, path, f"found {_describe(node)}, wanted {' or '.join(str(c) for c in choices)}")

    def _list(self, node: yaml.Node, inner: Any, path: str) -> tuple[Any, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise self._fail(node, path, f"found {_describe(node)}, wanted a list")
        return tuple(self.load(child, inner, f"{path}.{index}") for index, child in enumerate(node.value))

    def _dict(self, node: yaml.Node, inner: Any, path: str) -> dict[str, Any]:
        nodes = self._mapping(node, path, "keys")
        return {name: self.load(child, inner, _join(path, name)) for name, (_, child) in nodes.items()}

    def _scalar(self, node: yaml.Node, wanted: type, path: str) -> Any:
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        problem = f"found {_describe(node)}, wanted {names[wanted]}"
        if not isinstance(node, yaml.ScalarNode) or node.tag == "tag:yaml.org,2002:null":
            raise self._fail(node, path, problem)
        quoted = node.style in ("'", '"')
        if wanted is str:
            # A path, a name: the operating system ends them at a NUL, and has no bytes for half of a pair.
            odd = re.search("[\0\ud800-\udfff]", node.value)
            if odd is not None:
                raise self._fail(node, path, f"found the character {ord(odd[0]):#x} in {_describe(node)}, wanted text")
            return node.value
        if quoted:
            raise self._fail(node, path, problem + " (without quotes)")
        try:
            if wanted is bool:
                return _BOOLEANS[node.value.lower()]
            if not node.value.isascii():  # digits of other scripts
                raise ValueError
            number = wanted(node.value.replace("_", "") if wanted is int else node.value)
            if not math.isfinite(number):
                raise ValueError
            return number
        except (ValueError, KeyError, OverflowError):  # the last of a number of more than 308 digits
            raise self._fail(node, path, problem) from None


@functools.cache
def _types_of(wanted: type) -> dict[str, Any]:
    return typing.get_type_hints(wanted)


def _key(field: dataclasses.Field[Any]) -> str:
    """The YAML key of a field: a trailing underscore only keeps a keyword of Python out of the dataclass."""
    return field.name.removesuffix("_")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
