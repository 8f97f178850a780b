"""What a ranking is worth: hit rate, recall, NDCG, MRR, coverage, long-tail share, constraints.

A ranking is a row of K item numbers, best first; -1 stands where nothing was returned and never
counts as a hit. Rankings are final: whoever made them has broken the ties of the scores already,
and nothing here reorders them. Section 3.1.1 of SIGMA reports HR@K at SID level (all codes of a
recommended item equal the target's); items that collide then count as hits, so the item-level
figures stand beside them.

    ranking [7, 3, -1], target 3 -> rank 1 (from 0): HR@1 = 0, HR@2 = 1, NDCG@2 = 1/log2(3)
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32, Int64

from sigma_jax.schema import Links

# N@10 - N@5 over R@10 - R@5 with one target a request: the weight of ranks 6 to 10 (from 1).
LEAVE_ONE_OUT_BAND = (1 / math.log2(11), 1 / math.log2(7))


def item_ranks(
    rankings: Int[np.ndarray, "N K"], target: Int[np.ndarray, " N"]
) -> Int64[np.ndarray, " N"]:
    """Rank (from 0) of each target in its ranking; K where it is absent or unknown (-1)."""
    is_hit = (rankings == target[:, None]) & (rankings >= 0)
    return _first_true(is_hit)


def sid_ranks(
    rankings: Int[np.ndarray, "N K"],
    target: Int[np.ndarray, " N"],
    codes: Int32[np.ndarray, "I L"],
) -> Int64[np.ndarray, " N"]:
    """Rank (from 0) of the first item whose full SID is the target's; K where there is none.

    Section 3.1.1 of SIGMA. The list stays as it was: several items of one SID are not merged.
    """
    is_known = (rankings >= 0) & (target >= 0)[:, None]
    is_same = np.ones(rankings.shape, bool)
    for level in range(codes.shape[1]):  # level by level: [N, K, L] is never built
        code = np.asarray(codes[:, level])
        is_same &= code[np.maximum(rankings, 0)] == code[np.maximum(target, 0)][:, None]
    return _first_true(is_same & is_known)


def _first_true(is_hit: Bool[np.ndarray, "N K"]) -> Int64[np.ndarray, " N"]:
    return np.where(is_hit.any(1), is_hit.argmax(1) if is_hit.shape[1] else 0, is_hit.shape[1])


def hits(ranks: Int[np.ndarray, " N"], k: int) -> Float64[np.ndarray, " N"]:
    """HR@k of each request: 1 where the target is among the first k."""
    return (np.asarray(ranks) < k).astype(np.float64)


def ndcg(ranks: Int[np.ndarray, " N"], k: int) -> Float64[np.ndarray, " N"]:
    """NDCG@k of each request with one target: 1 / log2(rank + 2), 0 beyond k (Järvelin 2002)."""
    ranks = np.asarray(ranks)
    return np.where(ranks < k, 1 / np.log2(ranks + 2.0), 0.0)


def reciprocal_ranks(ranks: Int[np.ndarray, " N"], k: int) -> Float64[np.ndarray, " N"]:
    """MRR@k of each request: 1 / (rank + 1), 0 beyond k."""
    ranks = np.asarray(ranks)
    return np.where(ranks < k, 1 / (ranks + 1.0), 0.0)


def standard_error(values: Float64[np.ndarray, " N"]) -> float:
    """Standard error of the mean over requests (sample deviation); 0 for fewer than two."""
    count = len(values)
    return float(np.std(values, ddof=1) / math.sqrt(count)) if count > 1 else 0.0


def coverage(rankings: Int[np.ndarray, "N K"], num_items: int) -> float:
    """Share of the catalogue that appears in any ranking."""
    shown = np.unique(rankings)
    return float((shown >= 0).sum() / num_items) if num_items else 0.0


def long_tail(popularity: Int[np.ndarray, " I"], head_share: float) -> Bool[np.ndarray, " I"]:
    """Which items are the long tail: all but the most popular ones that hold `head_share`.

    popularity [5, 3, 1, 1], head_share 0.8 -> the head is items 0 and 1 (8 of 10 interactions),
    the tail items 2 and 3. Items nobody took belong to the tail.
    """
    popularity = np.asarray(popularity, np.int64)
    order = np.argsort(-popularity, kind="stable")
    held = np.cumsum(popularity[order])
    before = np.concatenate([[0], held[:-1]])
    is_head = (before < head_share * held[-1]) & (popularity[order] > 0)
    is_tail = np.ones(len(order), bool)
    is_tail[order[is_head]] = False
    return is_tail


def share_of(
    rankings: Int[np.ndarray, "N K"], is_member: Bool[np.ndarray, " I"]
) -> Float64[np.ndarray, " N"]:
    """Share of each request's returned items that are members; 0 where nothing was returned."""
    is_returned = rankings >= 0
    inside = is_member[np.maximum(rankings, 0)] & is_returned
    return inside.sum(1) / np.maximum(is_returned.sum(1), 1)


def satisfied(
    rankings: Int[np.ndarray, "N K"], allowed: Links, row: Int[np.ndarray, " N"]
) -> Float64[np.ndarray, " N"]:
    """Share of each request's returned items that satisfy its constraint.

    Request n allows the items `allowed.of(row[n])`; where these are fewer than what was returned,
    the share is of them: a list of ten with both items of a query satisfies it. NaN where row is -1
    (no constraint), 0 where nothing was returned or nothing is allowed.
    """
    share = np.full(len(rankings), np.nan)
    for constraint in np.unique(row[row >= 0]):
        requests = np.flatnonzero(row == constraint)
        chosen = rankings[requests]
        is_returned = chosen >= 0
        inside = np.isin(chosen, allowed.of(constraint)) & is_returned
        possible = np.minimum(is_returned.sum(1), len(np.unique(allowed.of(constraint))))
        share[requests] = inside.sum(1) / np.maximum(possible, 1)
    return share


def leave_one_out_gap(
    recall_5: float, recall_10: float, ndcg_5: float, ndcg_10: float, tolerance: float
) -> str | None:
    """None where the four figures can come from one ranking, otherwise what is wrong.

    With one target a request, what lies at ranks 6 to 10 adds between 1/log2(11) = 0.289 and
    1/log2(7) = 0.356 to NDCG for each hit it adds to recall whatever the method.
    `tolerance` is the rounding of the figures, 0.5e-4 for four decimals.
    """
    low, high = LEAVE_ONE_OUT_BAND
    hits_added, gain = recall_10 - recall_5, ndcg_10 - ndcg_5
    slack = 2 * tolerance
    if low * (hits_added - slack) - slack <= gain <= high * (hits_added + slack) + slack:
        return None
    return (
        f"N@10 - N@5 = {gain:.5f} lies outside [{low:.3f}, {high:.3f}] x (R@10 - R@5) = "
        f"[{low * hits_added:.5f}, {high * hits_added:.5f}]; "
        "the figures cannot come from one ranking."
    )
