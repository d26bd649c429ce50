"""`hyena-ds finetune` as a user runs it: selection, early stopping, a test set opened once, resume, export, probe."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hyena_ds.cli import main
from hyena_ds.config.arithmetic import plan_stages
from hyena_ds.config.loading import to_plain
from hyena_ds.config.task import HeadConfig
from hyena_ds.data.loader import Slice
from hyena_ds.genome.tokenizer import encode
from hyena_ds.labelled import read_labelled
from hyena_ds.labelled.metrics import mcc
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.parallel.layout import Layout
from hyena_ds.runs.trained_on import training_of
from hyena_ds.tasks.deriving import load_run
from hyena_ds.tasks.labelled import LabelledTask
from hyena_ds.tasks.outcomes import outputs_of, predictions_of
from hyena_ds.weights.published import write_weights
from hyena_ds.weights.reading import read_weights
from tests.distributed.work import lively_model
from tests.model.plain import plain_hidden
from tests.tasks.finetuning_cases import lively_objective
from tests.tasks.labels import made, write_rows
from tests.tasks.test_finetune_config import MODEL
from tests.training.runs import ends_of_ranks, rows

pytestmark = pytest.mark.slow
TIMEOUT = 180


def config_of(folder: Path, kind: str = "classification", count: int = 96, **task: Any) -> Path:
    """A run of a few seconds on made sequences, with dropout."""
    for name, seed, size in (("train", 1, count), ("valid", 2, 31), ("test", 3, 29)):
        write_rows(folder / f"{name}.csv", made(kind, size, seed=seed))
    files = {name: str(folder / f"{name}.csv") for name in ("train", "valid", "test")}
    weights = folder / "model.safetensors"
    write_weights(weights, MODEL, dict(lively_model(MODEL).named_parameters()))
    config = {
        "name": "run",
        "task": {"kind": kind, **files, "batch": 16, "epochs": 5, **task},
        "initialize_from": str(weights),
        "output": str(folder / "runs"),
        "optimizer": {"learning_rate": 3e-3},
        "checkpoint": {"every_steps": 4, "keep_last": 1},
    }
    file = folder / "config.yaml"
    file.write_text(json.dumps(config))
    return file


def finetune(*arguments: str, ranks: int = 1, module: str = "hyena_ds", **environment: str) -> list[tuple[int, str]]:
    return ends_of_ranks(module, ["finetune", *arguments], ranks, **environment)


def summary_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def weights_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "weights.safetensors")


def test_a_run_selects_tests_is_killed_and_resumes_on_another_grid_with_its_head(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(config_of(tmp_path, reverse_complement=True, class_weights="balanced", buckets=[16, 24]))
    changes = ["stages.0.micro_batch_size=4", "model.residual_dropout=0.1", "checkpoint.background=false"]
    ((code, said), (other, _)) = finetune(file, *changes, ranks=2)
    assert code == other == 0, said
    run = tmp_path / "runs" / "run"
    summary, trained = summary_of(run), rows(run)
    validations = [row for row in trained if "validation_mcc" in row]
    assert len(validations) == 5 and max(row["validation_mcc"] for row in validations) > 0.6
    best = max(validations, key=lambda row: (row["validation_mcc"], -row["step"]))
    assert summary["step"] == summary["test"]["step"] == best["step"]
    assert summary["validation_loss"] == best["validation_loss"] and summary["classes"] == ["x", "y", "z"]
    kept = {path.name for path in (run / "checkpoints").glob("step-*")}
    assert kept == {f"step-{best['step']:08d}", "step-00000030"}
    assert "31 sequences" in said and "62 sequences on both strands" in said
    curves = EventAccumulator(str(run / "tensorboard")).Reload().Tags()["scalars"]
    assert {"train/loss", "validation/mcc", "validation/auroc"} <= set(curves)

    table = list(csv.DictReader((run / "test_predictions.tsv").open(), delimiter="\t"))
    data = read_labelled(tmp_path / "test.csv", "classification")
    assert [row["label"] for row in table] == [data.classes[target] for target in data.targets]
    guess = np.array([data.classes.index(row["predicted"]) for row in table])
    assert summary["test"]["metrics"]["mcc"] == pytest.approx(mcc(np.asarray(data.targets), guess))
    assert summary["test"]["n"] == 29 and len(summary["test"]["sha256"]) == 64

    killed = ["name=killed", *changes]
    dead = finetune(file, *killed, ranks=2, module="tests.training.killed_rank", KILL_STEP="13", KILL_RANK="1")
    assert -signal.SIGKILL in [code for code, _ in dead]
    resumed = finetune(file, *killed, "stages.0.sequence_parallel=2", ranks=2)
    assert [code for code, _ in resumed] == [0, 0] and "resuming after step 12" in resumed[0][1], resumed[0][1]
    again = tmp_path / "runs" / "killed"
    for found, wanted in zip(rows(again), trained, strict=True):
        for column in {"step", "loss", "validation_loss", "validation_auroc"} & wanted.keys():
            assert found[column] == pytest.approx(wanted[column], rel=2e-3), (found, wanted)
    assert summary_of(again)["step"] == best["step"]
    assert summary_of(again)["test"]["metrics"]["loss"] == pytest.approx(summary["test"]["metrics"]["loss"], rel=2e-3)
    ends = [weights_of(each, best["step"]) for each in (run, again)]
    assert ends[0]["head.output.weight"].shape == (3, 16)
    assert max(float((ends[0][key] - ends[1][key]).abs().max()) for key in ends[0]) < 2e-3
    assert main(["data", "show", str(run), "--step", "1"]) == 2
    assert "was trained on labelled sequences" in capsys.readouterr().err
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert f"<td>{summary['test']['metrics']['mcc']:.4f}</td>" in page and summary["test"]["sha256"] in page
    assert main(["export", str(run), str(tmp_path / "exported")]) == 0
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "hyena-ds finetune config.yaml" in card and f"| mcc | {best['validation_mcc']:.4f} |" in card
    assert torch.equal(
        load_file(tmp_path / "exported" / "model.safetensors")["score.bias"], ends[0]["head.output.bias"]
    )


def test_a_run_ends_when_its_patience_is_over_and_opens_the_test_set_once(tmp_path: Path) -> None:
    # With a learning rate that changes nothing no validation is better than the first.
    rates = ["optimizer.learning_rate=1e-12", "optimizer.warmup_learning_rate=1e-12"]
    command = [str(config_of(tmp_path, patience=2, frozen="backbone", metric="accuracy")), *rates]
    ((code, said),) = finetune(*command)
    run = tmp_path / "runs" / "run"
    assert code == 0 and "step 18: 2 validations without a better accuracy: the run ends" in said, said
    summary = summary_of(run)
    assert summary["step"] == 6 and "mcc" in summary["test"]["metrics"]
    assert {path.name for path in (run / "checkpoints").glob("step-*")} == {"step-00000006", "step-00000018"}
    begin, end = read_weights(tmp_path / "model.safetensors").parameters, weights_of(run, 18)
    found = read_weights(run / "checkpoints" / "step-00000018" / "weights.safetensors").parameters
    assert "head.output.bias" in end and all(torch.equal(begin[name], found[name]) for name in begin)

    test = tmp_path / "test.csv"
    text = test.read_text()
    test.unlink()
    ((code, said),) = finetune(*command)
    assert code == 0 and "is complete" in said
    (run / "summary.json").unlink()  # as if it had died before it wrote it
    test.write_text(text.replace("sequence", "bases", 1))
    ((code, said),) = finetune(*command)
    assert code == 2 and "found no column 'sequence'" in said and not (run / "summary.json").exists()
    test.write_text(text)
    ((code, said),) = finetune(*command)
    assert code == 0 and summary_of(run) == summary, said
    assert len([row for row in rows(run) if "loss" in row]) == 18, "it has trained on"


def test_transformers_predicts_what_the_objective_does(tmp_path: Path) -> None:
    heads = {"classification": HeadConfig("first", 8), "regression": HeadConfig("last"), "per_base": HeadConfig()}
    wanted: dict[str, np.ndarray[Any, Any]] = {}
    for kind, head in {**heads, "multilabel": HeadConfig("max")}.items():
        (tmp_path / kind).mkdir()
        config = load_run(config_of(tmp_path / kind, kind), [f"task.head={json.dumps(to_plain(head))}"])
        task, plan = LabelledTask(config), plan_stages(config, 1)[0]
        objective = lively_objective(task, config)
        samples = task.test()
        length = task.length(samples, plan)
        batch = task.read(samples, [*range(len(samples))], length, Slice(0, 0, length))
        with torch.no_grad():
            _, _, outputs = objective(batch, ForwardPass(Layout.whole(length)))
        in_order = outputs_of(samples[0].data, samples, [*outputs.numpy()])
        scale = task.sets.scale if kind == "regression" else None
        wanted[kind] = np.concatenate([predictions_of(kind, each, scale).reshape(-1) for each in in_order])
        parameters = dict(objective.named_parameters())
        sources, header = task.exported(parameters)
        tensors = {name: parameters[ours].detach().clone() for name, ours in sources.items()}
        save_file(tensors, tmp_path / f"{kind}.safetensors", header)
        assert main(["export", str(tmp_path / f"{kind}.safetensors"), str(tmp_path / f"hf-{kind}")]) == 0
        classes = dict(enumerate(task.sets.train.classes))
        found = json.loads((tmp_path / f"hf-{kind}" / "config.json").read_text())["id2label"]
        assert found == {str(number): name for number, name in classes.items()}
    program = """
import csv, json, sys, torch, transformers
answers = {}
for kind in sys.argv[1:]:
    what = "Token" if kind == "per_base" else "Sequence"
    auto = getattr(transformers, f"AutoModelFor{what}Classification")
    model = auto.from_pretrained(f"hf-{kind}", trust_remote_code=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(f"hf-{kind}", trust_remote_code=True)
    texts = [row["sequence"] for row in csv.DictReader(open(f"{kind}/test.csv"))]
    with torch.no_grad():
        logits = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits
    says = {"multilabel": torch.sigmoid, "regression": lambda x: x}.get(kind, lambda x: x.softmax(-1))(logits)
    parts = [row[: len(text)] if kind == "per_base" else row for row, text in zip(says, texts)]
    answers[kind] = torch.cat([part.flatten() for part in parts]).tolist()
json.dump(answers, open("answers.json", "w"))
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", program, *wanted]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    answers = json.loads((tmp_path / "answers.json").read_text())
    for kind, values in wanted.items():
        assert np.abs(np.array(answers[kind]) - values).max() <= 1e-5 * max(1, np.abs(values).max()), kind


def test_a_probe_is_the_regression_of_its_states_with_the_strength_that_validation_chose(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    file = config_of(tmp_path, frozen="probe", reverse_complement=True)
    assert main(["finetune", str(file)]) == 0
    run = tmp_path / "runs" / "run"
    summary, table = summary_of(run), list(csv.DictReader((run / "test_predictions.tsv").open(), delimiter="\t"))
    assert summary["validation_mcc"] > 0.6 and summary["test"]["n"] == 29
    model = lively_model(MODEL).double()
    parameters = dict(model.named_parameters())

    def states(name: str) -> tuple[Any, Any]:
        data, found = read_labelled(tmp_path / f"{name}.csv", "classification"), []
        for text in data.sequences:
            both = (text, text.translate(str.maketrans("ACGT", "TGCA"))[::-1])
            ids = [torch.from_numpy(encode(each).astype(np.int64)).unsqueeze(0) for each in both]
            with torch.no_grad():
                found.append(sum(plain_hidden(parameters, MODEL, each)[0].mean(0) for each in ids).numpy() / 2)
        return np.stack(found), data.targets

    (train, targets), (test, _) = states("train"), states("test")
    scaled = (train - train.mean(0)) / train.std(0)
    fitted = LogisticRegression(C=summary["strength"], max_iter=2000).fit(scaled, targets)
    wanted = fitted.predict_proba((test - train.mean(0)) / train.std(0))
    found = [[float(row[f"probability_{name}"]) for name in "xyz"] for row in table]
    assert np.abs(np.array(found) - wanted).max() <= 1e-3
    with safe_open(run / "weights.safetensors", framework="pt") as weights:
        assert json.loads(weights.metadata()["head"])["classes"] == ["x", "y", "z"]
    (tmp_path / "test.csv").unlink()
    assert main(["finetune", str(file)]) == 0
    assert main(["export", str(run), str(tmp_path / "probe")]) == 0
    told = [training_of(model) for model in (run, tmp_path / "probe")]
    assert told[0] == told[1] and [name for name, _ in told[0].tuned_on] == ["train.csv"]
    assert told[0].beginning == str(tmp_path / "model.safetensors")
