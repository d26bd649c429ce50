"""What is said of test bases that were trained on, by a checkpoint in a run whose shards are there, are others, or are gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hyena_ds.checkpoints.manifest import RUN_STATE, WEIGHTS, Record, RunState, write_file, write_manifest
from hyena_ds.data.identity import SHARDS, ListedShard, ListedSource, ShardList
from hyena_ds.data.shards import read_index
from hyena_ds.predict.export import export
from hyena_ds.predict.held_out import HELD_OUT, TRAINED_ON, UNKNOWN, shared_bases, spans_of, verdict_of
from hyena_ds.predict.windows import Region, Window
from hyena_ds.runs.trained_on import TRAINING, Training, trained_context, training_of
from tests.data.genomes import GENOME, write_shards
from tests.predict.verbs import run, save_model


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run that says that it was trained on all of the small genome but chrV, from shards beside it."""
    write_shards(tmp_path / "data", GENOME)
    return make_run(tmp_path)


def make_run(directory: Path, shards: str = "data/shards", **more: Any) -> Path:
    weights, _ = save_model(directory)
    folder = directory / "runs" / "small" / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    listed = ShardList.of([read_index(directory / "data" / "shards")])
    (directory / "runs" / "small" / SHARDS).write_text(listed.text)
    config = {"data": {"sources": [{"shards": shards}]}, **more}
    stage = {"context_length": 16, "steps": 1, "global_batch": 1}
    record = Record("small", RunState(1, 0, 0), 1, 1, {}, 0, [stage, {**stage, "context_length": 512}], config)
    texts = {RUN_STATE: record.text().encode(), WEIGHTS: weights.read_bytes()}
    files = {name: write_file(folder / name, [text]) for name, text in texts.items()}
    write_manifest(folder, "small", 1, files, listed.digest)
    (folder.parent / "latest").write_text(folder.name)
    return directory / "runs" / "small"


def test_bases_that_were_trained_on_are_counted(trained: Path) -> None:
    spans = {"A": [(100, 130), (130, 140), (700, 800)], "chrV": [(0, 50)]}
    assert set(GENOME["chrA"][128:256]) == {"N"}  # two chunks that shards leave out
    inside = 28 + 100
    for model in (trained, trained / "checkpoints" / "step-00000001"):
        found = verdict_of(model, spans, "tiny")
        assert (found.verdict, found.shared) == (TRAINED_ON, inside)
        assert f"{inside} of the 190 target bases are among the model's training bases" in found.why
    assert "if the FASTA is of tiny (say so with --assembly)" in verdict_of(trained, spans, None).why


def test_what_was_not_trained_on_is_held_out(trained: Path) -> None:
    found = verdict_of(trained, {"chrV": [(0, 50)], "chr9": [(0, 9)]}, "tiny")
    assert (found.verdict, found.shared) == (HELD_OUT, 0)
    assert "none of the 59 target bases is among the model's training bases" in found.why


def test_coordinates_of_another_assembly_do_not_compare(trained: Path) -> None:
    found = verdict_of(trained, {"chrA": [(0, 50)]}, "hg38")
    assert (found.verdict, found.shared) == (UNKNOWN, None)
    assert "the model was trained on chrA of tiny, whose coordinates do not compare with those of hg38" in found.why
    assert verdict_of(trained, {"chrV": [(0, 50)]}, "hg38").verdict == HELD_OUT


@pytest.mark.parametrize(
    ("name", "other", "same"), [("hg38", "GRCh38", True), ("hg19", "b37", True), ("hg19", "hg38", False)]
)
def test_assemblies_have_more_than_one_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, other: str, same: bool
) -> None:
    import hyena_ds.predict.held_out as held_out

    monkeypatch.setattr(held_out, "training_of", lambda model: Training({name: {"chrA": [(0, 9)]}}, 8, None))
    assert (verdict_of(tmp_path, {"A": [(5, 20)]}, other).shared == 4) is same


def test_what_cannot_be_known_is_said(trained: Path, tmp_path: Path) -> None:
    spans = {"chrV": [(0, 50)]}
    weights = tmp_path / "weights.safetensors"
    assert "weights.safetensors: weights on their own" in verdict_of(weights, spans, None).why
    listed = trained / SHARDS
    text = listed.read_text()
    listed.write_text(ShardList(()).text)
    assert "found another list of the shards that" in verdict_of(trained, spans, None).why
    listed.unlink()
    assert "there is no list of the shards that" in verdict_of(trained, spans, None).why
    listed.write_text(text)
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    found = verdict_of(trained, spans, None)
    assert (found.verdict, found.shared) == (UNKNOWN, None)
    assert "nobody can say which bases the model was trained on: data/shards: its shards are not here" in found.why
    write_shards(tmp_path / "data", {**GENOME, "chrC": "ACGT" * 9})
    assert "its shards are not here" in verdict_of(trained, spans, None).why


@pytest.mark.parametrize(
    ("shards", "more", "said"),
    [
        ("s3://bucket/shards", {}, "s3://bucket/shards: its shards are on another machine"),
        (
            "data/shards",
            {"initialize_from": "older"},
            "the model began from the weights older, whose training bases are not",
        ),
    ],
)
def test_shards_on_other_machines_and_earlier_trainings_are_unknown(
    tmp_path: Path, shards: str, more: dict[str, Any], said: str
) -> None:
    write_shards(tmp_path / "data", GENOME)
    found = verdict_of(make_run(tmp_path, shards, **more), {"chrV": [(0, 50)]}, "tiny")
    assert found.verdict == UNKNOWN and said in found.why


@pytest.mark.parametrize(("form", "weights"), [("huggingface", "model.safetensors"), ("published", "weights.ckpt")])
def test_an_exported_folder_knows_what_it_was_trained_on_without_its_run(
    trained: Path, tmp_path: Path, form: str, weights: str
) -> None:
    spans = {"A": [(100, 130), (700, 800)], "chrV": [(0, 50)]}
    wanted = verdict_of(trained, spans, "tiny")
    assert trained_context(trained) == 16  # its second stage, of 512, has not begun
    folder, again = tmp_path / "folder", tmp_path / "again"
    export(trained, folder, form)
    shutil.rmtree(tmp_path / "data")
    shutil.rmtree(trained)
    export(folder, again, "huggingface")
    assert "| tiny | chrA | " in (again / "README.md").read_text()
    for model in (folder, folder / weights, again):
        assert verdict_of(model, spans, "tiny") == wanted
        assert trained_context(model) == training_of(model).longest_context == 16
    file = folder / TRAINING
    text = file.read_text()
    for damaged, said in (
        ("{", "cannot be read as what weights were trained on"),
        ("[]", "cannot be read as what weights were trained on"),
        (text.replace("training 1", "training 2"), "another format"),
        (text.replace("[[0, ", "[[99999, "), "a stretch of [99999, "),
        (text.replace(weights, "../again/model.safetensors"), "is about '../again/model.safetensors', not about"),
        (text.replace('"sha256": "', '"sha256": "0'), f"{weights} has changed since"),
    ):
        file.write_text(damaged)
        assert said in verdict_of(folder, spans, "tiny").why
        assert trained_context(folder) is None  # which refuses no work
    file.unlink()
    assert "weights on their own" in verdict_of(folder, spans, "tiny").why and trained_context(folder) is None


def test_what_does_not_know_its_training_is_exported_without(tmp_path: Path) -> None:
    weights, _ = save_model(tmp_path)
    export(weights, tmp_path / "folder", "huggingface")
    assert not (tmp_path / "folder" / TRAINING).exists()


def test_a_fine_tuned_model_says_what_its_backbone_was_trained_on(trained: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    export(trained, base, "huggingface")
    spans = {"A": [(100, 130)]}
    wanted = verdict_of(trained, spans, "tiny")
    assert wanted.shared == 28
    for number, (beginning, known) in enumerate((("base", True), ("runs/small", True), ("gone", False), (None, None))):
        tuned = _fine_tuned(tmp_path, f"tuned-{number}", beginning, trained)
        folder = tmp_path / f"folder-{number}"
        export(tuned, folder, "huggingface")
        for model in (tuned, folder):
            found = training_of(model)
            assert found.tuned_on == (("mine.csv", "5" * 64),) and trained_context(model) == found.longest_context == 64
            if known:
                assert verdict_of(model, spans, "tiny") == wanted and found.beginning is None
                apart = verdict_of(model, {"chrV": [(0, 50)]}, "tiny")
                assert apart.verdict == UNKNOWN and "fine-tuned on mine.csv, of whose bases nobody knows" in apart.why
            else:
                assert (found.bases, found.beginning) == ({}, beginning)
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes() + b" ")
        assert "has changed since" in verdict_of(folder, spans, "tiny").why


def _fine_tuned(directory: Path, name: str, beginning: str | None, like: Path) -> Path:
    """A run of one step on labelled sequences of 64 bases, as far as it is recorded."""
    run, old = directory / "runs" / name, like / "checkpoints" / "step-00000001"
    folder = run / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    files = [ListedShard(f"{what}.csv", split, 9, "5" * 64, ()) for what, split in (("mine", "train"), ("my", "valid"))]
    listed = ShardList((ListedSource("0" * 64, tuple(files)),))
    (run / SHARDS).write_text(listed.text)
    stage = {"context_length": 64, "steps": 1, "global_batch": 1}
    config = {"data": {"sources": []}, "task": {"kind": "classification"}, "initialize_from": beginning}
    record = Record(name, RunState(1, 0, 0), 1, 1, {}, 0, [stage], config)
    texts = {RUN_STATE: record.text().encode(), WEIGHTS: (old / WEIGHTS).read_bytes()}
    written = {name: write_file(folder / name, [text]) for name, text in texts.items()}
    write_manifest(folder, name, 1, written, listed.digest)
    (folder.parent / "latest").write_text(folder.name)
    return run


@pytest.mark.parametrize("verb", ["score", "variants"])
def test_score_and_variants_say_aloud_that_they_are_about_training_bases(
    trained: Path, tmp_path: Path, verb: str, capfd: pytest.CaptureFixture[str]
) -> None:
    genome = tmp_path / "data" / "genome.fa"
    words: list[object] = [verb, trained, genome]
    if verb == "variants":
        table = tmp_path / "in.tsv"
        base = GENOME["chrA"][20]
        table.write_text(f"chrom\tpos\tref\talt\nchrA\t21\t{base}\t{'ACGT'.replace(base, '')[0]}\n")
        words += [table, "--left", 40, "--right", 20]
    words += ["--output", tmp_path / "out.tsv", "--json", tmp_path / "out.json", "--assembly"]
    for assembly, verdict in (("tiny", TRAINED_ON), ("hg38", UNKNOWN)):
        assert run(*words, assembly, "--overwrite") == 0
        held_out = json.loads((tmp_path / "out.json").read_text())["held_out"]
        assert held_out["verdict"] == verdict
        assert f"{'warning' if held_out['shared'] else 'unknown'}: {held_out['why']}" in capfd.readouterr().err
    assert held_out["shared"] is None


def test_spans_count_on_the_forward_strand_and_shared_bases_once() -> None:
    regions = [Region("c", 100, 200, "+"), Region("c", 100, 200, "-")]
    blocks = [Window(0, 10, 15, 10), Window(1, 10, 15, 10)]
    assert spans_of(regions, blocks) == {"c": [(110, 115), (185, 190)]}
    assert (
        shared_bases({"chrX": [(0, 10), (5, 20), (30, 40)]}, {"x": [(8, 12), (10, 33), (39, 90)], "y": [(0, 99)]}) == 16
    )
    assert shared_bases({"chrX": [(0, 10)]}, {}) == 0


def test_perplexity_says_aloud_that_it_tests_on_training_bases(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [
        trained,
        tmp_path / "data" / "genome.fa",
        "--output",
        tmp_path / "out",
        "--context",
        16,
        "--block",
        8,
        "--targets",
        32,
    ]
    assert run("perplexity", *words, "--assembly", "tiny") == 0
    held_out = json.loads((tmp_path / "out" / "summary.json").read_text())["held_out"]
    assert held_out["verdict"] == TRAINED_ON and held_out["shared"] > 0
    assert f"warning: {held_out['why']}" in capfd.readouterr().err
