"""TODO."""

from __future__ import annotations

import numpy as np


def splitmix64(*parts: np.ndarray | int) -> np.ndarray:
    """A hash of integers, element by element: equal on every machine and in every order of work."""
    state = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        for part in parts:
            state = state ^ np.asarray(part).astype(np.int64).astype(np.uint64)
            # The finaliser of SplitMix64 (Steele et al., 2014).
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = (state ^ (state >> np.uint64(31))) + np.uint64(0x9E3779B97F4A7C15)
    return state
