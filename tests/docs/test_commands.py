"""Every command, path and key that README and docs name is there, and takes the arguments that it is given."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hyena_ds.config.schema import RunConfig
from tests.docs.commands import Wrong, check_line, check_path, lines_of
from tests.docs.documents import (
    DOCUMENTS,
    LANGUAGES,
    Block,
    all_blocks,
    blocks,
    code_in_prose,
    generator,
    links,
    places,
)
from tests.paths import ROOT
from tests.test_architecture import FLOORS

_OURS = re.compile(r"(?:[A-Z_]+=\S+ )*(?:hyena-ds|make|bash|sbatch|torchrun|deepspeed|python -m)\s.*")
_BRACKETS = re.compile(r"[\[\]|]")


def identity(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)


@pytest.mark.parametrize("block", all_blocks("sh"), ids=identity)
def test_a_block_of_commands_would_start(block: Block) -> None:
    found = lines_of(block.text)
    assert found
    for line in found:
        check_line(line)


@pytest.mark.parametrize("file", DOCUMENTS, ids=identity)
def test_a_command_within_prose_would_start(file: Path) -> None:
    for code in code_in_prose(file):
        if _OURS.fullmatch(code):
            check_line(_BRACKETS.sub("", code.replace("\\| kubectl", "; kubectl")))


@pytest.mark.parametrize("file", DOCUMENTS, ids=identity)
def test_paths_and_links_lead_somewhere(file: Path) -> None:
    for code in code_in_prose(file):
        if " " not in code:
            check_path(code)
    for target in links(file):
        path = (file.parent / target).resolve()
        assert path.exists() or path.relative_to(ROOT / "docs").as_posix() in places(), target


@pytest.mark.parametrize("file", DOCUMENTS, ids=identity)
def test_a_dotted_key_of_a_run_is_one(file: Path) -> None:
    keys = {re.sub(r"\[\]", "", key.path) for key in generator().keys_of(RunConfig)}
    heads = {key.partition(".")[0] for key in keys if "." in key}
    for code in code_in_prose(file):
        name = re.sub(r"\[\]|\.\d+(?=\.)", "", re.split("[=:]", code)[0])
        if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", name) and name.partition(".")[0] in heads:
            assert name in keys, code


@pytest.mark.parametrize("file", DOCUMENTS, ids=identity)
def test_every_block_says_what_it_is(file: Path) -> None:
    assert {block.language for block in blocks(file)} <= set(LANGUAGES)


@pytest.mark.parametrize(
    "line",
    [
        "hyena-ds trian configs/quickstart.yaml",
        "hyena-ds check configs/quickstart.yaml --rank-count 2",
        "hyena-ds check configs/quick-start.yaml",
        "make trains",
        "bash launch/here.sh CONFIG",
        "python -m tests.faults.killing",
        'eval "$(hyena-ds sweep configs/sweeps/contexts.yaml --slrum)"',
        "bash launch/supervise.sh CONFIG -- bash launch/hosts.sh",
        "hyena_ds train",
    ],
)
def test_a_wrong_command_would_be_found(line: str) -> None:
    with pytest.raises(Wrong):
        check_line(line)


def test_contributing_names_every_floor_of_the_house_from_the_top() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("| floors")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in text.splitlines()[2:]]
    assert tuple(re.findall(r"`(\w+)`", " ".join(rows))) == FLOORS


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 170
