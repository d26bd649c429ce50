"""`hyena-ds perplexity`: every table's numbers are the plain model's in float64, over windows that are laid out here again."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.baselines.test_backoff import codes
from tests.model.plain import plain_logits
from tests.predict.verbs import (
    CONFIG,
    GRIDS,
    check_kill,
    check_refused,
    complement,
    files_under,
    ids_of,
    on_ranks,
    rows_of,
    run,
    save_inputs,
    save_model,
)

CONTEXT, BLOCK, SEGMENT = 100, 24, 10
BLOCKS = 12
"""What --targets allows; they are spread over the regions evenly."""
REGIONS = (("chrA", 20, 1000, "+"), ("chrB", 5, 690, "-"))
FILES = {"context.tsv", "position.tsv", "baselines.tsv", "recall.tsv", "summary.json", "perplexity.png"}
Costs = defaultdict[Any, list[tuple[float, int]]]


def arguments(directory: Path, *more: object) -> list[object]:
    bed = directory / "regions.bed"
    bed.write_text("".join(f"{contig}\t{start}\t{end}\tx\t0\t{strand}\n" for contig, start, end, strand in REGIONS))
    settings = {"context": CONTEXT, "block": BLOCK, "segment": SEGMENT, "targets": BLOCKS * BLOCK + 3, "regions": bed}
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    return ["perplexity", directory / "weights.safetensors", directory / "genome.fa", *words, *more]


class ByHand:
    """Losses of windows under the plain model in float64, and the blocks of targets of the regions above."""

    def __init__(self, model: torch.nn.Module, sequences: dict[str, str]):
        self._parameters = {name: parameter.double() for name, parameter in model.named_parameters()}
        pieces = [(sequences[contig][start:end].upper(), strand) for contig, start, end, strand in REGIONS]
        self.texts = [text if strand == "+" else complement(text) for text, strand in pieces]
        places = [
            (number, first)
            for number, text in enumerate(self.texts)
            for first in range(CONTEXT, len(text) - BLOCK + 1, BLOCK)
        ]
        self.blocks = [places[(2 * number + 1) * len(places) // (2 * BLOCKS)] for number in range(BLOCKS)]

    def losses(self, letters: str) -> list[float | None]:
        """The loss of each letter; None for the first, and for what is no base."""
        ids = ids_of(letters)
        log_p = torch.log_softmax(plain_logits(self._parameters, CONFIG, ids[:, :-1]), -1)[0].detach()
        own = (-log_p.gather(1, ids[0, 1:, None])[:, 0]).tolist()
        return [None, *(loss if letter in "ACGT" else None for loss, letter in zip(own, letters[1:], strict=True))]


def summed(losses: list[float | None]) -> tuple[float, int]:
    known = [loss for loss in losses if loss is not None]
    return sum(known), len(known)


def check(row: dict[str, str], blocks: list[tuple[float, int]], *names: str) -> None:
    """Compare columns of nats, bits and perplexity, and their errors, with sums of blocks."""
    total, count = (sum(each) for each in zip(*blocks, strict=True))
    mean = total / count
    there = [(loss, targets) for loss, targets in blocks if targets]
    spread = sum((loss - mean * targets) ** 2 for loss, targets in there)
    error = math.sqrt(len(there) / (len(there) - 1) * spread) / count
    values = {
        "nats": (mean, error),
        "bits_per_base": (mean / math.log(2), error / math.log(2)),
        "perplexity": (math.exp(mean), math.exp(mean) * error),
    }
    for name in names or values:
        wanted, its_error = values.get(name, values["bits_per_base"])
        assert float(row[name]) == pytest.approx(wanted, rel=2e-5, abs=2e-6)
        assert float(row[f"{name}_error"]) == pytest.approx(its_error, rel=1e-3, abs=2e-6)
    assert int(row["targets"]) == count


def test_tables_are_those_of_the_plain_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, model, _, sequences = save_inputs(tmp_path)
    out = tmp_path / "out"
    assert run(*arguments(tmp_path, "--output", out, "--json", tmp_path / "s.json")) == 0
    assert {file.name for file in out.iterdir()} == FILES and not (tmp_path / "out.parts").exists()
    hand = ByHand(model, sequences)

    contexts: Costs = defaultdict(list)
    positions: defaultdict[int, Costs] = defaultdict(lambda: defaultdict(list))
    for number, (region, first) in enumerate(hand.blocks):
        text = hand.texts[region]
        for context in (1, 2, 4, 8, 16, 32, 64, CONTEXT):
            step = min(BLOCK, max(1, context // 4))
            losses: list[float | None] = []
            for start in range(first, first + BLOCK, step):
                end = min(start + step, first + BLOCK)
                window = hand.losses(text[end - 1 - context : end])
                losses += window[start - end :]
                if context == CONTEXT:
                    for before, loss in enumerate(window):
                        if loss is not None:
                            top = next(power for power in (1, 2, 4, 8, 16, 32, 64, 128) if before <= power)
                            positions[top][number].append((loss, 1))
            contexts[context].append(summed(losses))
    rows = rows_of(out / "context.tsv")
    assert [int(row["context"]) for row in rows] == list(contexts)
    assert len({row["targets"] for row in rows}) == 1 and int(rows[0]["targets"]) < BLOCKS * BLOCK
    for row, blocks in zip(rows, contexts.values(), strict=True):
        check(row, blocks)
        more = [(a - b, n) for (a, n), (b, _) in zip(blocks, contexts[CONTEXT], strict=True)]
        check(row, more, "above_longest_bits")
    assert [float(row["mean_before"]) for row in rows[:3]] == [1, 2, 4]
    rows = rows_of(out / "position.tsv")
    assert [(row["first"], row["last"]) for row in rows] == [
        (str(first), str(last))
        for first, last in ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 64), (65, 100))
    ]
    for row, by_block in zip(rows, (positions[top] for top in sorted(positions)), strict=True):
        check(row, [(sum(loss for loss, _ in each), len(each)) for each in by_block.values()])

    rows = rows_of(out / "recall.tsv")
    assert [int(row["gap"]) for row in rows] == [1, 2, 4, 8, 16, 32, 64, CONTEXT - 2 * SEGMENT + 1]
    for row in rows:
        gap = int(row["gap"])
        alone, repeated = [], []
        for region, first in hand.blocks:
            text = hand.texts[region]
            segment, between = text[first : first + SEGMENT], text[first - gap : first]
            before = text[first - gap - SEGMENT : first - gap]
            alone.append(summed(hand.losses(before + between + segment)[-SEGMENT:]))
            repeated.append(summed(hand.losses(segment + between + segment)[-SEGMENT:]))
        check(row, alone, "alone_bits")
        check(row, repeated, "repeated_bits")
        check(row, [(a - r, n) for (a, n), (r, _) in zip(alone, repeated, strict=True)], "saved_bits")

    rows = rows_of(out / "baselines.tsv")
    assert [row["baseline"] for row in rows] == [
        "model",
        *(f"Markov {order}" for order in range(13)),
        "copy 16",
        "LZMA 9e",
    ]
    assert {row["targets"] for row in rows} == {str(contexts[CONTEXT] and sum(n for _, n in contexts[CONTEXT]))}
    check(rows[0], contexts[CONTEXT])
    assert "the Markov models learn online" in capfd.readouterr().err
    summary = json.loads((out / "summary.json").read_text())
    assert summary["held_out"]["verdict"] == "unknown" and "weights on their own" in summary["held_out"]["why"]
    best = min(rows_of(out / "context.tsv"), key=lambda row: float(row["nats"]))
    assert summary["best_context"] == int(best["context"])
    assert summary["best_context_bits_per_base"] == pytest.approx(float(best["bits_per_base"]))
    assert summary["bits_per_base"] == pytest.approx(float(rows[0]["bits_per_base"]))
    assert json.loads((tmp_path / "s.json").read_text()).items() >= summary.items()
    assert (out / "perplexity.png").read_bytes().startswith(b"\x89PNG")


def test_baselines_learn_from_the_training_regions_and_are_scored_on_the_same_targets(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from hyena_ds.baselines.backoff import Trained

    _, model, _, sequences = save_inputs(tmp_path)
    bed = tmp_path / "train.bed"
    bed.write_text("chrA\t0\t600\nchrA\t1000\t1500\n")
    out = tmp_path / "out"
    more = ("--train", tmp_path / "genome.fa", "--train-regions", bed, "--output", out)
    assert run(*arguments(tmp_path, *more)) == 0
    rows = rows_of(out / "baselines.tsv")
    pieces = [codes(sequences["chrA"][start:end]) for start, end in ((0, 600), (1000, 1500))]
    trained = Trained.on(pieces, 1100, 12)
    hand = ByHand(model, sequences)
    losses: list[np.ndarray] = []
    for region, first in hand.blocks:
        losses.append(trained.losses(codes(hand.texts[region][first - CONTEXT : first + BLOCK]))[:, CONTEXT:])
    for order in range(13):
        blocks = [(float(np.nansum(own[order])), int(np.count_nonzero(~np.isnan(own[order])))) for own in losses]
        check(rows[1 + order], blocks)
        assert float(rows[1 + order]["backoff_weight"]) == trained.weights[order]
        assert rows[1 + order]["learnt_from"] == "training bases"
    seen = sum(20 + first < 600 for region, first in hand.blocks if region == 0) * BLOCK
    summary = json.loads((out / "summary.json").read_text())
    assert 0 < summary["held_out"]["baselines_saw"] <= seen
    assert (
        f"the Markov models learn {summary['held_out']['baselines_saw']} of the target bases" in capfd.readouterr().err
    )


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "sequence_parallel"), GRIDS)
def test_ranks_and_grids_change_nothing(tmp_path: Path, ranks: int, sequence_parallel: int) -> None:
    save_inputs(tmp_path)
    assert run(*arguments(tmp_path, "--output", tmp_path / "one")) == 0
    on_ranks(ranks, sequence_parallel, *arguments(tmp_path, "--output", tmp_path / "many", "--batch", 5))
    for name in ("context", "position", "baselines", "recall"):
        one, many = (rows_of(tmp_path / directory / f"{name}.tsv") for directory in ("one", "many"))
        for a, b in zip(one, many, strict=True):
            for column, value in a.items():
                if column in ("baseline", "learnt_from") or not value:
                    assert b[column] == value
                else:
                    assert float(b[column]) == pytest.approx(float(value), rel=1e-4, abs=1e-5), (name, column)


@pytest.mark.slow
def test_what_was_killed_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    save_model(tmp_path)
    generator = np.random.default_rng(3)
    (tmp_path / "genome.fa").write_text(">long\n" + "".join(generator.choice(list("ACGT"), 60_000)) + "\n")
    out = tmp_path / "out"
    words = ["perplexity", tmp_path / "weights.safetensors", tmp_path / "genome.fa", "--output", out]
    words += ["--context", 64, "--block", 32, "--targets", 30_000]
    assert set(check_kill(out, *words)) == FILES


def test_a_whole_output_stays_and_what_is_not_ours_is_never_replaced(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_inputs(tmp_path)
    out = tmp_path / "out"
    words = arguments(tmp_path, "--output", out)
    assert run(*words) == 0
    written = files_under(out)
    assert run(*words) == 2
    assert "out: exists already; name another output, or begin again with --overwrite" in capfd.readouterr().err
    assert run(*words, "--resume") == 0
    assert run(*words, "--overwrite") == 0
    assert files_under(out) == written
    (out / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for output, found in ((out, "thesis.txt"), (tmp_path / "file", "a file")):
        assert run(*arguments(tmp_path, "--output", output, "--overwrite")) == 2
        assert f"found {found}, wanted a new directory, or one of an earlier perplexity" in capfd.readouterr().err
    assert files_under(out) == written | {"thesis.txt": b"mine"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--context", "600"], "--context: found 600, wanted 4 to the model's maximum_context 512"),
        (["--context", "3"], "--context: found 3, wanted 4 to the model's maximum_context 512"),
        (
            ["--context", "512", "--block", "512"],
            "found at most 980 bases in one, wanted 1,024: a block of 512 targets",
        ),
        (["--segment", "25"], "--segment: found 25, wanted at most 24: a block, and half a context"),
        (["--targets", "0"], "--targets: found 0, wanted 1 to"),
        (["--block", "0"], "--block: found 0, wanted 1 to"),
        (["--train-regions", "n.bed"], "--train-regions: found no --train, wanted the FASTA that they are regions of"),
        (["--regions", "n.bed"], "regions: found no A, C, G or T among 4 blocks of targets; give other regions"),
        (["--regions", "no.bed"], "no.bed: no such BED; name an existing BED"),
        (["--train", "no.fa"], "no.fa: no such file"),
        (["--train", "genome.fa", "--train-regions", "n.bed"], "training bases: found no A, C, G or T in the last 4"),
        (["--output", "."], "--output: found '.', wanted the name of a directory to make"),
        (["--output", "nowhere/out"], "nowhere: no such directory"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_inputs(tmp_path)
    Path("n.bed").write_text("chrA\t300\t340\n")
    small = ["--context", "8", "--block", "8", "--segment", "2"] if "n.bed" in more and "--regions" in more else []
    check_refused(
        capfd,
        said,
        *arguments(tmp_path, "--output", "out", *small, *more),
        after_all_parts=said.startswith("training bases"),
    )


@pytest.mark.parametrize(("package", "extra"), [("matplotlib", "plots"), ("pyarrow", "predict")])
def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], package: str, extra: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    save_inputs(tmp_path)
    assert run(*arguments(tmp_path, "--output", tmp_path / "out")) == 2
    assert f"{package} is not installed; pip install 'hyena-ds[{extra}]'" in capfd.readouterr().err
