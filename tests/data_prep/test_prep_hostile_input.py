"""Input that was made to fill a memory or a disk, to hang, or to be misread: one sentence, or the right bases."""

from __future__ import annotations

import errno
import gzip
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import data_prep.writer
import hyena_ds.genome.fasta
from hyena_ds.data.shards import read_index
from hyena_ds.genome.bed import Interval
from tests.data_prep.test_prep_bad_input import refused
from tests.data_prep.workshop import Workshop, bgzip, fasta_text, files_of, gzipped, random_bases
from tests.memory import PEAK_MIB

SEQUENCES = {"a": random_bases(1003, letters="ACGTacgtN"), "b": random_bases(300, seed=1)}
CLEAN = fasta_text(SEQUENCES)
BOM = b"\xef\xbb\xbf"


def lines_of(change: Any) -> bytes:
    """CLEAN with its sequence lines changed."""
    return "".join(
        line if line.startswith(">") else change(line.removesuffix("\n")) for line in CLEAN.splitlines(keepends=True)
    ).encode()


SAME_BASES = {
    "blanks at the ends of lines": lines_of(lambda line: line + "  \n"),
    "tabs before CRLF": lines_of(lambda line: line + "\t\r\n").replace(b" of a test\n", b" of a test\r\n"),
    "blanks within lines": lines_of(lambda line: " ".join(line[i : i + 10] for i in range(0, len(line), 10)) + "\n"),
    "blanks before lines": lines_of(lambda line: f"   {line}\n"),
    "lines of blanks": lines_of(lambda line: f"{line}\n \n"),
    "two blank lines between records": CLEAN.replace(">b", "\n\n>b").encode(),
    "blank lines at both ends": f"\n\n{CLEAN}\n\n\n".encode(),
    "blank lines within a record": lines_of(lambda line: f"{line}\n\n"),
    "carriage returns alone": CLEAN.replace("\n", "\r").encode(),
    "CRLF": CLEAN.replace("\n", "\r\n").encode(),
    "a byte order mark": BOM + CLEAN.encode(),
    "comments before the first header": b"; made by hand\n;\n" + CLEAN.encode(),
    "no newline at the end": CLEAN.rstrip("\n").encode(),
    "an empty record": CLEAN.replace(">b", ">empty\n>b").encode(),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("kind", SAME_BASES)
def test_what_is_no_base_shifts_no_coordinate(workshop: Workshop, monkeypatch, kind: str, packed: bool) -> None:
    monkeypatch.setattr("hyena_ds.genome.packed.COPY_BYTES", 61)  # so that blocks end in the middle of everything
    workshop.write("genome.fa", CLEAN)
    workshop.build()
    wanted = {name: data for name, data in files_of(workshop.output).items() if name.endswith(".tar")}
    data = SAME_BASES[kind]
    workshop.write("other.fa", gzipped(data) if packed else data)
    output = workshop.directory / "other"
    config = workshop.config(fasta=str(workshop.directory / "other.fa"), output=str(output))
    outcome = workshop.run("build", config)
    assert outcome.code == 0, outcome.err
    assert {name: data for name, data in files_of(output).items() if name.endswith(".tar")} == wanted
    blanks = sum(
        line.count(b" ") + line.count(b"\t")
        for line in data.removeprefix(BOM).splitlines()
        if line[:1] not in (b">", b";")
    )
    said = f"{blanks:,} blanks within sequences of the FASTA dropped"
    assert (said in outcome.out) == (said in (output / "SUMMARY.md").read_text()) == bool(blanks)
    assert workshop.run("verify", config).code == 0


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"\xfd7zXZ\x00\x00\x04" * 9, "found an xz archive"),
        (b"\x28\xb5\x2f\xfd" * 9, "found a zstd archive"),
        (b"PK\x03\x04" * 9, "found a zip archive"),
        (b"BZh91AY&SY" * 9, "found a bzip2 archive"),
        (CLEAN.encode("utf-16"), "found binary data (UTF-16 text)"),
        (CLEAN.encode("utf-16-le"), "found binary data"),
        (gzipped(gzipped(CLEAN.encode())), "found binary data"),
        (gzipped(CLEAN.encode()) + b"trailing", "the gzip stream is cut short or damaged"),
        (b">a\nACGT\nAC>b\nGG\n", "record 'a' has a '>' within a line"),
        (b">a\nACGT\n >b\nGGGG\n", "record 'a' has a '>' within a line"),
        (b">a\n 1 ACGT\n 5 ACGT\n", "a line that begins with a number, as GenBank has them"),
        (b">a\nACGT\n;note\nACGT\n", "a line that begins with ';', a comment"),
        (b">" + b"a" * 256 + b"\nACGT\n", "the name of record 1 has 256 bytes, wanted at most 255"),
        (b">a\n" + b"A" * 70_000 + b"\n>b\0c\nACGT\n", "the name of record 2 holds control characters"),
        (b">a " + b"x" * 2_000_000 + b"\nACGT\n", "the header of record 1 has more than 1,048,576 bytes"),
        (b"\n" * 70_000 + b">a\nACGT\n", "found no '>' header before the first letters"),
        (b"\n" * 100, "found no '>' header before the first letters"),
    ],
)
def test_a_fasta_that_would_be_misread_is_named(workshop: Workshop, content: bytes, wanted: str) -> None:
    workshop.write("genome.fa", content)
    assert wanted in refused(workshop, workshop.config())


def test_a_name_with_a_slash_is_a_name(workshop: Workshop) -> None:
    workshop.write("genome.fa", CLEAN.replace(">a", ">../../a/b"))
    workshop.build()
    assert {chunk.chromosome for chunk in read_index(workshop.output).chunks} == {"../../a/b", "b"}
    assert all(path.parent == workshop.output for path in workshop.output.rglob("*"))


@pytest.mark.parametrize("key", ["fasta", "bed"])
@pytest.mark.parametrize("kind", ["fifo", "device", "socket"])
def test_what_is_no_regular_file_is_refused_and_does_not_hang(workshop: Workshop, key: str, kind: str) -> None:
    place = workshop.directory / "genome.fa"
    if key == "bed":
        workshop.write("genome.fa", CLEAN)
        place = workshop.directory / "r.bed"
    if kind == "fifo":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero" if kind == "device" else "/dev/null")
    config = workshop.config(**({"splits": {"bed": str(place)}} if key == "bed" else {}))
    outcome = workshop.run("build", config)
    assert outcome.code == 2 and "wanted a regular file" in outcome.sentence and str(place) in outcome.sentence
    assert not workshop.partial.exists()


def bomb(first: bytes, block: bytes, times: int) -> bytes:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, compresslevel=1) as stream:
        stream.write(first)
        for _ in range(times):
            stream.write(block)
    return packed.getvalue()


@pytest.mark.parametrize(
    ("first", "block", "wanted"),
    [
        (b"", bytes(1 << 20), "found binary data"),
        (b">a\n" + b"ACGT" * 20_000, bytes(1 << 20), "bytes that are not text"),
        (b"", b"A" * (1 << 20), "found no '>' header"),
        (b">a\n", (b"ACGT" * 15 + b"\n") * (1 << 14), "found more than 8,388,608 bytes of FASTA"),
        (b">", b"A" * (1 << 20), "the header of record 1 has more than"),
    ],
)
def test_a_packed_fasta_that_unpacks_without_end_is_looked_at_as_it_comes(
    workshop: Workshop, monkeypatch, first: bytes, block: bytes, wanted: str
) -> None:
    written: list[int] = []
    feed = hyena_ds.genome.fasta.Scanner.feed
    monkeypatch.setattr(
        hyena_ds.genome.fasta.Scanner, "feed", lambda self, text: written.append(len(text)) or feed(self, text)
    )
    workshop.write("genome.fa", bomb(first, block, 64))
    assert wanted in refused(workshop, workshop.config(limits={"fasta_gib": 2**-7}))
    assert sum(written) <= 3 << 22


@pytest.mark.parametrize(
    "block", [bytes(1 << 20), b"\n" * (1 << 20), b"a 0 10 train\n" * 80_000], ids=["nothing", "lines", "intervals"]
)
def test_a_packed_bed_that_unpacks_without_end_takes_little_memory(workshop: Workshop, block: bytes) -> None:
    workshop.write("genome.fa", CLEAN)
    workshop.write("r.bed", bomb(b"a 0 10 train\n", block, 150))
    config = workshop.config(splits={"bed": str(workshop.directory / "r.bed")})
    script = f"import sys; from hyena_ds.cli import main; code = main(['prep', *sys.argv[1:]]); print({PEAK_MIB}); sys.exit(code)"
    done = subprocess.run(
        [sys.executable, "-c", script, "build", config], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2 and "found more than 67,108,864 bytes of BED" in done.stderr
    assert int(done.stdout) < 400 and not workshop.partial.exists()


def test_a_million_empty_members_are_an_empty_stream(workshop: Workshop) -> None:
    workshop.write("genome.fa", gzipped(b"") * 50_000 + gzipped(CLEAN.encode()))
    workshop.build()
    assert sum(chunk.length for chunk in read_index(workshop.output).chunks) > 1000


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"\xef\xbb\xbfa 0 100 train\r\nb 0 100 valid\r\n", None),
        (b"a 0 100 train\rb 0 100 valid\r", None),
        (b"a 0 100 train\nb 0 100 valid\n\0", "found binary data"),
        ("a 0 100 train\nb 0 100 valid\n".encode("utf-16"), "found binary data (UTF-16 text)"),
        ("a 0 ١٠٠ train\n".encode(), ":1: found '١٠٠' as a coordinate"),
        (b"a 0 1e6 train\n", ":1: found '1e6' as a coordinate"),
        (b"a -1 10 train\n", ":1: found '-1' as a coordinate"),
        (b"a 0 " + b"9" * 5000 + b" train\n", ":1: found '9999"),
        (b"a 0 999999999999999999 train\n", ":1: found the end 999999999999999999 past the end of a"),
        (b"a 0 100 train" + b" " * 70_000 + b"\n", "found a line of more than 65,536 letters"),
        (b"PK\x03\x04", "found a zip archive"),
    ],
)
def test_a_bed_is_read_right_or_named(workshop: Workshop, content: bytes, wanted: str | None) -> None:
    workshop.write("genome.fa", CLEAN)
    config = workshop.config(splits={"bed": str(workshop.write("r.bed", content))})
    if wanted is None:
        assert workshop.run("build", config).code == 0
        assert [(c.chromosome, c.start, c.end) for c in read_index(workshop.output).chunks] == [
            ("a", 0, 100),
            ("b", 0, 100),
        ]
    else:
        assert wanted in refused(workshop, config)


def test_splits_that_overlap_everywhere_are_refused_before_every_pair_is_listed(
    workshop: Workshop, monkeypatch
) -> None:
    monkeypatch.setattr("hyena_ds.genome.bed.MOST_LEAKS", 100)
    workshop.write("genome.fa", CLEAN)
    bed = workshop.write("r.bed", "a 0 100 train\na 0 100 valid\n" * 1000)
    config = workshop.config(splits={"bed": str(bed)}, overlap="trim")
    assert "overlap in more than 100 places" in refused(workshop, config)
    same = [Interval("a", 0, 100, "train", line) for line in range(30_000)]
    assert data_prep.regions.bed.find_leaks(same) == []


def test_an_unreadable_bed_or_output_is_one_sentence(workshop: Workshop, monkeypatch) -> None:
    workshop.write("genome.fa", CLEAN)
    bed = workshop.write("r.bed", "a 0 100 train\nb 0 100 valid\n")

    def denied(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    def outcome(method: str, config: str) -> str:
        real = getattr(Path, method)
        places = (bed, workshop.output, workshop.partial)
        with monkeypatch.context() as patch:
            patch.setattr(Path, method, lambda path, *a, **k: (denied if path in places else real)(path, *a, **k))
            found = workshop.run("build", config)
        assert found.code == 2 and not workshop.partial.exists()
        return found.sentence

    assert f"{bed}: cannot read the BED (Permission denied)" in outcome(
        "open", workshop.config(splits={"bed": str(bed)})
    )
    assert f"{workshop.partial}: cannot make the directory" in outcome("mkdir", workshop.config())
    workshop.output.mkdir()
    assert f"{workshop.output}: cannot be looked at (Permission denied)" in outcome("iterdir", workshop.config())


def test_a_disk_that_fills_while_a_genome_is_unpacked_is_not_left_full(workshop: Workshop, monkeypatch) -> None:
    workshop.write("genome.fa", bgzip(CLEAN.encode()))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(hyena_ds.genome.fasta.os, "fsync", full)
        patch.setattr("hyena_ds.files.whole.to_disk", lambda file: file.flush())
        outcome = workshop.run("build", workshop.config())
    assert outcome.code == 2 and "the disk is full" in outcome.sentence
    assert [path.name for path in workshop.partial.iterdir() if path.suffix == ".partial"] == []
    assert workshop.build().code == 0


def test_a_disk_that_fills_while_a_shard_is_written_keeps_no_half_of_it(workshop: Workshop, monkeypatch) -> None:
    workshop.write("genome.fa", CLEAN)

    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("data_prep.writer.to_disk", full)
    outcome = workshop.run("build", workshop.config())
    assert outcome.code == 2 and "the disk is full" in outcome.sentence
    assert list((workshop.partial / "shards").iterdir()) == []


def test_work_that_counted_blanks_as_bases_is_thrown_away_and_said(workshop: Workshop, monkeypatch) -> None:
    """What a version before left: the FASTA itself, its index, and shards with shifted coordinates."""
    workshop.write("genome.fa", SAME_BASES["blanks at the ends of lines"])
    with monkeypatch.context() as patch:
        patch.setattr(data_prep.build, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert workshop.run("build", workshop.config()).code == 130
    (workshop.partial / "genome.json").unlink()
    stale = workshop.partial / "shards" / "000000-train.tar"
    stale.write_bytes(b"shifted")
    outcome = workshop.build()
    assert "discarding the unfinished work" in outcome.err
    assert workshop.run("verify", workshop.config()).code == 0


def test_work_on_tidy_input_from_before_is_gone_on_with(workshop: Workshop, monkeypatch) -> None:
    workshop.write("genome.fa", CLEAN)
    with monkeypatch.context() as patch:
        patch.setattr(data_prep.build, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert workshop.run("build", workshop.config()).code == 130
    (workshop.partial / "genome.json").unlink()
    monkeypatch.setattr(data_prep.writer, "write_shard", lambda *_: pytest.fail("a finished shard was written again"))
    assert "discarding" not in workshop.build().err


def test_work_of_another_config_beside_a_complete_output_is_left_and_said(workshop: Workshop, monkeypatch) -> None:
    workshop.write("genome.fa", CLEAN)
    workshop.build()
    kept = workshop.directory / "kept"
    workshop.output.rename(kept)
    with monkeypatch.context() as patch:
        patch.setattr(data_prep.build, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert workshop.run("build", workshop.config(chunk_length=50)).code == 130
    kept.rename(workshop.output)
    outcome = workshop.build()
    assert "'chunk_length' was 50 and is 100" in outcome.err and workshop.partial.exists()


def test_chunks_that_no_index_could_list_are_refused(workshop: Workshop, monkeypatch) -> None:
    monkeypatch.setattr("data_prep.plan.MOST_CHUNKS", 1000)
    workshop.write("genome.fa", CLEAN)
    assert "cuts the regions into 1,30" in refused(workshop, workshop.config(chunk_length=1))


def test_the_limits_change_no_byte_and_nothing_that_is_compared(workshop: Workshop) -> None:
    workshop.write("genome.fa", CLEAN)
    workshop.build()
    assert "nothing to do" in workshop.build(limits={"fasta_gib": 1, "bed_mib": 1}, workers=2).out
