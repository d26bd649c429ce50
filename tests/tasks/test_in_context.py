"""What stands around a sequence, letter by letter; gradients of prompts on grids against float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_ds.config.schedule import StageConfig
from hyena_ds.config.schema import DataConfig, RunConfig
from hyena_ds.config.task import DemonstrationsConfig, HeadConfig, PromptConfig, TaskConfig
from hyena_ds.genome.tokenizer import LETTERS, PAD, SEP
from hyena_ds.labelled import read_labelled
from hyena_ds.labelled.sets import UNLABELLED
from hyena_ds.tasks.demonstrations import Shown, Surroundings
from hyena_ds.tasks.in_context import InContextTask
from hyena_ds.tasks.outcomes import Reading
from tests.distributed.pool import Pool
from tests.distributed.work import TOLERANCE, Grid, Trained, relative_error, run_config, series_error, worst_error
from tests.model.plain import plain_hidden
from tests.tasks import in_context_cases
from tests.tasks.labels import made, write_rows

Ranks = Callable[[int], Pool]
SHOWN = {**{token: letter for letter, token in LETTERS.items()}, SEP: "|", PAD: "."}
STEPS, RATE, CONTEXT = 2, 5e-4, 128


def written(reading: Shown) -> str:
    return "".join(SHOWN[int(token)] for token in reading.tokens)


def two_classes(folder: Path) -> Path:
    return write_rows(folder / "two.csv", [("ACCA", "bound"), ("CC", "bound"), ("GGG", "free"), ("TTTTT", "free")])


def around(folder: Path, **changes: Any) -> Surroundings:
    task = TaskConfig(kind="classification", train=str(two_classes(folder)), **changes)
    return Surroundings(task, read_labelled(task.train, task.kind), 7)


def test_a_sample_is_prompt_then_demonstrations_then_the_sequence_letter_by_letter(tmp_path: Path) -> None:
    demonstrated = around(tmp_path, prompt=PromptConfig(2), frozen="backbone", demonstrations=DemonstrationsConfig(1))
    pool = read_labelled(str(tmp_path / "two.csv"), "classification")
    found = [demonstrated.of(Reading(pool, 0, False), 0, number) for number in range(40)]
    # ACCA is never shown before itself, so CC is the one of its class; A is bound, N free.
    assert {written(each) for each in found} == {
        "..CC|A|GGG|N|ACCA|",
        "..CC|A|TTTTT|N|ACCA|",
        "..GGG|N|CC|A|ACCA|",
        "..TTTTT|N|CC|A|ACCA|",
    }
    for each in found:
        text = written(each)
        assert each.length == len(text)
        places = {"C": 0, "G": 1, "T": 1}
        first, second = (part for part in text.removeprefix("..").split("|") if part in ("CC", "GGG", "TTTTT"))
        wanted = [(2 + len(first), places[first[0]]), (2 + len(first) + 3 + len(second), places[second[0]])]
        assert each.labels == [*wanted, (len(text) - 1, 0)]
        assert all(text[position] == "|" and text[position + 1] in "AN" for position, _ in wanted)
    assert written(demonstrated.of(found[0], 0, 3)) == written(demonstrated.of(found[0], 0, 3))
    both = [demonstrated.of(Reading(pool, 0, reverse), 1, 5) for reverse in (False, True)]
    flip = str.maketrans("ACGT", "TGCA")
    turned = ["|".join(p if p in "AN" else p.translate(flip)[::-1] for p in written(both[0])[2:].split("|"))]
    assert written(both[1])[2:] == turned[0], "the other strand has the same demonstrations, each turned round"


def test_shuffled_labels_are_the_same_labels_and_say_nothing_of_their_sequences(tmp_path: Path) -> None:
    pool = read_labelled(str(two_classes(tmp_path)), "classification")
    true = around(tmp_path, demonstrations=DemonstrationsConfig(1))
    shuffled = around(tmp_path, demonstrations=DemonstrationsConfig(1, "shuffled"))
    right, places = 0, {"C": 0, "G": 1, "T": 1}
    for number in range(200):
        reading = Reading(pool, 0, False)
        found, wanted = shuffled.of(reading, 0, number), true.of(reading, 0, number)
        assert found.labels == wanted.labels, "what is to be predicted is shuffled too"
        parts, true_parts = written(found).split("|")[:-1], written(wanted).split("|")[:-1]
        assert parts[::2] == true_parts[::2] and sorted(parts[1::2]) == sorted(true_parts[1::2]) == ["A", "N"]
        right += parts[1] == "AN"[places[parts[0][0]]]
    assert 70 < right < 130
    assert written(shuffled.of(Reading(pool, 0, False), 0, 3)) == written(shuffled.of(Reading(pool, 0, False), 0, 3))


def test_no_demonstrations_leave_the_sequence_and_its_end_and_a_head_leaves_the_sequence(tmp_path: Path) -> None:
    pool = read_labelled(str(two_classes(tmp_path)), "classification")
    reading = Reading(pool, 2, False)
    none = around(tmp_path, demonstrations=DemonstrationsConfig(0)).of(reading, 0)
    assert (written(none), none.labels) == ("GGG|", [(3, 1)])
    letters = around(tmp_path, label_tokens=("T", "C"))
    assert (written(letters.of(reading, 0)), letters.label_ids) == ("GGG|", (LETTERS["T"], LETTERS["C"]))
    head = around(tmp_path, prompt=PromptConfig(3), frozen="backbone").of(reading, 0)
    assert (written(head), head.length, head.label_ids) == ("...GGG", 6, ())


CASES: dict[str, dict[str, Any]] = {
    "prompt, tokens": {"prompt": PromptConfig(5), "label_tokens": ("A", "C", "N"), "frozen": "backbone"},
    "prompt over both ranks, demonstrations": {
        "prompt": PromptConfig(70),
        "demonstrations": DemonstrationsConfig(1),
        "frozen": "backbone",
        "reverse_complement": True,
    },
    "demonstrations, balanced": {"demonstrations": DemonstrationsConfig(2), "class_weights": "balanced"},
    "none shown": {"demonstrations": DemonstrationsConfig(0)},
    **{
        f"prompt, {pool}": {"prompt": PromptConfig(5), "frozen": "backbone", "head": HeadConfig(pool)}
        for pool in ("mean", "max", "last", "first")
    },
}
GRIDS = [Grid(1, 1), Grid(1, 2), Grid(2, 1)]
COMBINATIONS = [
    (case, grid, (number + at) % 4)
    for number, case in enumerate(CASES)
    for at, grid in enumerate(GRIDS)
    if number < 4 or grid != Grid(2, 1)
]


def make_config(folder: Path, grid: Grid, zero_stage: int, **changes: Any) -> RunConfig:
    train = write_rows(folder / "train.csv", made("classification", 21, longest=9))
    valid = write_rows(folder / "valid.csv", made("classification", 7, seed=2, longest=9))
    task = TaskConfig(kind="classification", train=str(train), valid=str(valid), **changes)
    stage = StageConfig(CONTEXT, STEPS, 2, global_batch=8, sequence_parallel=grid.sp)
    config = run_config(grid, zero_stage=zero_stage, maximum_context=CONTEXT)
    return replace(config, data=DataConfig(), task=replace(task, buckets=(24, 48, 64)), stages=(stage,))


def plain_outputs(config: RunConfig, p: dict[str, Tensor], sample: Shown) -> Tensor:
    """(labels, K): of one sample alone, without padding, the outputs at every label; of a head, those of its sequence."""
    task, n = config.task, sample.prompt
    assert task is not None
    ids = torch.from_numpy(sample.tokens[n:].astype(np.int64)).unsqueeze(0)
    embedded = F.embedding(ids, p["backbone.embedding.weight"])
    if n:
        embedded = torch.cat((p["prompt"].unsqueeze(0), embedded), 1)
    hidden_LD = plain_hidden(p, config.model, embedded)[0]
    if sample.label_ids:
        at_labels = hidden_LD[[position for position, _ in sample.labels]]
        return at_labels @ p["backbone.embedding.weight"][list(sample.label_ids)].T
    bases_LD = hidden_LD[n:]
    state = {
        "mean": bases_LD.mean(0),
        "last": bases_LD[-1],
        "first": bases_LD[0],
        "max": torch.stack([channel[int(channel.argmax())] for channel in bases_LD.T]),
    }[task.head.pool]
    return F.linear(state, p["head.output.weight"], p["head.output.bias"]).unsqueeze(0)


def reference(config: RunConfig) -> tuple[Trained, list[Tensor]]:
    """One sample after the other in float64; nothing in common with hyena_ds but which samples a step has."""
    task = InContextTask(config)
    objective = in_context_cases.lively_objective(task, config).double()
    parameters, trained = dict(objective.named_parameters()), Trained()
    labels = [label for _, label in made("classification", 21, longest=9)]
    counts = [labels.count(each) for each in "xyz"]
    balanced = config.task is not None and config.task.class_weights == "balanced"
    weights = [sum(counts) / (3 * count) if balanced else 1.0 for count in counts]
    for step in range(STEPS):
        objective.zero_grad()
        total, count = torch.zeros((), dtype=torch.float64), 0.0
        for sample in task.samples(step):
            assert isinstance(sample, Shown)
            outputs = plain_outputs(config, parameters, sample)
            classes = [label for _, label in sample.labels][-len(outputs) :]
            for logits_K, label in zip(outputs, classes, strict=True):
                total = total - weights[label] * logits_K.log_softmax(0)[label]
                count += weights[label]
        loss = total / count
        loss.backward()
        if not trained.losses:
            trained.first_gradients = {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}
        trained.losses.append(float(loss.detach()))
        with torch.no_grad():
            for parameter in parameters.values():
                if parameter.requires_grad:
                    parameter -= RATE * parameter.grad
    trained.parameters = {name: p.detach().clone() for name, p in parameters.items()}
    with torch.no_grad():
        held_out = [each for each in task.held_out(CONTEXT) if isinstance(each, Shown)]
        outputs = [plain_outputs(config, parameters, each)[-1] for each in held_out]
    losses = [-o.log_softmax(0)[each.labels[-1][1]] for o, each in zip(outputs, held_out, strict=True)]
    trained.norms.append(float(sum(losses) / len(losses)))
    return trained, outputs


@pytest.mark.slow
@pytest.mark.parametrize(("case", "grid", "stage"), COMBINATIONS, ids=str)
def test_gradients_of_prompts_and_of_label_tokens_are_those_of_every_sample_alone_in_float64(
    ranks: Ranks, tmp_path: Path, case: str, grid: Grid, stage: int
) -> None:
    config = make_config(tmp_path, grid, stage, **CASES[case])
    wanted, outputs = reference(config)
    assert ("prompt" in wanted.first_gradients) == ("prompt" in case)
    for found, predictions, _ in ranks(grid.ranks).run(in_context_cases.train, config=config, steps=STEPS, rate=RATE):
        assert series_error(found.losses, wanted.losses) <= TOLERANCE, (found.losses, wanted.losses)
        assert series_error(found.norms, wanted.norms) <= TOLERANCE, "loss of the validation"
        error, name = worst_error(found.first_gradients, wanted.first_gradients)
        assert error <= TOLERANCE, f"gradient of {name}: {error:.1e}"
        error, name = worst_error(found.parameters, wanted.parameters)
        assert error <= TOLERANCE, f"parameter {name}: {error:.1e}"
        assert relative_error(torch.from_numpy(np.stack(predictions)), torch.stack(outputs)) <= TOLERANCE


def test_demonstrations_are_of_the_train_set_as_many_of_each_class_and_held_out_labels_alone_are_scored(
    tmp_path: Path,
) -> None:
    config = make_config(tmp_path, Grid(1, 1), 1, demonstrations=DemonstrationsConfig(2), rows=5)
    assert config.task is not None
    test = write_rows(tmp_path / "test.csv", made("classification", 9, seed=3, longest=9))
    config = replace(config, task=replace(config.task, test=str(test)))
    task, train = InContextTask(config), {text for text, _ in made("classification", 21, longest=9)}
    trained = [task.samples(step) for step in range(2)]
    assert len({each.data.sequences[each.number] for each in itertools.chain(*trained)}) == 5, "rows"
    shown: set[str] = set()
    for sample in itertools.chain(*trained, task.held_out(CONTEXT), task.test()):
        assert isinstance(sample, Shown)
        texts = [each.data.sequences[each.number] for each in sample.demonstrations]
        assert sorted(int(each.target) for each in sample.demonstrations) == [0, 0, 1, 1, 2, 2]
        assert len({*texts}) == 6 and sample.data.sequences[sample.number] not in texts
        shown |= {*texts}
    assert shown <= train and len(shown) > 15, "all of the train set, not its `rows` alone"
    part = task.read([trained[0][0], None], [0, 1], CONTEXT, _whole(CONTEXT))
    assert int((part.targets != UNLABELLED).sum()) == 7, "six demonstrations' labels and its own"
    held = task.read([task.held_out(CONTEXT)[0], None], [0, 1], CONTEXT, _whole(CONTEXT))
    assert int((held.targets != UNLABELLED).sum()) == 1


def _whole(length: int) -> Any:
    from hyena_ds.data.loader import Slice

    return Slice(0, 0, length)
