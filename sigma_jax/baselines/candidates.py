"""What the baselines share: histories of requests, constraints, the best k of scored candidates."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float64, Int, Int32, Int64

from sigma_jax.generation.trie import power_of_two
from sigma_jax.schema import TASKS, Histories, Links, PreparedData, Requests


@dataclasses.dataclass(frozen=True)
class Allowed:
    """The items each request's constraint allows: those of `items.of(row[n])`; row -1 allows all.

    Requests share constraints, so each list is held once however many requests name it.
    """

    items: Links  # constraint -> items
    row: Int32[np.ndarray, " N"]  # constraint of each request, -1 for none

    @classmethod
    def from_lists(cls, lists: list[np.ndarray], row: Int32[np.ndarray, " N"]) -> Allowed:
        """With the items of each constraint as a list."""
        rows = np.repeat(np.arange(len(lists)), [len(items) for items in lists])
        targets = np.concatenate(lists) if lists else np.zeros(0, np.int32)
        return cls(Links.from_edges(rows, targets, len(lists)), row)

    def of(self, request: int) -> Int32[np.ndarray, " n"] | None:
        """The items request number `request` may get; None where it may get any."""
        return None if self.row[request] < 0 else self.items.of(self.row[request])


def allowed_items(data: PreparedData, requests: Requests) -> Allowed:
    """Which items satisfy each request: items of its query, category, season or holiday.

    JustForYou, Longtail and Discover constrain no item, nor does a request without argument.
    """
    is_bound = np.isin(requests.task, [TASKS.index(name) for name in CONSTRAINED_TASKS])
    bound = np.flatnonzero(is_bound & (requests.argument >= 0))
    keys = np.stack([requests.task[bound], requests.argument[bound]], 1)
    distinct, inverse = np.unique(keys.reshape(-1, 2), axis=0, return_inverse=True)
    links = {task: items_of_arguments(data, TASKS[task]) for task in np.unique(distinct[:, 0])}
    lists = [links[task].of(argument) for task, argument in distinct]
    row = np.full(len(requests), -1, np.int32)
    row[bound] = inverse.reshape(-1)
    return Allowed.from_lists(lists, row)


def items_of_arguments(data: PreparedData, task: str) -> Links | None:
    """The items that satisfy each argument of a task; None where the data has none."""
    match task:
        case "Category":
            known = np.flatnonzero(data.catalogue.category >= 0)
            count = len(data.catalogue.categories)
            return Links.from_edges(data.catalogue.category[known], known, count)
        case "Query":
            return data.queries.items if data.queries is not None else None
        case "Season" | "Holiday":
            return data.themes.items if data.themes is not None else None
    return None


CONSTRAINED_TASKS = ("Query", "Category", "Season", "Holiday")


def ragged(
    starts: Int[np.ndarray, " n"], ends: Int[np.ndarray, " n"]
) -> Int64[np.ndarray, " total"]:
    """Row numbers of many ranges in a row: starts [3, 9], ends [5, 10] -> [3, 4, 9]."""
    counts = np.maximum(np.asarray(ends, np.int64) - starts, 0)
    before = np.cumsum(counts) - counts
    return np.repeat(np.asarray(starts, np.int64) - before, counts) + np.arange(counts.sum())


def training_rows(histories: Histories) -> Int64[np.ndarray, " rows"]:
    """Rows of Histories that training may see: those before each user's valid_start."""
    return ragged(histories.offsets[:-1], histories.valid_start)


def history_ranges(
    histories: Histories, requests: Requests
) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
    """First row and row after the last of each request's history; empty for user -1."""
    known = np.maximum(requests.user, 0)
    starts = np.asarray(histories.offsets)[known]
    ends = np.where(requests.user >= 0, np.maximum(requests.cut, starts), starts)
    return starts, ends


def best(
    items: Int[np.ndarray, " n"],
    scores: Float64[np.ndarray, " n"],
    tie_order: Int[np.ndarray, " I"],
    k: int,
) -> Int[np.ndarray, " m"]:
    """The k items of highest score, best first; equal scores by `tie_order`, low first."""
    if len(items) > k:
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        keep = scores >= threshold  # more than k where scores tie at the threshold
        items, scores = items[keep], scores[keep]
    return items[np.lexsort((tie_order[items], -scores))[:k]]


def without(
    items: Int[np.ndarray, " n"],
    seen: Int[np.ndarray, " s"] | None,
    allowed: Int[np.ndarray, " a"] | None,
) -> np.ndarray:
    """Boolean [n]: which items are neither seen nor outside what is allowed (None: no limit)."""
    keep = np.ones(len(items), bool)
    if seen is not None:
        keep &= ~np.isin(items, seen)
    if allowed is not None:
        keep &= np.isin(items, allowed)
    return keep


def seen_items(histories: Histories, requests: Requests) -> Int32[np.ndarray, "N S"]:
    """The distinct items of each request's history, padded with -1."""
    starts, ends = history_ranges(histories, requests)
    rows = [np.unique(histories.item[a:b]) for a, b in zip(starts, ends, strict=True)]
    # Few distinct shapes: few compilations.
    width = power_of_two(max((len(row) for row in rows), default=0))
    seen = np.full((len(rows), width), -1, np.int32)
    for row, items in enumerate(rows):
        seen[row, : len(items)] = items
    return seen
