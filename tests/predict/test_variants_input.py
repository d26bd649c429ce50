"""`hyena-ds variants` says in one sentence what is wrong with its input, writes nothing then, and evaluates what is right."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pysam
import pytest

from hyena_ds.data.shards import sha256_of
from hyena_ds.predict.export import export
from hyena_ds.runs.trained_on import TRAINING, Training
from tests.predict.variant_cases import ALIASES, HEADER, RULE, save_vcf
from tests.predict.verbs import check_refused, run, save_model

BODY = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


def with_record(text: str) -> Callable[[str], bytes]:
    """A VCF of one record in place of those of the cases."""
    return lambda _: f"##fileformat=VCFv4.2\n{BODY}{text}\n".encode()


def bgzip_without_end(text: str) -> bytes:
    """A bgzip file that lacks its last block."""
    packed = pysam.BGZFile("cut.gz", "wb", None)
    packed.write(text.encode())
    packed.close()
    return Path("cut.gz").read_bytes()[:-28]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda text: b"", "in.vcf: found an empty file, wanted a VCF, a BCF, or a table with tabs"),
        (lambda text: HEADER.encode(), "in.vcf: found no records, wanted at least one variant"),
        (lambda text: b"##fileformat=VCFv4.2\n", "in.vcf: found no line '#CHROM POS ID REF ALT QUAL FILTER INFO'"),
        (lambda text: b"\x01\x00\x02", "in.vcf: found binary data, wanted a VCF, a BCF, or a table with tabs"),
        (lambda text: b"hello\n", "found 0 columns 'chrom' in the first line, wanted one of each of chrom, pos, ref, alt"),
        (lambda text: b"chrom\tpos\tref\talt\nA\t1\tC\n", "in.vcf:2: found 3 columns, wanted the 4 of the first line"),
        (bgzip_without_end, "in.vcf: the bgzip file has no end block, so it was cut short"),
        (lambda text: gzip.compress(text.encode() * 9)[:-30], "in.vcf: the gzip stream is cut short or damaged"),
        (with_record("A\t5\t.\tC"), "in.vcf:3: found 4 columns, wanted at least 8: CHROM POS ID REF ALT QUAL FILTER INFO"),
        (with_record("A\tfive\t.\tC\tG\t.\t.\t."), "in.vcf:3: found 'five' as a position, wanted a whole number"),
        (with_record("A\t-5\t.\tC\tG\t.\t.\t."), "in.vcf:3: found '-5' as a position"),
        (with_record("Z\t5\t.\tC\tG\t.\t.\t."), "in.vcf:3: found the contig 'Z', which the FASTA does not have (it has chrA, chrB, tiny); if it has another name there, say so with --alias Z=NAME"),
        (with_record("A\t9999999\trs1\tC\tG\t.\t.\t."), "in.vcf:3: found REF C at A:9,999,999 (rs1), where the FASTA has no base; is the file of another assembly?"),
        (with_record("A\t0\t.\tC\tG\t.\t.\t."), "in.vcf:3: found REF C at A:0, where"),
        (lambda text: text.replace("ID=LABEL", "ID=HDS_LLR").encode(), "in.vcf: found values HDS_LLR in it already; give the file that has none"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    content: Callable[[str], bytes],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    weights, _ = save_model(tmp_path)
    genome, vcf, _ = save_vcf(tmp_path)
    vcf.write_bytes(content(vcf.read_text()))
    check_refused(capfd, said, "variants", weights, genome, vcf, *RULE, *ALIASES, "--output", "out.vcf")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--alias", "A"], "--alias: found 'A', wanted NAME=CONTIG, such as X=chrX"),
        (["--alias", "A=chrQ"], "--alias A=chrQ: found no contig 'chrQ' in the FASTA (it has chrA, chrB, tiny)"),
        (["--left", "600"], "found 620 tokens, wanted at least 0 and 1, and no more than the model's maximum_context of 512"),
        (["--context", "600"], "--context: found 600, wanted 1 to the model's maximum_context 512"),
        (["--context", "64"], "no more than the model's maximum_context of 64 together"),
        (["--evaluate", "LABEL=a"], "--evaluate: found 'LABEL=a', wanted LABEL or LABEL=POSITIVE:NEGATIVE"),
        (["--evaluate", "LABEL"], "found no variant whose LABEL is 'pathogenic'"),
        (["--evaluate", "LABEL=x:y"], "found no variant whose LABEL is 'y'"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    weights, _ = save_model(tmp_path)
    genome, vcf, _ = save_vcf(tmp_path)
    before = [] if "A=chrQ" in words else ALIASES
    check_refused(capfd, said, "variants", weights, genome, vcf, *RULE, *before, *words, "--output", "out.vcf")


def test_a_ref_that_the_fasta_has_not_stops_or_is_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights, _ = save_model(tmp_path)
    genome, vcf, lines = save_vcf(tmp_path)
    wrong = {"A": "C", "C": "G", "G": "T", "T": "A"}[lines[1][3]]
    vcf.write_text(vcf.read_text().replace(f"A50\t{lines[1][3]}\t", f"A50\t{wrong}\t"))
    words = ("variants", weights, genome, vcf, *RULE, *ALIASES, "--output", tmp_path / "out.vcf")
    assert run(*words) == 2
    error = capfd.readouterr().err
    assert f"in.vcf:6: found REF {wrong} at A:51 (A50), where the FASTA has {lines[1][3]}; is the file of" in error
    assert "--skip-mismatch passes over such records" in error
    summary = tmp_path / "out.json"
    assert run(*words, "--skip-mismatch", "--json", summary) == 0
    counts = json.loads(summary.read_text())["counts"]
    assert counts["HDS_REF_MISMATCH"] == 3 and counts["records"] == 13
    passed_over = (tmp_path / "out.vcf").read_text().splitlines()
    (line,) = [line for line in passed_over if "\tA50\t" in line]
    assert line.split("\t")[6] == "HDS_REF_MISMATCH" and "HDS_LLR" not in line


def test_a_damaged_bcf_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights, _ = save_model(tmp_path)
    genome, _, _ = save_vcf(tmp_path)
    bcf = tmp_path / "in.bcf"
    packed = pysam.BGZFile(str(bcf), "wb", None)
    packed.write(b"BCF\2\2\xff\xff\xff\x7f")
    packed.close()
    assert run("variants", weights, genome, bcf, *RULE, "--output", tmp_path / "out.vcf") == 2
    assert "in.bcf: cannot be read as BCF after record 0" in capfd.readouterr().err


def test_a_missing_library_names_the_extra(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, _ = save_model(tmp_path)
    genome, vcf, _ = save_vcf(tmp_path)
    for name, words in (("pysam", []), ("sklearn", ["--evaluate", "LABEL"])):
        with monkeypatch.context() as here:
            here.setitem(__import__("sys").modules, name, None)
            assert run("variants", weights, genome, vcf, *words, "--output", tmp_path / "out.vcf.gz") == 2
        assert f"{name} is not installed; pip install 'hyena-ds[predict]'" in capfd.readouterr().err


def test_windows_beyond_what_the_model_has_trained_on_are_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights, _ = save_model(tmp_path)
    genome, vcf, _ = save_vcf(tmp_path)
    folder = tmp_path / "folder"
    export(weights, folder, "huggingface")
    words = ("variants", folder, genome, vcf, *RULE, *ALIASES, "--overwrite", "--output", tmp_path / "out.tsv")
    for longest, said in ((None, False), (119, True), (120, False)):
        if longest is not None:
            training = Training({}, longest, None)
            (folder / TRAINING).write_text(training.text("model.safetensors", sha256_of(folder / "model.safetensors")))
        assert run(*words) == 0
        warning = (
            "windows of 120 bases and more, and the model was trained on at most 119: what it makes of more is unknown"
        )
        assert (warning in capfd.readouterr().err) is said


def test_what_cannot_be_a_bcf_is_said_and_leaves_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights, _ = save_model(tmp_path)
    genome, vcf, _ = save_vcf(tmp_path)
    vcf.write_text(vcf.read_text().replace("GT\t0|1\n", "GT:XX\t0|1:a:b\n"))  # more values than FORMAT names
    assert run("variants", weights, genome, vcf, *RULE, *ALIASES, "--output", tmp_path / "out.bcf") == 2
    said = capfd.readouterr().err
    assert "out.bcf: cannot be written as BCF (" in said and "; write a .vcf.gz" in said
    assert not (tmp_path / "out.bcf").exists()


def test_classes_that_values_tell_apart_are_told_apart(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights, _ = save_model(tmp_path)
    genome, vcf, lines = save_vcf(tmp_path)
    words = ("variants", weights, genome, vcf, *RULE, *ALIASES)
    assert run(*words, "--output", tmp_path / "first.tsv") == 0
    head, *rows = [line.split("\t") for line in (tmp_path / "first.tsv").read_text().splitlines()]
    llr = {int(row[0]): float(row[head.index("HDS_LLR")]) for row in rows if row[head.index("HDS_FILTER")] == ""}
    single = {number: line for number, line in enumerate(lines) if number in llr and "," not in line[4]}
    middle = sorted(llr[number] for number in single)[len(single) // 2]
    for number, line in single.items():
        line[7] = f"LABEL={'pathogenic' if llr[number] < middle else 'benign'};GENE=g{number}"
    vcf.write_text(HEADER + "".join("\t".join(line) + "\n" for line in lines))
    exons, summary = tmp_path / "exons.bed", tmp_path / "out.json"
    exons.write_text("chrC\t1\t2\n")
    capfd.readouterr()
    assert run(*words, "--evaluate", "LABEL", "--exons", exons, "--output", tmp_path / "out.vcf") == 2
    said = capfd.readouterr().err  # before any pass
    assert "exons.bed:1: found the chromosome 'chrC', which the FASTA does not have" in said and "pass:" not in said
    near = [line for line in single.values() if "pathogenic" in line[7]]
    exons.write_text("".join(f"{line[0]}\t{int(line[1]) + 1}\t{int(line[1]) + 2}\n" for line in near))
    more = ("--evaluate", "LABEL", "--group", "GENE", "--exons", exons, "--json", summary)
    assert run(*words, *more, "--output", tmp_path / "out.vcf") == 0
    table = {row["score"]: row for row in json.loads(summary.read_text())["evaluation"]}
    assert table["HDS_LLR"]["auroc"] == table["HDS_LLR"]["auprc"] == 1.0
    assert table["inside an exon ± 2"]["auroc"] > 0.7
    assert set(table) > {"Markov order 2", "Markov order 5", "HDS_JSD", "HDS_L2"}
    first = table["HDS_LLR"]
    assert first["positive"] + first["negative"] == first["groups"] == len(single)
    low, high = table["Markov order 2"]["auroc_interval"]
    assert 0 <= low <= table["Markov order 2"]["auroc"] <= high <= 1
    printed = capfd.readouterr().out
    assert "HDS_LLR             1.000" in printed and f"in {len(single)} groups" in printed
