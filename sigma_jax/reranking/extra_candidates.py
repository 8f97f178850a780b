"""What may lift an item into a list however far it lies from the query: the time, and words.

A search that compares all items finds these by itself (retrieval.py); one that finds the nearest
alone (host_index.py) has to be told of them.

Axes: N requests, I items, T days with G trends.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float16, Int32

from sigma_jax.reranking.lexical import WordTable

MOST = 4_096  # items that have words of a request, those with the weightiest first
OF_TREND = 256  # items of each trend and day
DAYS_KEPT = 4


class Lifts:
    """Finds them, by the items' words and by the tables of the days that were asked for last."""

    def __init__(self, words: WordTable | None):
        self._weights = None
        self._of_day: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        if words is None:
            return
        none = len(words.weights) - 1
        items = [np.flatnonzero(row != none).astype(np.int32) for row in words.of_items]
        word = np.concatenate([row[own] for row, own in zip(words.of_items, items, strict=True)])
        order = np.argsort(word, kind="stable")
        self._weights, self._items = words.weights, np.concatenate(items)[order]
        self._start = np.searchsorted(word[order], np.arange(none + 2))

    def of_words(self, words: Int32[np.ndarray, "N n"]) -> list[Int32[np.ndarray, " n"]]:
        """The items that have words of each request (WordTable.of), at most MOST."""
        return [self._having(np.unique(row)) for row in words]

    def _having(self, words: Iterable[int]) -> Int32[np.ndarray, " n"]:
        lists = [self._items[self._start[word] : self._start[word + 1]] for word in words]
        items, place = np.unique(np.concatenate(lists), return_inverse=True)
        if len(items) > MOST:
            weights = np.repeat(self._weights[words], [len(own) for own in lists])
            total = np.bincount(place.reshape(-1), weights)
            items = items[np.argsort(-total, kind="stable")[:MOST]]
        return items

    def of_trends(
        self, table: Float16[np.ndarray, "T I G"], rows: Int32[np.ndarray, " N"]
    ) -> list[Int32[np.ndarray, " n"]]:
        """The items that are strongest in a trend on the day of each request: a row of `table`."""
        return [self._of_row(table, int(row)) for row in rows]

    def _of_row(self, table: np.ndarray, row: int) -> np.ndarray:
        key = (id(table), row)
        known = self._of_day.get(key)
        if known is None:
            values = table[row]
            count = min(OF_TREND, len(values))
            best = [np.argpartition(-of_trend, count - 1)[:count] for of_trend in values.T]
            items = [own[of_trend[own] > 0] for own, of_trend in zip(best, values.T, strict=True)]
            known = (table, np.unique(np.concatenate(items)).astype(np.int32))
            for old in list(self._of_day)[: len(self._of_day) - DAYS_KEPT + 1]:
                self._of_day.pop(old, None)
            self._of_day[key] = known  # with the table, so that no other has its id
        return known[1]
