"""A variant's first difference and window follow from the two sequences, not from how a file spells the variant."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyena_ds.errors import UserError
from hyena_ds.genome.fasta import Genome, open_genome
from hyena_ds.genome.tokenizer import decode, encode, reverse_complement
from hyena_ds.predict.haplotypes import Strand, WindowRule

CONTIG = "ACGTTTTTTTTGCACACACACAGGGATCNNNNACGATCGATTACAAAA"


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Genome:
    directory = tmp_path_factory.mktemp("genome")
    (directory / "in.fa").write_text(f">c\n{CONTIG[:30].lower()}{CONTIG[30:]}\n", encoding="ascii")
    return open_genome(directory / "in.fa", directory, 1 << 20).genome


def strand(genome: Genome, reverse: bool) -> Strand:
    return Strand(genome, "c", len(CONTIG), reverse)


def read_along(text: str, reverse: bool) -> str:
    """The text of a contig as a strand reads it."""
    tokens = encode(text)
    return decode(reverse_complement(tokens) if reverse else tokens)


variants = st.tuples(st.integers(0, len(CONTIG) - 1), st.integers(0, 6), st.text("ACGT", max_size=6))


@settings(max_examples=300, deadline=None)
@given(variants, st.booleans(), st.integers(0, 60), st.integers(0, 60))
def test_site_and_tokens_are_those_of_the_two_whole_sequences(
    genome: Genome, variant: tuple[int, int, str], reverse: bool, start: int, more: int
) -> None:
    position, replaced, instead = variant
    replaced = min(replaced, len(CONTIG) - position)
    reference = CONTIG[position : position + replaced]
    here = strand(genome, reverse)
    change = here.change(position, reference, instead)
    old = read_along(CONTIG, reverse)
    new = read_along(CONTIG[:position] + instead + CONTIG[position + replaced :], reverse)
    assert decode(change.read(here, start, start + more)) == new[start : start + more]
    assert decode(here.read(start, start + more)) == old[start : start + more]
    wanted = next((at for at, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
    assert change.first_difference(here) == wanted
    rule = WindowRule(left=9, right=5, step=8)
    site = rule.site(here, change)
    if wanted is None:
        assert site is None
        return
    assert site is not None and site.first == wanted
    assert site.end == min(wanted + 5, len(old), len(new))
    assert site.edge == (wanted < 9 or site.end < wanted + 5)
    assert site.window % 8 == 0 and site.end <= site.window + rule.length
    assert site.window == 0 if wanted < 9 else 9 <= wanted - site.window < 9 + 8


@settings(max_examples=200, deadline=None)
@given(variants, st.booleans(), st.integers(0, 8), st.integers(0, 8))
def test_a_variant_spelt_with_more_bases_around_it_has_the_same_site(
    genome: Genome, variant: tuple[int, int, str], reverse: bool, before: int, behind: int
) -> None:
    position, replaced, instead = variant
    replaced = min(replaced, len(CONTIG) - position)
    begin, end = max(0, position - before), min(len(CONTIG), position + replaced + behind)
    longer = CONTIG[begin:position] + instead + CONTIG[position + replaced : end]
    here, rule = strand(genome, reverse), WindowRule(6, 7, 4)
    spelt = here.change(begin, CONTIG[begin:end], longer)
    plain = here.change(position, CONTIG[position : position + replaced], instead)
    assert rule.site(here, spelt) == rule.site(here, plain)
    assert np.array_equal(spelt.read(here, 0, 99), plain.read(here, 0, 99))


def test_one_more_repeat_differs_where_the_repeats_end_on_each_strand(genome: Genome) -> None:
    first = CONTIG.index("CACACACACA")
    for at in range(first, first + 8, 2):
        for reverse, wanted in ((False, first + 10), (True, len(CONTIG) - first)):
            here = strand(genome, reverse)
            assert here.change(at, "CA", "CACA").first_difference(here) == wanted


@pytest.mark.parametrize(
    ("left", "right", "maximum", "wanted"),
    [
        (None, None, 262144, (131072, 4096, 65536)),
        (131072, 4096, 262144, (131072, 4096, 65536)),
        (1_000_000, 4096, 1 << 20, (1_000_000, 4096, 32768)),
        (60, 4, 64, (60, 4, 1)),
        (0, 4, 64, (0, 4, 1)),
        (None, None, 1, (0, 1, 1)),
    ],
)
def test_the_step_is_the_largest_power_of_two_that_fits(
    left: int | None, right: int | None, maximum: int, wanted: tuple[int, int, int]
) -> None:
    rule = WindowRule.fit(left, right, maximum)
    assert (rule.left, rule.right, rule.step) == wanted
    assert rule.length <= maximum


@pytest.mark.parametrize(("left", "right"), [(61, 4), (-1, 4), (4, 0)])
def test_a_window_that_the_model_cannot_take_is_refused(left: int, right: int) -> None:
    with pytest.raises(UserError, match=r"wanted at least 0 and 1, and no more than the model's maximum_context of 64"):
        WindowRule.fit(left, right, 64)
