"""Popularity and co-visitation with a memory: recent interactions count more.

Both see only training interactions of the days before a request. One of age days counts
exp(-age / memory). They are for logs with times.

The covisits of two sessions belong to the day of the later one.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Float32, Float64, Int32, Int64

from sigma_jax.baselines.popularity import Popularity
from sigma_jax.baselines.ranking import ScoringBaseline
from sigma_jax.data.counts import BACKWARD, SMOOTHING, WINDOW
from sigma_jax.histories import (
    history_ranges,
    items_of_sessions,
    recent_item_weights,
    request_times,
    rows_of_ranges,
    training_rows,
    training_sessions,
)
from sigma_jax.reranking.history.covisitation import DECAY, SESSIONS, strongest_entries
from sigma_jax.schema import DAY, PreparedData, Requests

PARTNERS = 500  # items kept for each item. Baskets join nearly all items with one another.
ITEMS_A_STEP = 1_000

SessionPairs = tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"], Int64[np.ndarray, " p"]]


@dataclasses.dataclass(frozen=True)
class DailyCounts:
    """The training interactions of each item by day."""

    item: Int32[np.ndarray, " rows"]  # of the training interactions, by day
    day: Int64[np.ndarray, " rows"]  # ascending; days since 1970

    @classmethod
    def count(cls, data: PreparedData) -> DailyCounts:
        """Reads the training rows."""
        rows = training_rows(data.histories)
        day = np.asarray(data.histories.time)[rows] // DAY
        order = np.argsort(day, kind="stable")
        return cls(np.asarray(data.histories.item)[rows][order], day[order])

    def decayed(
        self, days: Int64[np.ndarray, " n"], memory: float, num_items: int
    ) -> Float64[np.ndarray, "n I"]:
        """The decayed count of each item before each of some days; `memory` is in days."""
        distinct, place = np.unique(days, return_inverse=True)
        tables = np.zeros((len(distinct), num_items))
        total, first, last = np.zeros(num_items), 0, int(distinct[0]) if len(distinct) else 0
        for number, day in enumerate(distinct):
            end = int(np.searchsorted(self.day, day))
            weights = np.exp((self.day[first:end] - day) / memory)
            total = total * np.exp((last - day) / memory)
            total += np.bincount(self.item[first:end], weights, num_items)
            tables[number], first, last = total, end, int(day)
        return tables[place]


@dataclasses.dataclass(frozen=True)
class RecentPopularity(ScoringBaseline):
    """Ranks items by their decayed number of training interactions before the request."""

    memory: float  # days
    counts: DailyCounts
    popularity: Popularity

    def scores(
        self, data: PreparedData, requests: Requests, rows: Int64[np.ndarray, " n"]
    ) -> Float32[np.ndarray, "n I"]:
        """The decayed count of every item for some requests."""
        days = request_times(data.histories, requests)[rows] // DAY
        num_items = len(self.popularity.rank)
        return self.counts.decayed(days, self.memory, num_items).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class DailyCovisits:
    """The covisits of each item by day."""

    item: Int32[np.ndarray, " rows"]  # of each row of the table, ascending
    day: Int64[np.ndarray, " rows"]  # of each row of the table, ascending for an item
    table: sparse.csr_matrix  # float32 [rows, I]: covisits of that item on that day
    counts: DailyCounts

    @classmethod
    def count(cls, data: PreparedData) -> DailyCovisits:
        """Counts the covisits of the training rows, as data/counts.py does."""
        histories, num_items = data.histories, len(data.catalogue)
        user, begin, end = training_sessions(histories)
        every = np.arange(len(user))
        earlier, later, distance = near_sessions(user, begin, end, every)
        # An entry counts from the items of its first session to those of its second.
        first = np.concatenate([every, earlier, later])
        second = np.concatenate([every, later, earlier])
        weight = np.concatenate(
            [np.full(len(every), (1 + BACKWARD) / 2), 1 / distance, BACKWARD / distance]
        )
        day = np.asarray(histories.time)[begin[np.concatenate([every, later, later])]] // DAY
        rows = rows_of_ranges(begin[first], end[first])
        entry = np.repeat(np.arange(len(first)), end[first] - begin[first])
        width = int(day.max(initial=0)) + 1
        keys, row = np.unique(
            np.asarray(histories.item)[rows].astype(np.int64) * width + day[entry],
            return_inverse=True,
        )
        # [rows, entries] @ [entries, I]
        left = sparse.csr_matrix(
            (weight[entry].astype(np.float32), (row, entry)), shape=(len(keys), len(first))
        )
        ones = np.ones(len(second))
        right = items_of_sessions(histories, num_items, begin[second], end[second], ones)
        # An interaction is not counted with itself.
        is_inside = entry < len(every)
        itself = sparse.csr_matrix(
            (
                weight[entry[is_inside]].astype(np.float32),
                (row[is_inside], np.asarray(histories.item)[rows[is_inside]]),
            ),
            shape=(len(keys), num_items),
        )
        table = (left @ right - itself).tocsr()
        table.eliminate_zeros()
        item = (keys // width).astype(np.int32)
        table = with_partners(table, item, PARTNERS)
        return cls(item, keys % width, table, DailyCounts.count(data))

    def before(
        self, latest: sparse.csr_matrix, days: Int64[np.ndarray, " n"], memory: float
    ) -> sparse.csr_matrix:
        """float32 [n, I]: the decayed covisits of the items of each row of `latest` [n, I].

        Args:
          latest: the weight of each item.
          days: of each row; only covisits of earlier days count.
          memory: in days.
        """
        starts = np.searchsorted(self.item, latest.indices)
        ends = np.searchsorted(self.item, latest.indices, side="right")
        rows = rows_of_ranges(starts, ends)
        entry = np.repeat(np.arange(len(starts)), ends - starts)
        request = np.repeat(np.arange(latest.shape[0]), np.diff(latest.indptr))[entry]
        age = days[request] - self.day[rows]
        is_past = age > 0
        weights = latest.data[entry[is_past]] * np.exp(-age[is_past] / memory)
        shape = (latest.shape[0], len(self.item))
        entries = (weights.astype(np.float32), (request[is_past], rows[is_past]))
        return sparse.csr_matrix(entries, shape=shape) @ self.table


def with_partners(
    table: sparse.csr_matrix, item: Int32[np.ndarray, " rows"], count: int
) -> sparse.csr_matrix:
    """`table` [rows, I] with the columns that have the `count` highest sums for each item.

    Args:
      item: of each row, ascending.
    """
    num_items = table.shape[1]
    kept = np.zeros(table.nnz, bool)
    ends = np.searchsorted(item, np.arange(0, num_items + ITEMS_A_STEP, ITEMS_A_STEP))
    for number, (begin, end) in enumerate(itertools.pairwise(ends)):
        of_step = item[begin:end] - number * ITEMS_A_STEP
        ones = np.ones(end - begin, np.float32)
        shape = (ITEMS_A_STEP, end - begin)
        sums = sparse.csr_matrix((ones, (of_step, np.arange(end - begin))), shape=shape)
        strongest = strongest_entries((sums @ table[begin:end]).tocsr(), count)
        is_partner = np.zeros((ITEMS_A_STEP, num_items), bool)
        is_partner[
            np.repeat(np.arange(ITEMS_A_STEP), np.diff(strongest.indptr)), strongest.indices
        ] = True
        entries = slice(table.indptr[begin], table.indptr[end])
        row = np.repeat(of_step, np.diff(table.indptr[begin : end + 1]))
        kept[entries] = is_partner[row, table.indices[entries]]
    starts = np.append(0, np.cumsum(kept))[table.indptr]
    return sparse.csr_matrix((table.data[kept], table.indices[kept], starts), shape=table.shape)


@dataclasses.dataclass(frozen=True)
class RecentCoVisitation(ScoringBaseline):
    """Ranks items by their decayed covisits with the recent items of the history."""

    memory: float  # days
    covisits: DailyCovisits
    popularity: Popularity

    def scores(
        self, data: PreparedData, requests: Requests, rows: Int64[np.ndarray, " n"]
    ) -> Float32[np.ndarray, "n I"]:
        """The decayed covisits of every item, damped by its decayed popularity."""
        num_items = len(self.popularity.rank)
        starts, ends = history_ranges(data.histories, requests)
        latest = recent_item_weights(
            data.histories, starts[rows], ends[rows], num_items, DECAY, SESSIONS
        )
        days = request_times(data.histories, requests)[rows] // DAY
        scores = self.covisits.before(latest, days, self.memory).toarray()
        popularity = self.covisits.counts.decayed(days, self.memory, num_items)
        return scores / np.sqrt(popularity + SMOOTHING).astype(np.float32)


def near_sessions(
    user: Int64[np.ndarray, " S"],
    begin: Int64[np.ndarray, " S"],
    end: Int64[np.ndarray, " S"],
    here: Int64[np.ndarray, " n"],
) -> SessionPairs:
    """(earlier, later, distance) of the pairs of sessions of one user within the window.

    The earlier session of each pair is one of `here`.
    """
    pairs = []
    for step in range(1, WINDOW + 1):
        earlier = here[here + step < len(user)]
        later = earlier + step
        distance = 1 + begin[later] - end[earlier]
        near = (user[earlier] == user[later]) & (distance <= WINDOW)
        pairs.append((earlier[near], later[near], distance[near]))
    earlier, later, distance = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return earlier, later, distance
