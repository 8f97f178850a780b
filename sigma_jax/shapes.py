"""Array sizes rounded up, so that arrays of many sizes share few compiled programs."""

from __future__ import annotations


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count`, and at least 1: 0 -> 1, 5 -> 8."""
    return 1 << max(int(count) - 1, 0).bit_length()
