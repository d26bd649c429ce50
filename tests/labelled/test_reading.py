"""Labelled sequences are read from every form to the same set, and what is none is refused in one sentence."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hyena_ds.errors import UserError
from hyena_ds.labelled import Interval, LabelledSet, read_labelled

ROWS = [("ACGTN", "1"), ("ttgac", "0"), ("GGRCA", "1")]
TABLE = "".join(f"{a},{b}\n" for a, b in [("sequence", "label"), *ROWS])
GENOME = ">c1\nACGTACGTTT\nGGGCCCAAAT\n>c2 second\nTTTTACGTAA\n"


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def forms(directory: Path) -> dict[str, Path]:
    """The same three sequences in every form that a table has."""
    text = TABLE.encode()
    zstd = pa.BufferOutputStream()
    with pa.CompressedOutputStream(zstd, "zstd") as stream:
        stream.write(text)
    sequences, labels = zip(*ROWS, strict=True)
    pq.write_table(
        pa.table({"sequence": sequences, "label": [int(one) for one in labels]}), directory / "whole.parquet"
    )
    pq.write_table(pa.table({"seq": sequences, "label": [float(one) for one in labels]}), directory / "short.parquet")
    fasta = "".join(f">{n} of|three|{label}\n{text[:2]}\n{text[2:]}\n" for n, (text, label) in enumerate(ROWS))
    contents: dict[str, str | bytes] = {
        "plain.csv": text,
        "windows.csv": b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"),
        "gzip.csv.gz": gzip.compress(text),
        "xz.csv.xz": lzma.compress(text),
        "zstd.csv.zst": zstd.getvalue().to_pybytes(),
        "tabs.tsv.gz": gzip.compress(text.replace(b",", b"\t")),
        "seq.csv": text.replace(b"sequence", b"seq"),
        "quoted.csv": TABLE.replace("ttgac", '"ttgac"').replace(",0\n", ',"0"\n'),
        "headers.fa.gz": gzip.compress(fasta.encode()),
    }
    return {name: written(directory / name, content) for name, content in contents.items()} | {
        name: directory / name for name in ("whole.parquet", "short.parquet")
    }


def test_every_form_of_a_table_gives_the_same_set(tmp_path: Path) -> None:
    for name, path in forms(tmp_path).items():
        found = read_labelled(path, "classification")
        assert found.sequences == ("ACGTN", "TTGAC", "GGNCA"), name
        assert found.classes == ("0", "1") and found.targets.dtype == np.int64, name
        assert found.targets.tolist() == [1, 0, 1] and found.ambiguous == 1, name
        assert found.places == (None,) * 3 and found.groups is None, name
    assert read_labelled(tmp_path / "plain.csv", "classification").names[0] == f"{tmp_path}/plain.csv:2"


def test_a_directory_with_a_file_for_each_class_in_the_forms_of_genomic_benchmarks(tmp_path: Path) -> None:
    header = "id,region,start,end,strand"
    genome = written(tmp_path / "genome.fa", GENOME)
    whole = tmp_path / "whole"
    written(whole / "positive.csv.gz", gzip.compress(f"{header},seq\na,c1,2,6,-,ACGT\n".encode()))
    written(whole / "negative.csv.gz", gzip.compress(f"{header},seq\nb,c1,12,18,,GCCCAA\n".encode()))
    written(whole / "README.md", "not a class")
    cut = tmp_path / "cut"
    written(cut / "positive.csv", f"{header}\na,c1,1,6,-\n")
    written(cut / "negative.csv", f"{header}\nb,c1,12,18,\n")
    found = read_labelled(whole, "classification")
    assert found.classes == ("negative", "positive") and found.sequences == ("GCCCAA", "ACGT")
    assert found.places == (Interval("c1", 12, 18, "."), Interval("c1", 2, 6, "-"))
    found = read_labelled(cut, "classification", genome=genome)
    assert found.sequences == ("GCCCAA", "GTACG") and found.targets.tolist() == [0, 1]  # CGTAC on the other strand
    fasta = tmp_path / "fasta"
    written(fasta / "a.fa", ">x\nACGT\n>y\nAAAA\n")
    written(fasta / "b.fasta", ">c2:4-8(+) said\nCCCC\n")
    found = read_labelled(fasta, "classification")
    assert found.classes == ("a", "b") and found.targets.tolist() == [0, 0, 1]
    assert found.places[2] == Interval("c2", 4, 8, "+")


def test_regions_of_a_bed_and_variants_of_a_vcf_are_cut_from_the_genome(tmp_path: Path) -> None:
    genome = written(tmp_path / "genome.fa.gz", gzip.compress(GENOME.encode()))
    bed = written(tmp_path / "regions.bed", "c1\t0\t4\ton\t0\t+\nc2\t2\t6\toff\t0\t-\n")
    found = read_labelled(bed, "classification", genome=genome)
    assert found.sequences == ("ACGT", "GTAA") and found.classes == ("off", "on")
    assert found.names == ("c1:0-4", "c2:2-6") and found.places[1] == Interval("c2", 2, 6, "-")
    head = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    lines = "c1\t9\t.\tT\tG\t.\t.\tLABEL=bad\nc1\t11\t.\tGG\tG\t.\t.\tX=1;LABEL=good\nc2\t1\t.\tT\tC,TACGA\t.\t.\tLABEL=good\n"
    vcf = written(tmp_path / "variants.vcf.gz", gzip.compress((head + lines).encode()))
    found = read_labelled(vcf, "classification", genome=genome, window=6)
    # ACGTACGT[T]T GGGCCCAAAT: three bases before the variant, six in all
    assert found.sequences == ("CGTGTG", "TTTGGC", "CTT", "TACGA")
    assert found.classes == ("bad", "good") and found.targets.tolist() == [0, 1, 1, 1]
    assert found.places[:2] == (Interval("c1", 5, 11, "+"), Interval("c1", 7, 14, "+"))
    wrong = written(tmp_path / "wrong.vcf", head + "c1\t9\t.\tA\tG\t.\t.\tLABEL=1\n")
    with pytest.raises(
        UserError, match=r"wrong.vcf:3: found the REF A, wanted T, which the genome has there; is the VCF"
    ):
        read_labelled(wrong, "classification", genome=genome)
    bare = written(tmp_path / "bare.vcf", head + "c1\t9\t.\tT\tG\t.\t.\t.\n")
    with pytest.raises(UserError, match=r"bare.vcf:3: found no 'label' in INFO, wanted the variant's label"):
        read_labelled(bare, "classification", genome=genome)
    odd = written(tmp_path / "odd.vcf", head + "c1\t9\t.\tT\t<DEL>\t.\t.\tLABEL=1\n")
    with pytest.raises(
        UserError, match=r"odd.vcf:3: found T><DEL>, wanted REF and ALT of A C G T; leave the record out"
    ):
        read_labelled(odd, "classification", genome=genome)


def test_multilabel_in_one_column_or_several_and_what_was_not_measured(tmp_path: Path) -> None:
    one = written(tmp_path / "one.csv", "sequence,label\nACGT,0;1;0\nCCCC,1;1;0\n")
    found = read_labelled(one, "multilabel")
    assert found.targets.dtype == np.uint8 and found.targets.tolist() == [[0, 1, 0], [1, 1, 0]]
    assert found.classes == ("0", "1", "2")
    several = written(tmp_path / "several.csv", "sequence,label_ctcf,label_dnase\nACGT,0,1\nCCCC,,1\n")
    found = read_labelled(several, "multilabel")
    assert found.classes == ("ctcf", "dnase") and found.targets.dtype == np.float32
    assert np.array_equal(found.targets, [[0, 1], [np.nan, 1]], equal_nan=True)
    pq.write_table(pa.table({"sequence": ["AC"], "label": [[0, 1]]}), tmp_path / "lists.parquet")
    assert read_labelled(tmp_path / "lists.parquet", "multilabel").targets.tolist() == [[0, 1]]


def test_regression_with_one_value_or_several(tmp_path: Path) -> None:
    one = written(tmp_path / "one.csv", "sequence,psi,label\nACGT,0.5,x\nCCCC,-1e-3,y\n")
    found = read_labelled(one, "regression", label="psi")
    assert found.classes == ("psi",) and found.targets.dtype == np.float32
    assert found.targets.tolist() == pytest.approx([0.5, -1e-3])
    two = written(tmp_path / "two.csv", "sequence,label\nACGT,1;2\nCCCC,3;4\n")
    assert read_labelled(two, "regression").targets.tolist() == [[1, 2], [3, 4]]


def test_labels_of_bases(tmp_path: Path) -> None:
    path = written(tmp_path / "bases.csv", "sequence,label\nACGT,0.12\nCC,00\n")
    found = read_labelled(path, "per_base")
    assert found.classes == ("0", "1", "2") and [one.tolist() for one in found.targets] == [[0, -100, 1, 2], [0, 0]]
    assert all(one.dtype == np.int8 for one in found.targets)


def test_places_and_groups_of_a_table(tmp_path: Path) -> None:
    text = "sequence,label,group,contig,start,end,strand\nACGT,a,g1,c1,3,7,+\nCCCC,b,g2,,,,\n"
    found = read_labelled(written(tmp_path / "t.csv", text), "classification")
    assert found.places == (Interval("c1", 3, 7, "+"), None) and found.groups == ("g1", "g2")
    one = found.take(np.array([1]))
    assert (one.sequences, one.targets.tolist(), one.groups) == (("CCCC",), [1], ("g2",))


def test_classes_are_those_of_the_train_set_whatever_occurs(tmp_path: Path) -> None:
    train = written(tmp_path / "train.csv", "sequence,label\nA,10\nC,9\nG,2.0\n")
    classes = read_labelled(train, "classification").classes
    assert classes == ("2", "9", "10")
    test = written(tmp_path / "test.csv", "sequence,label\nA,9.0\nC,9\n")
    assert read_labelled(test, "classification", classes=classes).targets.tolist() == [1, 1]
    words = written(tmp_path / "words.csv", "sequence,label\nA,10\nC,b\nG,9\n")
    assert read_labelled(words, "classification").classes == ("10", "9", "b")


DAMAGED = ("plain.csv", "gzip.csv.gz", "xz.csv.xz", "zstd.csv.zst", "tabs.tsv.gz", "headers.fa.gz", "whole.parquet")
HEAD = "sequence,label\n"
BAD: dict[str, tuple[str, str | bytes, str, str]] = {
    "no label column": ("t.csv", "sequence,y\nA,1\n", "classification", "t.csv: found no column 'label' among sequence, y; name the column that holds the labels"),
    "no sequence column": ("t.csv", "bases,label\nA,1\n", "classification", "t.csv: found no column 'sequence' among bases, label; name a column of the table so"),
    "intervals alone": ("t.csv", "contig,start,end,label\nc,1,2,1\n", "classification", "found no column 'sequence' among contig, start, end, label; give the genome that its intervals"),
    "empty label": ("t.csv", HEAD + "A,1\nC,\n", "classification", "t.csv:3: found no label, wanted the name of a class; label it, or leave it out"),
    "one class": ("t.csv", HEAD + "A,1\nC,1\n", "classification", "t.csv:2: found the one class '1' in all 2 rows, wanted two or more; name another column"),
    "too many classes": ("t.csv", HEAD + "".join(f"A,{n / 7}\n" for n in range(1, 1999)), "classification", "found 1,998 classes, wanted at most 1,000; if the labels are measurements, the kind is regression"),
    "letters": ("t.csv", HEAD + "A,1\nAC-T,0\n", "classification", "t.csv:3: found '-' in the sequence, wanted A C G T N or IUPAC codes; correct the row, or leave it out"),
    "RNA": ("t.csv", HEAD + "ACU,1\n", "classification", "found 'U' in the sequence, wanted A C G T N or IUPAC codes; write U as T"),
    "empty sequence": ("t.csv", HEAD + "A,1\n ,0\n", "classification", "t.csv:3: found an empty sequence, wanted bases; leave the row out"),
    "empty file": ("t.csv", "", "classification", "t.csv: found an empty file, wanted labelled sequences"),
    "empty pack": ("t.csv.gz", gzip.compress(b""), "classification", "t.csv.gz: found no line of column names, wanted sequence,label"),
    "no rows": ("t.csv", HEAD, "classification", "t.csv: found no rows below the column names, wanted labelled sequences"),
    "column twice": ("t.csv", "label,sequence,label\n1,A,0\n", "classification", "t.csv: found the column 'label' twice, wanted one; rename the other"),
    "row width": ("t.csv", HEAD + "A,1\nC\n", "classification", "t.csv:3: found 1 columns, wanted the 2 of the first line (sequence, label); correct the line"),
    "open quote": ("t.csv", HEAD + '"A,1\n', "classification", "t.csv:2: cannot be read as a table (unexpected end of data); write it anew"),
    "truncated gz": ("t.csv.gz", gzip.compress(TABLE.encode() * 99)[:-9], "classification", "t.csv.gz: the pack is cut short or damaged"),
    "truncated xz": ("t.csv.xz", lzma.compress(TABLE.encode() * 99)[:-40], "classification", "t.csv.xz: the pack is cut short or damaged"),
    "damaged gz": ("t.csv.gz", gzip.compress(TABLE.encode())[:10] + b"\x07" * 20, "classification", "t.csv.gz: the pack is cut short or damaged"),
    "another pack": ("t.csv.bz2", bz2.compress(b"x"), "classification", "t.csv.bz2: found an unknown kind of file, wanted .csv, .tsv, .txt, .parquet, .fa"),
    "binary": ("t.csv", b"sequence,label\nAC\0GT,1\n", "classification", "t.csv: found binary data, wanted the text of a table or a FASTA in UTF-8"),
    "not UTF-8": ("t.csv", b"sequence,label\nAC\xff\xfeGT,1\n", "classification", "t.csv: found binary data, wanted the text of a table or a FASTA in UTF-8"),
    "damaged Parquet": ("t.parquet", b"PAR1" + b"x" * 40, "classification", "t.parquet: cannot be read as a table in Parquet ("),
    "a number of outputs": ("t.csv", HEAD + "A,0;1\nC,1\n", "multilabel", "t.csv:3: found 1 outputs in the label, wanted the 2 of the first row, separated by semicolons"),
    "no 0 or 1": ("t.csv", HEAD + "A,0;2\n", "multilabel", "t.csv:2: found '2' as a label, wanted 0, 1, or nothing where it was not measured; correct the row"),
    "no number": ("t.csv", HEAD + "A,high\n", "regression", "t.csv:2: found 'high' as a label, wanted a finite number; correct the row"),
    "infinite": ("t.csv", HEAD + "A,inf\n", "regression", "t.csv:2: found 'inf' as a label, wanted a finite number; correct the row"),
    "not a number": ("t.csv", HEAD + "A,nan\n", "regression", "t.csv:2: found 'nan' as a label, wanted a finite number; correct the row"),
    "no outputs": ("t.csv", "sequence,y\nA,1\n", "multilabel", "t.csv: found no column 'label' nor columns 'label_...' among sequence, y; name the column"),
    "length of a label": ("t.csv", HEAD + "ACG,01\n", "per_base", "t.csv:2: found a label of 2 characters beside 3 bases, wanted one for each base"),
    "character of a label": ("t.csv", HEAD + "ACG,01x\n", "per_base", "t.csv:2: found 'x' in the label, wanted digits, or a dot for none"),
    "one class of bases": ("t.csv", HEAD + "ACG,0.0\n", "per_base", "t.csv:2: found the one class '0' in the labels of all bases, wanted two or more"),
    "no class of bases": ("t.csv", HEAD + "ACG,...\n", "per_base", "t.csv:2: found no class in the labels of all bases, wanted two or more"),
    "kind": ("t.csv", TABLE, "classes", "kind: found 'classes', wanted classification, multilabel, regression or per_base"),
    "header without label": ("t.fa", ">one|1\nAC\n>two\nAC\n", "classification", "t.fa:3: found the header 'two', wanted a label at its end, as in '>name|1'"),
    "no header": ("t.fa", "ACGT\n", "classification", "t.fa:1: found no '>' header before the first letters, wanted a FASTA"),
    "no records": ("t.fa", "\n\n", "classification", "t.fa: found no records, wanted a FASTA of labelled sequences"),
    "interval": ("t.csv", "sequence,label,contig,start,end\nAC,1,c1,9,3\n", "classification", "t.csv:2: found the interval 'c1:9-3', wanted a contig, a start from 0 and an end above it"),
    "strand": ("t.csv", "sequence,label,contig,start,end,strand\nAC,1,c1,1,3,up\n", "classification", "t.csv:2: found the strand 'up', wanted + or - or ."),
    "BED without genome": ("t.bed", "c1\t1\t2\ton\n", "classification", "t.bed: found intervals without a genome, wanted the FASTA that they are cut from"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_labelled_set_is_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    name, content, kind, sentence = BAD[case]
    with pytest.raises(UserError) as caught:
        read_labelled(written(tmp_path / name, content), kind)
    assert sentence in str(caught.value)


def test_zstd_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    text = "sequence,label\n" + "".join(f"{'ACGT' * (n % 50 + 1)},{n % 2}\n" for n in range(5000))
    packed = pa.compress(text.encode(), "zstd").to_pybytes()
    with pytest.raises(UserError, match=r"t.csv.zst: (the pack is|cannot be read)"):
        read_labelled(written(tmp_path / "t.csv.zst", packed[: len(packed) // 2]), "classification")


def refused(path: Path, kind: str = "classification", **options: object) -> str:
    with pytest.raises(UserError) as caught:
        read_labelled(path, kind, **options)
    return str(caught.value)


def test_a_test_set_with_what_the_train_set_does_not_have_is_refused(tmp_path: Path) -> None:
    table = written(tmp_path / "t.csv", HEAD + "A,1\nC,2\n")
    assert "t.csv:3: found the class '2', which the train set does not have, wanted one of 0, 1" in refused(
        table, classes=("0", "1")
    )
    bases = written(tmp_path / "b.csv", HEAD + "AC,01\nCC,12\n")
    assert "b.csv:3: found the class '2', which the train set does not have, wanted one of 0, 1" in refused(
        bases, "per_base", classes=("0", "1")
    )
    outputs = written(tmp_path / "o.csv", "sequence,label_a,label_b\nA,1,1\n")
    assert "o.csv: found 2 outputs (a, b), wanted the 3 of the train set (a, b, c)" in refused(
        outputs, "multilabel", classes=("a", "b", "c")
    )


def test_paths_that_hold_no_set_are_refused(tmp_path: Path) -> None:
    assert "nowhere.csv: no such table; name an existing file" in refused(tmp_path / "nowhere.csv")
    assert "nowhere: no such file or directory; name an existing file" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "empty: found 0 files of sequences (it is empty), wanted one for each of two classes" in refused(
        tmp_path / "empty"
    )
    written(tmp_path / "twice" / "a.csv", "sequence\nA\n")
    written(tmp_path / "twice" / "a.fa", ">x\nA\n")
    assert "twice: found two files of the class 'a', wanted one; remove or rename the other" in refused(
        tmp_path / "twice"
    )
    assert "twice: found a directory, wanted a file: a file for each class is for the kind classification" in refused(
        tmp_path / "twice", "regression"
    )


def test_intervals_that_the_genome_does_not_have_are_refused(tmp_path: Path) -> None:
    genome = written(tmp_path / "genome.fa", GENOME)
    head = "contig,start,end,label\n"
    beyond = written(tmp_path / "beyond.csv", head + "c1,0,4,1\nc1,18,21,0\n")
    assert "beyond.csv:3: found the end 21 past the end of c1 (20 bases); are the intervals of another" in refused(
        beyond, genome=genome
    )
    strange = written(tmp_path / "strange.csv", head + "7,0,4,1\n")
    assert "strange.csv:2: found the contig '7', which" in refused(strange, genome=genome)
    none = written(tmp_path / "none.csv", head + ",,,1\n")
    assert "none.csv:2: found no interval, wanted contig, start and end; leave the row out" in refused(
        none, genome=genome
    )
    bed = written(tmp_path / "bare.bed", "c1\t0\t4\n")
    assert "bare.bed: region 1 has no name, wanted its label in column four" in refused(bed, genome=genome)


def test_lines_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "t.csv.gz", gzip.compress(HEAD.encode() + b"A" * 5000 + b",1\n" + b"C,0\n" * 9))
    monkeypatch.setattr("hyena_ds.labelled.tables.LONGEST_LINE", 4000)
    assert "t.csv.gz: found a line of more than 4,000 characters, wanted labelled sequences" in refused(path)
    monkeypatch.setattr("hyena_ds.labelled.tables.LONGEST_LINE", 6000)
    monkeypatch.setattr("hyena_ds.labelled.tables.MOST_TEXT", 5010)
    assert "t.csv.gz: found more than 5,010 characters, wanted labelled sequences" in refused(path)


def test_a_set_has_a_length(tmp_path: Path) -> None:
    found = read_labelled(written(tmp_path / "t.csv", TABLE), "classification")
    assert isinstance(found, LabelledSet) and len(found) == 3


def test_a_parquet_whose_text_is_no_text_is_refused(tmp_path: Path) -> None:
    buffers = [None, pa.py_buffer(np.array([0, 2, 4], dtype=np.int32)), pa.py_buffer(b"AC\xd7A")]
    broken = pa.StringArray.from_buffers(2, *buffers[1:], *buffers[:1])
    pq.write_table(pa.table({"sequence": broken, "label": ["1", "0"]}), tmp_path / "t.parquet")
    assert "t.parquet: cannot be read as a table in Parquet ('utf-8' codec can't decode" in refused(
        tmp_path / "t.parquet"
    )


def test_files_with_random_damage_are_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    draw = random.Random(5)
    genome = written(tmp_path / "genome.fa", GENOME)
    sources = [path for name, path in forms(tmp_path).items() if name in DAMAGED]
    sources.append(written(tmp_path / "r.bed", "c1\t0\t4\ton\t0\t+\nc2\t2\t6\toff\t0\t-\n"))
    head = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    sources.append(
        written(tmp_path / "v.vcf", head + "c1\t9\t.\tT\tG\t.\t.\tLABEL=1\nc1\t11\t.\tGG\tG\t.\t.\tLABEL=2\n")
    )
    read = 0
    for _ in range(400):
        source = draw.choice(sources)
        damaged = bytearray(source.read_bytes())
        for _ in range(draw.randint(0, 2)):
            at = draw.randrange(len(damaged) + 1)
            damaged[at : at + draw.randint(0, 9)] = draw.choice(
                [b"", b"\0", b",", b'"', b"\n", b"\xff", b"9" * 30, b">|"]
            )
        try:
            found = read_labelled(written(tmp_path / "damaged" / source.name, damaged), "classification", genome=genome)
        except UserError:
            continue
        read += 1
        assert len(found) == len(found.targets) == len(found.names) == len(found.places)
    assert 20 < read < 380  # both happen
