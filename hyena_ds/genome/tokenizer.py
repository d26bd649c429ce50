"""The published vocabulary: one token per nucleotide.

    bytes of a FASTA --encode, one table look-up--> uint8 ids --decode--> text

Ids 0 to 6 are special, 7 to 11 the letters; the embedding has 16 rows, of which 12 to 15 are never used.
Source: the published CharacterTokenizer (HazyResearch/hyena-dna, standalone_hyenadna.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLS, SEP, BOS, MASK, PAD, RESERVED, UNKNOWN = range(7)
A, C, G, T, N = range(7, 12)
VOCABULARY = 16
"""Rows of the embedding: the 12 ids rounded up to a multiple of 8."""

LETTERS = {"A": A, "C": C, "G": G, "T": T, "N": N}
SPECIALS = {
    "[CLS]": CLS,
    "[SEP]": SEP,
    "[BOS]": BOS,
    "[MASK]": MASK,
    "[PAD]": PAD,
    "[RESERVED]": RESERVED,
    "[UNK]": UNKNOWN,
}

_BYTES, _IDS = [*"".join(LETTERS).encode()], [*LETTERS.values()]
_ENCODE = np.full(256, UNKNOWN, dtype=np.uint8)
_ENCODE[_BYTES] = _IDS
_DECODE = np.full(256, ord("?"), dtype=np.uint8)
_DECODE[_IDS] = _BYTES
_COMPLEMENT = np.arange(256, dtype=np.uint8)
_COMPLEMENT[[A, T, C, G]] = [T, A, G, C]


def encode(sequence: str | bytes) -> NDArray[np.uint8]:
    """Ids of a sequence, one per character; everything but upper-case A C G T N is UNKNOWN."""
    data = sequence.encode("ascii", "replace") if isinstance(sequence, str) else sequence
    return _ENCODE[np.frombuffer(data, dtype=np.uint8)]


def decode(token_ids: NDArray[np.uint8]) -> str:
    """Text of ids; specials and unknown become `?`."""
    return _DECODE[token_ids].tobytes().decode("ascii")


def reverse_complement(token_ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The other strand, read in its own direction; N, unknown and specials stay what they are."""
    return _COMPLEMENT[token_ids[::-1]]
