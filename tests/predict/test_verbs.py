"""What the verbs have in common: any form of a model, its shift, one line about memory before they begin, the same options."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from hyena_ds.cli import _VERBS
from hyena_ds.predict import session
from hyena_ds.predict.export import export
from hyena_ds.predict.predictor import Predictor
from tests.predict.variant_cases import ALIASES, RULE, save_vcf
from tests.predict.verbs import run, save_model

VERBS = {
    "score": (["genome.fa"], "out.tsv", "8 x 512"),
    "embed": (["genome.fa", "--regions", "some.bed"], "out.parquet", "2 x 90"),
    "variants": (["genome.fa", "in.vcf", *RULE, *ALIASES], "out.tsv", "1 x 183"),
    "generate": (["--prompt", "ACGTACGT", "--tokens", 40, "--temperature", 0], "out.fa", "1 x 8"),
    "perplexity": (["genome.fa", "--context", 64, "--block", 32, "--targets", 64], "out", "64 x 5"),
}
"""For each verb its input, its output, and its largest pass."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of models in every form, and of input for every verb; the working directory."""
    monkeypatch.chdir(tmp_path)
    weights, _ = save_model(tmp_path)
    save_vcf(tmp_path)
    Path("some.bed").write_text("chrB\t10\t90\nchrA\t100\t190\n")
    for form in ("huggingface", "published"):
        export(weights, Path(form), form)
    return tmp_path


def found(verb: str, *more: object, model: str = "weights.safetensors") -> Any:
    """What a verb computes, as numbers or letters."""
    words, output, _ = VERBS[verb]
    assert run(verb, model, *words, "--output", output, "--overwrite", "--json", "out.json", *more) == 0
    if verb == "embed":
        return np.array(pq.read_table(output)["embedding"].to_pylist())
    if verb == "generate":
        return Path(output).read_text().splitlines()[1:]
    if verb == "perplexity":
        return json.loads(Path("out.json").read_text())["nats"]
    text = Path(output).read_text().splitlines()
    return [line.split("\t") for line in text]


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_may_be_a_folder_from_elsewhere_and_its_shift_be_given(here: Path, verb: str) -> None:
    wanted = found(verb)
    for folder in ("huggingface", "published"):
        assert np.array_equal(found(verb, model=folder), wanted)
    given = json.loads(Path("out.json").read_text())["shift"]
    other = found(verb, "--shift", 0.5)
    assert (given, json.loads(Path("out.json").read_text())["shift"]) == (None, 0.5)
    if verb == "generate":
        assert " shift=0.5 " in Path("out.fa").read_text().splitlines()[0]
    else:
        assert not np.array_equal(other, wanted)


def test_a_predictor_opens_what_load_model_opens(here: Path) -> None:
    ids_BL = torch.arange(7, 11).repeat(1, 20)
    wanted, shifted = (Predictor.load("weights.safetensors", shift=shift).logits(ids_BL) for shift in (None, 0.5))
    for folder in ("huggingface", "published"):
        assert torch.equal(Predictor.load(folder).logits(ids_BL), wanted)
        assert torch.equal(Predictor.load(folder, shift=0.5).logits(ids_BL), shifted)
    assert not torch.equal(wanted, shifted)


@pytest.mark.parametrize("verb", VERBS)
def test_a_line_says_what_the_largest_pass_needs_and_far_too_much_is_refused(
    here: Path, verb: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, output, largest = VERBS[verb]
    found(verb)
    assert f"largest pass: {largest} tokens, about 0.4 GiB, of " in capfd.readouterr().err
    before = sorted(path.name for path in here.iterdir())
    monkeypatch.setattr(session, "machine_memory_gib", lambda compute: 0.25)
    assert run(verb, "weights.safetensors", *words, "--output", f"new-{output}") == 2
    said = capfd.readouterr().err
    assert f"a pass of {largest} tokens: needs about 0.4 GiB, and this machine has 0.2; take a smaller" in said
    assert sorted(path.name for path in here.iterdir()) == before


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command about a model, by its name."""
    found: dict[str, argparse.ArgumentParser] = {}
    for name, add, _ in _VERBS:
        found[name] = argparse.ArgumentParser()
        add(found[name])
        for action in found[name]._actions:
            if isinstance(action, argparse._SubParsersAction):
                found |= {f"{name} {inner}": parser for inner, parser in action.choices.items()}
                del found[name]
    return found


def test_an_option_is_the_same_in_every_verb() -> None:
    one_meaning = ("model", "shift", "context", "ranks", "sequence_parallel", "precision", "resume")
    by_name: dict[str, set[Any]] = {}
    for verb, parser in parsers().items():
        for action in parser._actions:
            about = (action.metavar, str(action.default), str(action.choices))
            if action.dest in one_meaning:
                about += (action.help,)
            if action.dest != "output" or verb in VERBS:
                by_name.setdefault(action.dest, set()).add(about)
    assert {name: about for name, about in by_name.items() if len(about) > 1} == {}
    assert set(one_meaning) < set(by_name)
