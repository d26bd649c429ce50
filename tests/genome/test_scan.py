"""Reading a FASTA block by block."""

from __future__ import annotations

from pathlib import Path

from hyena_ds.genome.scan import Scanner
from tests.memory import grows_less_than


def test_reading_a_genome_of_one_long_line_needs_no_more_than_its_length(tmp_path: Path) -> None:
    scanner = Scanner(tmp_path, 2**40)
    with grows_less_than(100):
        for number in range(13):
            scanner.feed(b"ACGT" * (1 << 20) if number else b">a\n")
        scanner.finish()
    assert scanner.records[0].bases == 12 << 22
