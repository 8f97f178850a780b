"""The user's own most frequent items: hard to beat where people buy the same things again."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int32

from sigma_jax.baselines.popularity import Popularity
from sigma_jax.baselines.ranking import best, without
from sigma_jax.histories import history_ranges
from sigma_jax.schema import PreparedData, Requests
from sigma_jax.tasks.constraints import Allowed


@dataclasses.dataclass(frozen=True)
class OwnFrequent:
    """Items of the history by count, then by the latest session, then by popularity.

    Where the history runs out the most popular items follow; with seen items left out nothing
    of the history remains, so the list is the popularity list.
    """

    popularity: Popularity

    @classmethod
    def fit(cls, data: PreparedData, seed: int) -> OwnFrequent:
        return cls(Popularity.fit(data, seed))

    def recommend(
        self,
        data: PreparedData,
        requests: Requests,
        k: int,
        keep_seen: bool,
        allowed: Allowed | None,
    ) -> Int32[np.ndarray, "N k"]:
        rankings = np.full((len(requests), k), -1, np.int32)
        starts, ends = history_ranges(data.histories, requests)
        for row in range(len(requests) if keep_seen else 0):
            lines = slice(starts[row], ends[row])
            items, inverse, counts = np.unique(
                data.histories.item[lines], return_inverse=True, return_counts=True
            )
            latest = np.zeros(len(items), np.int64)
            sessions = data.histories.session[lines]
            np.maximum.at(latest, inverse, sessions)
            # One number orders by count first: the latest session is always below the span.
            span = int(sessions.max(initial=0)) + 1
            scores = (counts * span + latest).astype(np.float64)
            keep = without(items, None, allowed.of(row) if allowed else None)
            chosen = best(items[keep], scores[keep], self.popularity.rank, k)
            rankings[row, : len(chosen)] = chosen
        return self.popularity.complete(rankings, data, requests, keep_seen, allowed)
