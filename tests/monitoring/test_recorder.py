"""What monitoring cannot write is said once and counted, and the recorder goes on; events are what TensorBoard reads."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from hyena_ds.config.monitors import MonitorsConfig
from hyena_ds.files.rows import METRICS, read_rows
from hyena_ds.monitoring.events import Events, framed
from hyena_ds.monitoring.monitors import Monitors, _drop_after
from hyena_ds.monitoring.progress import Progress
from hyena_ds.monitoring.recorder import Recorder


def recorder(run: Path, step: int = 0, monitors: Monitors | None = None) -> Recorder:
    run.mkdir(exist_ok=True)
    progress = Progress(100, 100, step, step)
    return Recorder(run / "metrics.jsonl", run / "log.txt", run / "tensorboard", step, progress, monitors)


def steps(into: Recorder, first: int, last: int) -> None:
    for step in range(first, last + 1):
        into.say(f"step {step}")
        into.row({"step": step, "loss": 1.0 / step}, [("train/loss", 1.0 / step)])


def replaced(place: Path, by: str) -> None:
    """Put something else in the place of what monitoring writes to."""
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink()
    if by == "file":
        place.write_text("a stranger's")
    elif by == "directory":
        place.mkdir()
    elif by == "dangling link":
        place.symlink_to(place.parent / "gone" / "further")
    elif by == "full disk":
        place.symlink_to("/dev/full")


@pytest.mark.parametrize(
    ("name", "by"),
    [
        *(("tensorboard", by) for by in ("file", "dangling link", "full disk")),
        *(("log.txt", by) for by in ("directory", "dangling link", "full disk")),
    ],
)
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_what_cannot_be_written_is_said_once_and_counted_and_rows_go_on(
    name: str, by: str, when: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with closing(recorder(run)) as into:
        if when == "meanwhile":
            steps(into, 1, 3)
        else:
            (run / name).mkdir()
        replaced(run / name, by)
        steps(into, 4, 6)
    said = [line for line in capsys.readouterr().out.splitlines() if str(run / name) in line]
    assert len(said) == 2 and said[0].startswith(f"{run / name}: cannot be written (")
    assert said[0].endswith("); training goes on without it") and "Errno" not in said[0]
    assert said[1].startswith(f"{run / name}: ") and said[1].endswith(" writes were lost")
    assert [row["step"] for row in read_rows(run / "metrics.jsonl", METRICS)][-3:] == [4, 5, 6]


@pytest.mark.parametrize("name", ["tensorboard", "log.txt"])
def test_what_somebody_removes_is_made_again(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    with closing(recorder(run)) as into:
        steps(into, 1, 3)
        replaced(run / name, "nothing")
        steps(into, 4, 6)
    assert "cannot be written" not in capsys.readouterr().out
    if name == "log.txt":
        assert (run / name).read_text() == "step 4\nstep 5\nstep 6\n"
    else:
        assert curve(run / name) == {4: 1 / 4, 5: 1 / 5, 6: 1 / 6}


def curve(directory: Path) -> dict[int, float]:
    events = EventAccumulator(str(directory)).Reload()
    return {event.step: pytest.approx(event.value, rel=1e-6) for event in events.Scalars("train/loss")}


def test_records_are_those_of_tensorboard_s_own_writer() -> None:
    events = [Event(step=step, file_version="\xff" * step) for step in range(0, 400, 57)]
    wanted = io.BytesIO()
    writer = RecordWriter(wanted)
    for event in events:
        writer.write(event.SerializeToString())
    assert framed(events) == wanted.getvalue()


def test_a_resumed_run_goes_on_in_the_same_curve_without_what_it_does_again(tmp_path: Path) -> None:
    for first, last, resumed in ((1, 6, 0), (5, 8, 4)):
        events = Events(tmp_path, resumed)
        for step in range(first, last + 1):
            events.write([("train/loss", resumed + step / 10)], step)
        events.close()
    wanted = {**{step: step / 10 for step in range(1, 5)}, **{step: 4 + step / 10 for step in range(5, 9)}}
    assert curve(tmp_path) == wanted


def test_a_terminal_that_is_gone_is_said_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full, closing(recorder(tmp_path / "run")) as into:
        monkeypatch.setattr("sys.stdout", full)
        steps(into, 1, 3)
    # Closing it here raised nothing, and nothing is left that could fail at the end of the process.
    log = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert log[0] == "terminal: cannot be written (No space left on device); training goes on without it"
    assert log[1:4] == ["step 1", "step 2", "step 3"]


@pytest.fixture()
def csv_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's monitor asks for the rank."""
    import deepspeed.comm

    monkeypatch.setattr(deepspeed.comm, "get_rank", lambda: 0)


@pytest.mark.usefixtures("csv_monitor")
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_monitor_of_deepspeeds_that_fails_ends_nothing(
    when: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    if when == "before":
        (run / "csv").write_text("a stranger's")
    monitors = Monitors(MonitorsConfig(csv=True), run, "name", "run", 0)
    with closing(recorder(run, 0, monitors)) as into:
        steps(into, 1, 2)
        if when == "meanwhile":
            assert (run / "csv" / "train_loss.csv").read_text().split() == ["step,loss", "1,1.0", "2,0.5"]
            replaced(run / "csv", "file")
        steps(into, 3, 4)
    said = [line for line in capsys.readouterr().out.splitlines() if str(run / "csv") in line]
    assert (
        len(said) == 2 and "cannot be written" in said[0] and f"{4 if when == 'before' else 2} writes were" in said[1]
    )
    assert len(read_rows(run / "metrics.jsonl", METRICS)) == 4


@pytest.mark.parametrize(
    "damage", [b"\xff\xfe\r\n", b"\0" * 512 + b"\r\n", b'"open,1\r\n', b"x" * 200_000 + b"\r\n", b"\xc2\xb2,1\r\n"]
)
def test_a_damaged_file_of_curves_loses_no_line_but_those_done_again(damage: bytes, tmp_path: Path) -> None:
    file = tmp_path / "train_loss.csv"
    file.write_bytes(b"step,loss\r\n1,1.5\r\n" + damage + b"2,1.25\r\n3,1.0\r\n4,0.")
    (tmp_path / "directory.csv").mkdir()
    assert _drop_after(tmp_path, 2) == ["train_loss"]
    assert file.read_bytes() == b"step,loss\r\n1,1.5\r\n" + damage + b"2,1.25\r\n"


def test_news_of_the_history_are_on_the_terminal_and_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with closing(recorder(run)) as into:
        steps(into, 1, 4)
        into.row({"step": 4, "context_length": 32, "validation_loss": 1.0}, [])
    file = run / "metrics.jsonl"
    file.write_bytes(file.read_bytes().replace(json.dumps({"step": 2, "loss": 0.5}).encode(), b"\xff"))
    capsys.readouterr()
    with closing(recorder(run, 4)) as into:
        assert into.scored == {(4, 32)}
    said = [f"{file}: line 2 not readable; kept in metrics.damaged.jsonl", f"{file}: no row of step 2 (1 of 4 steps)"]
    assert capsys.readouterr().out.splitlines() == said
    assert (run / "log.txt").read_text().splitlines()[-2:] == said
