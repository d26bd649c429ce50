"""Every YAML block of README and docs is valid by the schema of what it configures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_prep.config import PrepConfig
from hyena_ds.config.loading import load_yaml, parse_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError
from hyena_ds.suites.schema import SuiteConfig
from hyena_ds.sweeps.plan import load_sweep
from tests.docs.documents import Block, all_blocks
from tests.paths import ROOT

BLOCKS = all_blocks("yaml")
REST: dict[str, Any] = {
    "name": "documented",
    "model": {"width": 32, "layers": 2, "maximum_context": 1 << 21},
    "data": {"sources": [{"shards": "data/mine"}]},
    "stages": [{"context_length": 1024, "global_batch": 8, "steps": 10}],
}
"""What a run's config needs besides a fragment of one."""


def check(text: str, directory: Path) -> str:
    """Raise UserError unless the block is valid; what it configures."""
    found = list(yaml.safe_load_all(text))
    if "apiVersion" in found[0]:
        import kubernetes_validate

        for resource in found:
            kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)
        return "Kubernetes"
    (given,) = found
    if "base" in given:
        (directory / "configs").symlink_to(ROOT / "configs")
        file = directory / "sweep.yaml"
        file.write_text(text, encoding="utf-8")
        load_sweep(str(file), [])
        return "sweep"
    if "models" in given:
        parse_yaml(text, "block", SuiteConfig)
        return "suite"
    if given.keys() & {field.name for field in dataclasses.fields(PrepConfig)} - {"output"}:
        parse_yaml(text, "block", PrepConfig)
        return "prep"
    rest = {key: value for key, value in REST.items() if key != "data" or "task" not in given}
    whole = {**rest, **{key: _joined(rest.get(key), value) for key, value in given.items()}}
    file = directory / "run.yaml"
    file.write_text(yaml.safe_dump(whole), encoding="utf-8")
    load_yaml(file, RunConfig)
    return "run"


def _joined(rest: Any, given: Any) -> Any:
    return {**rest, **given} if isinstance(rest, dict) and isinstance(given, dict) else given


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_is_valid(block: Block, tmp_path: Path) -> None:
    check(block.text, tmp_path)


def test_there_are_blocks_of_every_kind(tmp_path: Path) -> None:
    kinds = set()
    for number, block in enumerate(BLOCKS):
        (tmp_path / str(number)).mkdir()
        kinds.add(check(block.text, tmp_path / str(number)))
    assert kinds == {"Kubernetes", "sweep", "suite", "prep", "run"}


@pytest.mark.parametrize(
    "text",
    [
        "warmup: {from: 64, to: 131072, double_evry: 100}",
        "fasta: a.fa\nassembly: a\noutput: data/a\nsplits: {by_chromosom: {train: []}}",
        "name: a\nbase: configs/quickstart.yaml\naxes: {model.layer: [2, 4]}",
    ],
)
def test_a_wrong_key_would_be_found(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        check(text, tmp_path)
