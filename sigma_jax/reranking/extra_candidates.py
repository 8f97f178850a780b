"""Extra candidates beyond the nearest neighbours: items that a reranking feature may raise.

An index returns the items nearest to the query. Three kinds of items join them at any distance from
the query: items with a history feature, trending items of the day, and items that match the
instruction's words.

Axes: N requests, L extra candidates, T days with G trending features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float16, Int32

from sigma_jax.index.candidates import padded_width
from sigma_jax.reranking.lexical import LexicalTable

MAX_LEXICAL = 4_096  # items that match the words of an instruction, the best first
MAX_TRENDING = 256  # items of each trending feature and day
DAYS_KEPT = 4  # days whose trending items are kept in memory


class ExtraCandidates:
    """Finds extra candidates by the items' words and by the trending tables of the last days."""

    def __init__(self, lexical: LexicalTable | None):
        self._weights = None
        self._of_day: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        if lexical is None:
            return
        no_word = len(lexical.weights) - 1
        items = [np.flatnonzero(row != no_word).astype(np.int32) for row in lexical.of_items]
        words = [row[of_row] for row, of_row in zip(lexical.of_items, items, strict=True)]
        word = np.concatenate(words)
        order = np.argsort(word, kind="stable")
        self._weights, self._items = lexical.weights, np.concatenate(items)[order]
        self._start = np.searchsorted(word[order], np.arange(no_word + 2))

    def join(self, *lists: Sequence[Int32[np.ndarray, " l"]]) -> Int32[np.ndarray, "N L"]:
        """The distinct items of several lists for each request, padded with -1."""
        rows = [np.unique(np.concatenate(parts)) for parts in zip(*lists, strict=True)]
        width = padded_width(max(map(len, rows), default=0))
        extra = np.full((len(rows), width), -1, np.int32)
        for row, items in enumerate(rows):
            extra[row, : len(items)] = items
        return extra

    def of_words(self, words: Int32[np.ndarray, "N n"]) -> list[Int32[np.ndarray, " l"]]:
        """The items that match words of each request, at most MAX_LEXICAL.

        Args:
          words: from LexicalTable.word_numbers.
        """
        return [self._with_words(np.unique(row)) for row in words]

    def _with_words(self, words: Int32[np.ndarray, " w"]) -> Int32[np.ndarray, " l"]:
        """The items that have any of `words`."""
        lists = [self._items[self._start[word] : self._start[word + 1]] for word in words]
        items, place = np.unique(np.concatenate(lists), return_inverse=True)
        if len(items) > MAX_LEXICAL:
            weights = np.repeat(self._weights[words], [len(items) for items in lists])
            total = np.bincount(place.reshape(-1), weights)
            items = items[np.argsort(-total, kind="stable")[:MAX_LEXICAL]]
        return items

    def of_trending(
        self, table: Float16[np.ndarray, "T I G"], rows: Int32[np.ndarray, " N"]
    ) -> list[Int32[np.ndarray, " l"]]:
        """The strongest items of each trending feature on each request's day.

        Args:
          table: the trending table (TrendingCounts.at).
          rows: the row of `table` for each request's day.
        """
        return [self._of_row(table, int(row)) for row in rows]

    def _of_row(self, table: np.ndarray, row: int) -> np.ndarray:
        """The strongest items of one row of the trending table; they are kept for some days."""
        key = (id(table), row)
        kept = self._of_day.get(key)
        if kept is None:
            values = table[row]
            count = min(MAX_TRENDING, len(values))
            best = [np.argpartition(-feature, count - 1)[:count] for feature in values.T]
            items = [
                of_feature[feature[of_feature] > 0]
                for of_feature, feature in zip(best, values.T, strict=True)
            ]
            kept = (table, np.unique(np.concatenate(items)).astype(np.int32))
            for old in list(self._of_day)[: len(self._of_day) - DAYS_KEPT + 1]:
                self._of_day.pop(old, None)
            self._of_day[key] = kept  # with the table, so that no other table gets its id
        return kept[1]
