"""Item nearest neighbours by features, such as the vectors of item texts. Nothing is trained.

score(j) = sum over the items i of the last sessions of decay ** age(i) * cosine(i, j)
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Float32, Int32, Int64

from sigma_jax.baselines.popularity import Popularity
from sigma_jax.baselines.ranking import rank_all_items, unit_rows
from sigma_jax.histories import history_ranges, recent_item_weights
from sigma_jax.schema import PreparedData, Requests
from sigma_jax.tasks.constraints import AllowedItems


@dataclasses.dataclass(frozen=True)
class ItemKnn:
    """Ranks items by their cosine with the latest items of the history."""

    vectors: Float32[np.ndarray, "I D"]  # unit length, around the mean item
    popularity: Popularity
    decay: float  # weight of a session relative to the next one
    sessions: int  # last sessions of a history that are read

    @classmethod
    def make(
        cls,
        vectors: Float[np.ndarray, "I D"],
        popularity: Popularity,
        decay: float,
        sessions: int,
    ) -> ItemKnn:
        """The baseline over item vectors of any length."""
        return cls(unit_rows(vectors), popularity, decay, sessions)

    def recommend(
        self,
        data: PreparedData,
        requests: Requests,
        k: int,
        exclude_seen: bool,
        allowed: AllowedItems | None,
    ) -> Int32[np.ndarray, "N k"]:
        """The best k items of each request; baselines/__init__.py has the arguments."""
        scores = functools.partial(self.scores, data, requests)
        tie_order = self.popularity.rank
        return rank_all_items(scores, data, requests, k, exclude_seen, allowed, tie_order)

    def scores(
        self, data: PreparedData, requests: Requests, rows: Int64[np.ndarray, " n"]
    ) -> Float32[np.ndarray, "n I"]:
        """The score of every item for some requests."""
        starts, ends = history_ranges(data.histories, requests)
        recent = recent_item_weights(
            data.histories, starts[rows], ends[rows], len(self.vectors), self.decay, self.sessions
        )
        return np.asarray(recent @ self.vectors) @ self.vectors.T
