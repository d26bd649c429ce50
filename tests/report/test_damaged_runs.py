"""Whatever is wrong with what a run left, what reads it answers: a page, a table or one sentence, never a traceback."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hyena_ds.checkpoints.directory import begin, complete
from hyena_ds.checkpoints.listing import list_checkpoints
from hyena_ds.checkpoints.manifest import (
    MANIFEST,
    RUN_STATE,
    WEIGHTS,
    Record,
    RunState,
    Written,
    _text,
    write_file,
    write_manifest,
)
from hyena_ds.cli import main
from hyena_ds.config.loading import load_yaml, to_plain
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError
from hyena_ds.files.whole import remove
from hyena_ds.report.page import page
from hyena_ds.runs.directory import RunDirectory
from hyena_ds.runs.records import read_records
from hyena_ds.runtime.supervisor import failure_of, newest_step
from hyena_ds.sweeps.plan import load_sweep
from hyena_ds.sweeps.plot import plot
from hyena_ds.sweeps.results import Outcome, rows_of, table, write_csv
from tests.report.test_report import Page, make_run
from tests.sweeps.test_plan import write_sweep

pytestmark = pytest.mark.slow

SEED = 20_261_124
CASES = 300
STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3.5, -0.0, 1e-320, 1e300, -1e300, 1e308, 2**31, 2**53, 2**63, 10**30, 10**400, 10**5000,
    "", "x", "1", "²", "\ud800", "\0", "x" * 5000, [], [1], [[]], {}, {"a": 1}, {"step": 1}, float("nan"), float("inf"),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything inside of a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def swapped(value: Any, draw: random.Random) -> Any:
    """With something strange, or nothing, at a random place."""
    value = copy.deepcopy(value)
    *way, last = draw.choice(list(places(value))) or (None,)
    if last is None:
        return draw.choice(STRANGE)
    place = value
    for key in way:
        place = place[key]
    if draw.random() < 0.2:
        del place[last]
    else:
        place[last] = draw.choice(STRANGE)
    return value


def dumped(value: Any) -> bytes:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value).encode()
    finally:
        sys.set_int_max_str_digits(before)


def damaged(text: bytes, draw: random.Random) -> bytes:
    """A file's content with types swapped at any depth, bytes changed, NULs, a cut, or a strange whole."""
    kind = draw.choice(("types", "types", "types", "bytes", "NULs", "cut", "deep", "whole", "twice", "order"))
    lines = text.splitlines(keepends=True)
    if kind == "types":
        try:  # one JSON value, or one a line
            return dumped(swapped(json.loads(text), draw))
        except ValueError:
            number = draw.randrange(len(lines)) if lines else 0
            try:
                lines[number] = dumped(swapped(json.loads(lines[number]), draw)) + b"\n"
                return b"".join(lines)
            except (ValueError, IndexError):
                kind = "bytes"
    at = draw.randrange(len(text)) if text else 0
    if kind == "bytes":
        return text[:at] + draw.randbytes(draw.choice((1, 1, 40))) + text[at + draw.choice((0, 1, 40)) :]
    if kind == "NULs":
        return text[:at] + bytes(512) + text[at + 512 :]
    if kind == "cut":
        return text[:at]
    if kind == "deep":
        return text + b'{"step":' + b"[" * 100_000
    if kind == "whole":
        return dumped(draw.choice(STRANGE))
    if kind == "twice":
        return text + text
    return b"".join(draw.sample(lines, len(lines)))


def add_checkpoints(run: Path, config: RunConfig) -> None:
    for step in (5, 10):
        grid = {"data parallel": 2, "sequence parallel": 1}
        stages = to_plain(config.schedule)
        record = Record("run", RunState(step, 0, 192 * step, (3,)), step - 1, 2, grid, 1, stages, to_plain(config))
        partial = begin(run / "checkpoints", step)
        texts = {RUN_STATE: record.text(), WEIGHTS: "weights"}
        files = {name: write_file(partial / name, [text.encode()]) for name, text in texts.items()}
        write_manifest(partial, "run", step, files)
        complete(partial, step)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("original")
    run = make_run(directory)
    add_checkpoints(run, load_yaml(run / "config.yaml", RunConfig))
    return run


def damage_one(run: Path, draw: random.Random) -> str:
    """Damage a file of the run, or put something else in its place."""
    file = draw.choice(sorted(path for path in run.rglob("*") if path.is_file()))
    what = draw.random()
    if what < 0.85:
        text = damaged(file.read_bytes(), draw)
        if file.name == RUN_STATE and draw.random() < 0.7:  # as if it had been written so
            directory = file.parent
            weights = directory / WEIGHTS
            bytes_ = weights.read_bytes() if weights.is_file() else b""  # an earlier damage may have taken it away
            written = {WEIGHTS: Written(len(bytes_), hashlib.sha256(bytes_).hexdigest())}
            written[RUN_STATE] = write_file(file, [text])
            remove(directory / MANIFEST)  # an earlier damage may have put a pipe or a device there
            write_manifest(directory, "run", int(directory.name[5:]), written)
        else:
            file.write_bytes(text)
    else:
        file.unlink()
        if what < 0.9:
            file.mkdir()
        elif what < 0.95:
            file.symlink_to(draw.choice(("/dev/zero", "nowhere", file.name, "/etc")))
    return file.name


def test_a_damaged_run_has_a_page_or_one_sentence(original: Path, tmp_path: Path) -> None:
    draw = random.Random(SEED)
    pages = 0
    for case in range(CASES):
        run = tmp_path / str(case) / "run"
        shutil.copytree(original, run)
        which = [damage_one(run, draw) for _ in range(draw.choice((1, 1, 1, 3)))]
        said = f"seed {SEED}, case {case}: {which}"
        try:
            Page(page(read_records(run)))
            pages += 1
        except UserError as error:
            assert "config.yaml" in str(error), said
        for verify in (False, True):
            lines, _ = list_checkpoints(run, verify)
            assert all("\n" not in line for line in lines), said
        shutil.rmtree(tmp_path / str(case))
    assert pages > CASES / 2


def test_a_damaged_run_is_supervised_and_checked(original: Path, tmp_path: Path) -> None:
    draw = random.Random(SEED + 1)
    base = load_yaml(original / "config.yaml", RunConfig, [f"output={tmp_path}"])
    for case in range(CASES // 2):
        run = tmp_path / "run"
        shutil.copytree(original, run)
        which = [damage_one(run, draw) for _ in range(draw.choice((1, 3)))]
        directory = RunDirectory(base)
        failure = failure_of(70, directory, known=0)
        assert isinstance(failure.why, str) and 0 <= newest_step(directory) <= 10, f"{which}"
        try:
            directory.check(base)
        except UserError as error:
            assert str(error), f"seed {SEED}, case {case}: {which}"
        shutil.rmtree(run)


def test_a_sweep_of_damaged_runs_has_a_table(original: Path, tmp_path: Path) -> None:
    draw = random.Random(SEED + 2)
    sweep = load_sweep(write_sweep(tmp_path, "axes: {stages.1.context_length: [32, 64], seed: [1, 2]}\n"), [])
    pictures = 5
    for case in range(CASES // 5):
        which = []
        for run in sweep.runs:
            shutil.copytree(original, run.directory)
            Outcome(70, "rank 1 died", 12.5).write(run.directory)
            outcome = run.directory.with_name(f"{run.name}.outcome.json")
            if draw.random() < 0.5:
                outcome.write_bytes(damaged(outcome.read_bytes(), draw))
            which.append(damage_one(run.directory, draw))
        rows = rows_of(sweep)
        assert len(table(rows)) >= 5 and write_csv(sweep, rows).is_file(), f"seed {SEED}, case {case}: {which}"
        if case < pictures:
            pytest.importorskip("matplotlib", reason="the plot takes matplotlib")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    plot(sweep, rows)
                except UserError as error:
                    assert "context lengths" in str(error)
        for run in sweep.runs:
            shutil.rmtree(run.directory)


def forged(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite the manifest with a checksum that holds."""
    content = json.loads((checkpoint / MANIFEST).read_text())
    del content["checksum"]
    change(content)
    (checkpoint / MANIFEST).write_text(_text(content))


FORGERIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a file above": lambda content: content["files"].update({"../../outside": content["files"][WEIGHTS]}),
    "an absolute file": lambda content: content["files"].update({"/etc/passwd": content["files"][WEIGHTS]}),
    "itself": lambda content: content["files"].update({MANIFEST: content["files"][WEIGHTS]}),
    "a name with NUL": lambda content: content["files"].update({"a\0b": content["files"][WEIGHTS]}),
    "a name of nothing": lambda content: content["files"].update({"": content["files"][WEIGHTS]}),
    "the directory": lambda content: content["files"].update({".": content["files"][WEIGHTS]}),
    "a size that is a truth": lambda content: content["files"][WEIGHTS].update(bytes=True),
    "a negative size": lambda content: content["files"][WEIGHTS].update(bytes=-7),
    "a size of 10^30": lambda content: content["files"][WEIGHTS].update(bytes=10**30),
    "a size in letters": lambda content: content["files"][WEIGHTS].update(bytes="7"),
    "a digest that is none": lambda content: content["files"][WEIGHTS].update(sha256="0"),
    "files in a list": lambda content: content.update(files=[WEIGHTS, RUN_STATE]),
    "a step that is a truth": lambda content: content.update(step=True),
    "a run that is a list": lambda content: content.update(run=[1]),
}


@pytest.mark.parametrize("change", FORGERIES.values(), ids=FORGERIES)
def test_a_manifest_with_wrong_types_or_files_elsewhere_is_damaged(
    change: Callable[[dict[str, Any]], object], original: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(original, run)
    (tmp_path / "outside").write_text("weights")
    forged(run / "checkpoints" / "step-00000010", change)
    lines, whole = list_checkpoints(run, verify=True)
    assert not whole and "complete; resume: latest takes this one" in lines[1]
    assert lines[2].endswith("the file is damaged; remove this checkpoint or resume from another one")


def test_a_link_out_of_a_checkpoint_is_damage(original: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(original, run)
    (tmp_path / "outside").write_text("weights")
    file = run / "checkpoints" / "step-00000010" / WEIGHTS
    file.unlink()
    file.symlink_to(tmp_path / "outside")
    lines, whole = list_checkpoints(run, verify=True)
    assert not whole and f"{file}: found a link out of the checkpoint, wanted a file of its own" in lines[2]


def test_where_the_page_cannot_be_written_it_says_so_and_leaves_nothing(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(original, run)
    (run / "report.html").mkdir()
    for arguments in ([], ["--output", str(tmp_path / "none" / "page.html")], ["--output", "/dev/full"]):
        assert main(["report", str(run), *arguments]) == 2
        error = capsys.readouterr().err
        assert "the page cannot be written there (" in error and "name another file with --output FILE" in error
    assert sorted(path.name for path in run.iterdir() if "report" in path.name) == ["report.html"]
    assert main(["report", str(run), "--output", str(tmp_path / "page.html")]) == 0
    assert main(["report", str(run), "--output", "/dev/null"]) == 0 and Path("/dev/null").is_char_device()


def test_the_page_says_what_was_left_out(original: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(original, run)
    (run / "faults.jsonl").write_text('{"step": "1", "kind": "died", "text": "rank 1 died"}\n[]\n')
    (run / "summary.json").write_text("[1]")
    assert main(["report", str(run)]) == 0
    text = Page((run / "report.html").read_text()).text
    for wanted in ("metrics.jsonl: 1 line not readable", "faults.jsonl: 2 lines not readable", "summary.json: not"):
        assert f"Left out: {wanted}" in text
