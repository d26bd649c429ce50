"""The published vocabulary."""

from __future__ import annotations

from hyena_ds.genome import tokenizer
from tests.data.genomes import other_strand


def test_the_ids_are_the_published_ones() -> None:
    assert tokenizer.encode("ACGTN").tolist() == [7, 8, 9, 10, 11]
    assert tokenizer.encode("acgtRU-.\u00e9").tolist() == [6] * 9
    published = {"[CLS]": 0, "[SEP]": 1, "[BOS]": 2, "[MASK]": 3, "[PAD]": 4, "[RESERVED]": 5, "[UNK]": 6}
    assert published == tokenizer.SPECIALS


def test_decoding_inverts_encoding_and_the_other_strand_is_read_backwards() -> None:
    text = "AACGNTTGCA"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.reverse_complement(tokenizer.encode(text))) == other_strand(text)
    assert tokenizer.reverse_complement(tokenizer.encode("R" + "A")).tolist() == [10, 6]
