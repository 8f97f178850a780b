"""Item co-visitation, a simple method that is hard to beat.

Two lines of one user at distance d <= 20 tie their items with weight 1/d from the earlier item to
the later and half of that backwards. A request adds up the ties of its last five sessions,
decayed by 0.7 a session, and divides by sqrt(popularity + 5); equal scores in random order.

Sessions instead of lines, because the lines of one session have no order:
- lines of one session lie at distance 1, in either direction with equal right, so a tie weighs
  (1 + 1/2) / 2 each way;
- lines of different sessions lie at 1 + the number of lines in the sessions between them.
With one line a session this is exactly the definition over lines:

    sessions [a][b c][d]: a-b 1, a-c 1, b-c 1, b-d 1, c-d 1, a-d 3 (two lines between)
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Int32

from sigma_jax.baselines.popularity import Popularity
from sigma_jax.baselines.ranking import best, without
from sigma_jax.histories import history_ranges, recent_item_weights
from sigma_jax.reranking.covisitation import (
    DECAY,
    REQUESTS_A_STEP,
    SESSIONS,
    count_covisits,
    damp_by_popularity,
)
from sigma_jax.schema import PreparedData, Requests
from sigma_jax.tasks.constraints import Allowed


@dataclasses.dataclass(frozen=True)
class CoVisitation:
    """Ties between items, already divided by sqrt(popularity + 5) of the recommended one."""

    ties: sparse.csr_matrix  # float32 [I, I]; row: item of the history, column: recommended item
    tie_order: Int32[np.ndarray, " I"]  # random
    popularity: Popularity

    @classmethod
    def fit(cls, data: PreparedData, seed: int) -> CoVisitation:
        ties = damp_by_popularity(count_covisits(data.histories, len(data.catalogue)), data)
        order = np.random.default_rng([seed, 1]).permutation(len(data.catalogue))
        return cls(ties, order.astype(np.int32), Popularity.fit(data, seed))

    def recommend(
        self,
        data: PreparedData,
        requests: Requests,
        k: int,
        keep_seen: bool,
        allowed: Allowed | None,
    ) -> Int32[np.ndarray, "N k"]:
        """Items without any tie to the history come last, most popular first."""
        rankings = np.full((len(requests), k), -1, np.int32)
        starts, ends = history_ranges(data.histories, requests)
        for first in range(0, len(requests), REQUESTS_A_STEP):
            rows = np.arange(first, min(first + REQUESTS_A_STEP, len(requests)))
            recent = recent_item_weights(
                data.histories, starts[rows], ends[rows], self.ties.shape[0], DECAY, SESSIONS
            )
            scores = (recent @ self.ties).tocsr()
            for row in rows:
                entries = slice(*scores.indptr[row - first : row - first + 2])
                items, values = scores.indices[entries], scores.data[entries]
                seen = None if keep_seen else data.histories.item[starts[row] : ends[row]]
                keep = without(items, seen, allowed.of(row) if allowed else None)
                chosen = best(items[keep], values[keep], self.tie_order, k)
                rankings[row, : len(chosen)] = chosen
        return self.popularity.complete(rankings, data, requests, keep_seen, allowed)
