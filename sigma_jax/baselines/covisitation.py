"""Item co-visitation, a simple baseline that is hard to beat.

Fit: two interactions of a user at distance d <= 20 count 1/d from the earlier item to the later.
They count half of that from the later to the earlier.

Request: the score of an item is the sum of its counts from the items of the last five sessions,
divided by sqrt(popularity + 5). A session weighs 0.7 of the one after it. Equal scores are in
random order.

The interactions of a session have no order, so distances follow sessions:
- inside a session the distance is 1; both directions are equally likely, so a pair counts
  (1 + 1/2) / 2 each way;
- between sessions the distance is 1 + the number of interactions in the sessions between.
With single-item sessions this is the distance between interactions.

Worked example: the distances of sessions [a] [b c] [d] are a-b 1, a-c 1, b-c 1, b-d 1, c-d 1 and
a-d 3, as two interactions lie between a and d.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Int32

from sigma_jax.baselines.popularity import Popularity
from sigma_jax.baselines.ranking import is_rankable, top_items
from sigma_jax.histories import history_ranges, recent_item_weights
from sigma_jax.reranking.history.covisitation import (
    DECAY,
    REQUESTS_A_STEP,
    SESSIONS,
    covisits_of,
    damp_by_popularity,
)
from sigma_jax.schema import PreparedData, Requests
from sigma_jax.tasks.constraints import AllowedItems


@dataclasses.dataclass(frozen=True)
class CoVisitation:
    """Ranks items by their covisits with the recent items of the history."""

    # float32 [I, I], divided by sqrt(popularity + 5); row: item of the history, column: scored item
    covisits: sparse.csr_matrix
    tie_order: Int32[np.ndarray, " I"]  # random
    popularity: Popularity
    sessions: int = SESSIONS  # last sessions of a history that are read

    @classmethod
    def fit(
        cls, data: PreparedData, seed: int, counted: sparse.csr_matrix | None = None
    ) -> CoVisitation:
        """Counts the covisits of the training rows, unless they are given as `counted`.

        Args:
          seed: orders items of equal scores.
        """
        covisits = damp_by_popularity(covisits_of(data) if counted is None else counted, data)
        order = np.random.default_rng([seed, 1]).permutation(len(data.catalogue))
        return cls(covisits, order.astype(np.int32), Popularity.fit(data, seed))

    def recommend(
        self,
        data: PreparedData,
        requests: Requests,
        k: int,
        exclude_seen: bool,
        allowed: AllowedItems | None,
    ) -> Int32[np.ndarray, "N k"]:
        """The best k items of each request; baselines/__init__.py has the arguments.

        Items without covisits with the history come last, most popular first.
        """
        rankings = np.full((len(requests), k), -1, np.int32)
        starts, ends = history_ranges(data.histories, requests)
        for first in range(0, len(requests), REQUESTS_A_STEP):
            rows = np.arange(first, min(first + REQUESTS_A_STEP, len(requests)))
            recent = recent_item_weights(
                data.histories,
                starts[rows],
                ends[rows],
                self.covisits.shape[0],
                DECAY,
                self.sessions,
            )
            scores = (recent @ self.covisits).tocsr()
            for row in rows:
                entries = slice(*scores.indptr[row - first : row - first + 2])
                items, values = scores.indices[entries], scores.data[entries]
                seen = data.histories.item[starts[row] : ends[row]] if exclude_seen else None
                keep = is_rankable(items, seen, allowed.of(row) if allowed else None)
                chosen = top_items(items[keep], values[keep], self.tie_order, k)
                rankings[row, : len(chosen)] = chosen
        return self.popularity.complete(rankings, data, requests, exclude_seen, allowed)
