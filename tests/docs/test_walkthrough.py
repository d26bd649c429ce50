"""The tutorials, run: the notebook, the Python that documents show, the commands about a finished run, and an own genome.

docs/learn/first_run.ipynb --executed--> runs/notebook --as runs/quickstart--> commands and Python of the documents
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import numpy as np
import pytest
import torch

from hyena_ds.monitoring.scalars import of_step, of_validation
from hyena_ds.predict.export import export
from tests.docs.commands import lines_of
from tests.docs.documents import DOCS, DOCUMENTS, Block, all_blocks, blocks
from tests.paths import ROOT
from tests.predict.verbs import rows_of

pytestmark = pytest.mark.slow

TIMEOUT = 300
NOTEBOOK = DOCS / "learn" / "first_run.ipynb"
OWN_GENOME = DOCS / "learn" / "your-own-genome.md"
SMALL = [
    "local_ranks=1",
    "model.width=16",
    "model.layers=1",
    "stages.0.steps=2",
    "stages.1.steps=1",
    "validation.windows=2",
]
"""What makes the tutorial's model a matter of seconds."""
ABOUT_A_RUN = (
    r"hyena-ds (report|checkpoints|data show|check|plan|sweep \S+ --list|prep (build|verify)) (runs|configs)/\S*.*"
)
"""Commands that take no more than seconds, and files that are here."""


def clone(directory: Path) -> Path:
    """A directory that has what commands read of the repository."""
    for name in ("configs", "assets"):
        (directory / name).symlink_to(ROOT / name)
    return directory


def shell(line: str, directory: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(line, comments=True)
    assert words[0] == "hyena-ds"
    command = [sys.executable, "-m", "hyena_ds", *words[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=TIMEOUT)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the notebook has been run, with its run under the name that documents use."""
    directory = clone(tmp_path_factory.mktemp("notebook"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources: dict[str, Any] = {"metadata": {"path": str(directory)}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        nbclient.NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources=resources).execute()
    nbformat.write(notebook, directory / NOTEBOOK.name)
    (directory / "runs" / "quickstart").symlink_to("notebook")
    checkpoints = directory / "runs" / "notebook" / "checkpoints"
    (directory / "weights").symlink_to(next(iter(sorted(checkpoints.glob("step-*")))))
    export(directory / "runs" / "quickstart", directory / "quickstart-hf", "huggingface")
    return directory


def outputs(directory: Path) -> list[dict[str, Any]]:
    cells = json.loads((directory / NOTEBOOK.name).read_text(encoding="utf-8"))["cells"]
    return [output for cell in cells for output in cell.get("outputs", [])]


def test_the_notebook_trains_plots_its_loss_and_predicts_with_the_weights(finished: Path) -> None:
    shown = outputs(finished)
    assert sum("image/png" in output.get("data", {}) for output in shown) == 1
    printed = "".join("".join(output.get("text", [])) for output in shown)
    assert "The model" in printed and "Markov, order 5" in printed
    probabilities = [float(number) for number in re.findall(r"'[ACGTN]': ([\d.]+)", printed)]
    assert len(probabilities) == 5 and 0.9 < sum(probabilities) < 1.01  # the rest is for special tokens


def test_the_notebook_scores_a_region_a_variant_and_generates(finished: Path) -> None:
    used = finished / "runs" / "notebook-used"
    (region,), (shipped,) = (rows_of(used / name) for name in ("scores.tsv", "shipped.tsv"))
    assert (region["name"], region["strand"]) == ("held_out", ".") and 1.8 < float(region["bits_per_base"]) < 2.2
    assert float(shipped["bits_per_base"]) < float(region["bits_per_base"])
    (variant,) = rows_of(used / "annotated.tsv")
    assert (variant["ref"], variant["alt"]) == ("A", "G") and 0 < abs(float(variant["HDS_LLR"])) < 100
    printed = "".join("".join(output.get("text", [])) for output in outputs(finished))
    assert "generated_bases=120" in printed and re.search("^[ACGT]{60}$", printed, re.MULTILINE)


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)


def test_every_number_of_a_run_has_its_line_in_the_metrics_page(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "runs" / "notebook" / "metrics.jsonl").read_text().splitlines()]
    page = (DOCS / "look-up" / "metrics.md").read_text(encoding="utf-8")
    steps, validations = page.split("## A validation")
    for text, kind in ((steps, "loss"), (validations, "validation_loss")):
        found = {key for row in rows if kind in row for key in row}
        documented = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| ([^|]*) \|", text, re.MULTILINE))))
        assert found <= documented
        windows = {"compute_seconds", "wait_seconds", "slowest_rank", "slowest_times", "slow_ranks"}
        assert documented - found <= {"loss_spike", "skipped", "passed_over", *windows}
    quality = ("loss", "perplexity", "bits_per_base")
    scalars = [of_step({**row, "loss_spike": 0.0, "skipped": True}, quality) for row in rows if "loss" in row]
    curves = {name for row in scalars for name, _ in row}
    curves |= {name for row in rows if "validation_loss" in row for name, _ in of_validation(row, at_final=True)}
    for curve in curves:
        assert f"`{curve}`" in page or any(f"`{group}" in page for group in _groups(curve)), curve


def _groups(curve: str) -> list[str]:
    """What stands for a family of curves in the page."""
    group = curve.partition("/")[0]
    return [f"{group}/"] if group in ("by_stage", "validation_by_context", "validation_final_context") else []


@pytest.mark.parametrize("block", all_blocks("python"), ids=str)
def test_python_in_a_document_runs(block: Block, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    text = re.sub(r"runs/quickstart/checkpoints/step-\d+", "weights", block.text)
    names: dict[str, Any] = {"token_ids": torch.full((1, 12), 7)}
    exec(compile(text, str(block), "exec"), names)
    if "logits" in names:
        assert names["logits"].shape == (1, 12, 16)


def cheap_commands() -> list[str]:
    lines = [line for file in DOCUMENTS for block in blocks(file, "sh") for line in lines_of(block.text)]
    cheap = dict.fromkeys(line for line in lines if re.fullmatch(ABOUT_A_RUN, line) and "hg38.yaml" not in line)
    return [line for line in cheap if "--calibrate" not in line and "runs/mine" not in line]


@pytest.mark.parametrize("line", cheap_commands())
def test_a_cheap_command_really_works(line: str, finished: Path) -> None:
    done = shell(re.sub(r"--step \d+", "--step 7", line), finished)
    does_not_fit = line.startswith("hyena-ds plan") and "does not fit" in done.stdout
    assert done.returncode == (1 if does_not_fit else 0), done.stdout + done.stderr
    assert done.stdout.strip()


def test_what_the_plan_page_shows_is_what_plan_prints(tmp_path: Path) -> None:
    lines = [line for block in blocks(DOCS / "do" / "plan.md", "sh") for line in lines_of(block.text)]
    commands = (next(line for line in lines if word in line) for word in ("40gb", "wide-32k"))
    directory = clone(tmp_path)
    for command, shown in zip(commands, blocks(DOCS / "do" / "plan.md", "text"), strict=True):
        printed = shell(command, directory).stdout.splitlines()
        rows = [row.removesuffix("(...)") for row in shown.text.splitlines()]
        assert [row for row in rows if not any(line.startswith(row) for line in printed)] == []


def test_what_the_warmup_page_shows_is_what_check_prints(tmp_path: Path) -> None:
    (config,) = blocks(DOCS / "do" / "context-warmup.md", "yaml")
    (shown,) = blocks(DOCS / "do" / "context-warmup.md", "text")
    rest = (
        "name: warm\nmodel: {width: 256, layers: 8, maximum_context: 1048576}\ndata: {sources: [{shards: data/mine}]}\n"
    )
    (tmp_path / "my-run.yaml").write_text(rest + config.text, encoding="utf-8")
    printed = shell("hyena-ds check my-run.yaml --ranks 8", tmp_path).stdout.splitlines()
    assert [row for row in shown.text.splitlines() if row.strip() != "..." and row not in printed] == []


def test_a_newcomer_gets_from_an_own_fasta_to_a_trained_model(tmp_path: Path) -> None:
    bases = np.random.default_rng(1).choice(list("ACGT"), size=(2, 40_000))
    fasta = "".join(f">{name}\n{''.join(row)}\n" for name, row in zip(("chr1", "chr8"), bases, strict=True))
    (tmp_path / "my-genome.fa.gz").write_text(fasta, encoding="utf-8")  # told apart by its bytes, not by its name
    for block in blocks(OWN_GENOME, "yaml"):
        name = re.match(r"# (\S+\.yaml)\n", block.text)
        assert name is not None
        (tmp_path / name[1]).write_text(block.text, encoding="utf-8")
    lines = [line for block in blocks(OWN_GENOME, "sh") for line in lines_of(block.text)]
    assert sum(line.startswith("hyena-ds train") for line in lines) == 2
    for line in lines:
        if line.startswith("hyena-ds") and "name=try" not in line:
            small = SMALL if line.startswith("hyena-ds train") else []
            done = shell(shlex.join([*shlex.split(line), *small]), tmp_path)
            assert done.returncode == 0, line + done.stdout + done.stderr
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()
    assert list((tmp_path / "runs" / "mine" / "checkpoints").glob("step-*/weights.safetensors"))
