"""Pages of the site that are made when it is built: a hook of mkdocs (mkdocs.yml), so that none of them can go stale.

dataclasses of a YAML file --field docstrings--> look-up/run.md, prep.md, sweep.md, suite.md
argparse's parsers         --help texts--------> look-up/commands.md
hyena_ds.__all__           --mkdocstrings------> look-up/python.md
files of the repository    --their links, as the site has them--> results/, understand/security.md, project/
learn/first_run.ipynb      --its cells---------> learn/notebook.md
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import json
import os
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

INCLUDED = {
    "bench/RESULTS.md": "results/measurements.md",
    "bench/contexts.png": "results/contexts.png",
    "bench/scaling.md": "results/scaling.md",
    "bench/scaling.png": "results/scaling.png",
    "assets/report.png": "assets/report.png",
    "assets/contexts.png": "assets/contexts.png",
    "assets/perplexity.png": "assets/perplexity.png",
    "assets/evaluate-quick.png": "assets/evaluate-quick.png",
    "assets/evaluate-here.png": "assets/evaluate-here.png",
    "assets/demonstrations.png": "assets/demonstrations.png",
    "assets/soft-prompts.png": "assets/soft-prompts.png",
    "assets/tuning-samples.png": "assets/tuning-samples.png",
    "SECURITY.md": "understand/security.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
}
"""Files of the repository that are pages or pictures of the site too."""
_RUN = """The file that `hyena-ds train`, `finetune`, `check`, `plan` and `supervise` take. Every key may be changed on the command line, as
`optimizer.learning_rate=1e-3`; in a list, `stages.0.steps=100` changes the first element."""
_PREP = """The file that `hyena-ds prep` takes. Every key may be changed on the command line, as `output=data/mine`."""
_SWEEP = """The file that `hyena-ds sweep` takes. What is changed on the command line, as `seed=3`, is a setting of all its runs, not
a key of this file."""
_SUITE = """A file of `configs/suites/`: tasks, the models that are compared on them, and what was published. Every key may be changed on the
command line, as `data=PATH`. Settings are keys of [a run's config](run.md), as `{task.epochs: 10, optimizer.learning_rate: 6e-4}`."""
_LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages; mkdocs calls it with the files that it found."""
    for place, text in pages().items():
        files.append(File.generated(config, place, content=text))
    for source, place in INCLUDED.items():
        if not source.endswith(".md"):
            files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def pages() -> dict[str, str]:
    """The text of every generated page, by its place in the site."""
    from data_prep.config import PrepConfig
    from hyena_ds.config.schema import RunConfig
    from hyena_ds.suites.schema import SuiteConfig
    from hyena_ds.sweeps.plan import SweepConfig

    return {
        "look-up/run.md": config_page("A run's config", RunConfig, _RUN),
        "look-up/prep.md": config_page("A prep config", PrepConfig, _PREP),
        "look-up/sweep.md": config_page("A sweep", SweepConfig, _SWEEP),
        "look-up/suite.md": config_page("A suite", SuiteConfig, _SUITE),
        "look-up/commands.md": commands_page(),
        "look-up/python.md": python_page(),
        "learn/notebook.md": notebook_page(ROOT / "docs" / "learn" / "first_run.ipynb"),
        **{place: included_page(ROOT / source, place) for source, place in INCLUDED.items() if source.endswith(".md")},
    }


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a YAML file."""

    path: str
    """Dotted, as overrides on the command line have it; `[]` stands for the number of an element of a list."""
    kind: str
    default: str | None
    """None where the key has to be given."""
    meaning: str
    """Empty where the field has no docstring."""


def keys_of(schema: type, prefix: str = "") -> Iterator[Key]:
    """Every key of a YAML file that is read as `schema`, with those of the dataclasses within it."""
    meanings, kinds = field_docstrings(schema), typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        path = prefix + field.name.rstrip("_")
        inner, brackets = _dataclass_in(kinds[field.name])
        meaning = meanings.get(field.name) or (inspect.getdoc(inner) if inner else None) or ""
        yield Key(path, _kind(kinds[field.name]), _default(field), meaning)
        if inner is not None:
            yield from keys_of(inner, f"{path}{brackets}.")


def field_docstrings(schema: type) -> dict[str, str]:
    """The string beneath each field of a dataclass."""
    body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(schema))).body[0]).body
    found = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[typing.cast(ast.Name, field.target).id] = inspect.cleandoc(str(text.value.value))
    return found


def config_page(title: str, schema: type, about: str) -> str:
    """Every key under a heading of its own, which has an address: run.html#model-width."""
    lines = [
        f"# {title}",
        "",
        f"{about} A key that is unknown, missing or mistyped is an error that names file and line.",
    ]
    for key in keys_of(schema):
        state = "**required**" if key.default is None else f"default `{key.default}`"
        level = "##" if "." not in key.path else "###"
        anchor = re.sub(r"[^a-z0-9_]+", "-", key.path.lower())
        lines += ["", f"{level} `{key.path}` {{ #{anchor} }}", "", f"{key.kind}, {state}", "{ .kind }", "", key.meaning]
    return "\n".join(lines) + "\n"


def _dataclass_in(kind: Any) -> tuple[type | None, str]:
    """(the dataclass in a type such as X, X | None or tuple[X, ...]; [] where it is one element of a list, .NAME of a mapping)."""
    if dataclasses.is_dataclass(kind):
        return typing.cast(type, kind), ""
    for inner in typing.get_args(kind):
        if (found := _dataclass_in(inner)[0]) is not None:
            return found, {tuple: "[]", dict: ".NAME"}.get(typing.get_origin(kind), "")
    return None, ""


def _kind(kind: Any) -> str:
    """A type as a reader of YAML would call it."""
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    inner = typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return "mapping"
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return " or ".join("null" if part is type(None) else _kind(part) for part in inner)
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if typing.get_origin(kind) is tuple:
        return f"list of: {_kind(inner[0])}"
    if typing.get_origin(kind) is dict:
        return f"mapping of names to: {_kind(inner[1])}"
    return names[kind]


def _default(field: dataclasses.Field[Any]) -> str | None:
    if field.default_factory is not dataclasses.MISSING:
        made = field.default_factory()
        return "its keys' own" if dataclasses.is_dataclass(made) else json.dumps(made)
    return None if field.default is dataclasses.MISSING else json.dumps(field.default)


def parser() -> argparse.ArgumentParser:
    """The parser of the `hyena-ds` command."""
    from hyena_ds import cli

    return cli._parser()


def commands_of(command: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of all commands that can be run: those without sub-commands."""
    inner = [action for action in command._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield command
    for action in inner:
        for each in action.choices.values():
            yield from commands_of(each)


def _help_of(command: argparse.ArgumentParser) -> dict[str, str]:
    """The line that introduces each command, by its full name."""
    found = {}
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, each in action.choices.items():
                found[_name(each)] = helps.get(name, "")
                found |= _help_of(each)
    return found


def _name(command: argparse.ArgumentParser) -> str:
    return command.prog if command.usage is None else " ".join(command.usage.split()[:2])


def commands_page() -> str:
    """Every command with its arguments, as --help prints them."""
    os.environ["COLUMNS"] = "78"
    top = parser()
    helps = _help_of(top)
    lines = [
        "# Commands",
        "",
        "Each prints the same with `--help`. A command returns 0 when all went well and 2 after a user's mistake; what "
        "else a run returns is in [How a run stops](../do/stop-and-restart.md).",
    ]
    for command in commands_of(top):
        name, usage = _name(command), re.sub(r"^.{7}", "", command.format_usage().rstrip(), flags=re.MULTILINE)
        lines += ["", f"## {name}", "", _sentence(helps[name]), "", "```text", usage, "```", ""]
        lines += ["| argument | meaning |", "|---|---|"]
        for action in command._actions:
            if action.help is not argparse.SUPPRESS and not isinstance(action, argparse._HelpAction):
                text = command._get_formatter()._expand_help(action) if action.help else ""
                choices = f"one of {', '.join(map(str, action.choices))}; " if action.choices else ""
                lines.append(f"| `{_argument(command, action)}` | {choices}{text} |".replace("||", "| |"))
    return "\n".join(lines) + "\n"


def _argument(command: argparse.ArgumentParser, action: argparse.Action) -> str:
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    shown = metavar.replace("|", "or") if action.option_strings else metavar.replace(" | ", " or ")
    if not action.option_strings:
        return action.dest if action.metavar is None else shown
    return action.option_strings[-1] if action.nargs == 0 else f"{action.option_strings[-1]} {shown}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def python_page() -> str:
    """What `import hyena_ds` offers."""
    import hyena_ds

    lines = ["# Python", "", "```python", "import hyena_ds", "```"]
    for name in hyena_ds.__all__:
        lines += ["", f"::: hyena_ds.{name}"]
    return "\n".join(lines) + "\n"


def notebook_page(file: Path) -> str:
    """The cells of a notebook, its code as code."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    blocks = [("".join(cell["source"]), cell["cell_type"]) for cell in cells]
    shown = [f"```python\n{text}\n```" if kind == "code" else text for text, kind in blocks]
    where = f"This page is a notebook: [{file.name}]({file.name}) in `docs/learn/`; the tests run it."
    return "\n\n".join([shown[0], where, *shown[1:]]) + "\n"


def included_page(file: Path, place: str) -> str:
    """A Markdown file of the repository at `place` of the site: links to pages of the site, other files by their path."""

    def link(match: re.Match[str]) -> str:
        target = (file.parent / match[1]).resolve().relative_to(ROOT).as_posix()
        where = INCLUDED.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None)
        if where is None:
            raise ValueError(f"{file}: links to {target}, which is no page of the site; name it as `{target}`")
        return os.path.relpath(where, Path(place).parent) + (match[2] or "")

    return _LINK.sub(link, file.read_text(encoding="utf-8"))
