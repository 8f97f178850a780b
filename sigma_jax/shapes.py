"""TODO."""

from __future__ import annotations


def power_of_two(count: int) -> int:
    """The least that is not under `count`, at least 1: 1, 2, 4, 8 ..."""
    return 1 << max(int(count) - 1, 0).bit_length()
