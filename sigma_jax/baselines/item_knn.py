"""Item nearest neighbours by features, such as the vectors of item texts. Nothing is trained.

score(j) = sum over the items i of the last sessions of decay ** age(i) * cosine(i, j)
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float32, Int64

from sigma_jax.baselines.popularity import Popularity
from sigma_jax.baselines.ranking import ScoringBaseline
from sigma_jax.histories import history_ranges, recent_item_weights
from sigma_jax.schema import PreparedData, Requests


@dataclasses.dataclass(frozen=True)
class ItemKnn(ScoringBaseline):
    """Ranks items by their cosine with the latest items of the history."""

    vectors: Float32[np.ndarray, "I D"]  # unit length, around the mean item
    popularity: Popularity
    decay: float  # weight of a session relative to the next one
    sessions: int  # last sessions of a history that are read

    def scores(
        self, data: PreparedData, requests: Requests, rows: Int64[np.ndarray, " n"]
    ) -> Float32[np.ndarray, "n I"]:
        """The score of every item for some requests."""
        starts, ends = history_ranges(data.histories, requests)
        recent = recent_item_weights(
            data.histories, starts[rows], ends[rows], len(self.vectors), self.decay, self.sessions
        )
        return np.asarray(recent @ self.vectors) @ self.vectors.T
