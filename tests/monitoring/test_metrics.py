"""The history of a run: what is damaged is kept aside and said, what is readable stays, what is trained again is replaced."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyena_ds.errors import LocalError
from hyena_ds.files.growing import GrowingFile, append_line
from hyena_ds.files.rows import FAULTS, LONGEST, METRICS, STARTS, Shape, read_lines, read_rows, read_summary
from hyena_ds.monitoring.metrics import DAMAGED, Metrics, recover

STEPS = 60
SEED = 20_240_607


def line(step: int, **changes: Any) -> bytes:
    row = {"step": step, "stage": 0, "context_length": 32, "loss": 1.5, "tokens": 32 * step, "tokens_per_second": 9.0}
    return (json.dumps({**row, **changes}) + "\n").encode()


def history(directory: Path) -> tuple[Path, list[bytes]]:
    """metrics.jsonl of 60 steps, with validations after every 20th."""
    lines = []
    for step in range(1, STEPS + 1):
        lines.append(line(step))
        if step % 20 == 0:
            lines.append((json.dumps({"step": step, "context_length": 32, "validation_loss": 1.25}) + "\n").encode())
    file = directory / "metrics.jsonl"
    file.write_bytes(b"".join(lines))
    return file, lines


DAMAGES: dict[str, bytes] = {
    "one byte": line(30).replace(b'"loss"', b'"lo\xffs"'),
    "half a line": line(30)[:25] + b"\n",
    "NULs of a power cut": b"\0" * 512 + b"\n",
    "no step": line(30).replace(b'"step"', b'"stop"'),
    "a step in letters": line(30).replace(b'"step": 30', b'"step": "30"'),
    "a step of 3.5": line(30).replace(b'"step": 30', b'"step": 3.5'),
    "a step that is a truth": line(30).replace(b'"step": 30', b'"step": true'),
    "a step of 10^400": line(30).replace(b'"step": 30', b'"step": 1' + b"0" * 400),
    "a step of 10^5000": line(30).replace(b'"step": 30', b'"step": 1' + b"0" * 5000),
    "a negative step": line(30).replace(b'"step": 30', b'"step": -30'),
    "no step but NaN": line(30).replace(b'"step": 30', b'"step": NaN'),
    "a loss in letters": line(30, loss="low"),
    "a loss that is a list": line(30, loss=[1.5]),
    "a rate that is no number": line(30, tokens_per_second={}),
    "tokens of another type": line(30, tokens="960"),
    "a list": b"[30]\n",
    "a number": b"30\n",
    "deep": b"[" * 100_000 + b"\n",
    "deep in a column": line(30, more=0).replace(b'"more": 0', b'"more": ' + b"[" * 50_000 + b"]" * 50_000),
    "long": b"x" * (3 * LONGEST + 7) + b"\n",
    "a long row": line(30, more="x" * LONGEST),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("at", [0, 29, 62], ids=["first", "middle", "last"])
def test_what_is_not_readable_is_kept_aside_and_said_and_every_other_row_stays(
    at: int, damage: bytes, tmp_path: Path
) -> None:
    file, lines = history(tmp_path)
    lost = lines[at]
    file.write_bytes(b"".join([*lines[:at], damage, *lines[at + 1 :]]))
    rows, news = recover(file, STEPS)
    assert file.read_bytes() == b"".join([*lines[:at], *lines[at + 1 :]])
    assert (tmp_path / DAMAGED).read_bytes() == damage
    assert len(rows) == len(lines) - 1
    assert news[0] == f"{file}: line {at + 1} not readable; kept in {DAMAGED}"
    gap = [f"{file}: no row of step {json.loads(lost)['step']} (1 of 60 steps)"] if b'"loss"' in lost else []
    assert news[1:] == gap
    assert recover(file, STEPS) == (rows, gap), "what was put aside is said once"
    assert (tmp_path / DAMAGED).read_bytes() == damage


def test_a_line_that_is_no_whole_one_is_no_row_whatever_its_length(tmp_path: Path) -> None:
    for length in (LONGEST - 1, LONGEST, LONGEST + 1, 2 * LONGEST):
        file, lines = history(tmp_path)
        file.write_bytes(b"".join(lines) + b"x" * length)
        (tmp_path / DAMAGED).unlink(missing_ok=True)
        rows, news = recover(file, STEPS)
        assert len(rows) == 63 and news == [f"{file}: line 64 not readable; kept in {DAMAGED}"]
        assert (tmp_path / DAMAGED).read_bytes() == b"x" * length + b"\n"
        assert file.read_bytes() == b"".join(lines)


READABLE: dict[str, Callable[[bytes], bytes]] = {
    "CRLF": lambda text: text.replace(b"\n", b"\r\n"),
    "blank lines": lambda text: text.replace(b"\n", b"\n\n"),
    "NULs before a row": lambda text: b"\0" * 512 + text,
    "a byte order mark": lambda text: b"\xef\xbb\xbf" + text,
    "no newline at the end": lambda text: text[:-1],
    "NaN": lambda text: text.replace(b'"loss": 1.5', b'"loss": NaN', 1),
    "Infinity": lambda text: text.replace(b'"loss": 1.5', b'"loss": -Infinity', 1),
    "a loss of 1e999": lambda text: text.replace(b'"loss": 1.5', b'"loss": 1e999', 1),
    "another column": lambda text: text.replace(b'"stage"', b'"mine": [{}], "stage"'),
    "a row that is there twice": lambda text: line(1) + text,
    "an integer loss": lambda text: text.replace(b'"loss": 1.5', b'"loss": 2', 1),
}


@pytest.mark.parametrize("change", READABLE.values(), ids=READABLE)
def test_what_is_readable_stays_byte_for_byte(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    file, lines = history(tmp_path)
    file.write_bytes(changed := change(b"".join(lines)))
    rows, news = recover(file, STEPS)
    assert news == [] and {row["step"] for row in rows} == {*range(1, STEPS + 1)}
    assert file.read_bytes() == changed and not (tmp_path / DAMAGED).exists()
    recover(file, 40)
    assert max(row["step"] for row in read_rows(file, METRICS)) == 40


def test_rows_of_steps_that_are_trained_again_go_and_no_others(tmp_path: Path) -> None:
    file, lines = history(tmp_path)
    file.write_bytes(b"".join(lines) + b'{"step": 61, "lo')
    rows, news = recover(file, 40)
    assert file.read_bytes() == b"".join(lines[:42])
    assert [row["step"] for row in rows if "validation_loss" in row] == [20, 40]
    assert news == [f"{file}: line 64 not readable; kept in {DAMAGED}"]
    assert recover(file, 0) == ([], []) and file.read_bytes() == b""


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (None, "missing, so no row of steps 1 to 60 (60 of 60 steps)"),
        (range(0), "no row of steps 1 to 60 (60 of 60 steps)"),
        (range(50), "no row of steps 49 to 60 (12 of 60 steps)"),
        (range(50, 63), "no row of steps 1 to 48 (48 of 60 steps)"),
        (range(0, 63, 2), "no row of steps 2, 4, 6, 8, 10 and 24 more (30 of 60 steps)"),
    ],
)
def test_a_missing_or_shortened_history_is_said(kept: range | None, said: str, tmp_path: Path) -> None:
    file, lines = history(tmp_path)
    file.unlink()
    if kept is not None:
        file.write_bytes(b"".join(lines[number] for number in kept))
    assert recover(file, STEPS)[1] == [f"{file}: {said}"]
    assert recover(tmp_path / "new.jsonl", 0) == ([], [])


def test_where_nothing_can_be_put_aside_the_damage_stays_where_it_is(tmp_path: Path) -> None:
    file, lines = history(tmp_path)
    file.write_bytes(before := b"".join([*lines[:5], b"\xff\n", *lines[5:]]))
    (tmp_path / DAMAGED).mkdir()
    rows, (said,) = recover(file, STEPS)
    assert len(rows) == 63 and file.read_bytes() == before
    assert said.startswith(f"{file}: line 6 not readable; left there, because {tmp_path / DAMAGED} cannot be written (")


@pytest.mark.parametrize("kind", ["directory", "pipe", "dangling link"])
def test_what_is_no_file_ends_the_start_with_one_sentence(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    make: dict[str, Callable[[], object]] = {
        "directory": file.mkdir,
        "pipe": lambda: os.mkfifo(file),
        "dangling link": lambda: file.symlink_to(tmp_path / "gone" / "metrics.jsonl"),
    }
    make[kind]()
    with pytest.raises(LocalError, match=r"metrics\.jsonl: the rows of an earlier start cannot be taken over"):
        recover(file, 0)


@pytest.mark.slow
def test_a_history_damaged_at_random_loses_no_line_that_is_readable(tmp_path: Path) -> None:
    draw = random.Random(SEED)
    for _ in range(200):
        file, lines = history(tmp_path)
        (tmp_path / DAMAGED).unlink(missing_ok=True)
        text = bytearray(b"".join(lines))
        for _ in range(draw.randint(1, 5)):
            at = draw.randrange(len(text))
            text[at : at + draw.choice((0, 1, 600))] = draw.choice((b"", b"\0" * 512, bytes([draw.randrange(256)])))
        file.write_bytes(text)
        before = [line.row for line in read_lines(file, METRICS) if line.row and line.row["step"] <= 50]
        rows, _ = recover(file, 50)
        assert rows == before == read_rows(file, METRICS), f"seed {SEED}"
        kept = {*stripped(file), *stripped(tmp_path / DAMAGED)}
        lost = [piece for piece in bytes(text).split(b"\n") if piece.strip(BLANK) not in kept and not later(piece)]
        assert not lost, f"seed {SEED}"


BLANK = b"\0 \r\n\t"


def stripped(file: Path) -> list[bytes]:
    return [piece.strip(BLANK) for piece in file.read_bytes().split(b"\n")] if file.exists() else []


def later(piece: bytes) -> bool:
    try:
        return int(json.loads(piece.strip(BLANK))["step"]) > 50
    except ValueError:
        return False


@pytest.mark.parametrize("shape", [FAULTS, STARTS, METRICS], ids=["faults", "starts", "metrics"])
def test_every_reader_passes_what_is_not_readable(shape: Shape, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    good = {"step": 4, "kind": "died", "text": "rank 1 died", "time": "now", "ranks": 2, "hosts": {"a": 2}}
    wrong = [{**good, name: value} for name in ("step", "text", "hosts") for value in ([1], {"a": "b"}, 1.5, None)]
    wrong = [row for row in wrong if not shape.holds(row)]
    assert len(wrong) >= 4
    file.write_bytes(
        b"".join((json.dumps(row) + "\n").encode() for row in wrong)
        + b"".join(DAMAGES.values())
        + json.dumps(good).encode()
    )
    assert [row for row in read_rows(file, shape) if row.get("time") == "now"] == [good]
    assert read_rows(tmp_path, shape) == [] and read_rows(tmp_path / "none", shape) == []


def test_the_next_row_after_a_torn_one_begins_on_a_line_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "faults.jsonl"
    fault = {"step": 4, "kind": "died", "text": "rank 1 died"}
    file.write_text('{"step": 3, "kind": "di')
    append_line(file, json.dumps(fault))
    append_line(file, json.dumps(fault))
    assert read_rows(file, FAULTS) == [fault, fault]


def test_a_summary_that_is_not_readable_is_empty_and_a_missing_one_is_none(tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    assert read_summary(file) is None
    for text in (b"", b"\xff", b"[" * 100_000, b"[1]", b'{"validation_loss": "1"}', b'{"markov_losses": [1]}'):
        file.write_bytes(text)
        assert read_summary(file) == {}


def test_a_row_that_finds_no_room_leaves_nothing_behind_and_is_written_when_there_is_some(tmp_path: Path) -> None:
    file, lines = history(tmp_path)
    file.write_bytes(b"".join(lines[:10]))
    room = limited(file)
    metrics = Metrics(file)
    metrics.append({"step": 11, "loss": 1.0})
    assert metrics.problem() is None
    with room(60):
        metrics.append({"step": 12, "loss": float("nan"), "note": "x" * 100})
        assert metrics.problem() == f"{file}: cannot be written (File too large)"
        assert read_rows(file, METRICS)[-1]["step"] == 11 and file.read_bytes().endswith(b"\n")
        metrics.append({"step": 13, "loss": 1.0})
    assert metrics.problem() is None
    assert [row["step"] for row in read_rows(file, METRICS)][-3:] == [11, 12, 13]
    assert read_rows(file, METRICS)[-2]["loss"] is None
    metrics.close()


def limited(file: Path) -> Callable[[int], Any]:
    """A bound on the size of files: those of this process that are larger than `file` with so many bytes more fail to grow."""
    import resource
    from contextlib import contextmanager

    @contextmanager
    def room(more: int) -> Any:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + more, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return room


def test_a_file_that_somebody_removes_is_made_again(tmp_path: Path) -> None:
    growing = GrowingFile(tmp_path / "log.txt")
    growing.append(b"one\n")
    (tmp_path / "log.txt").unlink()
    growing.append(b"two\n")
    assert (tmp_path / "log.txt").read_bytes() == b"two\n"
    (tmp_path / "log.txt").rename(tmp_path / "log.old")
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        growing.append(b"three\n")
    (tmp_path / "log.txt").unlink()
    growing.append(b"four\n")
    assert (tmp_path / "log.txt").read_bytes() == b"four\n"
    os.mkfifo(tmp_path / "pipe")
    pipe = GrowingFile(tmp_path / "pipe")
    with pytest.raises(OSError, match="unavailable"):  # nobody reads it, and nobody waits for it
        pipe.append(b"x" * (1 << 20))
