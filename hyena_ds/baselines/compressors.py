"""What general compressors make of bases, in the units of a language model.

    targets, two bits a base --LZMA2, preset 9e--> bits a base
    stream of bases --the last place where the 16 bases before stood--> the base that followed there, trusted as far as such
                                                                       guesses were right --> nats of each base

Codes are those of `backoff`. n bases.
"""

from __future__ import annotations

import lzma

import numpy as np
from numpy.typing import NDArray

from hyena_ds.baselines.backoff import UNKNOWN, Codes, Floats, Integers, earlier, in_order, keys, known_run

MER = 16
"""Bases whose last occurrence is looked up."""
_TRUSTED = 0.5
"""A guess is taken where more than this share of such guesses were right."""
_LONGEST = 6
"""Classes of guesses: 0, 1, 2 to 3, 4 to 7 ... right ones in a row before."""


def lzma_bits(codes_n: Codes) -> float:
    """Bits a base of known bases, packed in two bits each: raw LZMA2 of preset 9e, without a container's header."""
    codes_n = codes_n[codes_n < UNKNOWN]
    if not len(codes_n):
        return float("nan")
    padded = np.zeros(-(-len(codes_n) // 4) * 4, dtype=np.uint8)
    padded[: len(codes_n)] = codes_n
    packed = (padded.reshape(-1, 4) << np.array([6, 4, 2, 0], dtype=np.uint8)).sum(1, dtype=np.uint8).tobytes()
    # The preset's window of 64 MiB costs ten times its size in memory; one of the data's size finds the same.
    window = min(max(4096, len(packed)), 1 << 26)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": window}]
    return 8 * len(lzma.compress(packed, format=lzma.FORMAT_RAW, filters=filters)) / len(codes_n)


def copy_losses(codes_n: Codes, otherwise_n: Floats, mer: int = MER) -> Floats:
    """(n) nats of each base of a stream that is read from first to last.

    A base is guessed to be the one that followed the last earlier occurrence of the `mer` bases before it. Such guesses are
    right with the share that was right before, of those with as many right ones in a row behind them; the other three bases
    share the rest. Where that is no more than `_TRUSTED`, and where there is no guess, a base costs `otherwise_n`.
    """
    guess_n = _last_follower(codes_n, mer)
    guessed_n = guess_n < UNKNOWN
    right_n = guessed_n & (guess_n == codes_n)
    class_n = _class_of(right_n)
    tried = np.flatnonzero(guessed_n & (codes_n < UNKNOWN))
    tries_m = earlier(class_n[tried])
    right_m = earlier(class_n[tried] * 2 + right_n[tried])
    right_m = np.where(right_n[tried], right_m, tries_m - right_m)
    share_m = (right_m + 0.5) / (tries_m + 1)
    costs_m = -np.log(np.where(right_n[tried], share_m, (1 - share_m) / 3))
    found_n = otherwise_n.copy()
    found_n[tried] = np.where(share_m > _TRUSTED, costs_m, otherwise_n[tried])
    return found_n


def _last_follower(codes_n: Codes, mer: int) -> Codes:
    """The base that followed the last earlier occurrence of the `mer` bases before each; UNKNOWN where there was none."""
    guess_n = np.full(len(codes_n), UNKNOWN, dtype=np.uint8)
    after = np.flatnonzero(known_run(codes_n)[:-1] >= mer) + 1
    key_m: Integers = keys(codes_n, mer)[after - 1]
    order = in_order(key_m)
    same = np.flatnonzero(np.diff(key_m[order]) == 0)
    guess_n[after[order[same + 1]]] = codes_n[after[order[same]]]
    return guess_n


def _class_of(right_n: NDArray[np.bool_]) -> Integers:
    """The class of each place: how many right guesses in a row end just before it, as a power of two."""
    at = np.arange(len(right_n))
    row_n = at - np.maximum.accumulate(np.where(right_n, -1, at))
    before_n = np.concatenate(([0], row_n[:-1]))
    return np.minimum(np.frexp(before_n)[1], _LONGEST).astype(np.int64)
