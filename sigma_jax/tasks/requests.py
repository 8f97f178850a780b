"""Requests made from held-out sessions, to fit, validate and evaluate with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int64

from sigma_jax.hashing import splitmix64
from sigma_jax.histories import CHUNK_ROWS, user_chunks
from sigma_jax.schema import TASKS, PreparedData, Requests
from sigma_jax.tasks import instructions
from sigma_jax.tasks.targets import (
    Targets,
    TaskTables,
    find_targets,
    first_rows_in_category,
    keep_per_group,
)


def sample_requests(
    data: PreparedData,
    split: str,
    seed: int,
    max_requests: Mapping[str, int],
    longtail_share: float,
    wordings: Mapping[str, tuple[str, ...]],
    is_random: bool,
) -> Requests:
    """At most `max_requests[task]` requests of each task, sorted by task, then user.

    Args:
      max_requests: a task that is absent gets no requests.
      is_random: True draws a task's users by `seed`; False takes the first users.
      split, longtail_share, wordings: as in `make_requests`.
    """
    count = max(max_requests.values(), default=0)
    requests = make_requests(data, split, seed, count, longtail_share, wordings)
    rng, rows = np.random.default_rng(seed), []
    for number, task in enumerate(TASKS):
        of_task = np.flatnonzero(requests.task == number)
        order = rng.permutation(of_task) if is_random else of_task
        rows.append(np.sort(order[: max_requests.get(task, 0)]))
    return requests.take(np.concatenate(rows))


def make_requests(
    data: PreparedData,
    split: str,
    seed: int,
    max_per_task: int,
    longtail_share: float,
    wordings: Mapping[str, tuple[str, ...]] = instructions.TRAIN_WORDINGS,
) -> Requests:
    """One request per user and task whose target session holds a target of that task.

    Hashes draw the target (of seed, user and item) and the wording (of seed and user), so that
    requests do not depend on the order of rows. A task with more than `max_per_task` requests keeps
    those of lowest hash. Requests are sorted by task, then user.

    Args:
      split: "valid" (the session at valid_start) or "test" (the session at test_start).
      longtail_share: as in TargetConfig.
      wordings: task -> wordings to choose from.

    Raises:
      ValueError: `split` is neither "valid" nor "test".
    """
    if split not in ("valid", "test"):
        raise ValueError(f"split {split!r} is unknown; use 'valid' or 'test'.")
    tables = TaskTables.make(data, longtail_share)
    parts, user = [], []
    for users in user_chunks(data.histories.offsets, CHUNK_ROWS):
        rows, history_end = _target_rows(data, split, users)
        first = first_rows_in_category(data, users)[rows - int(data.histories.offsets[users.start])]
        targets = find_targets(data, tables, rows, history_end, first)
        of_user = _user_of(data, targets.history_end)
        item = data.histories.item[targets.row]
        score = splitmix64(seed, of_user, item, targets.task, targets.slot_value)
        kept = keep_per_group(targets, score, 1)
        parts.append(kept)
        user.append(_user_of(data, kept.history_end))
    targets, user = Targets.join(parts), np.concatenate(user)
    kept = _lowest_of_task(targets.task, splitmix64(seed, user, targets.task), max_per_task)
    kept = kept[np.lexsort((user[kept], targets.task[kept]))]
    return _as_requests(data, targets.take(kept), user[kept], wordings, seed)


def _target_rows(
    data: PreparedData, split: str, users: range
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Rows of the target sessions of `users`, and the first row of the session of each."""
    histories = data.histories
    starts = np.asarray(histories.test_start[users.start : users.stop])
    if split == "valid":
        # In a split by time a user may have a test target only. Then both starts are the same row.
        ends = np.asarray(histories.offsets[users.start + 1 : users.stop + 1])
        valid = np.asarray(histories.valid_start[users.start : users.stop])
        starts = np.where(valid < starts, valid, ends)
    offsets = np.asarray(histories.offsets[users.start : users.stop + 1])
    start = np.repeat(starts, np.diff(offsets))
    rows = np.arange(offsets[0], offsets[-1])
    session = np.asarray(histories.session[offsets[0] : offsets[-1]])
    # A start at the user's end means no target: no row of the user reaches it.
    target = session[np.minimum(start - offsets[0], len(session) - 1)] if len(session) else session
    is_target = (rows >= start) & (session == target)
    return rows[is_target], start[is_target]


def _user_of(data: PreparedData, rows: np.ndarray) -> Int64[np.ndarray, " n"]:
    """The user of each row of the histories."""
    return np.searchsorted(data.histories.offsets, rows, side="right") - 1


def _lowest_of_task(task: np.ndarray, score: np.ndarray, count: int) -> np.ndarray:
    """Indices of at most `count` entries of each task: those of lowest score."""
    order = np.lexsort((score, task))
    starts = np.searchsorted(task[order], task[order])
    return order[np.arange(len(order)) - starts < count]


def _as_requests(
    data: PreparedData,
    targets: Targets,
    user: np.ndarray,
    wordings: Mapping[str, tuple[str, ...]],
    seed: int,
) -> Requests:
    """A request for each of `targets`, in a wording drawn by a hash of seed, user and task."""
    texts = {task: instructions.slot_value_texts(data, task) for task in instructions.SLOTS}
    numbers = splitmix64(seed, user, targets.task, 1)
    sentences = []
    for index, slot_value, number in zip(targets.task, targets.slot_value, numbers, strict=True):
        task = TASKS[index]
        wording = wordings[task][int(number) % len(wordings[task])]
        text = texts[task][slot_value] if slot_value >= 0 and task in texts else None
        sentences.append(instructions.render(task, text, wording))
    return Requests(
        user.astype(np.int32),
        targets.history_end.astype(np.int64),
        targets.task.astype(np.int32),
        targets.slot_value.astype(np.int32),
        np.asarray(data.histories.item[targets.row], np.int32),
        sentences,
    )
