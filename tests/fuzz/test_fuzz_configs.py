"""`check`, `plan` and overrides on configs that are valid or wrong by construction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from hyena_ds.config.loading import dump_yaml, load_yaml, parse_yaml, to_plain
from hyena_ds.config.schema import RunConfig
from tests.fuzz import mutants
from tests.fuzz.harness import accepted, fuzzed, refused, run
from tests.paths import ROOT

FILE = ROOT / "configs" / "quickstart.yaml"
BASE = to_plain(load_yaml(FILE, RunConfig))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def written(tree: Any) -> st.SearchStrategy[tuple[Any, str]]:
    return mutants.spelled(tree).map(lambda text: (tree, text))


@fuzzed(mutants.settings_of_run().map(lambda s: mutants.with_settings(BASE, s)).flatmap(written))
def test_a_valid_config_is_checked_and_comes_back_from_what_a_run_keeps(file: Path, case: tuple[Any, str]) -> None:
    tree, text = case
    file.write_text(text, encoding="utf-8")
    assert str(tree["name"]) in accepted("check", str(file)).out
    config = load_yaml(file, RunConfig)
    assert to_plain(config) == tree
    assert parse_yaml(dump_yaml(config), "kept", RunConfig) == config


@fuzzed(mutants.wrong_trees(BASE).flatmap(lambda case: mutants.spelled(case[1]).map(lambda text: (case[0], text))))
def test_a_value_of_the_wrong_type_is_refused_by_its_place(file: Path, case: tuple[mutants.Path, str]) -> None:
    path, text = case
    file.write_text(text, encoding="utf-8")
    assert mutants.dotted(path) in refused("check", str(file)).sentence


@fuzzed(mutants.wrong_settings(BASE).flatmap(mutants.spelled))
def test_a_value_out_of_bounds_is_refused(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    refused("check", str(file))
    refused("plan", str(file))


@fuzzed(mutants.wrong_texts(BASE))
def test_a_file_that_is_no_config_is_refused(file: Path, text: bytes) -> None:
    file.write_bytes(text)
    refused("check", str(file))


@fuzzed(mutants.settings_of_run())
def test_overrides_do_what_the_same_change_of_the_file_does(file: Path, settings: dict[mutants.Path, Any]) -> None:
    file.write_text(yaml.safe_dump(BASE))
    overrides = [f"{mutants.dotted(path)}={_flow(value)}" for path, value in settings.items()]
    accepted("check", str(file), *overrides)
    assert to_plain(load_yaml(file, RunConfig, overrides)) == mutants.with_settings(BASE, settings)


WRONG_OVERRIDES = st.one_of(
    st.sampled_from(
        [
            *("stages.²=1", "stages.२.steps=1", "stages.2.steps=1", "stages.-1.steps=1", "stages.=1", "=1", "x", "."),
            *(
                "seed.x=1",
                "name.0=1",
                ".seed=1",
                "seed..=1",
                "stages.0=1",
                "stages.0.steps",
                "stages.0.step=1",
                "a.b.c=1",
            ),
            *(
                "stages.0.steps=",
                "stages.0.steps=[1",
                "stages.0.steps=&a [*a]",
                "seed=\x00",
                "seed=\x1b[2J",
                "model={}",
            ),
            *("stages.00000000000000000000000000002.steps=1", f"stages.{'9' * 5000}.steps=1", f"{'a.' * 5000}b=1"),
            *(f"seed={'9' * 5000}", f"name={'x' * 5000}/", f"seed={'[' * 5000}", f"{'x' * 5000}=1"),
        ]
    ),
    mutants.wrong_trees(BASE)
    .filter(lambda case: len(case[0]) > 0 and isinstance(_at(case), int | float | list))
    .map(lambda case: f"{mutants.dotted(case[0])}={_flow(_at(case))}"),
)


def _at(case: tuple[mutants.Path, Any]) -> Any:
    path, node = case
    for key in path:
        node = node[key]
    return node


@fuzzed(WRONG_OVERRIDES)
def test_a_wrong_override_is_refused(override: str) -> None:
    refused("check", str(FILE), override)


NUMBERS = st.one_of(st.integers(-3, 40), st.integers(-(10**30), 10**30), st.sampled_from([10**6, 10**9, 2**63]))


@fuzzed(NUMBERS, NUMBERS)
def test_numbers_of_ranks_are_taken_or_refused(ranks: int, per_host: int) -> None:
    ended = run("check", str(FILE), f"--ranks={ranks}", f"--ranks-per-host={per_host}")
    fits = ranks == 2 and 1 <= per_host <= 1024  # two sequences of 8,192, cut in two; 16 of 512, 8 at a time
    assert ended.code == 0 if fits else ended.code in (0, 2)
    assert ended.code == 2 or (ranks > 0 and per_host > 0)


@fuzzed(mutants.settings_of_run(), NUMBERS, NUMBERS, st.sampled_from(["b200", "h100", "l40s", "cray"]))
def test_a_plan_is_made_or_refused(settings: dict[mutants.Path, Any], nodes: int, devices: int, device: str) -> None:
    overrides = [f"{mutants.dotted(path)}={_flow(value)}" for path, value in settings.items()]
    sizes = (f"--nodes={nodes}", f"--devices-per-node={devices}", f"--device={device}")
    ended = run("plan", str(FILE), *overrides, *sizes)
    assert ended.code == 2 or (nodes > 0 and devices > 0 and device != "cray")


@fuzzed(mutants.settings_of_run().map(lambda s: {p: v for p, v in s.items() if p[0] != "name"}), share=0.5)
def test_a_valid_config_can_be_planned_and_scaled(settings: dict[mutants.Path, Any]) -> None:
    overrides = [f"{mutants.dotted(path)}={_flow(value)}" for path, value in settings.items()]
    accepted("plan", str(FILE), *overrides, "--nodes=1", "--devices-per-node=2", codes=(0, 1))
    run("plan", str(FILE), *overrides, "--scaling")


def _flow(value: Any) -> str:
    """A value as one writes it behind `key=`."""
    return (
        yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9)
        .removesuffix("\n")
        .removesuffix("\n...")
    )
