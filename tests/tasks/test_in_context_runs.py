"""Runs with a prompt and demonstrations, and what of a config is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from hyena_ds.errors import UserError
from hyena_ds.genome.tokenizer import LETTERS
from hyena_ds.predict.export import export
from hyena_ds.tasks.deriving import load_run
from hyena_ds.tasks.in_context import InContextTask
from tests.tasks.labels import made, write_rows
from tests.training.runs import ends_of_ranks, rows

MODEL = {"width": 16, "layers": 1, "filter_width": 16, "maximum_context": 128}


def write_run(folder: Path, train: list[tuple[str, str]] | None = None, **task: Any) -> Path:
    rows_of = made("classification", 40, shortest=6, longest=6) if train is None else train
    two = [(text, label) for text, label in rows_of if train is not None or label != "z"]
    data = write_rows(folder / "train.csv", two)
    config = {
        "output": str(folder / "runs"),
        "initialize_from": "random",
        "model": MODEL,
        "task": {"kind": "classification", "train": str(data), "valid": "0.3", "batch": 4, "metric": "loss", **task},
        "optimizer": {"learning_rate": 1e-2},
    }
    path = folder / "icl.yaml"
    path.write_text(json.dumps(config))
    return path


@pytest.mark.slow
def test_a_run_with_a_prompt_and_demonstrations_resumes_on_another_grid(tmp_path: Path) -> None:
    test = write_rows(tmp_path / "test.csv", [(t, c) for t, c in made("classification", 30, 5, 6, 6) if c != "z"])
    settings = {"prompt": {"tokens": 20}, "demonstrations": {"per_class": 1}, "frozen": "backbone", "epochs": 2}
    config = write_run(tmp_path, **settings, test=str(test))

    def run(name: str, *overrides: str) -> Path:
        every = ["checkpoint.every_steps=4", "checkpoint.keep_last=9", f"name={name}", *overrides]
        stage = "{context_length: 64, steps: 10, global_batch: 4, sequence_parallel: %d}"
        sp = 2 if name == "again" else 1
        command = ["finetune", str(config), *every, f"stages=[{stage % sp}]"]
        ends = ends_of_ranks("hyena_ds", command, 2)
        assert [code for code, _ in ends] == [0, 0], ends[0][1]
        return tmp_path / "runs" / name

    whole = run("whole")
    again = run("again", f"resume={whole / 'checkpoints' / 'step-00000004'}")
    after = [row for row in rows(whole) if row["step"] > 4]
    for found, wanted in zip(rows(again), after, strict=True):
        assert found["step"] == wanted["step"]
        for column in {"loss", "validation_loss"} & wanted.keys():
            assert found[column] == pytest.approx(wanted[column], rel=2e-4), found
    summaries = [json.loads((each / "summary.json").read_text()) for each in (whole, again)]
    assert summaries[0]["test"]["n"] == len(test.read_text().splitlines()) - 1
    assert summaries[0]["test"]["metrics"]["loss"] == pytest.approx(summaries[1]["test"]["metrics"]["loss"], rel=2e-4)
    weights = whole / "checkpoints" / "step-00000010" / "weights.safetensors"
    with safe_open(weights, framework="pt") as file:
        assert file.get_tensor("head.prompt").shape == (20, 16)
        said = json.loads(file.metadata()["in_context"])
    assert said == {"prompt": 20, "demonstrations_per_class": 1, "label_tokens": "AN", "classes": ["x", "y"]}
    with pytest.raises(
        UserError, match=r"found a model that reads sequences behind a soft prompt, wanted one that reads"
    ):
        export(weights, tmp_path / "folder", "huggingface")


SHOTS = {"demonstrations": {"per_class": 2}}
PROMPTED = {"prompt": {"tokens": 4}, "frozen": "backbone"}


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (
            {"demonstrations": {"per_class": 7}},
            "train.csv:2: found a sequence of 6 bases and up to 127 tokens around it (prompt, demonstrations, an end), 133 in all, "
            "wanted at most model.maximum_context 128; lower task.prompt.tokens or task.demonstrations.per_class, or raise",
        ),
        ({"prompt": {"tokens": 123}, "frozen": "backbone"}, "6 bases and up to 123 tokens around it"),
        (
            {"demonstrations": {"per_class": 25}},
            "task.demonstrations.per_class: found 25 with 11 different sequences of the class 'x' in ",
        ),
        ({**SHOTS, "label_tokens": ["A"]}, "task.label_tokens: found 1 (A), wanted one for each of the 2 classes of "),
        ({**SHOTS, "label_tokens": ["A", "a"]}, "task.label_tokens: found A a, wanted different letters of A C G T N"),
        ({**SHOTS, "label_tokens": ["A", "A"]}, "task.label_tokens: found A A, wanted different letters of A C G T N"),
        (
            {"prompt": {"tokens": 4}},
            "task.frozen: found false with a prompt, wanted backbone: a soft prompt is trained under a model that stays as it is",
        ),
        (
            {"demonstrations": {"per_class": 1}, "frozen": "backbone"},
            "task.frozen: found backbone with label tokens and no prompt, wanted false, or a prompt: there is nothing to train",
        ),
        (
            {"demonstrations": {"per_class": 1}, "frozen": "probe"},
            "task.frozen: found probe with label tokens and no prompt, wanted false, or a prompt",
        ),
        (
            {**SHOTS, "head": {"pool": "last"}},
            "task.head: found one with label_tokens or demonstrations, wanted none: the outputs are the model's own logits",
        ),
        (
            {**SHOTS, "kind": "regression"},
            "task.demonstrations: found them with the kind regression, wanted classification: a letter stands for a class",
        ),
        (
            {"label_tokens": ["A", "C"], "kind": "per_base"},
            "task.label_tokens: found them with the kind per_base, wanted classification",
        ),
        (
            {**PROMPTED, "kind": "per_base"},
            "task.prompt: found one with the kind per_base, wanted a kind with one label",
        ),
        ({"demonstrations": {"per_class": -1}}, "task.demonstrations.per_class: found -1, wanted 0 or more"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_starts(tmp_path: Path, task: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        load_run(write_run(tmp_path, **task))
    assert sentence in str(raised.value)
    assert not (tmp_path / "runs").exists()


def test_three_classes_need_three_label_tokens_and_five_have_none_by_default(tmp_path: Path) -> None:
    three = made("classification", 60)
    for letters, sentence in ((["A", "N"], "found 2 (A, N), wanted one for each of the 3 classes"), ([], None)):
        path = write_run(tmp_path, three, **SHOTS, label_tokens=letters)
        if sentence is None:
            task = InContextTask(load_run(path, ["model.maximum_context=1024"]))
            assert task._surroundings.label_ids == tuple(LETTERS[letter] for letter in "AGN")
        else:
            with pytest.raises(UserError) as raised:
                load_run(path, ["model.maximum_context=1024"])
            assert sentence in str(raised.value)
    five = [(text, str(number % 5)) for number, (text, _) in enumerate(three)]
    with pytest.raises(UserError) as raised:
        load_run(write_run(tmp_path, five, **SHOTS), ["model.maximum_context=1024"])
    assert "task.label_tokens: found none, wanted one for each of the 5 classes" in str(raised.value)
