"""A suite: every shipped one parses, names what it needs, and says of each published score whether it compares."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from hyena_ds.cli import _parser
from hyena_ds.config.loading import dump_yaml, parse_yaml
from hyena_ds.errors import UserError
from hyena_ds.suites.schema import SuiteConfig, load_suite
from tests.paths import ROOT

SHIPPED = sorted((ROOT / "configs" / "suites").glob("*.yaml"))
TASK = {"name": "tf/0", "kind": "classification", "metric": "mcc", "train": "a/train.csv", "test": "a/test.csv"}
SUITE: dict[str, Any] = {
    "name": "mine",
    "data": "${MINE}",
    "models": {
        "pretrained": {"initialize_from": "weights"},
        "scratch": {"initialize_from": "random", "like": "pretrained"},
    },
    "tasks": [TASK],
    "settings": {"a": "1", "b": "1", "c": "1"},
}


def parse(**changes: Any) -> SuiteConfig:
    return parse_yaml(yaml.safe_dump({**SUITE, **changes}, sort_keys=False), "suite.yaml", SuiteConfig)


def task(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**TASK, **changes}.items() if value is not None}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_suite_parses_and_says_its_protocol_and_its_command(path: Path) -> None:
    suite = load_suite(path)
    assert suite.name == path.stem and suite.protocol and suite.cluster and path.name in suite.cluster
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert parse_yaml(dump_yaml(suite), "again", SuiteConfig) == suite
    for each in suite.tasks:
        if each.recipe is not None:  # a command that the recipe's own parser takes
            words = ["prep", "task", *shlex.split(each.recipe.replace("{data}", "data")), "OUT"]
            assert _parser().parse_args(words).out == "OUT"
        assert len(list(suite.rows_of(each))) >= 2
        assert all(0 < score.score <= 1 for score in suite.published_of(each))
    names = {name for table in suite.published for name in table.scores}
    assert all("Table" in table.source or "table" in table.source for table in suite.published), names


def test_the_two_leaking_sets_are_marked_and_independent_runs_alone_compare() -> None:
    suite = load_suite(ROOT / "configs" / "suites" / "genomic_benchmarks.yaml")
    assert [each.name for each in suite.tasks if each.leaks] == ["human_enhancers_ensembl", "human_nontata_promoters"]
    (cohn,) = [each for each in suite.tasks if each.name == "human_enhancers_cohn"]
    found = {score.table.model: score for score in suite.published_of(cohn)}
    assert found["HyenaDNA"].score == 0.742 and "test set" in str(found["HyenaDNA"].why_not_comparable)
    (again,) = [score for score in found.values() if score.table.independent]
    assert (again.score, again.spread, again.why_not_comparable) == (0.729, 0.014, None)


def test_settings_of_a_row_go_before_those_of_the_task_and_of_the_suite() -> None:
    models = {"pretrained": {"initialize_from": "weights", "settings": {"a": "3"}}}
    suite = parse(models=models, tasks=[task(settings={"a": "2", "b": "2"})])
    assert suite.settings_of("pretrained", suite.tasks[0]) == {"a": "3", "b": "2", "c": "1"}


def test_rows_weights_files_and_recipe_of_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "/data")
    made = {
        "train": None,
        "test": None,
        "name": "splice/600",
        "recipe": "splice --exons '{data}/my exons.tsv' --window 600",
    }
    tasks = [
        task(valid="a/dev.csv", without={"scratch": "too slow"}),
        task(name="long", weights={"pretrained": "longer"}),
        task(**made),
    ]
    suite = parse(tasks=tasks)
    first, long, splice = suite.tasks
    assert [row for row, _ in suite.rows_of(first)] == ["pretrained"]
    assert [row for row, _ in suite.rows_of(long)] == ["pretrained", "scratch"]
    assert suite.weights_of("scratch", first) == "weights" and suite.weights_of("scratch", long) == "longer"
    assert suite.files_of(first) == {
        split: Path(f"/data/a/{name}.csv")
        for split, name in zip(("train", "test", "valid"), ("train", "test", "dev"), strict=True)
    }
    assert (
        set(suite.files_of(long)) == {"train", "test"} and long.valid_fraction == 0.1 and first.valid_fraction is None
    )
    assert suite.recipe_of(first) == []
    assert suite.recipe_of(splice) == [
        "splice",
        "--exons",
        "/data/my exons.tsv",
        "--window",
        "600",
        "runs/mine/data/splice/600",
    ]
    assert suite.files_of(splice)["valid"] == Path("runs/mine/data/splice/600/valid.csv.gz")


def test_a_published_score_says_why_it_does_not_compare() -> None:
    table = {"model": "M", "source": "a table", "scores": {"tf/0": 0.5}}
    other = {**table, "metrics": {"tf/0": "auroc"}, "differs": "another split"}
    suite = parse(tasks=[task(rows=4000, differs="a subset")], published=[table, other])
    plain, differs = suite.published_of(suite.tasks[0])
    assert plain.why_not_comparable == "we train on 4,000 rows; a subset"
    assert differs.why_not_comparable == "it is auroc; we train on 4,000 rows; a subset; another split"
    assert parse(published=[table]).published_of(parse().tasks[0])[0].why_not_comparable is None


def test_a_group_of_outputs_has_published_scores_of_its_own() -> None:
    table = {"model": "M", "source": "a table", "scores": {"tf/0/DHS": 0.5}}
    suite = parse(tasks=[task(kind="multilabel", groups={"DHS": "DHS_"})], published=[table])
    assert suite.published_of(suite.tasks[0]) == []
    (found,) = suite.published_of(suite.tasks[0], "DHS")
    assert (found.score, found.why_not_comparable) == (0.5, None)


def test_data_in_a_variable_that_is_not_set_is_said_and_may_be_overridden(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MINE", raising=False)
    with pytest.raises(UserError, match=r"MINE\}: the variable MINE is not set; set it to a directory, or give data="):
        parse().files_of(parse().tasks[0])
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(SUITE))
    suite = load_suite(tmp_path / "suite.yaml", ["data=/else", "seeds=[5]"])
    assert suite.files_of(suite.tasks[0])["train"] == Path("/else/a/train.csv") and suite.seeds == (5,)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": [task(), task()]}, "tasks: found the name 'tf/0' twice, wanted it once"),
        ({"tasks": []}, "tasks: found none, wanted at least one of the tasks"),
        ({"tasks": [task(name="../a")]}, "tasks: found the name '../a', wanted letters, digits"),
        ({"tasks": [task(train=None)]}, "tasks.0.train: wanted train and test, or a recipe that makes them"),
        ({"tasks": [task(recipe="splice")]}, "tasks.0.recipe: found files beside a recipe, which makes them"),
        (
            {"tasks": [task(train=None, test=None, recipe="a 'b")]},
            "tasks.0.recipe: found no closing quotation, wanted words",
        ),
        ({"tasks": [task(train=None, test=None, recipe="")]}, "tasks.0.recipe: found no word"),
        ({"tasks": [task(valid="1.5")]}, "tasks.0.valid: found 1.5, wanted a file, or a share below 1"),
        ({"tasks": [task(rows=0)]}, "tasks.0.rows: found 0, wanted at least 1"),
        ({"tasks": [task(metric="f2")]}, "tasks.0.metric: found 'f2', wanted accuracy or mcc"),
        ({"tasks": [task(without={"x": "slow"})]}, "tasks: tf/0: found the row x, wanted one of pretrained, scratch"),
        ({"tasks": [task(groups={"DHS": "DHS"})]}, "tasks: tf/0: found groups, wanted them of multilabel alone"),
        ({"models": {}}, "models: found none"),
        ({"models": {"a": {"initialize_from": "random"}}}, "models.a.like: wanted it with initialize_from: random"),
        ({"models": {"a": {"initialize_from": "random", "like": "b"}}}, "models: a: found like: b, wanted a row"),
        ({"models": {"a": {"initialize_from": "w", "tasks": ["x"]}}}, "models: a: found the task x"),
        ({"name": "a/b"}, "name: found 'a/b', wanted a plain directory name"),
        ({"seeds": []}, "seeds: found none"),
        ({"seeds": [1, 1]}, "seeds: found a seed twice"),
        ({"seeds": [-1]}, "seeds: found -1, wanted 0 to"),
        ({"seeds": [*range(1001)]}, "seeds: found 1,001, wanted at most 1,000"),
        ({"published": [{"model": "M", "source": "s", "scores": {"x": 1}}]}, "published: M: found the task x"),
        ({"published": [{"model": "M", "source": "s", "scores": {}}]}, "published.0.scores: found none"),
        (
            {"published": [{"model": "M", "source": "s", "scores": {"tf/0": 1}, "spreads": {"x": 1}}]},
            "published.0.spreads: found one of x, which has no score",
        ),
        (
            {"published": [{"model": "M", "source": "s", "scores": {"tf/0": 1}, "spread": "sd"}]},
            "published.0.spread: wanted it with spreads",
        ),
    ],
)
def test_a_suite_that_is_wrong_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(**changes)
    assert said in str(caught.value) and str(caught.value).startswith("suite.yaml:")
