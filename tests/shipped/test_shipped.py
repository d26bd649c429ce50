"""`hyena-ds init` and `hyena-ds launch`: what they write and print, and what they refuse. tests/package runs it installed."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from hyena_ds.cli import main
from hyena_ds.errors import UserError
from hyena_ds.shipped import command, launch_script, shipped
from tests.paths import GENOME, ROOT
from tests.training.runs import tree


@pytest.mark.parametrize("name", ["new", "two words", "it's $(touch pwned)", "größe"])
def test_init_writes_configs_and_genome_and_prints_how_to_go_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", name]) == 0
    written = tree(tmp_path / name)
    configs = {str(path.relative_to(ROOT)): path.read_bytes() for path in (ROOT / "configs").rglob("*.*")}
    shipped = (GENOME, GENOME.parent / "README.md", *(GENOME.parent / "hyenadna-chrx").glob("*.*"))
    assets = {str(path.relative_to(ROOT)): path.read_bytes() for path in shipped}
    assert written == {**configs, **assets}
    first, *others = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    assert shlex.split(first) == ["cd", name]
    there = subprocess.run(["bash", "-c", f"{first}; pwd"], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert there.stdout == f"{tmp_path / name}\n"
    assert not (tmp_path / "pwned").exists()
    # The commands name files that are there.
    assert all((tmp_path / name / word).exists() for line in others for word in line.split() if word.endswith(".yaml"))


def test_init_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("empty", "file", "link", ".", "/", ""):
        assert main(["init", name]) == 2
        assert (
            "exists already, and nothing is overwritten; name a directory that does not exist"
            in capsys.readouterr().err
        )
    assert main(["init", "a/b"]) == 2
    assert "a/b: found no directory a to write it to; make it first" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "link"] and not os.listdir(tmp_path / "empty")


@pytest.mark.parametrize("at", ["to_disk", "copyfileobj"])
def test_a_disk_that_refuses_leaves_no_directory_and_is_named(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(command if at == "to_disk" else shutil, at, refuse)
    assert main(["init", str(tmp_path / "new")]) == 2
    assert "disk: No space left on device" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_what_a_killed_init_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".new.partial" / "configs").mkdir(parents=True)
    (tmp_path / ".new.partial" / "configs" / "stale.yaml").write_text("half")
    assert main(["init", str(tmp_path / "new")]) == 0
    assert os.listdir(tmp_path) == ["new"] and not (tmp_path / "new" / "configs" / "stale.yaml").exists()


def test_launch_prints_where_the_scripts_are_and_where_one_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch"]) == 0
    assert capsys.readouterr().out == f"{ROOT / 'launch'}\n"
    for script in ("hostfile.sh", "slurm.sbatch"):
        assert main(["launch", script]) == 0
        assert capsys.readouterr().out == f"{ROOT / 'launch' / script}\n"
    for wrong in ("hostfile", "README.md", "../setup.cfg", ""):
        assert main(["launch", wrong]) == 2
        said = capsys.readouterr().err
        assert f"found no launch script '{wrong}', wanted one of cpu.sh, hostfile.sh, kubernetes.sh" in said


def test_a_script_that_is_there_is_found_and_an_installation_that_lacks_them_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert launch_script("rank.sh") == ROOT / "launch" / "rank.sh"
    monkeypatch.setattr("hyena_ds.shipped.files", lambda name: tmp_path)
    with pytest.raises(UserError, match="launch: found no such directory; the installation is not whole"):
        shipped("launch")
