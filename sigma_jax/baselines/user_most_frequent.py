"""The user's most frequent items, strong baselines if people buy the same things again."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float32, Int32, Int64

from sigma_jax.baselines.popularity import Popularity
from sigma_jax.baselines.ranking import ScoringBaseline, is_rankable, top_items
from sigma_jax.histories import history_ranges, recent_item_weights
from sigma_jax.schema import PreparedData, Requests
from sigma_jax.tasks.constraints import AllowedItems


@dataclasses.dataclass(frozen=True)
class UserMostFrequent:
    """Ranks the items of the history by count, then by latest session, then by popularity.

    The most popular items follow after them. With `exclude_seen` the list holds only these.
    """

    popularity: Popularity

    @classmethod
    def fit(cls, data: PreparedData, seed: int) -> UserMostFrequent:
        """Fits the popularity; a user's own items need no fit."""
        return cls(Popularity.fit(data, seed))

    def recommend(
        self,
        data: PreparedData,
        requests: Requests,
        k: int,
        exclude_seen: bool,
        allowed: AllowedItems | None,
    ) -> Int32[np.ndarray, "N k"]:
        """The best k items of each request; baselines/__init__.py has the arguments."""
        rankings = np.full((len(requests), k), -1, np.int32)
        starts, ends = history_ranges(data.histories, requests)
        for row in range(0 if exclude_seen else len(requests)):
            history = slice(starts[row], ends[row])
            items, inverse, counts = np.unique(
                data.histories.item[history], return_inverse=True, return_counts=True
            )
            latest = np.zeros(len(items), np.int64)
            sessions = data.histories.session[history]
            np.maximum.at(latest, inverse, sessions)
            # One number orders by count first, since a session is always below the span.
            span = int(sessions.max(initial=0)) + 1
            scores = (counts * span + latest).astype(np.float64)
            keep = is_rankable(items, None, allowed.of(row) if allowed else None)
            chosen = top_items(items[keep], scores[keep], self.popularity.rank, k)
            rankings[row, : len(chosen)] = chosen
        return self.popularity.complete(rankings, data, requests, exclude_seen, allowed)


@dataclasses.dataclass(frozen=True)
class UserMostFrequentLately(ScoringBaseline):
    """Ranks the items of the history by their count, where older sessions count less.

    The most popular items follow after them. With seen items left out, only these are left.
    """

    decay: float  # weight of a session relative to the next one
    once_a_session: bool  # an item counts once in a session, however often it is in it
    popularity: Popularity

    def scores(
        self, data: PreparedData, requests: Requests, rows: Int64[np.ndarray, " n"]
    ) -> Float32[np.ndarray, "n I"]:
        """The decayed count of every item in the history of some requests."""
        starts, ends = history_ranges(data.histories, requests)
        num_items = len(self.popularity.rank)
        return recent_item_weights(
            data.histories,
            starts[rows],
            ends[rows],
            num_items,
            self.decay,
            None,
            self.once_a_session,
        ).toarray()
