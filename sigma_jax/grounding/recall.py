"""Recall@k of held-out relevance pairs: the rank of the right item for its left side."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Float64, Int64

from sigma_jax.grounding.loss import RelevanceConfig
from sigma_jax.grounding.pairs import TextTable, held_out
from sigma_jax.schema import PreparedData

# Cosines this close are a tie, because equal texts get equal vectors up to rounding.
TIE = 1e-6
CUTOFFS = (1, 10, 100)
CHUNK = 256  # left sides scored at a time


def held_out_recalls(
    data: PreparedData,
    table: TextTable,
    vectors_of: Callable[[Int64[np.ndarray, " n"]], Float32[np.ndarray, "n D"]],
    config: RelevanceConfig,
    seed: int,
) -> dict[str, float]:
    """`recall_K/VIEW` of held-out pairs, and `candidates`, the number of ranked items.

    Other right items of the same left side are ranked too, so recall@1 of a query with many items
    cannot reach 1. {} without held-out pairs.

    Args:
      vectors_of: rows of `table` to their vectors, unit length.
    """
    chosen = {
        view: held_out(pairs, table, config.eval_pairs, seed)
        for view, pairs in data.pairs.items()
        if pairs.is_heldout.any()
    }
    if not chosen:
        return {}
    right = np.concatenate([items for _, items in chosen.values()])
    candidates = candidate_items(right, len(data.catalogue), config.eval_candidates, seed)
    vectors = vectors_of(candidates)
    metrics = {"candidates": float(len(candidates))}
    for view, (left, right) in chosen.items():
        distinct, inverse = np.unique(left, return_inverse=True)
        recall = recalls(
            vectors_of(distinct)[inverse],
            vectors,
            np.searchsorted(candidates, right),
            rows_of(left, candidates),
        )
        metrics |= {f"recall_{k}/{view}": float(hit.mean()) for k, hit in recall.items()}
    return metrics


def rows_of(items: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Row of each of `items` in the sorted `candidates`; -1 if it is not there."""
    row = np.minimum(np.searchsorted(candidates, items), len(candidates) - 1)
    return np.where(candidates[row] == items, row, -1)


def candidate_items(
    right: Int64[np.ndarray, " n"], items: int, limit: int, seed: int
) -> Int64[np.ndarray, " S"]:
    """The items to rank: all of them, or all right items and a random sample, `limit` together.

    With `limit` 0 all items are ranked. If there are more right items than `limit`, only these.
    """
    right_items = np.unique(right)
    if not limit or items <= limit:
        return np.arange(items)
    drawn = np.random.default_rng(seed).choice(items, min(limit, items), replace=False)
    # Cut before sorting: sorted items would be cut to the start of the catalogue.
    others = drawn[~np.isin(drawn, right_items)][: max(limit - len(right_items), 0)]
    return np.sort(np.concatenate([right_items, others]))


def recalls(
    left: Float32[np.ndarray, "n D"],
    candidates: Float32[np.ndarray, "S D"],
    right_rows: Int64[np.ndarray, " n"],
    left_rows: Int64[np.ndarray, " n"],
) -> dict[int, Float64[np.ndarray, " n"]]:
    """k -> probability of each pair that its right item is among the first k, for k in CUTOFFS.

    Ties are broken uniformly at random, so a probability may lie between 0 and 1. Worked example:
    with one better item and two others equal to the right one, recall@2 is 1/3.

    Args:
      left: vectors of the left sides.
      right_rows: row of the right item in `candidates`.
      left_rows: row of the left item, which is not ranked for itself; -1 if it is no candidate.
    """
    recall = {k: np.zeros(len(left)) for k in CUTOFFS}
    for start in range(0, len(left), CHUNK):
        part = slice(start, start + CHUNK)
        scores = left[part] @ candidates.T
        rows = np.arange(len(scores))
        right = scores[rows, right_rows[part]][:, None]
        is_ranked = left_rows[part] >= 0
        scores[rows[is_ranked], left_rows[part][is_ranked]] = -np.inf
        better = (scores > right + TIE).sum(axis=1)
        equal = (np.abs(scores - right) <= TIE).sum(axis=1)  # includes the right item
        for k in CUTOFFS:
            recall[k][part] = np.clip((k - better) / np.maximum(equal, 1), 0, 1)
    return recall
