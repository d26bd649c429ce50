"""What a config may change of a run that is resumed."""

from __future__ import annotations

import pytest

from hyena_ds.config.changes import changes, forbidden
from hyena_ds.config.loading import parse_yaml, to_plain
from hyena_ds.config.schema import RunConfig

TEXT = """
name: run
model: {width: 16, layers: 2, maximum_context: 64}
data: {sources: [{shards: here}]}
stages:
  - {context_length: 16, steps: 4, global_batch: 8, micro_batch_size: 2}
  - {context_length: 32, steps: 6, global_batch: 8, micro_batch_size: 1}
  - {context_length: 64, steps: 5, global_batch: 4, micro_batch_size: 1}
"""
STEP = 6
"""Two steps into the second stage."""


def compare(*overrides: str) -> tuple[list[str], list[str]]:
    """(all changes, those that are refused) after STEP steps."""
    before, after = (parse_yaml(TEXT, "test", RunConfig, list(each)) for each in ((), overrides))
    found = changes(to_plain(before), to_plain(after))
    refused = forbidden(found, before.schedule, after.schedule, STEP)
    return [str(change) for change in found], [str(change) for change in refused]


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.learning_rate=1e-3",
        "optimizer.betas=[0.8, 0.9]",
        "zero_stage=3",
        "precision=bfloat16",
        "activation_policy=lean",
        "convolution=fft",
        "local_ranks=4",
        "data.workers=3",
        "data.verify=false",
        "data.cache.gib=9",
        "data.sources.0.shards=there",
        "checkpoint.keep_last=7",
        "validation.windows=3",
        "name=other",
        "stages.0.micro_batch_size=1",
        "stages.1.steps=2",
        "stages.1.steps=60",
        "stages.1.sequence_parallel=2",
        "stages.2.context_length=32",
        "stages.2.global_batch=2",
    ],
)
def test_what_the_state_does_not_depend_on_may_change_and_is_told(override: str) -> None:
    found, refused = compare(override)
    assert found and all(change.startswith(override.partition("=")[0]) for change in found)
    assert refused == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.width=32", "model.width: 16 -> 32"),
        ("model.embedding_dropout=0", "model.embedding_dropout: 0.1 -> 0.0"),
        ("data.sources.0.weight=2", "data.sources.0.weight: 1.0 -> 2.0"),
        ("data.reverse_complement=true", "data.reverse_complement: False -> True"),
        ("seed=1", "seed: 2222 -> 1"),
        ("stages.0.context_length=32", "stages.0.context_length: 16 -> 32"),
        ("stages.0.steps=5", "stages.0.steps: 4 -> 5"),
        ("stages.0.global_batch=4", "stages.0.global_batch: 8 -> 4"),
        ("stages.1.context_length=16", "stages.1.context_length: 32 -> 16"),
        ("stages.1.global_batch=16", "stages.1.global_batch: 8 -> 16"),
        ("stages.1.steps=1", "stages.1.steps: 6 -> 1"),
        (
            "stages=[{context_length: 16, steps: 4, global_batch: 8, micro_batch_size: 2}]",
            "stages.1: 2 steps done -> not set",
        ),
    ],
)
def test_what_made_the_state_must_stay(override: str, words: str) -> None:
    assert compare(override)[1] == [words]


def test_everything_that_is_refused_is_told_at_once_and_the_way_of_starting_is_no_change() -> None:
    found, refused = compare("seed=1", "model.layers=3", "zero_stage=2", "resume=somewhere")
    assert found == ["model.layers: 2 -> 3", "seed: 2222 -> 1", "zero_stage: 1 -> 2"]
    assert refused == ["model.layers: 2 -> 3", "seed: 2222 -> 1"]


def test_the_same_batch_in_tokens_is_the_same() -> None:
    row = "stages.1={context_length: 32, steps: 6, global_batch_tokens: 256, micro_batch_size: 1}"
    found, refused = compare(row)
    assert found and refused == []
