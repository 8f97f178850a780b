"""TODO."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Int, Int32, Int64

from sigma_jax.schema import DAY, Histories, PreparedData, Requests
from sigma_jax.shapes import power_of_two


def rows_of_ranges(
    starts: Int[np.ndarray, " n"], ends: Int[np.ndarray, " n"]
) -> Int64[np.ndarray, " total"]:
    """Row numbers of many ranges in a row: starts [3, 9], ends [5, 10] -> [3, 4, 9]."""
    counts = np.maximum(np.asarray(ends, np.int64) - starts, 0)
    before = np.cumsum(counts) - counts
    return np.repeat(np.asarray(starts, np.int64) - before, counts) + np.arange(counts.sum())


def training_rows(histories: Histories) -> Int64[np.ndarray, " rows"]:
    """Rows of Histories that training may see: those before each user's valid_start."""
    return rows_of_ranges(histories.offsets[:-1], histories.valid_start)


def history_ranges(
    histories: Histories, requests: Requests
) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
    """First row and row after the last of each request's history; empty for user -1."""
    known = np.maximum(requests.user, 0)
    starts = np.asarray(histories.offsets)[known]
    ends = np.where(requests.user >= 0, np.maximum(requests.history_end, starts), starts)
    return starts, ends


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


def count_training_rows(data: PreparedData) -> np.ndarray:
    """int64 [I]: training rows of each item."""
    rows = training_rows(data.histories)
    return np.bincount(data.histories.item[rows], minlength=len(data.catalogue))


def request_times(histories: Histories, requests: Requests) -> Int64[np.ndarray, " N"]:
    """When each request is made, in unix seconds: with the row its history ends before.

    Where that is the user's last row, or nobody's, now: the end of the log.
    """
    time = np.asarray(histories.time)
    now = time.max(initial=0)
    user = np.maximum(requests.user, 0)
    is_past = (requests.user >= 0) & (
        requests.history_end < np.asarray(histories.offsets)[user + 1]
    )
    # The day after the last of the log: all of it has been.
    return np.where(
        is_past, time[np.where(is_past, requests.history_end, 0)], now + DAY if now else 0
    )


def first_row_of_day(
    histories: Histories,
    starts: Int64[np.ndarray, " N"],
    ends: Int64[np.ndarray, " N"],
    times: Int64[np.ndarray, " N"],
) -> Int64[np.ndarray, " N"]:
    """The first row of each history on the day (UTC) of its request; `ends` where there is none."""
    lines = rows_of_ranges(starts, ends)
    request = np.repeat(np.arange(len(starts)), np.maximum(ends - starts, 0))
    is_today = histories.time[lines] // DAY == times[request] // DAY
    count = np.bincount(request[is_today & (times[request] > 0)], minlength=len(starts))
    return ends - count  # rows are in order of time


CHUNK_ROWS = 200_000  # interactions held at once while writing


def user_chunks(offsets: np.ndarray, rows: int) -> Iterator[range]:
    """Ranges of users with about `rows` interactions each."""
    user, count = 0, len(offsets) - 1
    while user < count:
        stop = int(np.searchsorted(offsets, offsets[user] + rows, side="right")) - 1
        stop = min(max(stop, user + 1), count)
        yield range(user, stop)
        user = stop


def recent_item_weights(
    histories: Histories,
    starts,
    ends,
    num_items: int,
    decay: float,
    sessions: int | None,
) -> sparse.csr_matrix:
    """float32 [N, I]: the items of each history's last `sessions` (None: all of them).

    A line weighs 1 in the last session, then `decay`, its square ...; lines of one item add up.
    """
    counts = np.maximum(ends - starts, 0)
    lines = rows_of_ranges(starts, ends)
    request = np.repeat(np.arange(len(starts)), counts)
    last = np.zeros(len(starts), np.int64)
    has_history = counts > 0
    last[has_history] = histories.session[ends[has_history] - 1]
    age = last[request] - histories.session[lines]
    if sessions is not None:
        keep = age < sessions
        age, request, lines = age[keep], request[keep], lines[keep]
    weights = (decay ** age.astype(np.float64)).astype(np.float32)
    shape = (len(starts), num_items)
    return sparse.csr_matrix((weights, (request, histories.item[lines])), shape=shape)
