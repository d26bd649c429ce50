"""`hyena-ds score`: every value is the plain model's in float64, however the work was divided, killed and taken up again."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pybigtools
import pytest
import torch
import zarr

from hyena_ds.predict import windows
from hyena_ds.predict.windows import Region, into_batches, into_parts, windows_of
from tests.model.plain import plain_logits
from tests.predict.verbs import (
    CONFIG,
    CONTIGS,
    FULL,
    GRIDS,
    check_kill,
    check_refused,
    complement,
    ids_of,
    on_ranks,
    rows_of,
    run,
    save_inputs,
    save_model,
)

CONTEXT, STRIDE = 128, 48


def wanted_values(model: torch.nn.Module, sequence: str) -> np.ndarray:
    """Log-probability of each base of a sequence under the plain model in float64, NaN where none is to be scored."""
    parameters = {name: parameter.double() for name, parameter in model.named_parameters()}
    values = np.full(len(sequence), np.nan)
    done = min(CONTEXT, len(sequence))
    pieces = [(0, done, 0)]
    while done < len(sequence):
        last = min(done + STRIDE, len(sequence))
        pieces.append((last - CONTEXT, last, done))
        done = last
    for first, last, scored in pieces:
        if last - first < 2:
            continue
        ids = ids_of(sequence[first:last])
        log_p = torch.log_softmax(plain_logits(parameters, CONFIG, ids[:, :-1]), -1)[0].detach()
        own = log_p.gather(1, ids[0, 1:, None])[:, 0].numpy()
        for at in range(max(scored, first + 1), last):
            if sequence[at].upper() in "ACGT":
                values[at] = own[at - first - 1]
    return values


def arguments(model: Path, genome: Path, output: Path, *more: object) -> list[object]:
    return ["score", model, genome, "--output", output, "--context", CONTEXT, "--stride", STRIDE, *more]


def test_rows_are_those_of_the_plain_model_on_both_strands(tmp_path: Path) -> None:
    weights, model, genome, sequences = save_inputs(tmp_path)
    assert (
        run(*arguments(weights, genome, tmp_path / "out.tsv", "--strand", "both", "--json", tmp_path / "s.json")) == 0
    )
    rows = rows_of(tmp_path / "out.tsv")
    assert [(row["contig"], row["strand"]) for row in rows] == [(name, strand) for name in CONTIGS for strand in "+-"]
    total = 0
    for row in rows:
        sequence = sequences[row["contig"]]
        values = wanted_values(model, sequence if row["strand"] == "+" else complement(sequence))
        scored = int(np.count_nonzero(~np.isnan(values)))
        assert (int(row["start"]), int(row["end"]), int(row["scored"])) == (0, len(sequence), scored)
        assert float(row["log_likelihood"]) == pytest.approx(np.nansum(values), rel=1e-5)
        bits = -np.nansum(values) / scored / math.log(2) if scored else math.nan
        assert float(row["bits_per_base"]) == pytest.approx(bits, rel=1e-5, nan_ok=True)
        total += scored
    summary = json.loads((tmp_path / "s.json").read_text())
    assert (summary["rows"], summary["scored"]) == (6, total)
    assert summary["scored"] + summary["ignored"] == 2 * sum(CONTIGS.values())
    assert not (tmp_path / "out.tsv.parts").exists()


def test_regions_have_names_and_strands_of_their_own(tmp_path: Path) -> None:
    weights, model, genome, sequences = save_inputs(tmp_path, packed=True)
    bed = tmp_path / "regions.bed"
    bed.write_text("chrB\t10\t90\tfirst\t0\t-\n# a comment\nchrA\t290\t345\tn_inside\t0\t.\nchrB\t10\t11\n")
    assert run(*arguments(weights, genome, tmp_path / "out.parquet", "--regions", bed)) == 0
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(row["name"], row["strand"]) for row in rows] == [("first", "-"), ("n_inside", "+"), ("", "+")]
    for row, sequence in zip(
        rows, (complement(sequences["chrB"][10:90]), sequences["chrA"][290:345], sequences["chrB"][10]), strict=True
    ):
        values = wanted_values(model, sequence)
        assert row["scored"] == np.count_nonzero(~np.isnan(values))
        assert row["log_likelihood"] == pytest.approx(np.nansum(values), rel=1e-5)


@pytest.mark.parametrize("suffix", [".zarr", ".bw", ".parquet"])
@pytest.mark.parametrize("strand", ["+", "-", "mean"])
def test_every_base_has_its_value_at_its_place(tmp_path: Path, suffix: str, strand: str) -> None:
    weights, model, genome, sequences = save_inputs(tmp_path)
    bed = tmp_path / "regions.bed"
    bed.write_text("chrB\t100\t400\nchrA\t250\t600\n")
    per_base = tmp_path / f"bases{suffix}"
    more = ("--strand", strand, "--regions", bed, "--per-base", per_base)
    assert run(*arguments(weights, genome, tmp_path / "out.tsv", *more)) == 0
    for contig, start, end in (("chrB", 100, 400), ("chrA", 250, 600)):
        piece = sequences[contig][start:end]
        both = [wanted_values(model, piece), wanted_values(model, complement(piece))[::-1]]
        mean = np.where(np.isnan(both[0]), both[1], np.where(np.isnan(both[1]), both[0], (both[0] + both[1]) / 2))
        wanted = {"+": both[0], "-": both[1], "mean": mean}[strand]
        if suffix == ".zarr":
            name = {"+": "forward", "-": "reverse", "mean": "mean"}[strand]
            found = zarr.open_group(per_base, mode="r")[f"{name}/{contig}"][start:end]
        elif suffix == ".bw":
            found = pybigtools.open(str(per_base)).values(contig, start, end, missing=np.nan)
        else:
            table = pq.read_table(per_base).to_pandas().query("contig == @contig")
            assert set(table.strand) == {strand if strand != "mean" else "."}
            found = np.full(end - start, np.nan)
            found[table.position - start] = table.log_probability
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    rows = rows_of(tmp_path / "out.tsv")
    if strand == "mean":
        piece = sequences["chrB"][100:400]
        mean = (np.nansum(wanted_values(model, piece)) + np.nansum(wanted_values(model, complement(piece)))) / 2
        assert float(rows[0]["log_likelihood"]) == pytest.approx(mean, rel=1e-5)
        assert (rows[0]["strand"], float(rows[0]["scored"])) == (".", 299)


def test_the_batch_changes_nothing(tmp_path: Path) -> None:
    weights, _, genome, _ = save_inputs(tmp_path)
    for batch in (1, 3):
        assert run(*arguments(weights, genome, tmp_path / f"{batch}.tsv", "--batch", batch)) == 0
    one, three = (rows_of(tmp_path / f"{batch}.tsv") for batch in (1, 3))
    for a, b in zip(one, three, strict=True):
        assert float(a["log_likelihood"]) == pytest.approx(float(b["log_likelihood"]), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "sequence_parallel"), GRIDS)
def test_ranks_and_grids_change_nothing(tmp_path: Path, ranks: int, sequence_parallel: int) -> None:
    weights, _, genome, _ = save_inputs(tmp_path)
    assert run(*arguments(weights, genome, tmp_path / "one.parquet", "--strand", "both")) == 0
    on_ranks(ranks, sequence_parallel, *arguments(weights, genome, tmp_path / "many.parquet", "--strand", "both"))
    one, many = (pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in ("one", "many"))
    for a, b in zip(one, many, strict=True):
        assert b["log_likelihood"] == pytest.approx(a["log_likelihood"], rel=1e-5)
        assert {**a, "log_likelihood": 0, "bits_per_base": 0} == {**b, "log_likelihood": 0, "bits_per_base": 0}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2] if FULL else [2])
def test_what_was_killed_goes_on_to_the_same_bytes(tmp_path: Path, ranks: int) -> None:
    weights, _ = save_model(tmp_path)
    genome = tmp_path / "long.fa"
    generator = np.random.default_rng(3)
    genome.write_text(">long\n" + "".join(generator.choice(list("ACGT"), 100_000)) + "\n")
    output, bases = tmp_path / "out.parquet", tmp_path / "bases.zarr"
    words = arguments(weights, genome, output, "--per-base", bases, "--ranks", ranks, "--context", 64, "--stride", 4)
    check_kill(output, *words, beside=[bases])


def test_a_whole_output_stays_and_other_settings_are_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights, _, genome, _ = save_inputs(tmp_path)
    words = arguments(weights, genome, tmp_path / "out.tsv")
    assert run(*words) == 0
    written = (tmp_path / "out.tsv").read_bytes()
    assert run(*words) == 2
    assert "out.tsv: exists already; name another output, or begin again with --overwrite" in capfd.readouterr().err
    assert run(*words, "--resume") == 0
    assert "is complete already" in capfd.readouterr().err
    assert (tmp_path / "out.tsv").read_bytes() == written
    parts = tmp_path / "new.tsv.parts"
    parts.mkdir()
    (parts / "settings.json").write_text('{"verb": "score", "stride": 5}')
    assert run(*arguments(weights, genome, tmp_path / "new.tsv")) == 2
    assert "found parts of other settings (context, fasta, model, precision, stride)" in capfd.readouterr().err
    (parts / "settings.json").write_text("[")
    assert run(*arguments(weights, genome, tmp_path / "new.tsv")) == 2
    assert "found parts of other settings (damaged)" in capfd.readouterr().err
    assert run(*arguments(weights, genome, tmp_path / "new.tsv", "--overwrite")) == 0


def test_a_damaged_part_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, _, genome, _ = save_inputs(tmp_path)
    from hyena_ds.predict.parts import Parts

    monkeypatch.setattr(Parts, "missing", lambda self, count: [])
    words = arguments(weights, genome, tmp_path / "out.tsv")
    (tmp_path / "out.tsv.parts").mkdir()
    (tmp_path / "out.tsv.parts" / "00000000.arrow").write_bytes(b"no arrow")
    assert run(*words) == 2
    assert "00000000.arrow: cannot be read" in capfd.readouterr().err
    assert not (tmp_path / "out.tsv").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--context", "600"], "--context: found 600, wanted 1 to the model's maximum_context 512"),
        (["--context", "64", "--stride", "65"], "--stride: found 65, wanted 1 to 64"),
        (["--ranks", "3", "--sequence-parallel", "2"], "--sequence-parallel: found 2, wanted a divisor of --ranks 3"),
        (["--ranks", "0"], "--ranks: found 0, wanted 1 to 1,024"),
        (["--per-base", "x.wig"], "--per-base: found 'x.wig', wanted a name that ends in .zarr or .bw or .parquet"),
        (["--per-base", "x.bw", "--strand", "both"], "a BigWig has one value a base"),
        (["--per-base", "old.parquet"], "old.parquet: exists already; name another output"),
        (["--output", "x.parquet", "--per-base", "./x.parquet"], "which is the --output too, wanted another name"),
        (["--output", "out.csv"], "--output: found 'out.csv', wanted a name that ends in .parquet or .tsv"),
        (["--output", "nowhere/out.tsv"], "nowhere: no such directory"),
        (["--regions", "no.bed"], "no.bed: no such BED; name an existing BED"),
        (["--regions", "bad.bed"], "bad.bed:2: found the chromosome 'chrX', which the FASTA does not have"),
        (["--regions", "strand.bed"], "strand.bed:1: found the strand 'plus', wanted + or - or ."),
        (["--regions", "short.bed"], "short.bed:1: found 2 columns, wanted at least 3"),
        (["--regions", "empty.bed"], "empty.bed: found no regions"),
        (["--regions", "twice.bed", "--per-base", "x.zarr"], "found two regions that share chrA:5"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    weights, _, genome, _ = save_inputs(tmp_path)
    Path("bad.bed").write_text("chrA\t0\t5\nchrX\t0\t5\n")
    Path("strand.bed").write_text("chrA\t0\t5\tx\t0\tplus\n")
    Path("short.bed").write_text("chrA\t0\n")
    Path("empty.bed").write_text("# none\n")
    Path("twice.bed").write_text("chrA\t0\t9\nchrA\t5\t7\n")
    Path("old.parquet").write_text("another's")
    check_refused(capfd, said, "score", weights, genome, "--output", "out.tsv", *more)
    assert Path("old.parquet").read_text() == "another's"


def test_without_room_for_the_output_nothing_is_half_written_and_the_parts_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    weights, _, genome, _ = save_inputs(tmp_path)

    def full(path: Path, *_: object) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    words = arguments(weights, genome, tmp_path / "out.tsv")
    with monkeypatch.context() as patched:
        patched.setattr("hyena_ds.predict.score.write_table", full)
        assert run(*words) == 2
    assert "No space left on device" in capfd.readouterr().err
    assert [path.name for path in tmp_path.glob("*out*")] == ["out.tsv.parts"]
    assert run(*words) == 0
    assert "parts are there already" in capfd.readouterr().err and not (tmp_path / "out.tsv.parts").exists()


@pytest.mark.parametrize(
    ("weights", "fasta", "said"), [("no", "genome.fa", "no: no such model"), (None, "no.fa", "no.fa: no such file")]
)
def test_what_is_not_there_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], weights: str | None, fasta: str, said: str
) -> None:
    path, _, _, _ = save_inputs(tmp_path)
    assert run("score", weights or path, tmp_path / fasta, "--output", tmp_path / "out.tsv") == 2
    assert said in capfd.readouterr().err


def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pybigtools", None)
    weights, _, genome, _ = save_inputs(tmp_path)
    assert run(*arguments(weights, genome, tmp_path / "out.tsv", "--per-base", tmp_path / "x.bw")) == 2
    assert "pybigtools is not installed; pip install 'hyena-ds[predict]'" in capfd.readouterr().err


def test_windows_cover_every_base_once_and_parts_are_about_equal() -> None:
    regions = [Region("c", 0, length, "+") for length in (1, 2, 127, 128, 129, 1000, 3_000_000)]
    found = windows_of(regions, 128, 48)
    for number, region in enumerate(regions):
        own = [window for window in found if window.region == number]
        covered = [base for window in own for base in (window.scored, window.last)]
        assert covered[0] == 0 and covered[-1] == region.end and covered[1:-1:2] == covered[2::2]
        assert all(window.last - window.first <= 128 for window in own)
    parts = into_parts(found)
    assert [window for part in parts for window in part] == found
    assert len(parts) > 3 and all(len(part) <= windows._MOST_OF_A_PART for part in parts)


def test_batches_hold_every_sequence_once_and_about_as_many_tokens() -> None:
    lengths = [5, 16_384, 3, 70_000, 8_000, 8_000, 1, 1]
    batches = into_batches(lengths, None, device_is_cpu=True)
    assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
    assert batches[0] == [3] and batches[2] == [4, 5]
    assert [len(batch) for batch in into_batches(lengths, 3, device_is_cpu=False)] == [3, 3, 2]
