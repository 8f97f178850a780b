"""Training records: windows of users' histories with their candidate targets, in shards of bytes.

Only training rows are read: those before `valid_start` of their user. A user has one window ending
at the start of the last training session, and others `window_stride` items or more apart
before it. A window [start, end) comes with the session at `end`, which only serves as
target, and with the favourites of the rows before `start`: so nothing in a record's context lies
after its targets.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from jaxtyping import Int32

from sigma_jax.data.pipeline import write_shards
from sigma_jax.hashing import splitmix64
from sigma_jax.histories import CHUNK_ROWS, user_chunks
from sigma_jax.prompts.config import PromptConfig
from sigma_jax.schema import TASKS, PreparedData
from sigma_jax.tasks.targets import Candidates, TaskTables, find_candidates, first_touch, keep_few

RECORDS = "contexts"
RECORDS_PER_SHARD = 20_000


@dataclasses.dataclass(frozen=True)
class Record:
    """One window, n items of history, m items in all with the session that follows.

    Candidate k is the item `target[k]` for `TASKS[task[k]]`, seen from the first `attach[k]` items.
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
        """A msgpack list: user, length, then each array's little-endian int32 bytes."""
        arrays = dataclasses.astuple(self)[2:]
        return msgpack.packb(
            [int(self.user), int(self.length), *(np.asarray(a, "<i4").tobytes() for a in arrays)]
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Record:
        user, length, *arrays = msgpack.unpackb(data)
        return cls(user, length, *(np.frombuffer(array, "<i4") for array in arrays))


def record_settings(config: PromptConfig) -> dict[str, Any]:
    """The settings that decide what records hold; records of other settings are made anew."""
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
    """The `count` most frequent of `items`, of equals the later one first.

    Worked example: [4, 7, 4, 9] -> [4, 9, 7].
    """
    if count == 0 or len(items) == 0:
        return np.zeros(0, np.int32)
    distinct, age, times = np.unique(items[::-1], return_index=True, return_counts=True)
    return distinct[np.lexsort((age, -times))[:count]].astype(np.int32)


def write_records(
    data: PreparedData, config: PromptConfig, folder: Path, seed: int
) -> dict[str, int]:
    """Writes all training records of `data` into `folder`; the same bytes for the same arguments.

    Returns:
      Figures: number of contexts, and of candidate targets by task.

    Raises:
      ValueError: no user has two training sessions.
    """
    tables = TaskTables.make(data, config.targets.longtail_share)
    figures: Counter = Counter({"contexts": 0})

    def counted() -> Iterator[bytes]:
        for record in iterate_records(data, config, tables, seed):
            figures["contexts"] += 1
            for task, number in enumerate(np.bincount(record.task, minlength=len(TASKS))):
                figures[f"targets.{TASKS[task]}"] += int(number)
            yield record.to_bytes()

    write_shards(counted(), folder, RECORDS, RECORDS_PER_SHARD)
    if figures["contexts"] == 0:
        raise ValueError("no user has two training sessions; stage sft has nothing to learn from.")
    return dict(figures)


def iterate_records(
    data: PreparedData, config: PromptConfig, tables: TaskTables, seed: int
) -> Iterator[Record]:
    """The records, user by user. Holds the rows of CHUNK_ROWS interactions, or of one user."""
    for users in user_chunks(data.histories.offsets, CHUNK_ROWS):
        yield from _chunk_records(data, config, tables, users, seed)


def _chunk_records(
    data: PreparedData, config: PromptConfig, tables: TaskTables, users: range, seed: int
) -> Iterator[Record]:
    histories = data.histories
    base, stop = (int(histories.offsets[user]) for user in (users.start, users.stop))
    item, session = (np.asarray(a[base:stop]) for a in (histories.item, histories.session))
    starts, session_of = _sessions(data, users)
    candidates = _training_candidates(data, config, tables, users, starts, session_of, seed)
    for user in users:
        first, last = int(histories.offsets[user]), int(histories.valid_start[user])
        own = starts[np.searchsorted(starts, first) : np.searchsorted(starts, last)]
        for start, end in _windows(own, first, config):
            found = slice(
                np.searchsorted(candidates.attach, start + (start > first)),
                np.searchsorted(candidates.attach, end, side="right"),
            )
            after = own[np.searchsorted(own, end, side="right") :]
            tail = int(after[0]) if len(after) else last
            rows = slice(start - base, tail - base)
            yield Record(
                user,
                end - start,
                item[rows],
                session[rows] - session[start - base],
                favourites(item[first - base : start - base], config.layout.num_favourites),
                candidates.attach[found] - start,
                candidates.task[found],
                item[candidates.row[found] - base],
                candidates.slot_value[found],
            )


def _sessions(data: PreparedData, users: range) -> tuple[np.ndarray, np.ndarray]:
    """First rows of the sessions of `users`; of each of their rows, the place of its session."""
    offsets = data.histories.offsets[users.start : users.stop + 1]
    session = np.asarray(data.histories.session[offsets[0] : offsets[-1]])
    is_start = np.ones(len(session), bool)
    is_start[1:] = session[1:] != session[:-1]
    firsts = offsets[:-1] - offsets[0]
    is_start[firsts[firsts < len(session)]] = True
    return offsets[0] + np.flatnonzero(is_start), np.cumsum(is_start) - 1


def _windows(starts: np.ndarray, first: int, config: PromptConfig) -> list[tuple[int, int]]:
    """(start, end) of a user's windows, `starts` being the first rows of the training sessions.

    Worked example, history_length 4, window_stride 3, sessions [a b][c][d e][f][g], rows 0..6:
    the last window is [2, 6) = c d e f before g; 3 items earlier, [0, 3) = a b c before d e.
    """
    windows = []
    end = len(starts) - 1
    while end > 0:
        windows.append(
            (max(first, int(starts[end]) - config.layout.history_length), int(starts[end]))
        )
        end = (
            int(np.searchsorted(starts, starts[end] - config.targets.window_stride, side="right"))
            - 1
        )
    reaches_back = len(windows) > 0 and windows[-1][0] == first
    if len(starts) and not reaches_back and config.targets.cold_start_weight > 0:
        windows.append((first, first))  # the first session, seen from nothing
    return windows


def _training_candidates(
    data: PreparedData,
    config: PromptConfig,
    tables: TaskTables,
    users: range,
    starts: np.ndarray,
    session_of: np.ndarray,
    seed: int,
) -> Candidates:
    """Candidates of the training rows of `users`, sorted by attach row."""
    histories = data.histories
    offsets = np.asarray(histories.offsets[users.start : users.stop + 1])
    lengths = np.diff(offsets)
    begin = np.repeat(offsets[:-1], lengths)
    valid = np.repeat(np.asarray(histories.valid_start[users.start : users.stop]), lengths)
    rows = np.arange(offsets[0], offsets[-1])
    first = first_touch(data, users)
    attach = starts[session_of]
    usable = (attach >= begin) & (rows < valid)
    if config.targets.cold_start_weight == 0:
        usable &= attach > begin
    found = find_candidates(data, tables, rows[usable], attach[usable], first[usable])
    score = splitmix64(seed, found.row, found.task, found.slot_value)
    return keep_few(found, score, config.targets.task_targets_per_boundary)
