"""Training records: windows of users' histories with their targets, in files of bytes.

Only training rows are read: those before `valid_start` of their user. One window of a user ends at
the start of the last training session. The others end `window_stride` items or more before it. A
window [start, end) comes with the session at `end`, which only holds targets, and with the
favourites of the rows before `start`. So the context of a record has no row after its targets.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from jaxtyping import Int32, Int64

from sigma_jax.data.pipeline import write_shards
from sigma_jax.hashing import splitmix64
from sigma_jax.histories import CHUNK_ROWS, user_chunks
from sigma_jax.prompts.config import PromptConfig
from sigma_jax.schema import TASKS, PreparedData
from sigma_jax.tasks.targets import (
    Targets,
    TaskTables,
    find_targets,
    first_rows_in_category,
    keep_per_group,
)

RECORDS = "contexts"
NEW_RECORDS = "new-contexts"  # beside RECORDS in the folder of a refresh
RECORDS_PER_SHARD = 20_000


@dataclasses.dataclass(frozen=True)
class Record:
    """A window of n items of history, followed by the session after it: m items in all.

    Target k is the item `target[k]` for `TASKS[task[k]]`, predicted from the first `attach[k]`
    items.
    """

    user: int
    length: int  # n
    item: Int32[np.ndarray, " m"]
    session: Int32[np.ndarray, " m"]  # from 0 at the window's start
    favourites: Int32[np.ndarray, " f"]  # most frequent first
    attach: Int32[np.ndarray, " K"]  # 0..n
    task: Int32[np.ndarray, " K"]
    target: Int32[np.ndarray, " K"]  # items
    slot_value: Int32[np.ndarray, " K"]  # query, category or theme; -1 for none

    def to_bytes(self) -> bytes:
        """A msgpack list: user, length, then the little-endian int32 bytes of each array."""
        arrays = dataclasses.astuple(self)[2:]
        return msgpack.packb(
            [int(self.user), int(self.length), *(np.asarray(a, "<i4").tobytes() for a in arrays)]
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Record:
        """The record that `to_bytes` wrote."""
        user, length, *arrays = msgpack.unpackb(data)
        return cls(user, length, *(np.frombuffer(array, "<i4") for array in arrays))


def record_settings(config: PromptConfig) -> dict[str, Any]:
    """The settings that decide the content of records."""
    layout, targets = config.layout, config.targets
    return {
        "layout.history_length": layout.history_length,
        "layout.num_favourites": layout.num_favourites,
        "targets.window_stride": targets.window_stride,
        "targets.task_targets_per_boundary": targets.task_targets_per_boundary,
        "targets.longtail_share": targets.longtail_share,
        "targets.cold_start_weight": targets.cold_start_weight,
    }


def favourites(items: Int32[np.ndarray, " n"], count: int) -> Int32[np.ndarray, " f"]:
    """The `count` most frequent of `items`; equally frequent ones by their latest place.

    Worked example: [4, 7, 4, 9] -> [4, 9, 7].
    """
    if count == 0 or len(items) == 0:
        return np.zeros(0, np.int32)
    distinct, age, times = np.unique(items[::-1], return_index=True, return_counts=True)
    return distinct[np.lexsort((age, -times))[:count]].astype(np.int32)


def write_records(
    data: PreparedData,
    config: PromptConfig,
    folder: Path,
    seed: int,
    known: Int64[np.ndarray, " U"] | None = None,
) -> dict[str, int]:
    """Writes the training records of `data` into `folder`; the same bytes for the same arguments.

    Args:
      known: as in `iterate_records`. With it the files are named NEW_RECORDS, and there may be
        none.

    Returns:
      "contexts": number of records; "targets.TASK": number of targets of each task.

    Raises:
      ValueError: no user has two training sessions.
    """
    tables = TaskTables.make(data, config.longtail_share)
    counts: Counter = Counter({"contexts": 0})

    def counted() -> Iterator[bytes]:
        for record in iterate_records(data, config, tables, seed, known):
            counts["contexts"] += 1
            for task, number in enumerate(np.bincount(record.task, minlength=len(TASKS))):
                counts[f"targets.{TASKS[task]}"] += int(number)
            yield record.to_bytes()

    name = RECORDS if known is None else NEW_RECORDS
    write_shards(counted(), folder, name, RECORDS_PER_SHARD)
    if counts["contexts"] == 0 and known is None:
        raise ValueError(
            "no user has two training sessions, so stage sft has no target; bring interactions of "
            "more sessions."
        )
    return dict(counts)


def iterate_records(
    data: PreparedData,
    config: PromptConfig,
    tables: TaskTables,
    seed: int,
    known: Int64[np.ndarray, " U"] | None = None,
) -> Iterator[Record]:
    """The records, user by user. It holds CHUNK_ROWS interactions, or those of one user.

    Args:
      known: the number of each user's first training rows that earlier records have as targets.
        Only windows with a later row among their targets are returned, with the instructed
        targets of later rows alone. None: all windows.
    """
    histories = data.histories
    known = np.zeros(histories.num_users, np.int64) if known is None else known
    has_new = histories.valid_start - histories.offsets[:-1] > known
    for users in user_chunks(histories.offsets, CHUNK_ROWS):
        if has_new[users.start : users.stop].any():
            yield from _chunk_records(data, config, tables, users, seed, known)


def _chunk_records(
    data: PreparedData,
    config: PromptConfig,
    tables: TaskTables,
    users: range,
    seed: int,
    known: Int64[np.ndarray, " U"],
) -> Iterator[Record]:
    """The records of `users`, whose rows are in memory."""
    histories = data.histories
    base, stop = (int(histories.offsets[user]) for user in (users.start, users.stop))
    item, session = (np.asarray(a[base:stop]) for a in (histories.item, histories.session))
    starts, session_of = _sessions(data, users)
    targets = _training_targets(data, config, tables, users, starts[session_of], seed)
    first_new = (
        np.asarray(histories.offsets[users.start : users.stop]) + known[users.start : users.stop]
    )
    of_user = np.searchsorted(histories.offsets, targets.row, side="right") - 1 - users.start
    targets = targets.take(targets.row >= first_new[of_user])
    for user in users:
        first, last = int(histories.offsets[user]), int(histories.valid_start[user])
        user_starts = starts[np.searchsorted(starts, first) : np.searchsorted(starts, last)]
        for start, end in _windows(user_starts, first, config):
            in_window = slice(
                np.searchsorted(targets.history_end, start + (start > first)),
                np.searchsorted(targets.history_end, end, side="right"),
            )
            later = user_starts[np.searchsorted(user_starts, end, side="right") :]
            session_end = int(later[0]) if len(later) else last
            if session_end <= first + known[user]:
                continue
            rows = slice(start - base, session_end - base)
            yield Record(
                user,
                end - start,
                item[rows],
                session[rows] - session[start - base],
                favourites(item[first - base : start - base], config.layout.num_favourites),
                targets.history_end[in_window] - start,
                targets.task[in_window],
                item[targets.row[in_window] - base],
                targets.slot_value[in_window],
            )


def _sessions(data: PreparedData, users: range) -> tuple[np.ndarray, np.ndarray]:
    """First rows of the sessions of `users`, and the session number of each of their rows.

    Session numbers count the sessions of all these users from 0.
    """
    offsets = data.histories.offsets[users.start : users.stop + 1]
    session = np.asarray(data.histories.session[offsets[0] : offsets[-1]])
    is_start = np.ones(len(session), bool)
    is_start[1:] = session[1:] != session[:-1]
    firsts = offsets[:-1] - offsets[0]
    is_start[firsts[firsts < len(session)]] = True
    return offsets[0] + np.flatnonzero(is_start), np.cumsum(is_start) - 1


def _windows(starts: np.ndarray, first: int, config: PromptConfig) -> list[tuple[int, int]]:
    """(start, end) of a user's windows, last first.

    Worked example, history_length 4, window_stride 3, sessions [a b][c][d e][f][g], rows 0..6: the
    last window is [2, 6) = c d e f before g; 3 items earlier, [0, 3) = a b c before d e.

    Args:
      starts: first rows of the user's training sessions.
      first: first row of the user.
    """
    length, stride = config.layout.history_length, config.targets.window_stride
    windows = []
    number = len(starts) - 1
    while number > 0:
        end = int(starts[number])
        windows.append((max(first, end - length), end))
        number = int(np.searchsorted(starts, end - stride, side="right")) - 1
    reaches_first = len(windows) > 0 and windows[-1][0] == first
    if len(starts) and not reaches_first and config.targets.cold_start_weight > 0:
        windows.append((first, first))  # the first session as target, without a history
    return windows


def _training_targets(
    data: PreparedData,
    config: PromptConfig,
    tables: TaskTables,
    users: range,
    session_start: np.ndarray,
    seed: int,
) -> Targets:
    """Targets among the training rows of `users`, sorted by the end of their history.

    Args:
      session_start: for each row of `users`, the first row of its session.
    """
    histories = data.histories
    offsets = np.asarray(histories.offsets[users.start : users.stop + 1])
    lengths = np.diff(offsets)
    valid = np.repeat(np.asarray(histories.valid_start[users.start : users.stop]), lengths)
    rows = np.arange(offsets[0], offsets[-1])
    usable = rows < valid
    if config.targets.cold_start_weight == 0:
        usable &= session_start > np.repeat(offsets[:-1], lengths)
    first = first_rows_in_category(data, users)
    targets = find_targets(data, tables, rows[usable], session_start[usable], first[usable])
    # Places inside a history do not depend on the rows of other users, which tests may change.
    user = np.searchsorted(offsets, targets.row, side="right") - 1
    place = targets.row - offsets[user]
    score = splitmix64(seed, users.start + user, place, targets.task, targets.slot_value)
    return keep_per_group(targets, score, config.targets.task_targets_per_boundary)
