"""Published weights come from a hub whole and as they are known, or one sentence comes and nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hyena_ds
from hyena_ds.data.shards import sha256_of
from hyena_ds.weights.names import PUBLISHED
from tests.paths import ROOT
from tests.weights import layouts
from tests.weights.hub import COMMIT, hub

pytest.importorskip("huggingface_hub", reason="found no huggingface_hub; pip install -e '.[huggingface]' installs it")

PLANTED = """
import sys, time
from dataclasses import replace
from hyena_ds.cli import main
from hyena_ds.weights.names import PUBLISHED
sha256 = sys.argv.pop(1)
time.sleep = lambda seconds: None  # huggingface_hub asks a hub that is not there six times, with 23 seconds between
PUBLISHED["tiny-1k"] = replace(PUBLISHED["tiny-1k"], sha256=None if sha256 == "none" else sha256)
if sha256 == "absent":
    sys.modules["huggingface_hub"] = None
sys.exit(main(sys.argv[1:]))
"""


def download(tmp_path: Path, address: str, *arguments: str, sha256: str = "none") -> subprocess.CompletedProcess[str]:
    """Run `hyena-ds weights download` in a process of its own: huggingface_hub reads HF_ENDPOINT when it is imported."""
    command = [sys.executable, "-c", PLANTED, sha256, "weights", "download", *arguments]
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    (tmp_path / "published").mkdir()
    return layouts.hf_safetensors(tmp_path / "published", "d32_l2")


REPOSITORY = PUBLISHED["tiny-1k"].repository


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.iterdir() if path.name not in ("published", "home"))


@pytest.mark.slow
def test_weights_are_fetched_at_the_known_revision_and_load(tmp_path: Path, published: Path) -> None:
    asked: list[str] = []
    known = sha256_of(published / "model.safetensors")
    with hub(REPOSITORY, published, asked) as address:
        done = download(tmp_path, address, "tiny-1k", sha256=known)
    assert done.returncode == 0, done.stderr
    assert f"hyenadna-tiny-1k: {REPOSITORY} at {COMMIT}" in done.stdout and f"{known} (as known)" in done.stdout
    assert all(COMMIT in path for path in asked)
    assert left(tmp_path) == ["hyenadna-tiny-1k"]
    folder = tmp_path / "hyenadna-tiny-1k"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == (published / "model.safetensors").read_bytes()
    assert hyena_ds.load_model(folder, shift=0.05).config.width == 32


@pytest.mark.slow
def test_another_revision_is_not_held_to_the_known_bytes_and_that_is_said(tmp_path: Path, published: Path) -> None:
    with hub(REPOSITORY, published) as address:
        done = download(tmp_path, address, "tiny-1k", "--revision", "main", "--output", "deep/down", sha256="0" * 64)
    assert done.returncode == 0, done.stderr
    assert "not known before: nothing says that it is right" in done.stdout and f"at {COMMIT}" in done.stdout
    assert (tmp_path / "deep" / "down" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sha256", "said"),
    [
        (("tiny-1k",), "0" * 64, f"wanted {'0' * 64} for revision {COMMIT}; the hub gave other bytes"),
        (("tiny-1k", "--revision", "nowhere"), "none", f"{REPOSITORY}: cannot be fetched at revision nowhere ("),
        (("small-32k",), "none", f"{PUBLISHED['small-32k'].repository}: cannot be fetched at revision 8fe770c"),
        (("tiny-2k",), "none", "found no published model 'tiny-2k', wanted one of tiny-1k, tiny-1k-d256, tiny-16k"),
        (
            ("tiny-1k", "--output", "published"),
            "none",
            "published: is there already; remove it, or name another directory",
        ),
        (("tiny-1k",), "absent", "huggingface_hub is not installed; pip install 'hyena-ds[huggingface]' installs it"),
    ],
)
def test_what_cannot_be_fetched_is_one_sentence_and_leaves_nothing(
    arguments: tuple[str, ...], sha256: str, said: str, tmp_path: Path, published: Path
) -> None:
    with hub(REPOSITORY, published) as address:
        done = download(tmp_path, address, *arguments, sha256=sha256)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert said in done.stderr and not left(tmp_path)


@pytest.mark.slow
def test_a_hub_that_lacks_a_file_or_is_not_there_is_named(tmp_path: Path, published: Path) -> None:
    (published / "model.safetensors").unlink()
    with hub(REPOSITORY, published) as address:
        lacking = download(tmp_path, address, "tiny-1k")
    away = download(tmp_path, address, "tiny-1k")
    for done in (lacking, away):
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert "cannot be fetched at revision" in done.stderr and "HF_ENDPOINT" in done.stderr
    assert not left(tmp_path)
