"""The most popular items. They also fill up the lists of the other baselines."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int32

from sigma_jax.histories import count_training_rows, history_ranges
from sigma_jax.schema import PreparedData, Requests
from sigma_jax.tasks.constraints import AllowedItems


@dataclasses.dataclass(frozen=True)
class Popularity:
    """Ranks items by the number of their training rows."""

    order: Int32[np.ndarray, " I"]  # items, most popular first
    rank: Int32[np.ndarray, " I"]  # position of each item in `order`

    @classmethod
    def fit(cls, data: PreparedData, seed: int) -> Popularity:
        """Counts the training rows; `seed` orders items of equal counts."""
        counts = count_training_rows(data)
        ties = np.random.default_rng(seed).permutation(len(counts))
        order = np.lexsort((ties, -counts)).astype(np.int32)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order), dtype=np.int32)
        return cls(order, rank)

    def recommend(
        self,
        data: PreparedData,
        requests: Requests,
        k: int,
        exclude_seen: bool,
        allowed: AllowedItems | None,
    ) -> Int32[np.ndarray, "N k"]:
        """The k most popular items of each request; baselines/__init__.py has the arguments."""
        empty = np.full((len(requests), k), -1, np.int32)
        return self.complete(empty, data, requests, exclude_seen, allowed)

    def complete(
        self,
        rankings: Int32[np.ndarray, "N k"],
        data: PreparedData,
        requests: Requests,
        exclude_seen: bool,
        allowed: AllowedItems | None,
    ) -> Int32[np.ndarray, "N k"]:
        """`rankings` with the trailing -1 of each row replaced by the most popular other items."""
        rankings = rankings.copy()
        starts, ends = history_ranges(data.histories, requests)
        by_constraint: dict[int, np.ndarray] = {}
        filled = (rankings >= 0).sum(1)
        for row in np.flatnonzero(filled < rankings.shape[1]):
            pool = self.order
            if allowed is not None and allowed.row[row] >= 0:
                constraint = int(allowed.row[row])
                if constraint not in by_constraint:
                    items = np.unique(allowed.items.of(constraint))
                    by_constraint[constraint] = items[np.argsort(self.rank[items])]
                pool = by_constraint[constraint]
            taken = rankings[row, : filled[row]]
            if exclude_seen:
                seen = np.unique(data.histories.item[starts[row] : ends[row]])
                taken = np.concatenate([taken, seen])
            missing = rankings.shape[1] - filled[row]
            head = pool[: missing + len(taken)]  # enough, even if all taken items come first
            added = head[~np.isin(head, taken)][:missing]
            rankings[row, filled[row] : filled[row] + len(added)] = added
        return rankings
