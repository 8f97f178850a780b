"""How far a log can be predicted without learning: the shortcuts of arXiv 2605.07125.

All figures are of validation requests and the training rows before them.

| figure | meaning |
|---|---|
| branching | distinct next items of an item, the median over transitions |
| one_step | share of requests whose target is next to their last item in some training history |
| two_steps | the same for one or two steps |
| smoothness | mean share of items that look less like the last item than the target does |
| long_history_gain | gain in NDCG@10 of co-visitation by five sessions instead of the last two |

A low branching, a high share of steps and smoothness near 1 mean that simple rules do well. A
gain near 0 means that long histories add little. 0.5 is the smoothness of random items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Bool, Float, Float32, Float64, Int32

from sigma_jax import metrics
from sigma_jax.baselines.covisitation import CoVisitation
from sigma_jax.baselines.ranking import unit_rows
from sigma_jax.baselines.transition_graph import count_transitions, is_joined
from sigma_jax.histories import history_ranges
from sigma_jax.schema import PreparedData, Requests

SHORT, LONG = 2, 5  # sessions that the two co-visitations read
RANK_CUTOFF = 10


def shortcut_figures(
    data: PreparedData,
    vectors: Float[np.ndarray, "I D"] | None,
    valid: Requests,
    seed: int,
) -> Mapping[str, float]:
    """The figures of the table above; {} without requests that have a history.

    Args:
      vectors: features of the items; None leaves out the smoothness.
      valid: validation requests.
    """
    starts, ends = history_ranges(data.histories, valid)
    valid = valid.take(np.flatnonzero(ends > starts))
    if not len(valid):
        return {}
    last = data.histories.item[history_ranges(data.histories, valid)[1] - 1]
    forward = count_transitions(data)
    joined = is_joined((forward + forward.T).tocsr())
    near = has_entries(joined, last, valid.target)
    figures = {
        "branching": branching(forward),
        "one_step": float(near.mean()),
        "two_steps": float((near | is_two_steps(joined, last, valid.target)).mean()),
    }
    if vectors is not None:
        figures["smoothness"] = smoothness(unit_rows(vectors), last, valid.target)
    fitted = CoVisitation.fit(data, seed)
    short, long = (
        ndcg_of(dataclasses.replace(fitted, sessions=count), data, valid) for count in (SHORT, LONG)
    )
    if short:
        figures["long_history_gain"] = long / short - 1
    return figures


def branching(forward: sparse.csr_matrix) -> float:
    """Distinct next items of an item, the median over transitions."""
    distinct = np.diff(forward.indptr)
    weights = np.asarray(forward.sum(axis=1)).reshape(-1)
    if not weights.sum():
        return 0.0
    order = np.argsort(distinct)
    total = np.cumsum(weights[order])
    return float(distinct[order][np.searchsorted(total, total[-1] / 2)])


def has_entries(
    table: sparse.csr_matrix, rows: Int32[np.ndarray, " N"], columns: Int32[np.ndarray, " N"]
) -> Bool[np.ndarray, " N"]:
    """Whether `table` has an entry at each (row, column)."""
    return np.asarray(table[rows, columns]).reshape(-1) > 0


def is_two_steps(
    joined: sparse.csr_matrix, rows: Int32[np.ndarray, " N"], columns: Int32[np.ndarray, " N"]
) -> Bool[np.ndarray, " N"]:
    """Whether an item stands between each (row, column). `joined` is symmetric."""
    return np.asarray(joined[rows].multiply(joined[columns]).sum(axis=1)).reshape(-1) > 0


def smoothness(
    vectors: Float32[np.ndarray, "I D"],
    last: Int32[np.ndarray, " N"],
    target: Int32[np.ndarray, " N"],
) -> float:
    """Mean share of items with a lower cosine to the last item than the target's."""
    shares: list[Float64[np.ndarray, " n"]] = []
    for first in range(0, len(last), 512):
        rows = slice(first, first + 512)
        cosines = vectors[last[rows]] @ vectors.T
        own = np.take_along_axis(cosines, target[rows, None], axis=1)
        shares.append((cosines < own).mean(axis=1))
    return float(np.concatenate(shares).mean())


def ndcg_of(fitted: CoVisitation, data: PreparedData, valid: Requests) -> float:
    """NDCG@10 with seen items left out."""
    items = fitted.recommend(data, valid, RANK_CUTOFF, True, None)
    return float(metrics.ndcg(metrics.item_ranks(items, valid.target), RANK_CUTOFF).mean())
