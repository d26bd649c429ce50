"""How much one program of a kernel does; imports no triton."""

from __future__ import annotations


def steps_of(items: int, a_step: int, most: int) -> int:
    """Steps of a program: a power of two up to `most`, no more than `items` need; few values, since each is compiled."""
    return min(most, 1 << (max(1, -(-items // a_step)) - 1).bit_length())
