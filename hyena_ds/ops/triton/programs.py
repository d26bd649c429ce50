"""How much one program of a kernel does; imports no triton."""

from __future__ import annotations


def steps_of(items: int, a_step: int, most: int) -> int:
    """Steps of a program: a power of two up to `most`, no more than `items` need; few values, since each is compiled."""
    return min(most, 1 << (max(1, -(-items // a_step)) - 1).bit_length())


def rows_of(width: int, elements: int = 2048) -> tuple[int, int]:
    """(rows, columns) of a block of whole rows that has about so many elements; both are powers of two."""
    columns = 1 << (width - 1).bit_length()
    return max(1, min(32, elements // columns)), columns
