"""The Markdown that a reader meets, cut into what tests look at: blocks of code, code within prose, links.

file --> Block(language, text, line) ...   `code` ...   [text](target) ...
"""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from tests.paths import ROOT

DOCS = ROOT / "docs"
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    ROOT / "launch" / "README.md",
    ROOT / "bench" / "RESULTS.md",
    *sorted(DOCS.rglob("*.md")),
]
LANGUAGES = ("sh", "yaml", "python", "text")
"""Languages of blocks: commands, configs, code, and what was printed."""
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    file: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def blocks(file: Path, language: str | None = None) -> Iterator[Block]:
    """The fenced blocks of a document, without the indentation of a list."""
    text = file.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        if language in (None, match[2]):
            body = re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)
            yield Block(file, text.count("\n", 0, match.start()) + 1, match[2], body)


def all_blocks(language: str) -> list[Block]:
    return [block for file in DOCUMENTS for block in blocks(file, language)]


def prose(file: Path) -> str:
    """A document without its blocks."""
    return _BLOCK.sub("", file.read_text(encoding="utf-8"))


def code_in_prose(file: Path) -> list[str]:
    """What stands between backticks, each on one line."""
    return [" ".join(code.split()) for code in _CODE.findall(prose(file))]


def links(file: Path) -> list[str]:
    """Targets of a document's links that are files."""
    found = (target.partition("#")[0] for target in _LINK.findall(prose(file)))
    return [target for target in found if target and ":" not in target]


@functools.cache
def places() -> frozenset[str]:
    """Where the site has pages and pictures that are made when it is built."""
    return frozenset(generator().pages()) | frozenset(generator().INCLUDED.values())


def generator() -> ModuleType:
    """docs/generate.py, which is no package. Skips the test that asks for it where mkdocs is not installed."""
    pytest.importorskip("mkdocs", reason="found no mkdocs; pip install -e '.[docs]' installs it")
    name = "docs_generate"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, DOCS / "generate.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
