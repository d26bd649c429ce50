"""Strict YAML into frozen dataclasses.

    text --yaml.compose--> nodes with line marks --+ overrides--> load(node, type) --> dataclass

The dataclass is the whole schema: unknown, duplicate, missing and mistyped keys are errors that name the file, the
line, the dotted path and the nearest known key. Scalars are read by the type that is wanted, so `6e-4` is a float and
`no` stays a string where a string is wanted.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from hyena_ds.config.secrets import redacted, shown
from hyena_ds.errors import UserError

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
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot read the config ({error.strerror}); name an existing YAML file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: found bytes that are not UTF-8, wanted a YAML file") from None
    return parse_yaml(text, str(path), schema, overrides)


def parse_yaml(text: str, name: str, schema: type[T], overrides: list[str] | None = None) -> T:
    """Like `load_yaml`, from a string; `name` stands for the file in messages."""
    root = _compose(text, name)
    if root is None:
        raise UserError(f"{name}:1: found an empty file, wanted the keys of a {schema.__name__}")
    for override in overrides or []:
        _override(root, override)
    return _Loader().load(root, schema, "")


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


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{name}:{line}: found the control character {error.character:#x}, wanted text") from None
    loader.name = name
    try:
        root = loader.get_single_node()
        if root is not None:
            _refuse_cycles(root, ())
        return root
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{where}: not valid YAML: {problem}") from None
    except RecursionError:
        raise UserError(f"{name}: found values nested too deeply to be read, wanted a config") from None
    finally:
        loader.dispose()


def _refuse_cycles(node: yaml.Node, above: tuple[yaml.Node, ...]) -> None:
    """An alias within what it names has no end. Raises UserError."""
    if any(node is outer for outer in above):
        raise UserError(f"{_where(node)}: found an alias of a value within that value, wanted one that ends")
    children = [child for _, child in node.value] if isinstance(node, yaml.MappingNode) else node.value
    if not isinstance(node, yaml.ScalarNode):
        for child in children:
            _refuse_cycles(child, (*above, node))


def _override(root: yaml.Node, override: str) -> None:
    key, separator, text = override.partition("=")
    override = redacted(override)
    if not separator or not key:
        raise UserError(f"override '{override}': wanted key.path=value, for instance stages.0.steps=100")
    value = _compose(text, f"override '{override}'") or yaml.ScalarNode("tag:yaml.org,2002:null", "null")
    for node in _walk(value):
        node.start_mark = yaml.Mark(f"override '{override}'", 0, -1, 0, None, 0)
    parent, steps = root, key.split(".")
    for depth, step in enumerate(steps):
        last = depth == len(steps) - 1
        if isinstance(parent, yaml.SequenceNode):
            if not step.isdigit() or int(step) >= len(parent.value):
                raise UserError(
                    f"override '{override}': found '{step}', wanted an index below {len(parent.value)} "
                    f"in the list '{'.'.join(steps[:depth])}'"
                )
            if last:
                parent.value[int(step)] = value
            else:
                parent = parent.value[int(step)]
        elif isinstance(parent, yaml.MappingNode):
            for position, (known, child) in enumerate(parent.value):
                if known.value == step:
                    if last:
                        parent.value[position] = (known, value)
                    parent = child
                    break
            else:
                mark = value.start_mark
                name = yaml.ScalarNode("tag:yaml.org,2002:str", step, mark)
                child = value if last else yaml.MappingNode("tag:yaml.org,2002:map", [], mark)
                parent.value.append((name, child))
                parent = child
        else:
            raise UserError(f"override '{override}': '{'.'.join(steps[:depth])}' holds a single value, not keys")


def _walk(node: yaml.Node) -> list[yaml.Node]:
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    return [node, *(found for child in children for found in _walk(child))]


def _where(node: yaml.Node) -> str:
    mark = node.start_mark
    return mark.name if mark.name.startswith("override ") else f"{mark.name}:{mark.line + 1}"


def _describe(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "keys"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return f"'{shown(node.value)}'"


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
        return UserError(f"{_where(node)}: {path or 'the file'}: {problem}")

    def _dataclass(self, node: yaml.Node, wanted: type, path: str) -> Any:
        if not isinstance(node, yaml.MappingNode):
            raise self._fail(node, path, f"found {_describe(node)}, wanted the keys of {wanted.__name__}")
        types_by_name = typing.get_type_hints(wanted)
        fields = {_key(f): f for f in dataclasses.fields(wanted)}
        nodes = self._mapping(node, path)
        for name, (key_node, _) in nodes.items():
            if name not in fields:
                nearest = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
                hint = f"did you mean '{nearest[0]}'?" if nearest else f"known keys: {', '.join(fields)}"
                raise self._fail(key_node, _join(path, name), f"found an unknown key; {hint}")
        required = {
            name
            for name, f in fields.items()
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        missing = [name for name in fields if name in required and name not in nodes]
        if missing:
            raise self._fail(node, path, f"wanted the key '{missing[0]}', found {', '.join(nodes) or 'no keys'}")
        values = {
            fields[name].name: self.load(child, types_by_name[fields[name].name], _join(path, name))
            for name, (_, child) in nodes.items()
        }
        try:
            return wanted(**values)
        except Invalid as error:
            at = nodes[error.field][1] if error.field in nodes else node
            raise self._fail(at, _join(path, error.field), error.problem) from None

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
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
        if not isinstance(node, yaml.MappingNode):
            raise self._fail(node, path, f"found {_describe(node)}, wanted keys")
        nodes = self._mapping(node, path)
        return {name: self.load(child, inner, _join(path, name)) for name, (_, child) in nodes.items()}

    def _scalar(self, node: yaml.Node, wanted: type, path: str) -> Any:
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        problem = f"found {_describe(node)}, wanted {names[wanted]}"
        if not isinstance(node, yaml.ScalarNode) or node.tag == "tag:yaml.org,2002:null":
            raise self._fail(node, path, problem)
        quoted = node.style in ("'", '"')
        if wanted is str:
            return node.value
        if quoted:
            raise self._fail(node, path, problem + " (without quotes)")
        try:
            if wanted is bool:
                return _BOOLEANS[node.value.lower()]
            number = wanted(node.value.replace("_", "") if wanted is int else node.value)
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError
            return number
        except (ValueError, KeyError):
            raise self._fail(node, path, problem) from None


def _key(field: dataclasses.Field[Any]) -> str:
    """The YAML key of a field: a trailing underscore only keeps a keyword of Python out of the dataclass."""
    return field.name.removesuffix("_")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
