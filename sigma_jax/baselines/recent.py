"""Popularity and co-visitation with a memory: recent interactions count more.

Both see only training interactions before a request, decayed by exp(-age / memory). They are for
logs with times.

Time is cut into spans of a quarter of the memory. A request is answered from the spans that ended
before it; an interaction is as old as the end of its span. The covisits of two sessions belong to
the span of the later one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Float64, Int32, Int64

from sigma_jax.baselines.popularity import Popularity
from sigma_jax.baselines.ranking import rank_all_items
from sigma_jax.histories import (
    history_ranges,
    recent_item_weights,
    request_times,
    training_rows,
    training_sessions,
)
from sigma_jax.reranking.covisitation import (
    DECAY,
    SESSIONS,
    SMOOTHING,
    covisits_of,
    near_sessions,
)
from sigma_jax.schema import DAY, PreparedData, Requests
from sigma_jax.tasks.constraints import AllowedItems

SPANS_A_MEMORY = 4


def span_of(times: Int64[np.ndarray, " n"], memory: float) -> Int64[np.ndarray, " n"]:
    """The number of the span of each time (unix seconds); `memory` is in days."""
    return times // max(int(memory * DAY / SPANS_A_MEMORY), 1)


def requests_by_span(
    data: PreparedData, requests: Requests, memory: float
) -> Iterator[tuple[int, Int64[np.ndarray, " n"]]]:
    """(span, request numbers) of the spans that have requests, ascending."""
    spans = span_of(request_times(data.histories, requests), memory)
    for span in np.unique(spans):
        yield int(span), np.flatnonzero(spans == span)


@dataclasses.dataclass(frozen=True)
class RecentPopularity:
    """Ranks items by their decayed number of training interactions before the request."""

    memory: float  # days
    item: Int32[np.ndarray, " rows"]  # of the training interactions, by span
    span: Int64[np.ndarray, " rows"]  # ascending
    popularity: Popularity

    @classmethod
    def fit(cls, data: PreparedData, popularity: Popularity, memory: float) -> RecentPopularity:
        """Counts the training rows; `memory` is in days."""
        rows = training_rows(data.histories)
        span = span_of(np.asarray(data.histories.time)[rows], memory)
        order = np.argsort(span, kind="stable")
        return cls(memory, np.asarray(data.histories.item)[rows][order], span[order], popularity)

    def counts(self, span: int) -> Float64[np.ndarray, " I"]:
        """The decayed count of each item before the span."""
        end = int(np.searchsorted(self.span, span))
        weights = np.exp(-(span - 1 - self.span[:end]) / SPANS_A_MEMORY)
        return np.bincount(self.item[:end], weights, len(self.popularity.rank))

    def recommend(
        self,
        data: PreparedData,
        requests: Requests,
        k: int,
        exclude_seen: bool,
        allowed: AllowedItems | None,
    ) -> Int32[np.ndarray, "N k"]:
        """The best k items of each request; baselines/__init__.py has the arguments."""
        spans = span_of(request_times(data.histories, requests), self.memory)
        tables = {int(span): self.counts(int(span)).astype(np.float32) for span in np.unique(spans)}

        def scores(rows: np.ndarray) -> np.ndarray:
            return np.stack([tables[int(span)] for span in spans[rows]])

        tie_order = self.popularity.rank
        return rank_all_items(scores, data, requests, k, exclude_seen, allowed, tie_order)


@dataclasses.dataclass(frozen=True)
class RecentCoVisitation:
    """Ranks items by their decayed covisits with the recent items of the history."""

    memory: float  # days
    covisits: dict[int, sparse.csr_matrix]  # span -> float32 [I, I]
    recent: RecentPopularity
    popularity: Popularity

    @classmethod
    def fit(cls, data: PreparedData, popularity: Popularity, memory: float) -> RecentCoVisitation:
        """Counts the covisits of the training rows; `memory` is in days."""
        histories, num_items = data.histories, len(data.catalogue)
        user, begin, end = training_sessions(histories)
        span = span_of(np.asarray(histories.time)[begin], memory)
        earlier, later, distance = near_sessions(user, begin, end, np.arange(len(user)))
        covisits = {}
        for number in np.unique(span):
            here = np.flatnonzero(span == number)
            pairs = span[later] == number
            of_span = earlier[pairs], later[pairs], distance[pairs]
            covisits[int(number)] = covisits_of(histories, num_items, begin, end, here, of_span)
        return cls(memory, covisits, RecentPopularity.fit(data, popularity, memory), popularity)

    def recommend(
        self,
        data: PreparedData,
        requests: Requests,
        k: int,
        exclude_seen: bool,
        allowed: AllowedItems | None,
    ) -> Int32[np.ndarray, "N k"]:
        """The best k items of each request; baselines/__init__.py has the arguments."""
        num_items = len(self.popularity.rank)
        scores = sparse.csr_matrix((len(requests), num_items), dtype=np.float32)
        starts, ends = history_ranges(data.histories, requests)
        parts, order = [scores[:0]], [np.zeros(0, np.int64)]
        for table, rows in self.tables(data, requests):
            latest = recent_item_weights(
                data.histories, starts[rows], ends[rows], num_items, DECAY, SESSIONS
            )
            parts.append((latest @ table).tocsr())
            order.append(rows)
        scores = sparse.vstack(parts, format="csr")[np.argsort(np.concatenate(order))]

        def of_rows(rows: np.ndarray) -> np.ndarray:
            return scores[rows].toarray()

        tie_order = self.popularity.rank
        return rank_all_items(of_rows, data, requests, k, exclude_seen, allowed, tie_order)

    def tables(
        self, data: PreparedData, requests: Requests
    ) -> Iterator[tuple[sparse.csr_matrix, Int64[np.ndarray, " n"]]]:
        """(decayed covisits [I, I], request numbers) of each span that has requests."""
        num_items = len(self.popularity.rank)
        total = sparse.csr_matrix((num_items, num_items), dtype=np.float32)
        waiting = sorted(self.covisits)
        last = waiting[0] if waiting else 0
        for span, rows in requests_by_span(data, requests, self.memory):
            while waiting and waiting[0] < span:
                number = waiting.pop(0)
                total = total * faded(number - last) + self.covisits[number]
                last = number
            scale = 1 / np.sqrt(self.recent.counts(span) + SMOOTHING)
            table = (total * faded(span - 1 - last)).tocsr()
            table.data *= scale.astype(np.float32)[table.indices]
            yield table, rows


def faded(spans: int) -> np.float32:
    """The share of a count that remains after so many spans."""
    return np.float32(np.exp(-spans / SPANS_A_MEMORY))
