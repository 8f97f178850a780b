"""Array sizes rounded up, so that arrays of many sizes share few compiled programs."""

from __future__ import annotations


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count`, and at least 1: 0 -> 1, 5 -> 8."""
    return 1 << max(int(count) - 1, 0).bit_length()


def few_sizes(count: int, least: int) -> int:
    """The smallest of `least`, 4 `least`, 16 `least`, ... that is at least `count`.

    For arrays that are small beside what is computed with them: they cause few compilations.
    """
    size = least
    while size < count:
        size *= 4
    return size
