"""The page about a run: whole, of a run that failed, of one that has hardly begun; and in a browser, where there is one."""

from __future__ import annotations

import json
import re
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hyena_ds.cli import main
from hyena_ds.config.loading import dump_yaml, load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.report.charts import Boundary, Scale, Series, line_chart, thinned
from tests.programs import needed
from tests.training.runs import write_config

EVIL = '<script>fetch("http://example.org/x")</script> & "quoted"'
_EMPTY = ("meta", "link")


class Page(HTMLParser):
    """Checks that tags are closed in order; collects text, tags and what would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.fetched: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attributes)
        if tag not in _EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for key, value in attributes if key in ("src", "href", "srcset", "data", "action")]
        assert not any(key.startswith("on") for key, _ in attributes)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        self.text += data


def make_run(directory: Path, steps: int = 10, complete: bool = True, **changes: Any) -> Path:
    """A run's records, as training leaves them, with a fault and a second start."""
    base = load_yaml(write_config(directory / "base.yaml", directory / "shards", **changes), RunConfig)
    run = directory / "run"
    run.mkdir()
    (run / "config.yaml").write_text(dump_yaml(base))
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        stage = 0 if step <= 4 else 1
        context = (32, 64)[stage]
        row: dict[str, Any] = {"step": step, "stage": stage, "context_length": context, "loss": 2.0 - step / 20}
        row |= {"learning_rate": 1e-3, "gradient_norm": 0.5, "tokens": 192 * step, "tokens_per_second": 1e4}
        rows.append({**row, "peak_memory_gib": 0.5, "exchange_share": None, "input_wait_seconds": 0.001})
        if step in (4, 10):
            scored = {"step": step, "stage": stage, "context_length": context, "validation_loss": 1.5}
            rows.append({**scored, "validation_perplexity": 4.48})
    rows += [{"step": steps, "stage": 1, "context_length": 64, "loss": None, "gradient_norm": None, "skipped": True}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 11, "lo')
    start = {
        "time": "2026-01-01T10:00:00+00:00",
        "step": 0,
        "ranks": 2,
        "hosts": {EVIL: 2},
        "versions": {"torch": "2.13"},
    }
    again = {**start, "time": "2026-01-01T11:00:00+00:00", "step": 4}
    (run / "environment.jsonl").write_text(json.dumps(start) + "\n" + json.dumps(again) + "\n")
    fault = {"time": "2026-01-01T10:30:00+00:00", "step": 6, "rank": 1, "kind": "died", "text": f"rank 1 died: {EVIL}"}
    (run / "faults.jsonl").write_text(json.dumps(fault) + "\n")
    (run / "log.txt").write_text(f"said {EVIL}\n")
    if complete:
        summary = {"step": 10, "context_length": 64, "validation_loss": 1.5, "validation_perplexity": 4.48}
        (run / "summary.json").write_text(json.dumps({**summary, "markov_losses": {"5": 1.25}}))
    return run


def page_of(run: Path) -> tuple[str, Page]:
    assert main(["report", str(run)]) == 0
    text = (run / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_a_page_fetches_nothing_and_holds_stages_validations_faults_restarts_and_versions(tmp_path: Path) -> None:
    text, page = page_of(make_run(tmp_path))
    assert page.fetched == ["data:,"] and "script" not in page.tags
    assert not re.search(r"url\(|@import", text)
    assert text.count('role="img"') == 7, "loss, validation, rate, memory, wait for data, learning rate, gradient norm"
    for wanted in ("complete", "dp 2 x sp 1", "dp 1 x sp 2", "Markov, order 5", "HyenaDNA, context 32", "2.13"):
        assert wanted in page.text, wanted
    assert re.findall(r'<text class="stage"[^>]*>([^<]*)</text>', text)[:2] == ["32", "64"]
    assert "started again" in page.text and "Skipped, because loss or gradients were not finite: step 10." in page.text
    assert "nothing recorded" in page.text, "the exchange share is null throughout"


def test_slow_ranks_efficiency_and_a_fault_that_the_run_went_on_after_have_their_place(tmp_path: Path) -> None:
    run = make_run(tmp_path, complete=False)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()[:-1]]
    for row in rows[:12]:
        row |= {"mfu": 0.25, "limit_share": 0.5, "slowest_times": 2.0, "slow_ranks": [f"rank 1 on {EVIL} is slow"]}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fault = {
        "time": "2026-01-01T12:00:00+00:00",
        "step": 6,
        "rank": 1,
        "kind": "corrupt",
        "text": "rank 1 has other bits",
    }
    (run / "faults.jsonl").write_text(json.dumps(fault) + "\n")
    text, page = page_of(run)
    assert text.count('role="img"') == 7 + 3 and "25 %" in page.text and "rank 1 has other bits" in page.text
    assert page.text.count(f"rank 1 on {EVIL} is slow.") == 10 and "script" not in page.tags
    assert "unfinished" in page.text and "failed" not in page.text


def test_what_a_run_says_is_text_and_never_a_tag(tmp_path: Path) -> None:
    text, page = page_of(make_run(tmp_path))
    assert f"rank 1: rank 1 died: {EVIL}" in page.text and f"said {EVIL}" in page.text
    assert "<script" not in text and text.count("&lt;script&gt;") >= 4


@pytest.mark.parametrize(("fault_at", "state"), [("2026-01-01T12:00:00+00:00", "failed"), ("2026-01-01", "unfinished")])
def test_a_run_that_is_not_complete_has_a_page_that_says_whether_it_failed(
    tmp_path: Path, fault_at: str, state: str
) -> None:
    run = make_run(tmp_path, steps=6, complete=False)
    faults = run / "faults.jsonl"
    faults.write_text(json.dumps({**json.loads(faults.read_text()), "time": fault_at}) + "\n{half")
    _, page = page_of(run)
    assert f"run {state}" in page.text and "6of 10" in page.text.replace("\n", "")


def test_a_change_of_hosts_is_an_event_of_no_rank_and_no_fault(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    row = {"time": "2026-01-01T10:31:00+00:00", "step": 4, "kind": "hosts", "text": "hosts: without node1 (gone)"}
    with (run / "faults.jsonl").open("a") as faults:
        faults.write(json.dumps(row) + "\n")
    text, page = page_of(run)
    assert "1 fault<" in text and "<td>hosts: without node1 (gone)</td>" in text
    assert "rank ?" not in page.text


def test_a_page_shows_what_the_run_of_another_task_measures_in_its_unit(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    start = {**json.loads((run / "environment.jsonl").read_text().splitlines()[-1]), "unit": f"nats a sequence {EVIL}"}
    (run / "environment.jsonl").write_text(json.dumps(start) + "\n")
    row = {"step": 10, "stage": 1, "context_length": 64, "validation_loss": 0.5, "validation_accuracy": 0.8125}
    earlier = {**row, "step": 4, "context_length": 32, "validation_accuracy": None}
    odd = {"validation_note": EVIL, "validation_flag": True, "validation_list": [1]}
    (run / "metrics.jsonl").write_text(json.dumps(earlier) + "\n" + json.dumps({**row, **odd}) + "\n")
    (run / "summary.json").write_text(json.dumps(row))
    text, page = page_of(run)
    assert "accuracy0.8125validation, context 64" in page.text and "nats a sequence" in page.text
    assert "perplexity" not in page.text and "Markov" not in page.text and "nats a base" not in page.text
    assert "<script" not in text and not any(name in page.text for name in ("note", "flag", "list0"))


def test_a_run_that_has_hardly_begun_or_is_of_an_older_version_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path, complete=False)
    for name in ("metrics.jsonl", "environment.jsonl", "faults.jsonl", "log.txt"):
        (run / name).unlink()
    _, page = page_of(run)
    assert "unfinished" in page.text and "no validation yet" in page.text and "nothing recorded" in page.text


def test_a_directory_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "found no config.yaml, wanted the directory of a run that has begun" in capsys.readouterr().err


def test_a_long_line_is_thinned_to_means_within_its_smallest_and_largest() -> None:
    points = [(float(x), float(x % 10)) for x in range(1, 10_001)]
    line, band = thinned(points, log_x=False)
    assert len(line) == len(band) == 240
    assert all(low <= value <= high for (_, value), (_, low, high) in zip(line, band, strict=True))
    assert min(low for _, low, _ in band) == 0.0 and max(high for _, _, high in band) == 9.0
    assert [at for at, _ in line] == sorted(at for at, _ in line)


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(0.0, 1.0, 0.0, 100.0), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (Scale(1.21, 1.39, 0.0, 100.0), [1.25, 1.3, 1.35]),
        (Scale(30.0, 70_000.0, 0.0, 100.0, log=True), [100.0, 1000.0, 10_000.0]),
        (Scale(0.2, 0.9, 0.0, 100.0, log=True), [0.2, 0.4, 0.6, 0.8]),
    ],
)
def test_ticks_are_round_and_inside_the_scale(scale: Scale, ticks: list[float]) -> None:
    assert scale.ticks() == pytest.approx(ticks)


def test_a_chart_of_one_value_and_one_of_none_are_drawn() -> None:
    flat = line_chart("flat", [Series("", [(1.0, 3.0), (2.0, 3.0)])], [Boundary(1.0, "32")])
    cut = line_chart("cut", [Series("", [(1.0, 3.0), (2.0, 9.0), (3.0, 1.0)])], cut=4.0)
    assert "cut (goes up to 9)" in cut and "goes up" not in flat
    assert "NaN" not in flat and "nan" not in flat and "polyline" in flat
    assert "nothing recorded" in line_chart("none", [Series("", [(1.0, float("nan"))])])
    assert "circle" in line_chart("single", [Series("", [(1.0, 3.0)])], log_y=True)


LOOK = """<script>
const lines = [...document.querySelectorAll("polyline")].map(line => {
    const box = line.getBoundingClientRect(), style = getComputedStyle(line);
    const panel = line.closest("svg").getBoundingClientRect();
    const inside = box.left >= panel.left && box.right <= panel.right && box.top >= panel.top && box.bottom <= panel.bottom;
    return {kind: line.getAttribute("class"), width: box.width, stroke: style.stroke, fill: style.fill, inside};
});
const body = document.documentElement, fetched = performance.getEntriesByType("resource").length;
const drawn = {lines, fetched, wide: body.scrollWidth > body.clientWidth};
document.body.setAttribute("data-drawn", JSON.stringify(drawn));
</script>"""
"""What a browser has made of the lines of the charts, as it says itself."""


@pytest.mark.parametrize("width", [1200, 400])
def test_a_browser_draws_the_page_without_a_network(width: int, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    page_of(run)
    copy = tmp_path / "looked-at.html"
    text = (run / "report.html").read_text()
    copy.write_text(text.replace("</body>", LOOK + "</body>"))
    browser = [needed("chromium", "chromium-browser", "google-chrome"), "--headless", "--no-sandbox", "--disable-gpu"]
    browser += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [*browser, f"--window-size={width},2000", "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = re.search(r'data-drawn="([^"]*)"', done.stdout)
    assert found is not None, done.stdout[-2000:]
    drawn = json.loads(unescape(found[1]))
    assert drawn["fetched"] == 0
    assert len(drawn["lines"]) == text.count("<polyline") >= 6
    assert all(line["width"] > 0 and line["inside"] and line["fill"] == "none" for line in drawn["lines"]), drawn
    strokes = {line["kind"]: line["stroke"] for line in drawn["lines"]}
    # The style sheet is applied: a line is drawn, and lines of one chart differ.
    assert "none" not in strokes.values() and len(set(strokes.values())) >= 2, strokes
