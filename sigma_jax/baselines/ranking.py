"""Selection of the best items from scored items."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, Int64

from sigma_jax.baselines.popularity import Popularity
from sigma_jax.histories import history_ranges
from sigma_jax.schema import PreparedData, Requests
from sigma_jax.tasks.constraints import AllowedItems

SCORES_AT_ONCE = 2**23  # entries of [requests, items] that are held in memory


def top_items(
    items: Int[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
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
        lowest = np.partition(scores, len(scores) - k)[len(scores) - k]
        above, tied = np.flatnonzero(scores > lowest), np.flatnonzero(scores == lowest)
        missing = k - len(above)
        if len(tied) > missing:  # often all items without a count
            tied = tied[np.argpartition(tie_order[items[tied]], missing - 1)[:missing]]
        kept = np.concatenate([above, tied])
        items, scores = items[kept], scores[kept]
    return items[np.lexsort((tie_order[items], -scores))]


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


# (exclude_seen, allowed) of a ranking; baselines/__init__.py explains them.
Variant = tuple[bool, AllowedItems | None]


def rank_all_items(
    scores: Callable[[Int64[np.ndarray, " n"]], Float32[np.ndarray, "n I"]],
    data: PreparedData,
    requests: Requests,
    k: int,
    variants: Sequence[Variant],
    tie_order: Int[np.ndarray, " I"],
) -> list[Int32[np.ndarray, "N k"]]:
    """For each variant, the k items of highest score of each request, best first; then -1.

    Args:
      scores: the scores of all items for some requests, by their numbers; each is computed once.
      tie_order: of all items; among equal scores the lower comes first.
    """
    rankings = [np.full((len(requests), k), -1, np.int32) for _ in variants]
    starts, ends = history_ranges(data.histories, requests)
    all_items = np.arange(len(tie_order))
    step = max(1, SCORES_AT_ONCE // len(tie_order))
    for first in range(0, len(requests), step):
        rows = np.arange(first, min(first + step, len(requests)))
        of_rows = np.asarray(scores(rows), np.float32)
        for ranking, (exclude_seen, allowed) in zip(rankings, variants, strict=True):
            for row, of_row in zip(rows, of_rows, strict=True):
                items = None if allowed is None else allowed.of(row)
                items = all_items if items is None else np.unique(items)
                values = of_row
                if exclude_seen:
                    values = of_row.copy()
                    values[data.histories.item[starts[row] : ends[row]]] = -np.inf
                values = values[items]
                is_left = values > -np.inf
                chosen = top_items(items[is_left], values[is_left], tie_order, k)
                ranking[row, : len(chosen)] = chosen
    return rankings


class ScoringBaseline(abc.ABC):
    """A baseline that gives every item a score. Equal scores are in the order of popularity."""

    popularity: Popularity

    @abc.abstractmethod
    def scores(
        self, data: PreparedData, requests: Requests, rows: Int64[np.ndarray, " n"]
    ) -> Float32[np.ndarray, "n I"]:
        """The score of every item for the requests at `rows`."""

    def recommend_variants(
        self, data: PreparedData, requests: Requests, k: int, variants: Sequence[Variant]
    ) -> list[Int32[np.ndarray, "N k"]]:
        """The best k items of each request under each variant."""
        scores = functools.partial(self.scores, data, requests)
        return rank_all_items(scores, data, requests, k, variants, self.popularity.rank)

    def recommend(
        self,
        data: PreparedData,
        requests: Requests,
        k: int,
        exclude_seen: bool,
        allowed: AllowedItems | None,
    ) -> Int32[np.ndarray, "N k"]:
        """The best k items of each request; baselines/__init__.py has the arguments."""
        return self.recommend_variants(data, requests, k, [(exclude_seen, allowed)])[0]


def unit_rows(vectors: Float[np.ndarray, "I D"]) -> Float32[np.ndarray, "I D"]:
    """`vectors` minus their mean, at unit length; a row of zeros stays zero."""
    centred = np.asarray(vectors, np.float32) - np.asarray(vectors, np.float32).mean(axis=0)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.maximum(length, 1e-9)
