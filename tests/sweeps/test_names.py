"""Names and values of a sweep come to every shell and script as they are, and nothing in them is executed."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hyena_ds.cli import main
from hyena_ds.config.loading import as_yaml, load_yaml, parse_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError
from hyena_ds.sweeps.plan import Sweep, load_sweep
from hyena_ds.sweeps.slurm import write_array
from tests.paths import ROOT
from tests.training.runs import write_config

ODD = [
    "plain",
    "two words",
    "it's",
    'say "hi"',
    "$HOME",
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned",
    "a: b #c",
    "{x} [y] *z &a !b %c",
    "größe ヒト",
    "back\\slash",
]
LINES = ["a\ntouch pwned", "a\n#SBATCH --wrap=touch", "a\r\ntouch pwned"]
SCRIPT = '#!/bin/bash\n#SBATCH --nodes=2\n#SBATCH --job-name=other\nprintf "%s\\0" "$@"\n'


def write_sweep(directory: Path, name: str, run: str = "", file: str = "sweep.yaml", output: str = "runs") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    write_config(directory / "base.yaml", directory / "shards")
    sweep = {"name": name, "base": "base.yaml", "output": output, "run": run, "axes": {"seed": ["1", "2", "3"]}}
    path = directory / file
    path.write_text(json.dumps(sweep, ensure_ascii=False).replace("\x85", "\\x85"), encoding="utf-8")
    return path


def executed(command: list[str], directory: Path, task: int = 0) -> str:
    """What the array's script gives to launch/slurm.sbatch, run as Slurm would."""
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task), "PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory where the script is written and submitted; launch scripts are in a place whose name shells would expand."""
    script = tmp_path / "it's $(touch pwned) *" / "slurm.sbatch"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    monkeypatch.setattr("hyena_ds.sweeps.slurm.launch_script", lambda name: script.with_name(name))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def script_of(sweep: Sweep, overrides: list[str]) -> str:
    """The path of the array's script, as a shell reads the command that submits it."""
    sbatch, path = shlex.split(write_array(sweep, overrides))
    assert sbatch == "sbatch"
    subprocess.run(["bash", "-n", path], check=True, timeout=20)
    return path


def run_of(printed: str) -> RunConfig:
    config, *overrides, end = printed.split("\0")
    assert end == ""
    return load_yaml(config, RunConfig, overrides)


@pytest.mark.parametrize("odd", ODD)
def test_a_task_of_the_array_is_its_own_run_whatever_file_name_and_directory_are_called(
    odd: str, repository: Path
) -> None:
    file = write_sweep(repository / f"in {odd}", f"n{odd}", file=f"{odd}.yaml", output=f"runs {odd}")
    given = str(file.relative_to(repository))
    shards = f"data.sources.0.shards={as_yaml(odd)}"
    sweep = load_sweep(given, [shards])
    script = script_of(sweep, [shards])
    run = run_of(executed(["bash", script], repository, task=2))
    assert run == sweep.runs[2].config
    assert (run.seed, run.output, run.data.sources[0].shards) == (3, f"runs {odd}/n{odd}", odd)
    assert not list(repository.rglob("pwned"))


def test_a_line_break_in_an_override_or_a_file_s_name_stays_inside_its_quotes(repository: Path) -> None:
    for number, line in enumerate(LINES):
        file = write_sweep(repository / "in", f"n{number}", file=f"{number} {line}.yaml".replace("/", " "))
        override = f'data.sources.0.shards="{line}"'
        sweep = load_sweep(str(file), [override])
        script = script_of(sweep, [override])
        assert run_of(executed(["bash", script], repository, task=1)) == sweep.runs[1].config
        head, _, _ = Path(script).read_text().partition("set -euo")
        assert all(re.fullmatch(r"#[!A-Za-z0-9 ./=,_:-]*", row) for row in head.splitlines()), head
        assert head.count("#SBATCH") == 3
    assert not list(repository.rglob("pwned"))


def test_a_sweep_from_before_with_lines_in_its_name_writes_no_line_of_its_own(repository: Path) -> None:
    for number, name in enumerate([*LINES, "-x", "é\u2028$(touch pwned)"]):
        file = write_sweep(repository / f"in{number}", name)
        with pytest.raises(UserError, match=r"name: found '.*wanted a letter or digit") as caught:
            load_sweep(str(file), [])
        assert str(caught.value).isprintable()
        (repository / "runs" / name).mkdir(parents=True)
        sweep = load_sweep(str(file), [])
        script = script_of(sweep, [])
        assert run_of(executed(["bash", script], repository)) == sweep.runs[0].config
        options = [row for row in Path(script).read_text().splitlines() if row.startswith("#SBATCH")]
        assert len(options) == 3 and all(re.fullmatch(r"#SBATCH --[a-z-]+=[A-Za-z0-9._-]+", row) for row in options)
    assert not list(repository.rglob("pwned"))


def test_the_printed_command_submits_the_script_through_a_shell(repository: Path) -> None:
    file = write_sweep(repository / "a b", "it's $(touch pwned)", output="-runs of mine")
    shim = repository / "bin" / "sbatch"
    shim.parent.mkdir()
    shim.write_text('#!/bin/bash\nprintf "%s\\0" "$@"\n')
    shim.chmod(0o755)
    line = f'PATH={shim.parent}:$PATH; eval "$({sys.executable} -m hyena_ds sweep {shlex.quote(str(file))} --slurm)"'
    printed = executed(["bash", "-c", line], repository)
    assert printed == "./-runs of mine/it's $(touch pwned)/array.sbatch\0"
    assert not list(repository.rglob("pwned"))


def test_a_number_is_a_run_s_place_even_where_another_is_called_so(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_sweep(repository / "in", "trial", run="{seed}")
    for number in range(3):
        assert main(["sweep", str(file), "--arguments", str(number)]) == 0
        config, *overrides = shlex.split(capsys.readouterr().out)
        assert load_yaml(config, RunConfig, overrides).seed == number + 1
    assert main(["sweep", str(file), "--arguments", "3"]) == 0  # no number, so a name
    assert "seed=3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("-{seed}", "run -1: name: found '-1', which begins with '-'"),
        ("x" * 200 + "{seed}", "of 201 bytes; wanted a letter or digit"),
        ("{seed}" * 500, "of 500 bytes"),
        ("x", "runs 0 and 1 are both named x; name all that varies in `run`"),
    ],
)
def test_names_made_of_values_follow_the_rule_of_names(run: str, said: str, repository: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_sweep(str(write_sweep(repository / "in", "trial", run=run)), [])
    assert said in str(caught.value)


def test_a_run_from_before_is_still_a_run_of_its_sweep(repository: Path) -> None:
    file = write_sweep(repository / "in", "trial", run="-{seed}")
    for number in range(1, 4):
        directory = repository / "runs" / "trial" / f"-{number}"
        directory.mkdir(parents=True)
        (directory / "config.yaml").write_text("")
    assert [run.name for run in load_sweep(str(file), []).runs] == ["-1", "-2", "-3"]


def test_more_runs_than_a_cluster_takes_are_refused_before_any_is_made(repository: Path) -> None:
    file = write_sweep(repository / "in", "trial")
    keys = ["seed", "zero_stage", "validation.windows", "model.layers", "model.width", "checkpoint.keep_last"]
    sweep = {"name": "trial", "base": "base.yaml", "axes": {key: [str(n) for n in range(100)] for key in keys}}
    file.write_text(json.dumps(sweep))
    with pytest.raises(UserError, match="make 1,000,000,000,000 runs, wanted at most 1,000; split the sweep"):
        load_sweep(str(file), [])


def test_text_is_read_back_from_the_yaml_that_is_made_of_it() -> None:
    texts = [
        *ODD,
        *LINES,
        "",
        "null",
        "~",
        "1",
        "true",
        "- a",
        "? a",
        "a\u2028b\x85c",
        " a ",
        "it's\n",
        "😀",
        "|",
        "\t",
    ]
    texts += ["".join(pair) for pair in itertools.product("'\"\\#: \n", repeat=2)]
    base = "model: {width: 8, layers: 1, maximum_context: 8}\ndata: {sources: [{shards: x}]}\n"
    base += "stages: [{context_length: 8, steps: 1, global_batch: 1}]\nname: a\n"
    for text in texts:
        assert "\n" not in as_yaml(text)
        assert parse_yaml(base, "run.yaml", RunConfig, [f"output={as_yaml(text)}"]).output == text
    assert as_yaml("two words") == "two words"
