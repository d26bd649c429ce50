"""`hyena-ds generate`: bases that full recomputation would draw too, the same for any batch and grid, or one sentence."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hyena_ds.cli import main
from hyena_ds.genome.tokenizer import encode
from hyena_ds.predict import generation
from hyena_ds.predict.decoder import Decoder
from hyena_ds.predict.sampling import Sampling
from hyena_ds.weights.published import write_weights
from tests.distributed.work import Grid, lively_model, run_config
from tests.model.plain import plain_logits
from tests.predict.verbs import GRIDS, command

CONFIG = replace(run_config(Grid(1, 1)).model, maximum_context=512)
PROMPTS = {"a": "ACGTN", "b": "g", "c": "TTGACA" * 20, "d": "acgtACGTNN", "e": "CC"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "weights.safetensors"
    write_weights(path, CONFIG, dict(lively_model(CONFIG).named_parameters()))
    return path


@pytest.fixture
def not_finite(tmp_path: Path) -> Path:
    """Weights whose logits are no numbers."""
    model, path = lively_model(CONFIG), tmp_path / "wrong.safetensors"
    with torch.no_grad():
        model.backbone.final_norm.bias[0] = math.nan
    write_weights(path, CONFIG, dict(model.named_parameters()))
    return path


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.fa"
    path.write_text("".join(f">{name} more words\n{bases}\n" for name, bases in PROMPTS.items()))
    return path


def records(text: str) -> dict[str, str]:
    """Name -> bases of a FASTA."""
    found = {}
    for record in text.split(">")[1:]:
        header, *lines = record.splitlines()
        assert all(len(line) == 60 for line in lines[:-1]) and 0 < len(lines[-1]) <= 60
        found[header.split()[0]] = "".join(lines)
    return found


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["generate", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    try:
        code = main(["generate", *map(str, arguments)])
    except SystemExit as ended:  # argparse
        code = ended.code
    said = capsys.readouterr()
    assert code == 2 and not said.out and "Traceback" not in said.err
    return said.err.strip().splitlines()[-1]


def recomputed(prompt: str, tokens: int, sampling: Sampling, number: int) -> tuple[str, int]:
    """The bases by a whole forward pass of the plain model in float64 for each; how often another column was likelier."""
    parameters = dict(lively_model(CONFIG).double().named_parameters())
    text, others = prompt.upper(), 0
    for uniform in sampling.uniforms(number, tokens):
        ids: Tensor = torch.from_numpy(encode(text)).long().unsqueeze(0)
        logits_V = plain_logits(parameters, CONFIG, ids)[0, -1].detach()
        others += int(logits_V.argmax()) not in range(7, 11)
        if sampling.temperature == 0:
            text += "ACGT"[int(logits_V[7:11].argmax())]
            continue
        p = (logits_V[7:11] / sampling.temperature).softmax(0)
        by_size = sorted(range(4), key=lambda base: -float(p[base]))
        passed = torch.cumsum(p[by_size], 0) > uniform
        text += "ACGT"[by_size[int(passed.int().argmax())]]
    return text[len(prompt) :], others


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bases_are_those_that_full_recomputation_draws(
    temperature: float, weights: Path, fasta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--prompt-fasta", fasta, "--tokens", 70, "--temperature", temperature, "--seed", 9)
    found = records(printed(capsys, weights, *arguments))
    assert list(found) == list(PROMPTS)
    masked = 0
    for number, (name, prompt) in enumerate(PROMPTS.items()):
        wanted, others = recomputed(prompt, 70, Sampling(temperature, seed=9), number)
        assert found[name] == wanted
        masked += others
    assert masked, "no column but those of bases was ever the likeliest, so nothing was masked"


def test_the_same_bytes_for_any_batch_to_a_file_or_standard_output(
    weights: Path, fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (weights, "--prompt-fasta", fasta, "--tokens", 130, "--seed", 4)
    wanted = printed(capsys, *arguments)
    for batch in (1, 2, 5):
        assert printed(capsys, *arguments, "--batch", batch) == wanted
    assert printed(capsys, *arguments, "--output", tmp_path / "out.fa") == ""
    assert (tmp_path / "out.fa").read_text() == wanted
    (tmp_path / "packed.fa.gz").write_bytes(gzip.compress(fasta.read_bytes()))
    assert printed(capsys, weights, "--prompt-fasta", tmp_path / "packed.fa.gz", *arguments[3:]) == wanted


def test_a_batch_whose_states_would_take_too_much_memory_is_made_smaller(
    weights: Path, fasta: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (weights, "--prompt-fasta", fasta, "--tokens", 30)
    wanted, sizes, original = printed(capsys, *arguments), [], Decoder.start
    monkeypatch.setattr(
        Decoder, "start", lambda self, prefixes: sizes.append(len(prefixes)) or original(self, prefixes)
    )
    for states, batches in ((0.5, [1, 1, 1, 1, 1]), (2.5, [2, 2, 1])):
        monkeypatch.setattr(generation, "_MOST_BYTES", int(states * 2 * 16 * 30 * 4))
        assert printed(capsys, *arguments) == wanted
        assert sizes == batches
        sizes.clear()


def test_a_seed_reproduces_and_another_draws_otherwise_and_more_bases_begin_with_the_same(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def bases(tokens: int, *more: object) -> str:
        return records(printed(capsys, weights, "--prompt", "ACGT", "--tokens", tokens, *more))["prompt"]

    first = bases(100, "--seed", 1)
    assert bases(100, "--seed", 1) == first and bases(200, "--seed", 1)[:100] == first
    assert bases(100, "--seed", 2) != first
    assert bases(100, "--top-k", 1, "--seed", 2) == bases(100, "--temperature", 0)


def test_two_records_with_one_prompt_are_two_draws(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "twice.fa").write_text(">a\nACGT\n>b\nACGT\n")
    found = records(printed(capsys, weights, "--prompt-fasta", tmp_path / "twice.fa", "--tokens", 100))
    assert found["a"] != found["b"]


def test_header_and_report_say_the_model_the_seed_and_the_settings(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("--seed", 7, "--temperature", 0.5, "--top-k", 3, "--top-p", 0.9, "--json", tmp_path / "report.json")
    text = printed(capsys, weights, "--prompt", "ACGTN", "--tokens", 5, *settings)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert text.splitlines()[0] == (
        f">prompt prompt_bases=5 generated_bases=5 model=sha256:{digest[:16]} temperature=0.5 top_k=3 top_p=0.9 seed=7 "
        "precision=float32 record=0"
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["model"], report["context"]) == (digest, 512)
    assert (report["top_p"], report["seed"], report["ranks"], report["tokens"]) == (0.9, 7, 1, 5)
    assert report["records"] == [{"name": "prompt", "prompt_bases": 5, "generated_bases": 5}]
    assert report["seconds"] > 0


def test_prompt_and_bases_may_fill_the_maximum_context(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(records(printed(capsys, weights, "--prompt", "ACGT", "--tokens", 508))["prompt"]) == 508
    said = refused(capsys, weights, "--prompt", "ACGT", "--tokens", 509)
    assert "prompt 'prompt': found a prompt of 4 bases and 509 to generate, wanted at most 512 together" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompt", "", "--tokens", "5"], "--prompt: found no bases, wanted a prompt of one base or more"),
        (["--prompt", "ACXG", "--tokens", "5"], "--prompt: found X at position 3, wanted the letters A, C, G, T and N"),
        (["--prompt", "ACГ", "--tokens", "5"], "--prompt: found byte 208 at position 3"),
        (["--prompt", "ACR", "--tokens", "5"], "found R at position 3"),
        (["--prompt", "A", "--tokens", "0"], "--tokens: found 0, wanted 1 to"),
        (["--prompt", "A", "--tokens", "many"], "--tokens: invalid"),
        (["--prompt", "A", "--tokens", "5", "--top-p", "1.5"], "--top-p: found 1.5"),
        (["--prompt", "A", "--tokens", "5", "--top-k", "9"], "--top-k: found 9"),
        (["--prompt", "A", "--tokens", "5", "--temperature", "-1"], "--temperature: found -1.0"),
        (["--prompt", "A", "--tokens", "5", "--batch", "0"], "--batch: found 0, wanted 1 to"),
        (["--prompt", "A", "--tokens", "5", "--ranks", "0"], "--ranks: found 0, wanted 1 to"),
        (
            ["--prompt", "A", "--tokens", "5", "--sequence-parallel", "2"],
            "--sequence-parallel: found 2, wanted a divisor of --ranks 1",
        ),
        (
            ["--prompt", "A", "--tokens", "5", "--ranks", "3", "--sequence-parallel", "2"],
            "--sequence-parallel: found 2, wanted a divisor of --ranks 3",
        ),
        (
            ["--prompt", "A", "--tokens", "5", "--output", "no/where.fa"],
            "--output: no: no such directory; make it first",
        ),
        (
            ["--prompt", "A", "--tokens", "5", "--json", "no/where.json"],
            "--json: no: no such directory; make it first",
        ),
        (["--prompt", "A", "--tokens", "5", "--output", "x.gz"], "wanted a name that ends in .fa or .fasta or .fna"),
        (["--prompt", "A", "--tokens", "5", "--context", "513"], "--context: found 513, wanted 1 to the model's"),
        (["--prompt", "A", "--tokens", "5", "--context", "5"], "wanted at most 5 together, --context; shorten"),
        (["--prompt", "A", "--prompt-fasta", "x.fa", "--tokens", "5"], "not allowed with argument"),
        (["--tokens", "5"], "one of the arguments --prompt --prompt-fasta is required"),
        (["--prompt-fasta", "missing.fa", "--tokens", "5"], "missing.fa: no such file"),
    ],
)
def test_a_wrong_argument_is_one_sentence(
    arguments: list[str], said: str, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, weights, *arguments)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "found an empty file"),
        (b"ACGT\n", "found no '>' header"),
        (b">a\nACGT\n>b\n>c\nAC\n", "record 'b': found no bases"),
        (b">a\nACGT\n>b\nACGTRA\n", "record 'b': found R at position 5"),
        (b">a\nAC\n>a\nAC\n", "found the record name 'a' twice"),
        (b"\x1f\x8bnothing", "the gzip stream is cut short or damaged"),
    ],
)
def test_a_wrong_fasta_is_one_sentence(
    content: bytes, said: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wrong.fa").write_bytes(content)
    output = tmp_path / "out.fa"
    assert said in refused(capsys, weights, "--prompt-fasta", tmp_path / "wrong.fa", "--tokens", 5, "--output", output)
    assert not output.exists()


def test_an_output_that_is_there_stays_unless_it_may_be_written_over(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.fa"
    output.write_text("mine")
    words = (weights, "--prompt", "ACGT", "--tokens", 5, "--output", output)
    assert "out.fa: exists already; name another output, or begin again with --overwrite" in refused(capsys, *words)
    assert printed(capsys, *words, "--resume") == "" and output.read_text() == "mine"
    printed(capsys, *words, "--overwrite")
    assert list(records(output.read_text())) == ["prompt"]


def test_a_model_that_is_not_there_and_one_that_is_not_finite_are_named(
    not_finite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.fa"
    arguments = ("--prompt", "ACGT", "--tokens", 5, "--output", output)
    assert "nowhere: no such model; name a run" in refused(capsys, tmp_path / "nowhere", *arguments)
    assert "model: its logits are not finite at base 1 after the prompt (of prompt)" in refused(
        capsys, not_finite, *arguments
    )
    assert not output.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "sequence_parallel"), GRIDS)
def test_ranks_write_what_one_process_writes(
    ranks: int, sequence_parallel: int, weights: Path, fasta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (str(weights), "--prompt-fasta", str(fasta), "--tokens", "100", "--seed", "2", "--batch", "1")
    wanted = printed(capsys, *arguments)
    done = command("generate", *arguments, "--ranks", ranks, "--sequence-parallel", sequence_parallel)
    assert done.returncode == 0, done.stderr
    assert done.stdout == wanted


def refused_by_ranks(weights: Path, output: Path, tokens: int) -> str:
    """What one prompt on two ranks ends with; one of them has nothing to decode."""
    arguments = ("--prompt", "ACGT", "--tokens", tokens, "--output", output, "--ranks", 2)
    done = command("generate", weights, *arguments)
    assert done.returncode == 2 and not output.exists()
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.slow
def test_what_ranks_refuse_is_said_once(weights: Path, tmp_path: Path) -> None:
    said = refused_by_ranks(weights, tmp_path / "out.fa", 509)
    assert said.count("found a prompt of 4 bases and 509 to generate") == 1


@pytest.mark.slow
def test_a_rank_that_fails_alone_says_why_and_the_others_end(not_finite: Path, tmp_path: Path) -> None:
    said = refused_by_ranks(not_finite, tmp_path / "out.fa", 5)
    assert said.count("model: its logits are not finite at base 1") == 1
    assert "rank 1: another rank has ended" in said
