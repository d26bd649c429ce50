"""Names of runs: what a new one may be, that old ones stay, and what is said where a directory cannot be made."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyena_ds.cli import main
from hyena_ds.config.loading import dump_yaml, load_yaml
from hyena_ds.config.names import problem_of
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import MOST_CHARACTERS, UserError, in_one_line
from hyena_ds.runs.directory import RunDirectory
from tests.paths import ROOT

QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
GOOD = ["a", "7", "größe", "ヒト", "می‌خواهم", "two words", 'it\'s $HOME `id`; "x"', "a.b_c-d+e=f", "x" * 200, "é" * 100]
BAD = {
    "-x": "begins with '-'",
    "_x": "begins with '_'",
    " x": "begins with ' '",
    "a\nb": "control character 0xa",
    "a\x1b[31m": "control character 0x1b",
    "a\x7f": "control character 0x7f",
    "a\x85b": "control character 0x85",
    "a\u2028b": "control character 0x2028",
    "a\u202eb": "control character 0x202e",
    "a\u2066b": "control character 0x2066",
    "x" * 201: "of 201 bytes",
    "é" * 101: "of 202 bytes",
}


def run(name: str, output: Path) -> RunConfig:
    import dataclasses

    return dataclasses.replace(load_yaml(QUICKSTART, RunConfig), name=name, output=str(output))


@pytest.mark.parametrize("name", GOOD, ids=ascii)
def test_a_new_run_may_be_named_in_any_language(name: str, tmp_path: Path) -> None:
    config = run(name, tmp_path)
    RunDirectory(config).check(config)
    RunDirectory(config).create(config)
    assert load_yaml(RunDirectory(config).config_file, RunConfig).name == name


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_a_name_that_no_new_run_may_have_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    config = run(name, tmp_path)
    with pytest.raises(UserError) as caught:
        RunDirectory(config).check(config)
    assert BAD[name] in str(caught.value) and str(caught.value).isprintable()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in BAD if len(name) < 100], ids=ascii)
def test_a_run_from_before_keeps_its_name(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run(name, tmp_path)
    directory = RunDirectory(config)
    directory.create(config)
    directory.check(config)
    kept = tmp_path / "kept.yaml"
    kept.write_text(dump_yaml(config), encoding="utf-8")
    assert main(["check", str(kept)]) == 0
    assert main(["report", str(directory.path)]) == 0
    assert main(["checkpoints", str(directory.path)]) == 0
    capsys.readouterr()


def test_surrogates_and_nothing_are_no_names() -> None:
    assert problem_of("a\ud800") == "which holds the control character 0xd800"
    assert problem_of("") == "which is empty" and problem_of("a/b") == "which holds a /"


@pytest.mark.parametrize("verb", ["check", "plan", "train"])
def test_every_verb_that_begins_a_run_refuses_its_name(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, QUICKSTART, f"name={'x' * 256}"]) == 2
    assert "of 256 bytes; wanted a letter or digit" in capsys.readouterr().err


def test_an_output_that_cannot_be_a_directory_is_said_before_ranks_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["train", QUICKSTART, f"output={tmp_path / 'file' / 'runs'}"]) == 2
    assert f"cannot be made or written ({tmp_path / 'file'} is no directory)" in capsys.readouterr().err
    assert main(["train", QUICKSTART, f"output={'x' * 300}"]) == 2
    assert "File name too long" in capsys.readouterr().err


def test_a_directory_that_cannot_be_made_is_one_sentence_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    config = run("a", tmp_path / "runs")
    with (
        pytest.raises(UserError, match=r"runs/a: cannot be made or written \(Not a directory\); choose another"),
        RunDirectory(config).held(0),
    ):
        pass


def test_an_error_of_a_file_that_reaches_the_command_line_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(config: RunConfig) -> None:
        raise PermissionError(13, "Permission denied", f"{tmp_path}/a\nb")

    monkeypatch.setattr("hyena_ds.runs.directory.RunDirectory.__init__", lambda self, config: fails(config))
    assert main(["check", QUICKSTART]) == 2
    assert f"error: {tmp_path}/a\\nb: Permission denied; look at the path" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr("hyena_ds.training.rank.train", lambda config, task, interruption: fails(config))
    with pytest.raises(PermissionError):  # a rank's: the watchdog and the supervisor know what to do
        main(["train", QUICKSTART])


def test_a_sentence_is_one_line_of_a_bounded_length_whoever_raises_it() -> None:
    text = str(UserError("a\nb\x1b[2J\u202e\ud800" + "x" * 10**6 + "the end"))
    assert len(text) == MOST_CHARACTERS and text.isprintable()
    assert text.startswith("a\\nb\\x1b[2J\\u202e\\ud800xxx") and text.endswith("xthe end") and "…" in text
    assert str(UserError(text)) == text
    assert len(in_one_line("\n" * 5000)) == MOST_CHARACTERS
    assert str(UserError("größe ヒト «x» …")) == "größe ヒト «x» …"


def test_what_argparse_says_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", QUICKSTART, "--no\x1b[2Jsuch" + "x" * 5000])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "\x1b" not in said and len(said.splitlines()[-1]) < 1100
