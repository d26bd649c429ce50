"""Suites that are wrong by construction are one sentence, and those that are valid list a run for each task, row and seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from hyena_ds.suites.schema import SuiteConfig
from tests.fuzz import mutants
from tests.fuzz.harness import accepted, fuzzed, refused

SUITE: dict[str, Any] = {
    "name": "mine",
    "models": {
        "pretrained": {"initialize_from": "weights"},
        "scratch": {"initialize_from": "random", "like": "pretrained", "training": "probe"},
    },
    "tasks": [
        {"name": "tf/0", "kind": "classification", "metric": "mcc", "train": "a/train.csv", "test": "a/test.csv"}
    ],
    "seeds": ["1", "2"],
    "settings": {"task.epochs": "2"},
    "output": "runs",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "suite $(false) 'quoted'.yaml"


@fuzzed(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5, unique=True), st.integers(1, 4))
def test_a_valid_suite_lists_every_run(file: Path, seeds: list[int], tasks: int) -> None:
    each = [{**SUITE["tasks"][0], "name": f"tf/{number}"} for number in range(tasks)]
    file.write_text(yaml.safe_dump({**SUITE, "seeds": seeds, "tasks": each}, allow_unicode=True), encoding="utf-8")
    assert len(accepted("evaluate", str(file), "--list").out.splitlines()) == len(seeds) * tasks * 2


@fuzzed(mutants.wrong_trees(SUITE, SuiteConfig))
def test_a_wrong_suite_is_one_sentence(file: Path, case: tuple[Any, Any]) -> None:
    file.write_text(yaml.safe_dump(case[1], allow_unicode=True), encoding="utf-8")
    refused("evaluate", str(file), "--list")
