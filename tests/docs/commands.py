"""Whether a line of shell would start: programs, scripts, make's targets and paths are there, arguments are known."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator

from hyena_ds.cli import _parser
from tests.paths import ROOT

OTHERS = {
    "cd",
    "docker",
    "kubectl",
    "pip",
    "python3.11",
    "salloc",
    "scontrol",
    "sed",
    "source",
    "squeue",
    "ssh",
    "tail",
    "tensorboard",
    "touch",
    ".",
}
"""Programs that are not ours: nothing is said about their arguments."""
_ASSIGNMENT = re.compile(r"[A-Z_]+=.*")
_PATH = re.compile(r"(assets|bench|configs|data_prep|docs|hyena_ds|launch|tests)/[\w./-]*\w")


class Wrong(AssertionError):
    """What is wrong with a line."""


def lines_of(text: str) -> list[str]:
    """The commands of a block: continued lines joined, comments gone."""
    joined = text.replace("\\\n", " ")
    lines = [re.sub(r"(^|\s)#.*$", "", line).strip() for line in joined.splitlines()]
    return [line for line in lines if line]


def check_line(line: str) -> None:
    """Raise Wrong where a command in it cannot work."""
    for inner in re.findall(r"\$\((.*)\)", line):
        check_line(inner)
    for words in _commands(line):
        check_command(words)


def _commands(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    command: list[str] = []
    for word in lexer:
        if set(word) <= set("|&;"):
            yield command
            command = []
        else:
            command.append(word)
    yield command


def check_command(words: list[str]) -> None:
    """Raise Wrong unless this one command could be started."""
    words = [word for word in words if word != "..."]
    while words and (_ASSIGNMENT.fullmatch(words[0]) or words[0] == "sudo"):
        words = words[1:]
    if not words or words[0] == "eval":
        return
    for word in words:
        check_path(word)
    program, rest = words[0].removeprefix(".venv/bin/"), words[1:]
    if program == "hyena-ds":
        check_hyena_ds(rest)
    elif program == "make":
        unknown = [word for word in rest if "=" not in word and word not in make_targets()]
        if unknown:
            raise Wrong(f"make has no target {unknown[0]}")
    elif program in ("bash", "sbatch"):
        scripts = [word for word in rest if word.endswith((".sh", ".sbatch"))]
        if rest and not scripts:
            raise Wrong(f"{program} of no script")
        if "--" in rest:
            check_command(rest[rest.index("--") + 1 :])
    elif program in ("python", "torchrun", "deepspeed"):
        _check_module(rest)
    elif program == "kubectl" and "--" in rest:
        check_command(rest[rest.index("--") + 1 :])
    elif program not in OTHERS and not program.startswith("runs/"):
        raise Wrong(f"no such program: {program}")


def check_path(word: str) -> None:
    """Raise Wrong where a path of the repository is not there."""
    for match in _PATH.finditer(word):
        whole = match.start() == 0 or word[match.start() - 1] in "='\"/"
        placeholder = "NAME" in match[0]
        if (
            whole
            and not placeholder
            and match.end() == len(word)
            and not word.startswith(("/", "http"))
            and not (ROOT / match[0]).exists()
        ):
            raise Wrong(f"no such path: {match[0]}")


def _check_module(words: list[str]) -> None:
    for option in ("-m", "--module"):
        if option in words:
            name, *rest = words[words.index(option) + 1 :]
            if importlib.util.find_spec(name) is None:
                raise Wrong(f"no such module: {name}")
            if name == "hyena_ds":
                check_hyena_ds(rest)


def check_hyena_ds(words: list[str]) -> None:
    """Raise Wrong unless the command exists and, where any arguments are given, takes them."""
    parser = _parser()
    command, left = parser, list(words)
    while left and (choices := _choices(command)):
        if left[0] not in choices:
            raise Wrong(f"hyena-ds has no command {' '.join(words)}")
        command = choices[left.pop(0)]
    if not left:
        return
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            parser.parse_args(words)
    except SystemExit as ended:
        if ended.code:
            raise Wrong(said.getvalue()) from None


def _choices(command: ArgumentParser) -> dict[str, ArgumentParser]:
    inner = [action.choices for action in command._actions if isinstance(action, _SubParsersAction)]
    return inner[0] if inner else {}


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
