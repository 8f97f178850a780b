"""Ranges of rows in the histories: of users, requests, training and days."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Float, Int, Int32, Int64

from sigma_jax.schema import DAY, Histories, PreparedData, Requests
from sigma_jax.shapes import power_of_two

CHUNK_ROWS = 200_000  # interactions in memory at once


def rows_of_ranges(
    starts: Int[np.ndarray, " n"], ends: Int[np.ndarray, " n"]
) -> Int64[np.ndarray, " total"]:
    """The rows of many ranges, one range after the other.

    Worked example: starts [3, 9], ends [5, 10] -> [3, 4, 9].
    """
    counts = np.maximum(np.asarray(ends, np.int64) - starts, 0)
    before = np.cumsum(counts) - counts
    return np.repeat(np.asarray(starts, np.int64) - before, counts) + np.arange(counts.sum())


def training_rows(histories: Histories) -> Int64[np.ndarray, " rows"]:
    """The rows that training may see: those before each user's `valid_start`."""
    return rows_of_ranges(histories.offsets[:-1], histories.valid_start)


def training_sessions(
    histories: Histories,
) -> tuple[Int64[np.ndarray, " S"], Int64[np.ndarray, " S"], Int64[np.ndarray, " S"]]:
    """(user, first row, end row) of each session in the training rows, by user and then by time."""
    starts, ends = histories.offsets[:-1], histories.valid_start
    rows = rows_of_ranges(starts, ends)
    user = np.repeat(np.arange(len(starts)), np.maximum(ends - starts, 0))
    session = histories.session[rows]
    is_first = np.ones(len(rows), bool)
    is_first[1:] = (user[1:] != user[:-1]) | (session[1:] != session[:-1])
    first = np.flatnonzero(is_first)
    sizes = np.diff(np.append(first, len(rows)))
    begin = rows[first]
    return user[first], begin, begin + sizes


def items_of_sessions(
    histories: Histories,
    num_items: int,
    begin: Int64[np.ndarray, " S"],
    end: Int64[np.ndarray, " S"],
    weights: Float[np.ndarray, " S"],
) -> sparse.csr_matrix:
    """float32 [S, I]: the interactions of each session by item, times the weight of the session."""
    rows = rows_of_ranges(begin, end)
    session = np.repeat(np.arange(len(begin)), end - begin)
    entries = (weights[session].astype(np.float32), (session, histories.item[rows]))
    return sparse.csr_matrix(entries, shape=(len(begin), num_items))


def count_training_rows(data: PreparedData) -> Int64[np.ndarray, " I"]:
    """The number of training rows of each item."""
    return count_rows(data.histories, data.histories.valid_start, len(data.catalogue))


def count_rows(
    histories: Histories, ends: Int64[np.ndarray, " U"], num_items: int
) -> Int64[np.ndarray, " I"]:
    """The number of rows of each item before the row `ends` of each user, CHUNK_ROWS at a time."""
    counts = np.zeros(num_items, np.int64)
    for users in user_chunks(histories.offsets, CHUNK_ROWS):
        part = slice(users.start, users.stop)
        rows = rows_of_ranges(histories.offsets[:-1][part], ends[part])
        counts += np.bincount(histories.item[rows], minlength=num_items)
    return counts


def user_chunks(offsets: Int64[np.ndarray, " U+1"], rows: int) -> Iterator[range]:
    """Ranges of users with at most `rows` interactions each, or of one user with more."""
    user, count = 0, len(offsets) - 1
    while user < count:
        stop = int(np.searchsorted(offsets, offsets[user] + rows, side="right")) - 1
        stop = min(max(stop, user + 1), count)
        yield range(user, stop)
        user = stop


def history_ranges(
    histories: Histories, requests: Requests
) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
    """Start and end rows of each request's history. The history of user -1 is empty."""
    known = np.maximum(requests.user, 0)
    starts = np.asarray(histories.offsets)[known]
    ends = np.where(requests.user >= 0, np.maximum(requests.history_end, starts), starts)
    return starts, ends


def seen_items(histories: Histories, requests: Requests) -> Int32[np.ndarray, "N S"]:
    """The distinct items of each request's history, ascending, padded with -1.

    S is a power of two, so that few shapes are compiled.
    """
    starts, ends = history_ranges(histories, requests)
    distinct = [np.unique(histories.item[a:b]) for a, b in zip(starts, ends, strict=True)]
    width = power_of_two(max((len(items) for items in distinct), default=0))
    seen = np.full((len(distinct), width), -1, np.int32)
    for row, items in enumerate(distinct):
        seen[row, : len(items)] = items
    return seen


def request_times(histories: Histories, requests: Requests) -> Int64[np.ndarray, " N"]:
    """The time of each request in unix seconds: that of the row at its `history_end`.

    A request after all of the user's rows, or without a user, is made now: a day after the last
    interaction of the log. The time is 0 in a log without times.
    """
    time = np.asarray(histories.time)
    last = time.max(initial=0)
    now = last + DAY if last else 0
    user = np.maximum(requests.user, 0)
    is_past = (requests.user >= 0) & (
        requests.history_end < np.asarray(histories.offsets)[user + 1]
    )
    return np.where(is_past, time[np.where(is_past, requests.history_end, 0)], now)


def first_row_of_day(
    histories: Histories,
    starts: Int64[np.ndarray, " N"],
    ends: Int64[np.ndarray, " N"],
    times: Int64[np.ndarray, " N"],
) -> Int64[np.ndarray, " N"]:
    """The first row of each history on the day (UTC) of its request.

    It is `ends` for a history without a row on that day, and for a time of 0.
    """
    rows = rows_of_ranges(starts, ends)
    request = np.repeat(np.arange(len(starts)), np.maximum(ends - starts, 0))
    is_today = histories.time[rows] // DAY == times[request] // DAY
    count = np.bincount(request[is_today & (times[request] > 0)], minlength=len(starts))
    return ends - count  # rows are in order of time


def recent_item_weights(
    histories: Histories,
    starts: Int64[np.ndarray, " N"],
    ends: Int64[np.ndarray, " N"],
    num_items: int,
    decay: float,
    sessions: int | None,
    once_a_session: bool = False,
) -> sparse.csr_matrix:
    """float32 [N, I]: weights of the items in each history, the latest sessions first.

    An interaction weighs 1 in the last session and `decay` in the session before, then its square,
    and so on. The weights of one item add up.

    Args:
      starts, ends: rows of each history.
      sessions: only this many last sessions count; None: all of them.
      once_a_session: an item counts once in a session, however often it is in it.
    """
    counts = np.maximum(ends - starts, 0)
    rows = rows_of_ranges(starts, ends)
    request = np.repeat(np.arange(len(starts)), counts)
    last = np.zeros(len(starts), np.int64)
    has_history = counts > 0
    last[has_history] = histories.session[ends[has_history] - 1]
    age = last[request] - histories.session[rows]
    if sessions is not None:
        is_recent = age < sessions
        age, request, rows = age[is_recent], request[is_recent], rows[is_recent]
    item = histories.item[rows]
    if once_a_session:
        span = int(age.max(initial=0)) + 1
        key = np.unique((request * span + age) * num_items + item)
        request, age, item = key // num_items // span, key // num_items % span, key % num_items
    weights = (decay ** age.astype(np.float64)).astype(np.float32)
    return sparse.csr_matrix((weights, (request, item)), shape=(len(starts), num_items))
