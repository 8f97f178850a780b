"""Hashes of integers that are equal on every machine and in every order of work."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import UInt64

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(*parts: np.ndarray | int) -> UInt64[np.ndarray, "..."]:
    """A hash of the integers `parts`, element by element; arrays are broadcast."""
    state: Any = GOLDEN_GAMMA
    with np.errstate(over="ignore"):  # arithmetic is modulo 2**64
        for part in parts:
            state = state ^ np.asarray(part).astype(np.int64).astype(np.uint64)
            state = mix64(state) + GOLDEN_GAMMA
    return state


def mix64(key: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """`key` with its bits mixed: the finaliser of SplitMix64 (Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return key ^ (key >> np.uint64(31))
