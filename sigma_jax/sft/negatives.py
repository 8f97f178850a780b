"""TODO."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


def negative_tables(
    prefix: Int[np.ndarray, " I"], popularity: Int[np.ndarray, " I"]
) -> dict[str, np.ndarray]:
    """What negatives are drawn from: items somebody took, by prefix, and which are none of them.

    Nobody could take an item that was not there yet: as a negative of every target it would end
    below all others.
    """
    is_cold = np.asarray(popularity) == 0
    warm = np.flatnonzero(~is_cold)
    counts = np.bincount(prefix[warm], minlength=int(prefix.max(initial=-1)) + 1)
    return {
        "is_cold": is_cold,
        "prefix_start": np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        "by_prefix": warm[np.argsort(prefix[warm], kind="stable")].astype(np.int32),
    }
