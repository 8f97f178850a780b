"""TODO."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int


def best(
    items: Int[np.ndarray, " n"],
    scores: Float64[np.ndarray, " n"],
    tie_order: Int[np.ndarray, " I"],
    k: int,
) -> Int[np.ndarray, " m"]:
    """The k items of highest score, best first; equal scores by `tie_order`, low first."""
    if len(items) > k:
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        keep = scores >= threshold  # more than k where scores tie at the threshold
        items, scores = items[keep], scores[keep]
    return items[np.lexsort((tie_order[items], -scores))[:k]]


def without(
    items: Int[np.ndarray, " n"],
    seen: Int[np.ndarray, " s"] | None,
    allowed: Int[np.ndarray, " a"] | None,
) -> np.ndarray:
    """Boolean [n]: which items are neither seen nor outside what is allowed (None: no limit)."""
    keep = np.ones(len(items), bool)
    if seen is not None:
        keep &= ~np.isin(items, seen)
    if allowed is not None:
        keep &= np.isin(items, allowed)
    return keep
