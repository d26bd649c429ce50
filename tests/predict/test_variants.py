"""`hyena-ds variants`: every value is the plain model's in float64, in every format, however the work was divided."""

from __future__ import annotations

import gzip
import importlib
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pysam
import pytest

from tests.predict.variant_cases import ALIASES, KEYS, RULE, plain_values, save_vcf
from tests.predict.verbs import GRIDS, check_kill, on_ranks, run, save_model

FILTERS = {6: "HDS_STAR;HDS_SYMBOLIC", 7: "HDS_AMBIGUOUS", 8: "HDS_BREAKEND", 9: "HDS_NO_ALT"}
EDGES = {0, 1, 10, 11}
"""Records near an end of their contig."""
GT = '##FORMAT=<ID=GT,Number=1,Type=String,Description="of a test">'
RELATIVE, ABSOLUTE = 1e-4, 1e-5
ROUNDING = 1e-5
"""A ratio is the difference of two log-likelihoods of about 30 nats, in float32."""


def info_of(text: str) -> dict[str, str]:
    return dict(field.partition("=")[::2] for field in text.split(";"))


def records_of(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines() if not line.startswith("#")]


def values_of(path: Path) -> np.ndarray:
    """(ALTs, 6) of a VCF, NaN where there are none."""
    rows = []
    for columns in records_of(path.read_text()):
        info = info_of(columns[7])
        count = len(columns[4].split(","))
        texts = [info.get(key, ",".join(["."] * count)).split(",") for key in KEYS]
        rows += [[np.nan if text[at] == "." else float(text[at]) for text in texts] for at in range(count)]
    return np.array(rows)


def test_a_vcf_comes_back_with_the_values_of_the_plain_model(tmp_path: Path) -> None:
    weights, model = save_model(tmp_path)
    genome, vcf, lines = save_vcf(tmp_path)
    sequences = {text[0]: "".join(text[1:]) for text in _fasta(genome)}
    output, summary = tmp_path / "out.vcf", tmp_path / "out.json"
    assert run("variants", weights, genome, vcf, "--output", output, "--json", summary, *RULE, *ALIASES) == 0
    text = output.read_text()
    found = records_of(text)
    assert len(found) == len(lines)
    for number, (new, old) in enumerate(zip(found, lines, strict=True)):
        assert [*new[:6], *new[8:]] == [*old[:6], *old[8:]]
        assert new[6] == FILTERS.get(number, "PASS")
        info = info_of(new[7])
        assert info["LABEL"] == "x" and ("HDS_EDGE" in info) == (number in EDGES)
        for at, alternative in enumerate(old[4].split(",")):
            shown = [info.get(key, "").split(",") for key in KEYS]
            if not set(alternative) <= set("ACGT"):
                assert all(not values[0] or values[at] == "." for values in shown)
                continue
            wanted = plain_values(model, sequences[f"chr{old[0]}"], int(old[1]) - 1, old[3], alternative)
            assert [float(values[at]) for values in shown] == pytest.approx(wanted, rel=RELATIVE, abs=ABSOLUTE), old
    counts = json.loads(summary.read_text())["counts"]
    assert counts == {
        "records": 13, "alts": 17, "multi_allelic": 2, "with_values": 12, "edge": 6, "snvs": 8, "indels": 3, "mnvs": 1,
        "HDS_STAR": 1, "HDS_SYMBOLIC": 1, "HDS_AMBIGUOUS": 1, "HDS_BREAKEND": 1, "HDS_NO_ALT": 1,
    }  # fmt: skip
    header = [line for line in text.splitlines() if line.startswith("##")]
    assert all(f"##INFO=<ID={key},Number=A,Type=Float," in text for key in KEYS)
    (about,) = (line for line in header if line.startswith("##hyena_ds_variants="))
    assert "model=sha256:" in about and "left=100 right=20 step=64" in about


def _fasta(path: Path) -> list[list[str]]:
    return [[part.split()[0], *part.split("\n")[1:]] for part in path.read_text().split(">")[1:]]


@pytest.mark.slow
def test_all_formats_hold_the_same(tmp_path: Path) -> None:
    weights, _ = save_model(tmp_path)
    genome, vcf, lines = save_vcf(tmp_path)
    words = ("variants", weights, genome, vcf, *RULE, *ALIASES, "--output")
    for name in ("o.vcf", "o.vcf.gz", "o.bcf", "o.parquet", "o.tsv"):
        assert run(*words, tmp_path / name) == 0
    text = (tmp_path / "o.vcf").read_text()
    values = values_of(tmp_path / "o.vcf")
    assert gzip.decompress((tmp_path / "o.vcf.gz").read_bytes()).decode() == text
    with pysam.VariantFile(str(tmp_path / "o.vcf.gz")) as file:
        assert [record.pos for record in file.fetch("B")] == [1, 351]
    with pysam.VariantFile(str(tmp_path / "o.bcf")) as file:
        found = [
            list(zip(*(record.info[key] for key in KEYS), strict=True)) for record in file if "HDS_LLR" in record.info
        ]
    of_records = [value for record in found for value in record]
    bcf = np.array([[np.nan if v is None else v for v in row] for row in of_records], dtype=float)
    assert np.allclose(bcf[~np.isnan(bcf).any(1)], values[~np.isnan(values).any(1)], rtol=1e-6)
    table = pq.read_table(tmp_path / "o.parquet")
    assert np.allclose(np.stack([table[key].to_numpy() for key in KEYS], 1), values, rtol=1e-6, equal_nan=True)
    assert table["alt"].to_pylist() == [alt for line in lines for alt in line[4].split(",")]
    rows = [line.split("\t") for line in (tmp_path / "o.tsv").read_text().splitlines()]
    assert rows[0] == table.column_names and len(rows) == len(values) + 1
    # A BCF is read too; its values stand in the way, and go with the lines that hold them.
    plain = [line for line in text.splitlines() if "hyena_ds_variants" not in line and "ID=HDS_" not in line]
    plain = [
        "\t".join(re.sub("HDS_[A-Z_0-9]+(=[^;\t]*)?;?", "", part) or "." for part in line.split("\t")) for line in plain
    ]
    (tmp_path / "plain.vcf").write_text("\n".join([*plain[:2], "##contig=<ID=B>", GT, *plain[2:]]) + "\n")
    bcf = tmp_path / "in.bcf"
    importlib.import_module("pysam.bcftools").view(
        "-Ob", "-o", str(bcf), str(tmp_path / "plain.vcf"), catch_stdout=False
    )
    assert run("variants", weights, genome, bcf, *RULE, *ALIASES, "--output", tmp_path / "b.vcf") == 0
    assert np.array_equal(values_of(tmp_path / "b.vcf"), values, equal_nan=True)


def test_a_table_keeps_its_columns(tmp_path: Path) -> None:
    weights, _ = save_model(tmp_path)
    genome, vcf, lines = save_vcf(tmp_path)
    table = tmp_path / "in.tsv"
    body = ["\t".join([line[3], line[0], line[2], line[1], line[4]]) for line in lines]
    table.write_text("\n".join(["REF\tchrom\tname\tpos_hg38\talt", *body]) + "\n")
    words = ("--position-column", "pos_hg38", *RULE, *ALIASES)
    assert run("variants", weights, genome, table, "--output", tmp_path / "o.tsv", *words) == 0
    assert run("variants", weights, genome, table, "--output", tmp_path / "o.vcf", *words) == 0
    assert run("variants", weights, genome, vcf, "--output", tmp_path / "v.vcf", *RULE, *ALIASES) == 0
    values = values_of(tmp_path / "v.vcf")
    assert np.array_equal(values_of(tmp_path / "o.vcf"), values, equal_nan=True)
    head, *rows = [line.split("\t") for line in (tmp_path / "o.tsv").read_text().splitlines()]
    assert head[:6] == ["record", "REF", "chrom", "name", "pos_hg38", "alt"]
    assert [row[3] for row in rows[:5]] == ["A1", "A50", "A50", "A50", "A200"]
    found = np.array([[float(row[head.index(key)]) for key in KEYS] for row in rows])
    assert np.allclose(found, values, rtol=1e-6, equal_nan=True)


def test_a_value_depends_on_no_other_record_no_batch_and_no_spelling(tmp_path: Path) -> None:
    weights, _ = save_model(tmp_path)
    genome, vcf, lines = save_vcf(tmp_path)
    words = (weights, genome, vcf, *RULE, *ALIASES)
    assert run("variants", *words, "--output", tmp_path / "all.vcf") == 0
    wanted = values_of(tmp_path / "all.vcf")
    assert run("variants", *words, "--batch", 1, "--output", tmp_path / "one.vcf") == 0
    assert np.allclose(values_of(tmp_path / "one.vcf"), wanted, rtol=1e-5, atol=ROUNDING, equal_nan=True)
    sequence = "".join(_fasta(genome)[0][1:]).upper()
    respelt = []
    for line in lines[:3]:
        at = max(0, int(line[1]) - 4)
        before = sequence[at : int(line[1]) - 1]
        behind = sequence[int(line[1]) - 1 + len(line[3]) :][:5]
        alternatives = ",".join(before + alternative + behind for alternative in line[4].split(","))
        respelt.append([line[0], str(at + 1), ".", before + line[3] + behind, alternatives, ".", ".", "."])
    head = vcf.read_text().splitlines()[:3]
    body = ["\t".join(line) for line in [respelt[2], respelt[0], respelt[1]]]
    vcf.write_text("\n".join([*head, "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO", *body]) + "\n")
    assert run("variants", *words, "--output", tmp_path / "few.vcf.gz") == 0
    assert not (tmp_path / "few.vcf.gz.tbi").exists()  # it is not sorted
    (tmp_path / "few.vcf").write_bytes(gzip.decompress((tmp_path / "few.vcf.gz").read_bytes()))
    assert np.allclose(values_of(tmp_path / "few.vcf"), wanted[[4, 0, 1, 2, 3]], rtol=1e-5, atol=ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "sequence_parallel"), GRIDS)
def test_ranks_and_grids_change_nothing(tmp_path: Path, ranks: int, sequence_parallel: int) -> None:
    weights, _ = save_model(tmp_path)
    genome, vcf, _ = save_vcf(tmp_path)
    words = ("variants", weights, genome, vcf, *RULE, *ALIASES)
    assert run(*words, "--output", tmp_path / "one.vcf") == 0
    on_ranks(ranks, sequence_parallel, *words, "--output", tmp_path / "many.vcf")
    one, many = values_of(tmp_path / "one.vcf"), values_of(tmp_path / "many.vcf")
    assert np.allclose(many, one, rtol=1e-5, atol=ROUNDING, equal_nan=True)


@pytest.mark.slow
def test_what_was_killed_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    weights, _ = save_model(tmp_path)
    genome = tmp_path / "long.fa"
    bases = "".join(np.random.default_rng(3).choice(list("ACGT"), 30_000))
    genome.write_text(f">long\n{bases}\n")
    lines = [
        f"long\t{at + 1}\t.\t{bases[at]}\t{'ACGT'.replace(bases[at], '')[0]}\t.\t.\t." for at in range(7, 29_000, 61)
    ]
    vcf = tmp_path / "in.vcf"
    vcf.write_text("\n".join(["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO", *lines]) + "\n")
    output = tmp_path / "out.vcf.gz"
    words = ("variants", weights, genome, vcf, *RULE, "--output", output)
    check_kill(output, *words, beside=[tmp_path / "out.vcf.gz.tbi"])
    assert len(records_of(gzip.decompress(output.read_bytes()).decode())) == len(lines)
