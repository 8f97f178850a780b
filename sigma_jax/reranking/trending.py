"""Trending features: popularity with a memory, at the time of a request.

A feature of an item is log(1 + c / UNIT). c counts the training interactions with the item before
the day of the request, each decayed by its age in whole hours. There is one feature for each
memory: a week, a month, a quarter, and without decay.

Axes: N requests, I items, G features, T days.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Float16, Int32, Int64

from sigma_jax.data import counts, database
from sigma_jax.data.counts import HOUR
from sigma_jax.schema import DAY, PreparedData
from sigma_jax.shapes import power_of_two

MEMORY = {"week": 7.0, "month": 30.0, "quarter": 91.0, "ever": np.inf}  # days
TRENDING_FEATURES = tuple(MEMORY)
UNIT = 0.1  # size of a small count, in interactions
DAYS_KEPT = 4  # tables kept in memory: nearly all requests of a shop are of today
MAX_ENTRIES = 2**27  # entries of a table [T, I, G], 256 MB; beyond it, days share a row


@dataclasses.dataclass(frozen=True)
class TrendingCounts:
    """The training interactions of a log by item and hour, in the order of time."""

    item: Int32[np.ndarray, " rows"]
    time: Int64[np.ndarray, " rows"]  # unix seconds, the start of an hour
    number: Int64[np.ndarray, " rows"]  # interactions with the item in that hour
    num_items: int
    _of_day: dict[int, Float16[np.ndarray, "1 I G"]] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def make(cls, data: PreparedData) -> TrendingCounts:
        """The counts of the training rows, as prepared, or counted now."""
        if data.counts is not None:
            hour, item, number = counts.read_counts(
                data.counts, "hourly", ("hour", "item", "number")
            )
        else:
            with counts.training_table(data.histories) as (con, events):
                found = database.save(con, "hourly", counts.hourly(events))
                dtypes = {"hour": np.int64, "item": np.int32, "number": np.int64}
                ordered, rows = found.order_by("hour", "item"), database.count(con, found)
                hour, item, number = database.columns(con, ordered, dtypes, rows).values()
        return cls(item, hour * HOUR, number, len(data.catalogue))

    def with_rows(
        self, item: Int32[np.ndarray, " n"], time: Int64[np.ndarray, " n"], num_items: int
    ) -> TrendingCounts:
        """The counts with further interactions, of a catalogue that may have grown."""
        items = np.concatenate([self.item, item])
        hours = np.concatenate([self.time, time]) // HOUR
        number = np.concatenate([self.number, np.ones(len(item), np.int64)])
        order = np.lexsort((items, hours))
        items, hours = items[order], hours[order]
        is_first = np.ones(len(items), bool)
        is_first[1:] = (items[1:] != items[:-1]) | (hours[1:] != hours[:-1])
        first = np.flatnonzero(is_first)
        sums = np.add.reduceat(number[order], first) if len(first) else number
        return TrendingCounts(items[first], hours[first] * HOUR, sums, num_items)

    @property
    def _max_days(self) -> int:
        """The days of a table of MAX_ENTRIES."""
        return max(1, MAX_ENTRIES // (self.num_items * len(TRENDING_FEATURES)))

    def together(self, times: Int64[np.ndarray, " N"]) -> list[Int64[np.ndarray, " n"]]:
        """Groups of `times` that one call of `at` serves with the exact day of each."""
        day = times // DAY
        most = 2 ** int(np.log2(self._max_days))
        number = np.unique(day, return_inverse=True)[1].reshape(-1) // most
        return [np.flatnonzero(number == n) for n in range(number.max(initial=0) + 1)]

    def at(
        self, times: Int64[np.ndarray, " N"]
    ) -> tuple[Float16[np.ndarray, "T I G"], Int32[np.ndarray, " N"]]:
        """(table, row): the features of some days, and the row of the table for each of `times`.

        Unused rows fill the table up to a power of two: few shapes cause few compilations.

        Args:
          times: unix seconds.
        """
        day = times // DAY
        first_day, step = day.min(initial=0), 1
        days, row = np.unique(day, return_inverse=True)
        while power_of_two(len(days)) > self._max_days:
            step *= 2  # days share the row of the first of them, which is not after the request
            days, row = np.unique((day - first_day) // step * step, return_inverse=True)
            days += first_day
        if step > 1:
            logging.info("trending: %d days share one table, to save memory", step)
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
        """The features of some days, which ascend; padded to a power of two."""
        table = np.zeros(
            (power_of_two(len(days)), self.num_items, len(TRENDING_FEATURES)), np.float16
        )
        decayed = np.zeros((self.num_items, len(TRENDING_FEATURES)))
        memory = np.array(list(MEMORY.values()))
        first, last_day = 0, 0.0
        for number, today in enumerate(days.tolist()):
            end = int(np.searchsorted(self.time, today * DAY))
            decayed *= np.exp(-(today - last_day) / memory)
            rows = slice(first, end)
            age = today - self.time[rows] / DAY
            for trend, span in enumerate(memory):
                weight = np.exp(-age / span) * self.number[rows]
                decayed[:, trend] += np.bincount(self.item[rows], weight, self.num_items)
            table[number] = np.log1p(decayed / UNIT)
            first, last_day = end, today
        return table

    def save(self, folder: Path) -> None:
        """Writes trends.npz."""
        np.savez_compressed(
            folder / "trends.npz",
            item=self.item,
            time=self.time,
            number=self.number,
            num_items=self.num_items,
        )

    @classmethod
    def load(cls, folder: Path) -> TrendingCounts:
        """The counts that `save` wrote.

        An error of DAMAGE (reranking/history/relations.py) if the file is missing or damaged.
        """
        with np.load(folder / "trends.npz") as file:
            time = file["time"]
            # Exports of earlier versions have a row for each interaction.
            number = file["number"] if "number" in file else np.ones(len(time), np.int64)
            return cls(file["item"], time, number, int(file["num_items"]))
