"""Selection of the best items from a short list of scored items."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int


def top_items(
    items: Int[np.ndarray, " n"],
    scores: Float64[np.ndarray, " n"],
    tie_order: Int[np.ndarray, " I"],
    k: int,
) -> Int[np.ndarray, " m"]:
    """The k items of highest score, best first.

    Args:
      items: distinct items.
      scores: one for each of `items`.
      tie_order: of all items; among equal scores the lower comes first.
      k: most items returned.
    """
    if len(items) > k:
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        keep = scores >= threshold  # more than k if several scores equal the threshold
        items, scores = items[keep], scores[keep]
    return items[np.lexsort((tie_order[items], -scores))[:k]]


def is_rankable(
    items: Int[np.ndarray, " n"],
    seen: Int[np.ndarray, " s"] | None,
    allowed: Int[np.ndarray, " a"] | None,
) -> Bool[np.ndarray, " n"]:
    """Whether each of `items` is not in `seen` and is in `allowed`. None sets no limit."""
    rankable = np.ones(len(items), bool)
    if seen is not None:
        rankable &= ~np.isin(items, seen)
    if allowed is not None:
        rankable &= np.isin(items, allowed)
    return rankable
