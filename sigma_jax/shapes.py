"""Array sizes rounded up, so that arrays of many sizes share few compiled programs."""

from __future__ import annotations


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count`, and at least 1: 0 -> 1, 5 -> 8."""
    return 1 << max(int(count) - 1, 0).bit_length()


def in_eighths(count: int) -> int:
    """`count` rounded up to a multiple of a power of two that is at most an eighth of it.

    Worked example: 7 -> 7, 17 -> 18, 40 -> 40, 41 -> 44, 2,489 -> 2,560.
    """
    unit = power_of_two(count // 8 + 1) // 2 if count >= 16 else 1
    return -(-count // unit) * unit


def few_sizes(count: int, least: int) -> int:
    """The smallest of `least`, 4 `least`, 16 `least`, ... that is at least `count`.

    For arrays that are small beside what is computed with them: they cause few compilations.
    """
    size = least
    while size < count:
        size *= 4
    return size
