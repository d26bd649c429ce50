"""Files that are whole or not there, whatever the disk says and whatever lies where they are written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hyena_ds.files import whole
from hyena_ds.files.whole import aside, write_whole


def held(directory: Path) -> dict[str, bytes]:
    """The files of a directory, hidden ones too."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("content", ["", "größe\n", b"\xff\x00bytes"])
@pytest.mark.parametrize("own", [False, True])
def test_text_is_written_as_utf_8_and_bytes_as_they_are(content: str | bytes, own: bool, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for _ in range(2):  # the second time over the first
        write_whole(path, content, own)
        assert held(tmp_path) == {"file": content.encode() if isinstance(content, str) else content}


@pytest.mark.parametrize("at", ["to_disk", "replace"])
@pytest.mark.parametrize("before", [None, b"before"])
def test_a_disk_that_refuses_leaves_what_was_there(
    at: str, before: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)
    monkeypatch.setattr(whole.os if at == "replace" else whole, at, refuse)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "after")
    assert held(tmp_path) == ({} if before is None else {"file": before})


def test_nothing_has_the_name_before_everything_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    at_fsync = []

    def fsync(descriptor: int) -> None:
        at_fsync.append((path.exists(), os.fstat(descriptor).st_size))

    monkeypatch.setattr(whole.os, "fsync", fsync)
    write_whole(path, "twelve bytes")
    assert at_fsync == [(False, 12)] and path.exists()


def make_file(path: Path, elsewhere: Path) -> None:
    path.write_text("stale")


def make_link(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere)


def make_dangling_link(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere / "nothing here")


def make_link_to_a_directory(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere.parent)


def make_directory(path: Path, elsewhere: Path) -> None:
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "file").write_text("stale")


@pytest.mark.parametrize(
    "make",
    [make_file, make_link, make_dangling_link, make_link_to_a_directory, make_directory],
    ids=lambda f: f.__name__,
)
def test_whatever_an_earlier_process_left_aside_is_in_nobodys_way(
    make: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere" / "file"
    elsewhere.parent.mkdir()
    elsewhere.write_text("not to be touched")
    directory = tmp_path / "directory"
    directory.mkdir()
    make(directory / ".file.partial", elsewhere)
    write_whole(directory / "file", "content")
    assert held(directory) == {"file": b"content"}
    assert held(elsewhere.parent) == {"file": b"not to be touched"}


def test_a_link_as_the_target_becomes_a_file_and_what_it_points_to_stays(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("other")
    path = tmp_path / "file"
    path.symlink_to(other)
    write_whole(path, "content")
    assert not path.is_symlink()
    assert held(tmp_path) == {"file": b"content", "other": b"other"}


def test_a_directory_as_the_target_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "inside").write_text("stays")
    with pytest.raises(OSError):
        write_whole(tmp_path / "file", "content")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert held(tmp_path / "file") == {"inside": b"stays"}


def test_an_error_in_the_block_is_the_callers_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), aside(tmp_path / "file") as partial:
        partial.write_text("half")
        1 / 0  # noqa: B018
    assert held(tmp_path) == {}


def test_a_directory_can_be_written_aside_too(tmp_path: Path) -> None:
    with aside(tmp_path / "new") as partial:
        (partial / "deep").mkdir(parents=True)
        (partial / "deep" / "file").write_text("content")
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "new" / "deep" / "file").read_text() == "content"
    with pytest.raises(ZeroDivisionError), aside(tmp_path / "other") as partial:
        partial.mkdir()
        1 / 0  # noqa: B018
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_processes_that_write_the_same_file_have_a_partial_each(tmp_path: Path) -> None:
    with aside(tmp_path / "file", own=True) as mine, aside(tmp_path / "file") as shared:
        assert mine != shared and str(os.getpid()) in mine.name
        mine.write_text("mine")
        shared.write_text("shared")
    assert held(tmp_path) == {"file": b"mine"}
