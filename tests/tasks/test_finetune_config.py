"""The short config of a fine-tuning: what follows from it, and every sentence about what cannot be fine-tuned on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hyena_ds.cli import main
from hyena_ds.config.loading import dump_yaml
from hyena_ds.config.model import ModelConfig
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError
from hyena_ds.tasks.deriving import load_run
from hyena_ds.tasks.labelled import LabelledTask
from hyena_ds.weights.heads import PROMPT
from hyena_ds.weights.published import write_weights
from tests.distributed.work import lively_model
from tests.tasks.labels import made, write_rows

MODEL = ModelConfig(width=16, layers=1, maximum_context=700, filter_width=16, filter_shift=0.05)


def short(folder: Path, **task: Any) -> Path:
    """A task, a model, a learning rate and epochs."""
    weights = folder / "model.safetensors"
    if not weights.exists():
        write_weights(weights, MODEL, dict(lively_model(MODEL).named_parameters()))
    config = {
        "task": {"kind": "classification", "train": str(folder / "train.csv"), "epochs": 4, **task},
        "initialize_from": str(weights),
        "output": str(folder / "runs"),
        "optimizer": {"learning_rate": 1e-5},
    }
    file = folder / "short.yaml"
    file.write_text(json.dumps(config))
    return file


def test_a_short_config_is_completed_by_model_and_data_and_reads_the_same_from_the_run(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.csv", made("classification", 200, longest=600))
    config = load_run(short(tmp_path, batch=16, valid="0.2"))
    rows = len(LabelledTask(config).sets.train)
    assert 150 < rows < 170
    assert config.name == "short" and config.model.maximum_context == 700 and config.model.filter_shift == 0.05
    (stage,) = config.stages
    assert stage.context_length == 640 and stage.steps == -(-4 * rows // 16) and stage.sequences == 16
    assert config.task is not None and config.task.buckets == (128, 256, 512)
    assert config.validation.every_steps == config.checkpoint.every_steps == round(rows / 16)
    assert config.optimizer.minimum_learning_rate == pytest.approx(1e-6)
    kept = tmp_path / "kept.yaml"
    kept.write_text(dump_yaml(config))
    (tmp_path / "train.csv").write_text("nothing is derived from it any more")
    assert load_run(kept) == config


def test_what_is_written_down_and_overridden_stands_beside_what_follows(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.csv", made("classification", 60))
    changes = [
        "stages.0.sequence_parallel=2",
        "model.layers=1",
        "validation.every_steps=3",
        "task.batch=8",
        "name=other",
    ]
    config = load_run(short(tmp_path), changes)
    assert config.stages[0].sequence_parallel == 2 and config.stages[0].context_length == 64
    assert config.validation.every_steps == 3 and config.stages[0].sequences == 8 and config.name == "other"
    assert config.task is not None and config.task.buckets == ()
    unlike = load_run(short(tmp_path, like=str(tmp_path / "model.safetensors")), ["initialize_from=random"])
    assert unlike.initialize_from is None and unlike.model == config.model


def test_every_epoch_reads_every_sequence_once_in_another_order_on_both_strands(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.csv", made("classification", 60))
    task = LabelledTask(load_run(short(tmp_path, batch=10, reverse_complement=True, valid="0.16")))
    count = len(task.sets.train)
    numbers = [reading.number for step in range(2 * count // 10 + 1) for reading in _as_drawn(task, step)]
    first, second = numbers[:count], numbers[count : 2 * count]
    assert sorted(first) == sorted(second) == list(range(count)) and first != second
    strands = [reading.reverse for step in range(10) for reading in task.samples(step)]
    assert 30 < sum(strands) < 70
    lengths = [reading.length for reading in task.samples(3)]
    assert lengths == sorted(lengths, reverse=True)


def _as_drawn(task: LabelledTask, step: int) -> list[Any]:
    """The samples of a step in the order of the stream, of which only the set is kept."""
    order = [
        int(task._order(number // len(task.sets.train))[number % len(task.sets.train)])
        for number in range(10 * step, 10 * step + 10)
    ]
    found = task.samples(step)
    assert sorted(reading.number for reading in found) == sorted(order)
    return sorted(found, key=lambda reading: order.index(reading.number))


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments]) == 2
    return " ".join(capsys.readouterr().err.split())


ROWS = made("classification", 40)


@pytest.mark.parametrize(
    ("rows", "titles", "task", "words"),
    [
        (ROWS, "sequence,target", {}, "found no column 'label' among sequence, target"),
        ([(bases, "a") for bases, _ in ROWS], "sequence,label", {}, "found the one class 'a' in all 40 rows, wanted two or more"),
        ([("A" * 701, "x"), *ROWS], "sequence,label", {}, "train.csv:2: found a sequence of 701 bases, wanted at most model.maximum_context 700"),
        ([("ACGJ", "x"), *ROWS], "sequence,label", {}, "train.csv:2: found 'J' in the sequence"),
        (ROWS, "sequence,label", {"valid": "0.01"}, "valid: the fraction 0.01 of the"),
        (ROWS, "sequence,label", {"valid": "1.5"}, "task.valid: found the fraction 1.5, wanted one between 0 and 1, or a file"),
        (ROWS, "sequence,label", {"valid": "absent.csv"}, "absent.csv: no such table; name an existing file"),
        (ROWS, "sequence,label", {"metric": "roc"}, "task.metric: found 'roc', wanted mcc, accuracy"),
        (ROWS, "sequence,label", {"kind": "classes"}, "task.kind: found 'classes', wanted classification or"),
        (ROWS, "sequence,label", {"pool": "max"}, "task.pool: found an unknown key"),
        (ROWS, "sequence,label", {"head": {"pool": "median"}}, "task.head.pool: found 'median', wanted mean or max"),
        (ROWS, "sequence,label", {"buckets": [64, 32]}, "task.buckets: found [64, 32], wanted ascending positive lengths"),
        (ROWS, "sequence,label", {"frozen": "probe", "head": {"hidden": 3}}, "task.head: hidden: found 3 with frozen probe"),
        (ROWS, "sequence,label", {"kind": "per_base", "frozen": "probe"}, "task.frozen: found probe with the kind per_base"),
        (ROWS, "sequence,label", {"frozen": "trees", "head": {"hidden": 3}}, "task.head: hidden: found 3 with frozen trees"),
        (ROWS, "sequence,label", {"kind": "per_base", "frozen": "trees"}, "task.frozen: found trees with the kind per_base"),
        (ROWS, "sequence,label", {"kind": "multilabel", "frozen": "trees"}, "task.frozen: found trees with the kind multilabel"),
        (ROWS, "sequence,label", {"trees": {"depth": 4}}, "task.trees: found settings of trees with frozen false"),
        (ROWS, "sequence,label", {"kind": "regression"}, "found 'x' as a label, wanted a finite number"),
        ([(bases, "0" * len(bases)) for bases, _ in ROWS], "sequence,label", {"kind": "per_base"}, "wanted two or more"),
        ([(bases, "1.5") for bases, _ in ROWS], "sequence,label", {"kind": "regression"}, "found one and the same number for every sequence"),
        (ROWS, "sequence,label", {"kind": "regression", "class_weights": "balanced"}, "task.class_weights: found balanced with the kind regression"),
        (ROWS, "sequence,label", {"groups": {"a": "b"}}, "task.groups: found them with the kind classification, wanted multilabel"),
        (made("multilabel", 40), "sequence,label", {"kind": "multilabel", "groups": {"a": "0", "TF": "TF_"}}, "task.groups.TF: found no output of"),
    ],
)  # fmt: skip
def test_what_cannot_be_fine_tuned_on_is_said_in_a_sentence(
    rows: list[tuple[str, str]],
    titles: str,
    task: dict[str, Any],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_rows(tmp_path / "train.csv", rows, titles)
    assert words in said(capsys, "finetune", str(short(tmp_path, **task)))
    assert not (tmp_path / "runs").exists()


def test_a_config_has_shards_or_a_task_and_a_model_to_begin_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "train.csv", ROWS)
    file = str(short(tmp_path))
    both = said(capsys, "finetune", file, "data={sources: [{shards: here}]}")
    assert "task: found a task and data.sources, wanted one of them" in both
    assert "found a task" not in (neither := said(capsys, "finetune", "configs/quickstart.yaml"))
    assert "found no task, wanted labelled sequences to fine-tune on; or use hyena-ds train" in neither
    assert "initialize_from: found none, wanted weights" in said(capsys, "finetune", file, "initialize_from=random")
    missing = said(capsys, "check", file, "initialize_from=nowhere")
    assert "nowhere: found no weights.safetensors" in missing
    assert "override 'model=big': model: found a single value or a list, wanted keys" in said(
        capsys, "check", file, "model=big"
    )
    assert "found 'fast', wanted a number" in said(capsys, "check", file, "optimizer.learning_rate=fast")


def test_what_a_run_finds_before_it_begins_is_said_in_a_sentence(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.csv", ROWS)
    absent = LabelledTask(load_run(short(tmp_path, test=str(tmp_path / "absent.csv"))))
    with pytest.raises(UserError, match=r"task\.test: .*absent\.csv: no such file or directory; name an existing one"):
        absent._checked()
    tight = LabelledTask(load_run(short(tmp_path), ["stages=[{context_length: 16, steps: 1, global_batch: 8}]"]))
    with pytest.raises(
        UserError, match=r"csv:\d+: found a sequence of .* wanted at most stages\.0\.context_length 16; cut it"
    ):
        tight._checked()


def test_a_resumed_run_may_not_change_its_task_but_for_what_is_done_with_it(tmp_path: Path) -> None:
    from hyena_ds.config.changes import changes, forbidden
    from hyena_ds.config.loading import to_plain

    write_rows(tmp_path / "train.csv", ROWS)

    def refused(*overrides: str) -> list[str]:
        before, after = load_run(short(tmp_path)), load_run(short(tmp_path), [*overrides])
        found = changes(to_plain(before), to_plain(after))
        assert found
        return [change.key for change in forbidden(found, before.schedule, after.schedule, 1)]

    assert refused("task.head.pool=max") == ["task.head.pool"]
    assert refused("task.reverse_complement=true") == ["task.reverse_complement"]
    assert refused("task.valid=0.3")[0] == "task.valid"
    older = to_plain(load_run(short(tmp_path)))
    for name in ("trees", "rows"):
        del older["task"][name]
    assert not changes(older, to_plain(load_run(short(tmp_path))))
    again = changes(older, to_plain(load_run(short(tmp_path), ["task.rows=9"])))
    assert "task.rows" in [each.key for each in again] and not any("trees" in each.key for each in again)
    assert refused("task.patience=3") == refused("task.test=t.csv") == refused("task.epochs=5") == []


def test_data_of_a_task_without_one_is_not_asked_for() -> None:
    assert isinstance(load_run("configs/quickstart.yaml"), RunConfig)


def test_labels_of_one_strand_are_not_learnt_from_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "train.csv", ROWS)
    file = str(short(tmp_path, reverse_complement=True))
    card = tmp_path / "card.json"
    for text in (
        "[]",
        "{",
        json.dumps({"strand": "either", "files": {"train.csv": ""}}),
        '{"strand": "forward", "files": {}}',
    ):
        card.write_text(text)
        assert main(["check", file]) == 0
    card.write_text(json.dumps({"strand": "forward", "files": {"train.csv": ""}}))
    assert main(["check", file, "task.reverse_complement=false"]) == 0
    words = said(capsys, "finetune", file)
    assert (
        f"task.reverse_complement: found true with {tmp_path / 'train.csv'}, wanted false: its card.json says" in words
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("frozen", ["probe", "trees"])
def test_one_pass_of_embeddings_is_refused_to_several_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, frozen: str
) -> None:
    write_rows(tmp_path / "train.csv", ROWS)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    words = said(capsys, "finetune", str(short(tmp_path, frozen=frozen)))
    assert f"task.frozen: found {frozen} under a launcher with 2 processes, wanted one" in words
    assert not (tmp_path / "runs").exists()


def test_a_soft_prompt_of_the_weights_is_said_to_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "train.csv", ROWS)
    file = short(tmp_path)
    task = LabelledTask(load_run(file))
    task.initialize(task.objective())
    assert "prompt" not in capsys.readouterr().err
    weights = tmp_path / "model.safetensors"
    with safe_open(weights, framework="pt") as kept:
        header = kept.metadata()
    save_file({**load_file(weights), PROMPT: torch.zeros(3, 16)}, weights, header)
    task.initialize(task.objective())
    assert (
        f"{weights}: it was trained to read sequences behind a soft prompt, which is left out"
        in capsys.readouterr().err
    )
