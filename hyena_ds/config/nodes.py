"""The text of a config as YAML nodes with line marks, and overrides written into them. Whatever the text, it takes little.

    file --bounded--> text --compose--> nodes --key.path=value--> nodes

A config is small. A file that is not, or that aliases make large, is refused before it costs time or memory.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line
from hyena_ds.redaction import redacted

MOST_BYTES = 1 << 18
"""Bytes of a config; a file of so many takes half a second to read at worst."""
MOST_VALUES = 10_000
"""Keys and values of a file, those behind aliases counted wherever they stand."""
MOST_OVERRIDES = 1000
MOST_LEVELS = 50
"""Levels of values within values: PyYAML's time grows with the square of their number."""
_HALVES = re.compile(r"[\ud800-\udbff][\udc00-\udfff]")


def read_text_file(path: str | Path, what: str, wanted: str) -> str:
    """The text of a small regular file. Raises UserError with `what` it was to be, and what was `wanted` in it."""
    try:
        # A pipe without a writer would wait for one.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{path}: found a pipe, a directory or a device for {what}, wanted {wanted}")
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot read {what} ({error.strerror}); name an existing file, {wanted}") from None
    except ValueError:
        raise UserError(f"{path}: found a NUL in the name of {what}, wanted {wanted}") from None
    if len(content) > MOST_BYTES:
        raise UserError(f"{path}: found more than {MOST_BYTES:,} bytes for {what}, wanted {wanted} of a usual size")
    try:
        return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise UserError(f"{path}: found bytes that are not UTF-8, wanted {wanted}") from None


def compose(text: str, name: str) -> yaml.Node | None:
    """The nodes of `text`, None where it is empty; `name` stands for the file in messages. Raises UserError."""
    if len(text) > MOST_BYTES:
        raise UserError(f"{name}: found {len(text):,} characters, wanted at most {MOST_BYTES:,}")
    try:
        loader = _Bounded(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{name}:{line}: found the control character {error.character:#x}, wanted text") from None
    loader.name = name
    try:
        root = loader.get_single_node()
        if root is not None:
            _count(root, {})
        return root
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{place}: not valid YAML: {problem}") from None
    except (ValueError, OverflowError) as error:  # PyYAML's, of an escaped character or a version beyond all
        raise UserError(f"{name}: not valid YAML: {error}") from None
    finally:
        loader.dispose()


class _Bounded(yaml.SafeLoader):
    """PyYAML's, which stops at the first value too many, and at the first level too deep."""

    def __init__(self, text: str):
        super().__init__(text)
        self._left = MOST_VALUES

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._left -= 1
        if self._left < 0:
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call, unused-ignore]
            raise UserError(f"{self.name}:{line}: found more than {MOST_VALUES:,} keys and values, wanted fewer")
        return super().compose_node(parent, index)

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        """Joins the two halves in which JSON escapes a character beyond U+FFFF; PyYAML leaves them apart."""
        node: yaml.ScalarNode = super().compose_scalar_node(anchor)
        node.value = _HALVES.sub(
            lambda pair: pair[0].encode("utf-16-le", "surrogatepass").decode("utf-16-le"), node.value
        )
        return node

    def fetch_more_tokens(self) -> None:
        if self.flow_level + len(self.indents) > MOST_LEVELS:
            raise UserError(
                f"{self.name}:{self.line + 1}: found more than {MOST_LEVELS} levels of values within values, wanted fewer"
            )
        super().fetch_more_tokens()


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """Values of `node` with those behind its aliases. An alias within what it names has no end. Raises UserError."""
    if id(node) not in counted:
        counted[id(node)] = 0  # until it is known
        total = 1 + sum(_count(child, counted) for child in _children(node))
        if total > MOST_VALUES:
            raise UserError(
                f"{where(node)}: found more than {MOST_VALUES:,} keys and values behind its aliases, wanted fewer"
            )
        counted[id(node)] = total
    elif not counted[id(node)]:
        raise UserError(f"{where(node)}: found an alias of a value within that value, wanted one that ends")
    return counted[id(node)]


def override_all(root: yaml.Node, overrides: list[str]) -> None:
    """Write every `key.path=value` into the nodes. Raises UserError with the override as it was typed."""
    if len(overrides) > MOST_OVERRIDES:
        raise UserError(
            f"found {len(overrides):,} overrides, wanted at most {MOST_OVERRIDES:,}; write them into a file"
        )
    for override in overrides:
        _override(root, override)
    _count(root, {})


def _override(root: yaml.Node, override: str) -> None:
    key, separator, text = override.partition("=")
    typed = f"override '{in_one_line(redacted(override), MOST_QUOTED)}'"
    steps = key.split(".")
    if not separator or not all(steps) or len(steps) > MOST_LEVELS:
        raise UserError(f"{typed}: wanted key.path=value, for instance stages.0.steps=100")
    value = compose(text, typed) or yaml.ScalarNode("tag:yaml.org,2002:null", "null")
    _mark(value, yaml.Mark(typed, 0, -1, 0, None, 0), set())
    parent = root
    for depth, step in enumerate(steps):
        last = depth == len(steps) - 1
        if isinstance(parent, yaml.SequenceNode):
            index = int(step) if step.isascii() and step.isdecimal() and len(step) < 10 else len(parent.value)
            if index >= len(parent.value):
                raise UserError(
                    f"{typed}: found '{in_one_line(step, MOST_QUOTED)}', wanted an index below {len(parent.value)} "
                    f"in the list '{in_one_line('.'.join(steps[:depth]), MOST_QUOTED)}'"
                )
            if last:
                parent.value[index] = value
            parent = parent.value[index]
        elif isinstance(parent, yaml.MappingNode):
            known = [at for at, (key_node, _) in enumerate(parent.value) if key_node.value == step]
            if not known:
                name = yaml.ScalarNode("tag:yaml.org,2002:str", step, value.start_mark)
                parent.value.append((name, yaml.MappingNode("tag:yaml.org,2002:map", [], value.start_mark)))
            at = known[0] if known else -1
            if last:
                parent.value[at] = (parent.value[at][0], value)
            parent = parent.value[at][1]
        else:
            above = in_one_line(".".join(steps[:depth]), MOST_QUOTED)
            raise UserError(f"{typed}: '{above}' holds a single value, not keys")


def _mark(node: yaml.Node, mark: yaml.Mark, marked: set[int]) -> None:
    """Say of a node, and of what is in it, that it comes from an override."""
    if id(node) not in marked:
        marked.add(id(node))
        node.start_mark = mark
        for child in _children(node):
            _mark(child, mark, marked)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def where(node: yaml.Node) -> str:
    """FILE:LINE of a node, or the override that it comes from."""
    mark = node.start_mark
    return mark.name if mark.name.startswith("override ") else f"{mark.name}:{mark.line + 1}"
