"""Recall@k of held-out relevance pairs: does the right item come first for its left side?"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64, Int64

# Cosines this near are a tie: equal texts get equal vectors up to rounding.
TIE = 1e-6
CUTOFFS = (1, 10, 100)
CHUNK = 256  # left sides scored at a time


def candidate_items(
    right: Int64[np.ndarray, " n"], items: int, most: int, seed: int
) -> Int64[np.ndarray, " S"]:
    """The items that are ranked: all, or all right ones and a random sample up to `most`."""
    needed = np.unique(right)
    if not most or items <= most:
        return np.arange(items)
    drawn = np.random.default_rng(seed).choice(items, min(most, items), replace=False)
    # In the order drawn: sorted first, the cut would leave the start of the catalogue alone.
    others = drawn[~np.isin(drawn, needed)][: max(most - len(needed), 0)]
    return np.sort(np.concatenate([needed, others]))


def recalls(
    left: Float32[np.ndarray, "n D"],
    candidates: Float32[np.ndarray, "S D"],
    place: Int64[np.ndarray, " n"],
    own_place: Int64[np.ndarray, " n"],
) -> dict[int, Float64[np.ndarray, " n"]]:
    """For each k of CUTOFFS, the chance of each pair that its right item is among the first k.

    Args:
      place: row of the right item in `candidates`.
      own_place: row of the left item, which is no candidate for itself; -1 where there is none.

    Ties are broken evenly at random, so the chance is not always 0 or 1: with one better item and
    two others equal to the right one, recall@2 is 1/3.
    """
    found = {k: np.zeros(len(left)) for k in CUTOFFS}
    for start in range(0, len(left), CHUNK):
        part = slice(start, start + CHUNK)
        scores = left[part] @ candidates.T
        rows = np.arange(len(scores))
        right = scores[rows, place[part]][:, None]
        has_own = own_place[part] >= 0
        scores[rows[has_own], own_place[part][has_own]] = -np.inf
        better = (scores > right + TIE).sum(axis=1)
        equal = (np.abs(scores - right) <= TIE).sum(axis=1)  # the right one among them
        for k in CUTOFFS:
            found[k][part] = np.clip((k - better) / np.maximum(equal, 1), 0, 1)
    return found
