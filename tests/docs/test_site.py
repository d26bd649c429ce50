"""The documentation builds strictly, and has every config key, every argument and every name of the Python API."""

from __future__ import annotations

import argparse
import html
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import hyena_ds
from data_prep.config import PrepConfig
from hyena_ds.config.schema import RunConfig
from hyena_ds.suites.schema import SuiteConfig
from hyena_ds.sweeps.plan import SweepConfig
from tests.docs.documents import DOCS, generator, links
from tests.paths import ROOT


@dataclass(frozen=True)
class Example:
    """A schema of two keys, one of which nobody explained."""

    explained: int
    """Kept."""
    left_out: int = 0


PAGES = {"run": RunConfig, "prep": PrepConfig, "sweep": SweepConfig, "suite": SuiteConfig}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator()  # or a skip
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def text_of(page: Path) -> str:
    """A page without its tags."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def test_every_page_of_docs_and_every_included_file_is_in_the_site(site: Path) -> None:
    wanted = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")]
    for place in [*wanted, *generator().pages(), *generator().INCLUDED.values()]:
        assert (site / place.replace(".md", ".html")).is_file(), place
    assert (site / "learn" / "first_run.ipynb").is_file()


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        fetched = re.findall(
            r'<(?:link[^>]*rel="stylesheet"[^>]*href|script[^>]*src|img[^>]*src)="(https?:[^"]*)"', page.read_text()
        )
        assert not fetched, page


@pytest.mark.parametrize("name", PAGES)
def test_every_key_is_there_with_its_meaning_and_default(name: str, site: Path) -> None:
    page = site / "look-up" / f"{name}.html"
    text, headings = text_of(page), set(re.findall(r"<h[23] id=\"[^\"]*\"><code>([^<]+)</code>", page.read_text()))
    keys = list(generator().keys_of(PAGES[name]))
    assert keys and {key.path for key in keys} == headings
    for key in keys:
        assert key.meaning, f"{key.path}: write a docstring beneath the field"
        assert "required" in text if key.default is None else key.default in text, key.path


def test_a_field_without_a_docstring_would_be_found() -> None:
    assert set(generator().field_docstrings(RunConfig)) >= {"name", "seed", "stop_after"}
    assert [key.meaning for key in generator().keys_of(Example)] == ["Kept.", ""]


def test_every_command_and_argument_is_there_with_its_meaning(site: Path) -> None:
    text = text_of(site / "look-up" / "commands.html")
    commands = list(generator().commands_of(generator().parser()))
    assert len(commands) >= 20
    for command in commands:
        assert generator()._name(command) in text
        for action in command._actions:
            if isinstance(action, argparse._HelpAction) or action.help is argparse.SUPPRESS:
                continue
            assert action.help, f"{command.prog} {action.dest}: give the argument a help"
            assert all(option in text for option in action.option_strings), action


def test_the_python_api_is_there(site: Path) -> None:
    page = (site / "look-up" / "python.html").read_text(encoding="utf-8")
    assert hyena_ds.__all__
    for name in hyena_ds.__all__:
        assert f'id="hyena_ds.{name}"' in page


def test_from_the_readme_to_an_own_genome_is_one_click_and_needs_no_other_page() -> None:
    assert "docs/learn/your-own-genome.md" in links(ROOT / "README.md")
    page = (DOCS / "learn" / "your-own-genome.md").read_text(encoding="utf-8")
    assert page.index("hyena-ds prep build my-prep.yaml") < page.index("hyena-ds train my-run.yaml")
