"""What everybody takes at the time of a request: demand moves, whoever asks.

For each item the training lines before the day of the request, with three memories: a line's weight
falls to 1/e in a week, a month or a quarter; and a fourth that forgets nothing. A feature is
log(1 + count / 0.1). Nothing is known of the day itself or of later ones. Where a log has no times
(all are 0) nothing comes before anything, and all features are 0.

Axes: N requests, T days on which any of them is made, I items, G trends.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Float16, Int32, Int64

from sigma_jax.histories import training_rows
from sigma_jax.schema import DAY, PreparedData
from sigma_jax.shapes import power_of_two

MEMORY = {"week": 7.0, "month": 30.0, "quarter": 91.0, "ever": np.inf}  # days
TRENDING_FEATURES = tuple(MEMORY)
UNIT = 0.1  # of a line: what makes a difference from none
DAYS_KEPT = 4  # whose features are not made again: nearly all requests of a shop are of today
MOST_ENTRIES = 2**27  # of a table [T, I, G], 256 MB; with more, days are put together


@dataclasses.dataclass(frozen=True)
class TrendingCounts:
    """The training rows of a log in order of time."""

    item: Int32[np.ndarray, " rows"]
    time: Int64[np.ndarray, " rows"]  # unix seconds
    num_items: int
    _of_day: dict[int, Float16[np.ndarray, "1 I G"]] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def make(cls, data: PreparedData) -> TrendingCounts:
        rows = training_rows(data.histories)
        item, time = np.asarray(data.histories.item[rows]), np.asarray(data.histories.time[rows])
        order = np.argsort(time, kind="stable")
        return cls(item[order], time[order], len(data.catalogue))

    @property
    def _most_days(self) -> int:
        return max(1, MOST_ENTRIES // (self.num_items * len(TRENDING_FEATURES)))

    def together(self, times: Int64[np.ndarray, " N"]) -> list[Int64[np.ndarray, " n"]]:
        """Which of `times` `at` is to be asked together, so that each has its own day."""
        day = times // DAY
        most = 2 ** int(np.log2(self._most_days))
        number = np.unique(day, return_inverse=True)[1].reshape(-1) // most
        return [np.flatnonzero(number == n) for n in range(number.max(initial=0) + 1)]

    def at(
        self, times: Int64[np.ndarray, " N"]
    ) -> tuple[Float16[np.ndarray, "T I G"], Int32[np.ndarray, " N"]]:
        """The features at some moments, and which row of the table each of `times` reads.

        Rows that nothing reads stand at the end: few distinct shapes, few compilations.
        """
        day = times // DAY
        first_day, step = day.min(initial=0), 1
        days, row = np.unique(day, return_inverse=True)
        while power_of_two(len(days)) > self._most_days:
            step *= 2  # days are read as the first of so many: never after the request
            days, row = np.unique((day - first_day) // step * step, return_inverse=True)
            days += first_day
        if step > 1:
            logging.info("trends: days are put together by %d, for memory", step)
        row = row.reshape(-1).astype(np.int32)
        if len(days) != 1:
            return self._table(days), row
        [today] = days.tolist()
        table = self._of_day.get(today)
        if table is None:
            table = self._table(days)
            table.flags.writeable = False
            for old in list(self._of_day)[: len(self._of_day) - DAYS_KEPT + 1]:
                self._of_day.pop(old, None)
            self._of_day[today] = table
        return table, row

    def _table(self, days: Int64[np.ndarray, " T"]) -> Float16[np.ndarray, "T I G"]:
        """The features on some days, ascending, padded."""
        table = np.zeros(
            (power_of_two(len(days)), self.num_items, len(TRENDING_FEATURES)), np.float16
        )
        counts = np.zeros((self.num_items, len(TRENDING_FEATURES)))
        memory = np.array(list(MEMORY.values()))
        first, last_day = 0, 0.0
        for number, today in enumerate(days.tolist()):
            end = int(np.searchsorted(self.time, today * DAY))
            counts *= np.exp(-(today - last_day) / memory)
            lines = slice(first, end)
            age = today - self.time[lines] / DAY
            for trend, span in enumerate(memory):
                weight = np.exp(-age / span)
                counts[:, trend] += np.bincount(self.item[lines], weight, self.num_items)
            table[number] = np.log1p(counts / UNIT)
            first, last_day = end, today
        return table

    def save(self, folder: Path) -> None:
        """Writes trends.npz."""
        arrays = {"item": self.item, "time": self.time, "num_items": self.num_items}
        np.savez_compressed(folder / "trends.npz", **arrays)

    @classmethod
    def load(cls, folder: Path) -> TrendingCounts:
        """What `save` wrote; an error of `DAMAGE` (reranking/relations.py) where it cannot be
        read."""
        with np.load(folder / "trends.npz") as file:
            return cls(file["item"], file["time"], int(file["num_items"]))
