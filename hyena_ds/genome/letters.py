"""From the letters of a FASTA to published token ids, by the rules of the config.

    bytes of a chunk --token_table----> uint8 ids
                     --masks and runs-> soft-masked, N and unknown shares of the metadata

Three kinds of letters: A C G T N, the ten IUPAC codes for several bases, and everything else (U and gaps included).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hyena_ds.genome import tokenizer

PLAIN = "ACGTN"
AMBIGUOUS = "RYSWKMBDHV"

Bytes = NDArray[np.uint8]
Counts = NDArray[np.int64]


def _either_case(letters: str) -> NDArray[np.bool_]:
    return np.isin(np.arange(256), [*(letters + letters.lower()).encode()])


IS_PLAIN = _either_case(PLAIN)
IS_AMBIGUOUS = _either_case(AMBIGUOUS)
IS_OTHER = ~(IS_PLAIN | IS_AMBIGUOUS)
IS_N = _either_case("N")
IS_NUCLEOTIDE = _either_case("ACGTUN")
IS_LOWER = np.zeros(256, dtype=bool)
IS_LOWER[ord("a") : ord("z") + 1] = True


def token_table(fold_case: bool, ambiguous_to_n: bool, other_to_n: bool) -> Bytes:
    """The id of each of the 256 bytes.

    Upper-case A C G T N are the published ids. With `fold_case` a lower-case letter has the id of its upper-case
    twin; without, every lower-case letter is unknown, as in the published tokenizer.
    """
    table = np.full(256, tokenizer.N if other_to_n else tokenizer.UNKNOWN, dtype=np.uint8)
    table[[*AMBIGUOUS.encode()]] = tokenizer.N if ambiguous_to_n else tokenizer.UNKNOWN
    table[[*"".join(tokenizer.LETTERS).encode()]] = [*tokenizer.LETTERS.values()]
    lower, upper = slice(ord("a"), ord("z") + 1), slice(ord("A"), ord("Z") + 1)
    table[lower] = table[upper] if fold_case else tokenizer.UNKNOWN
    return table


def count_letters(letters: Bytes) -> Counts:
    """How often each of the 256 bytes occurs."""
    counts = np.zeros(256, dtype=np.int64)
    for start in range(0, len(letters), 1 << 20):  # bincount widens its input to 8 bytes an element
        counts += np.bincount(letters[start : start + (1 << 20)], minlength=256)
    return counts


def runs(mask: NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """(start, length) of each run of True."""
    if not mask.any():
        return ()
    edges = np.diff(np.concatenate(([False], mask, [False])).astype(np.int8))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return tuple(zip(starts.tolist(), (ends - starts).tolist(), strict=True))


def named_counts(counts: Counts, kind: NDArray[np.bool_]) -> dict[str, int]:
    """Upper-case letter -> occurrences in either case, for the bytes of one kind that occur at all."""
    named: dict[str, int] = {}
    for byte in np.flatnonzero(kind & (counts > 0)).tolist():
        name = letter_name(byte).upper()
        named[name] = named.get(name, 0) + int(counts[byte])
    return dict(sorted(named.items()))


def letter_name(byte: int) -> str:
    """A byte as it may be printed."""
    return chr(byte) if 33 <= byte < 127 else f"byte {byte}"
