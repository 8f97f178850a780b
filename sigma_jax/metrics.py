"""Ranking metrics: hit rate, NDCG, reciprocal rank, coverage, share of members, constraints.

A ranking is a row of K item numbers, best first; -1 stands where nothing was returned and is never
a hit. Rankings are final: these functions neither break ties nor reorder items.
Section 3.1.1 of SIGMA reports HR@K at SID level: a hit is an item whose codes all equal the
target's. Items with the same SID are hits there, so item-level metrics are reported too.

    ranking [7, 3, -1], target 3 -> rank 1 (from 0): HR@1 = 0, HR@2 = 1, NDCG@2 = 1/log2(3)
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32, Int64

from sigma_jax.schema import Links

# Rank of a target that is not in its ranking: no k reaches it, however short the ranking is.
ABSENT = np.iinfo(np.int32).max
# Range of (NDCG@10 - NDCG@5) / (HR@10 - HR@5) with one target a request: the discounts of the
# ranks 6 to 10, counted from 1.
LEAVE_ONE_OUT_BAND = (1 / math.log2(11), 1 / math.log2(7))


def item_ranks(
    rankings: Int[np.ndarray, "N K"], target: Int[np.ndarray, " N"]
) -> Int64[np.ndarray, " N"]:
    """Rank (from 0) of each target in its ranking; ABSENT if it is not there or unknown (-1)."""
    is_hit = (rankings == target[:, None]) & (rankings >= 0)
    return _first_hit(is_hit)


def sid_ranks(
    rankings: Int[np.ndarray, "N K"],
    target: Int[np.ndarray, " N"],
    codes: Int32[np.ndarray, "I L"],
) -> Int64[np.ndarray, " N"]:
    """Rank (from 0) of the first item whose full SID is the target's; ABSENT if there is none.

    Section 3.1.1 of SIGMA. Items that share a SID keep a rank each.
    """
    is_known = (rankings >= 0) & (target >= 0)[:, None]
    is_same = np.ones(rankings.shape, bool)
    for level in range(codes.shape[1]):  # level by level: [N, K, L] is never built
        code = np.asarray(codes[:, level])
        is_same &= code[np.maximum(rankings, 0)] == code[np.maximum(target, 0)][:, None]
    return _first_hit(is_same & is_known)


def _first_hit(is_hit: Bool[np.ndarray, "N K"]) -> Int64[np.ndarray, " N"]:
    if not is_hit.shape[1]:
        return np.full(len(is_hit), ABSENT, np.int64)
    return np.where(is_hit.any(axis=1), is_hit.argmax(axis=1), ABSENT)


def hits(ranks: Int[np.ndarray, " N"], k: int) -> Float64[np.ndarray, " N"]:
    """HR@k of each request: 1 if the target is among the first k, else 0."""
    return (np.asarray(ranks) < k).astype(np.float64)


def ndcg(ranks: Int[np.ndarray, " N"], k: int) -> Float64[np.ndarray, " N"]:
    """NDCG@k of each request with one target: 1 / log2(rank + 2), and 0 from rank k on.

    Järvelin and Kekäläinen 2002; ranks are counted from 0.
    """
    ranks = np.asarray(ranks)
    return np.where(ranks < k, 1 / np.log2(ranks + 2.0), 0.0)


def reciprocal_ranks(ranks: Int[np.ndarray, " N"], k: int) -> Float64[np.ndarray, " N"]:
    """Reciprocal rank at k of each request: 1 / (rank + 1), and 0 from rank k on."""
    ranks = np.asarray(ranks)
    return np.where(ranks < k, 1 / (ranks + 1.0), 0.0)


def standard_error(values: Float64[np.ndarray, " N"]) -> float:
    """Standard error of the mean of `values` (sample deviation); 0 for fewer than two."""
    count = len(values)
    return float(np.std(values, ddof=1) / math.sqrt(count)) if count > 1 else 0.0


def coverage(rankings: Int[np.ndarray, "N K"], num_items: int) -> float:
    """Share of the catalogue that appears in any ranking."""
    shown = np.unique(rankings)
    return float((shown >= 0).sum() / num_items) if num_items else 0.0


def long_tail(popularity: Int[np.ndarray, " I"], head_share: float) -> Bool[np.ndarray, " I"]:
    """True for the items outside the head, which is the most popular items with `head_share`.

    Worked example, popularity [5, 3, 1, 1], head_share 0.8: items 0 and 1 are the head (8 of 10
    interactions) and items 2 and 3 the tail. Items without interactions belong to the tail.
    """
    popularity = np.asarray(popularity, np.int64)
    order = np.argsort(-popularity, kind="stable")
    cumulative = np.cumsum(popularity[order])
    more_popular = np.concatenate([[0], cumulative[:-1]])
    is_head = (more_popular < head_share * cumulative[-1]) & (popularity[order] > 0)
    is_tail = np.ones(len(order), bool)
    is_tail[order[is_head]] = False
    return is_tail


def share_of(
    rankings: Int[np.ndarray, "N K"], is_member: Bool[np.ndarray, " I"]
) -> Float64[np.ndarray, " N"]:
    """Share of each request's returned items that are members; 0 if nothing was returned."""
    is_returned = rankings >= 0
    is_hit = is_member[np.maximum(rankings, 0)] & is_returned
    return is_hit.sum(1) / np.maximum(is_returned.sum(1), 1)


def satisfied(
    rankings: Int[np.ndarray, "N K"], allowed: Links, row: Int[np.ndarray, " N"]
) -> Float64[np.ndarray, " N"]:
    """Share of each request's returned items that satisfy its constraint.

    Request n allows the items `allowed.of(row[n])`. If fewer items are allowed than were returned,
    the share is of the allowed items: a list of ten with both items of a query satisfies it.
    NaN if row is -1 (no constraint); 0 if nothing was returned or nothing is allowed.
    """
    share = np.full(len(rankings), np.nan)
    for constraint in np.unique(row[row >= 0]):
        requests = np.flatnonzero(row == constraint)
        returned = rankings[requests]
        is_returned = returned >= 0
        is_allowed = np.isin(returned, allowed.of(constraint)) & is_returned
        possible = np.minimum(is_returned.sum(1), len(np.unique(allowed.of(constraint))))
        share[requests] = is_allowed.sum(1) / np.maximum(possible, 1)
    return share


def leave_one_out_gap(
    recall_5: float, recall_10: float, ndcg_5: float, ndcg_10: float, tolerance: float
) -> str | None:
    """None if the four metrics can come from one ranking, otherwise a sentence that says why not.

    With one target a request, a hit at the ranks 6 to 10 adds 1 to recall@10 - recall@5. It adds
    between 1/log2(11) = 0.289 and 1/log2(7) = 0.356 to NDCG@10 - NDCG@5, by any method.
    `tolerance` is the rounding of the metrics: 0.5e-4 for four decimals.
    """
    low, high = LEAVE_ONE_OUT_BAND
    recall_added, ndcg_added = recall_10 - recall_5, ndcg_10 - ndcg_5
    slack = 2 * tolerance
    if low * (recall_added - slack) - slack <= ndcg_added <= high * (recall_added + slack) + slack:
        return None
    return (
        f"N@10 - N@5 = {ndcg_added:.5f} lies outside [{low:.3f}, {high:.3f}] x (R@10 - R@5) = "
        f"[{low * recall_added:.5f}, {high * recall_added:.5f}]; "
        "these metrics cannot come from one ranking."
    )
