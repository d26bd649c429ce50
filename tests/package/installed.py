"""The package as somebody has it who installed its wheel: in an environment of its own, without the repository.

a copy of what is packed --sdist, wheel--> file.whl --pip--> a fresh environment, which borrows torch and all else
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tests.paths import ROOT

PACKED = ("hyena_ds", "data_prep", "launch", "configs", "assets")
FILES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")
TIMEOUT = 240
_SDIST = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"


class Installed:
    """An environment with the wheel in it. Its commands see nothing of the repository or of this process's PYTHONPATH."""

    def __init__(self, directory: Path):
        self.directory = directory / "environment"
        self.wheel = _wheel(directory)
        venv.create(self.directory, with_pip=False, symlinks=True, system_site_packages=True)
        self.python = self.directory / "bin" / "python"
        self._borrow()
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "--quiet", "--disable-pip-version-check"]
        _run([*pip, "install", "--no-deps", "--no-index", "--force-reinstall", str(self.wheel)], cwd=directory)

    def environment(self, **more: str) -> dict[str, str]:
        """Variables of a process in this environment."""
        own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        own["PATH"] = f"{self.python.parent}:{own['PATH']}"
        return {**own, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **more}

    def run(self, *command: str | Path, cwd: Path, code: int = 0) -> str:
        """Run a command; what it printed. It has to end with this code."""
        done = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert done.returncode == code, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def _borrow(self) -> None:
        """Let the environment import what this one has, after its own packages.

        A directory that a .pth file names is only searched: the .pth files in it, such as that of an editable install, are
        not read.
        """
        paths = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
        own = _run([str(self.python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], self.directory)
        (Path(own.strip()) / "borrowed.pth").write_text("".join(f"{path}\n" for path in paths))


def _wheel(directory: Path) -> Path:
    """Build the wheel as `pip wheel` does of a source distribution, from a copy without what builds have left."""
    source, built = directory / "source", directory / "built"
    source.mkdir()
    for name in PACKED:
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    sdist = built / _run([sys.executable, "-c", _SDIST, str(built)], cwd=source).split()[-1]
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--quiet"]
    _run([*pip, "--disable-pip-version-check", "--wheel-dir", str(built), str(sdist)], cwd=directory)
    (wheel,) = built.glob("*.whl")
    return wheel


def _run(command: list[str], cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
