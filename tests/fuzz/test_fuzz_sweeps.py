"""Sweeps that are valid or wrong by construction: every combination is a run, and what a shell is handed is one word each."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from hyena_ds.sweeps.plan import SweepConfig, load_sweep
from tests.fuzz import mutants
from tests.fuzz.harness import accepted, fuzzed, refused
from tests.paths import ROOT

BASE = str(ROOT / "configs" / "quickstart.yaml")
_AXES = {
    "seed": st.integers(0, 2**31 - 1),
    "optimizer.weight_decay": st.floats(0.0, 1.0),
    "data.reverse_complement": st.booleans(),
    "model.layers": st.integers(1, 32),
    "stages.0.steps": st.integers(1, 10**6),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sweep $(false) 'quoted'.yaml"


@st.composite
def sweeps(draw: st.DrawFn) -> dict[str, Any]:
    """Runs of the quick start's config, with one to three axes and sometimes rows."""
    keys = draw(st.lists(st.sampled_from([*_AXES]), min_size=1, max_size=4, unique=True))
    axes = {key: draw(st.lists(_AXES[key], min_size=1, max_size=3, unique=True)) for key in keys}
    sweep: dict[str, Any] = {"name": draw(mutants.names), "base": BASE, "output": draw(mutants.names)}
    if len(keys) > 1:
        first = axes.pop(keys[0])
        sweep["rows"] = [{keys[0]: value} for value in first]
    return {**sweep, "axes": axes}


@fuzzed(sweeps())
def test_a_valid_sweep_has_every_combination_and_hands_a_shell_whole_words(file: Path, sweep: dict[str, Any]) -> None:
    file.write_text(yaml.safe_dump(sweep, allow_unicode=True), encoding="utf-8")
    count = math.prod(map(len, sweep["axes"].values())) * len(sweep.get("rows", [0]))
    listed = accepted("sweep", str(file), "--list").out.splitlines()
    assert listed[0].startswith(f"{sweep['name']}: {count} runs") and len(listed) == count + 1
    for run in load_sweep(str(file), []).runs:
        words = accepted("sweep", str(file), "--arguments", str(run.number)).out
        assert tuple(shlex.split(words)) == run.arguments


SWEEP = {
    "name": "contexts",
    "base": BASE,
    "run": "layers-{model.layers}-{seed}",
    "output": "runs",
    "settings": {"optimizer.weight_decay": "0.1"},
    "rows": [{"seed": "1"}, {"seed": "2"}],
    "axes": {"model.layers": ["1", "2"]},
}
_WRONG = st.one_of(
    mutants.wrong_trees(SWEEP, SweepConfig).map(lambda case: case[1]),
    mutants.wrong_names.map(lambda name: {**SWEEP, "name": name}),
    st.sampled_from(
        [
            {**SWEEP, "axes": {"name": ["a", "b"]}},
            {**SWEEP, "axes": {"output": ["a", "b"]}},
            {**SWEEP, "axes": {"model.layers": []}},
            {**SWEEP, "axes": {"seed": ["1"]}},
            {**SWEEP, "axes": {"model.layers": ["1", "1"]}},
            {**SWEEP, "axes": {"model.layers": ["1", "²"]}},
            {**SWEEP, "axes": {"model.depth": ["1"]}, "run": ""},
            {**SWEEP, "rows": [{"seed": "1"}, {}]},
            {**SWEEP, "run": "always-the-same"},
            {**SWEEP, "run": "/{seed}{model.layers}"},
            {**SWEEP, "run": "-rf {seed}{model.layers}"},
            {**SWEEP, "run": "{seed}{model.layers}" + "x" * 300},
            {**SWEEP, "run": "{width}"},
            {**SWEEP, "base": "no-such-file.yaml"},
            {**SWEEP, "base": "."},
            {**SWEEP, "base": "\x00"},
            {**SWEEP, "settings": {"": "1"}},
            {**SWEEP, "settings": {"stages.9.steps": "1"}},
        ]
    ),
)


@fuzzed(_WRONG)
def test_a_wrong_sweep_is_refused(file: Path, sweep: Any) -> None:
    file.write_text(yaml.safe_dump(sweep, allow_unicode=True), encoding="utf-8")
    refused("sweep", str(file), "--list")


@fuzzed(mutants.wrong_texts(SWEEP), share=0.5)
def test_a_file_that_is_no_sweep_is_refused(file: Path, text: bytes) -> None:
    file.write_bytes(text)
    refused("sweep", str(file), "--list")
