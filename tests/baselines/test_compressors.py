"""The copy model against one that walks from base to base with a dictionary, and LZMA against bytes of known content."""

from __future__ import annotations

import lzma
import math
import random
from collections import defaultdict

import numpy as np
import pytest

from hyena_ds.baselines.backoff import UNKNOWN, Codes
from hyena_ds.baselines.compressors import copy_losses, lzma_bits
from tests.baselines.test_backoff import codes

MER = 3
RANDOM = random.Random(11)


def by_hand(stream: Codes, otherwise: float) -> list[float]:
    last: dict[tuple[int, ...], int] = {}
    tries: defaultdict[int, int] = defaultdict(int)
    right: defaultdict[int, int] = defaultdict(int)
    row, found = 0, []
    for at, letter in enumerate(stream.tolist()):
        mer = tuple(stream[max(0, at - MER) : at].tolist())
        guess = UNKNOWN
        if len(mer) == MER and UNKNOWN not in mer:
            guess = last.get(mer, UNKNOWN)
            last[mer] = letter
        if guess == UNKNOWN or letter == UNKNOWN:
            found.append(otherwise)
            row = 0
            continue
        kind = min(row.bit_length(), 6)
        share = (right[kind] + 0.5) / (tries[kind] + 1)
        hit = guess == letter
        found.append(otherwise if share <= 0.5 else -math.log(share if hit else (1 - share) / 3))
        tries[kind] += 1
        right[kind] += hit
        row = row + 1 if hit else 0
    return found


def test_it_guesses_what_followed_the_last_occurrence_and_trusts_what_was_right() -> None:
    piece = "".join(RANDOM.choices("ACGT", k=90))
    text = (
        piece + "N" + "".join(RANDOM.choices("ACGT", k=60)) + piece + "RN" + piece[:50] + "A" + piece[51:] + "AC" * 70
    )
    stream = codes(text)
    found_n = copy_losses(stream, np.full(len(stream), 1.25), MER)
    np.testing.assert_allclose(found_n, by_hand(stream, 1.25), rtol=1e-12)
    assert (found_n != 1.25).sum() > 100 and found_n[-60:].mean() < 0.2


def test_lzma_packs_two_bits_a_base_and_has_no_header() -> None:
    piece = "".join(RANDOM.choices("ACGT", k=4096))
    assert lzma_bits(codes(piece)) == pytest.approx(2, abs=0.02)
    assert 1 < lzma_bits(codes(piece + piece)) < 1.05
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    packed = bytes([0b00011011] * 1000)
    wanted = len(lzma.compress(packed, format=lzma.FORMAT_RAW, filters=filters)) * 8 / 4000
    assert lzma_bits(codes("ACGT" * 500 + "N" + "ACGT" * 500)) == wanted
    assert math.isnan(lzma_bits(codes("NN")))
