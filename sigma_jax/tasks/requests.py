"""Evaluation requests and the prompts of any request.

A prompt has the layout of training (prompts/layout.py): one context and one instruction behind
it, so
plain causal order, with neither codes nor query token; whoever generates adds these.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from sigma_jax.hashing import splitmix64
from sigma_jax.histories import CHUNK_ROWS, user_chunks
from sigma_jax.schema import TASKS, PreparedData, Requests
from sigma_jax.tasks import instructions
from sigma_jax.tasks.targets import Candidates, TaskTables, find_candidates, first_touch, keep_few


def make_requests(
    data: PreparedData,
    split: str,
    seed: int,
    max_per_task: int,
    longtail_share: float,
    phrasings: dict[str, tuple[str, ...]] = instructions.TRAIN_PHRASINGS,
) -> Requests:
    """One request per user and task whose target session holds an item the task can aim at.

    The target is drawn among the fitting items by a hash of seed, user and item, the phrasing by
    one of seed and user: reproducible, whatever the order of the rows. Where a task has more than
    `max_per_task` requests, those of least hash stay. Requests are sorted by task, then user.

    Args:
      split: "valid" (the session at valid_start) or "test" (that at test_start).
      longtail_share: as in TargetConfig.
      phrasings: of each task, those to choose from.
    """
    if split not in ("valid", "test"):
        raise ValueError(f"split {split!r} is unknown; use 'valid' or 'test'.")
    tables = TaskTables.make(data, longtail_share)
    found, user = [], []
    for users in user_chunks(data.histories.offsets, CHUNK_ROWS):
        rows, attach = _target_rows(data, split, users)
        first = first_touch(data, users)[rows - int(data.histories.offsets[users.start])]
        candidates = find_candidates(data, tables, rows, attach, first)
        of_user = _user_of(data, candidates.attach)
        item = data.histories.item[candidates.row]
        score = splitmix64(seed, of_user, item, candidates.task, candidates.slot_value)
        kept = keep_few(candidates, score, 1)
        found.append(kept)
        user.append(_user_of(data, kept.attach))
    chosen, user = Candidates.join(found), np.concatenate(user)
    kept = _largest_sample(chosen.task, splitmix64(seed, user, chosen.task), max_per_task)
    kept = kept[np.lexsort((user[kept], chosen.task[kept]))]
    return _as_requests(data, chosen.take(kept), user[kept], phrasings, seed)


def _target_rows(
    data: PreparedData, split: str, users: range
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Rows of the target sessions of `users`, and of each the first row of its session."""
    histories = data.histories
    starts = np.asarray(histories.test_start[users.start : users.stop])
    if split == "valid":
        # Split by time, a user may have a test target only: then both starts are the same row.
        ends = np.asarray(histories.offsets[users.start + 1 : users.stop + 1])
        valid = np.asarray(histories.valid_start[users.start : users.stop])
        starts = np.where(valid < starts, valid, ends)
    offsets = np.asarray(histories.offsets[users.start : users.stop + 1])
    start = np.repeat(starts, np.diff(offsets))
    rows = np.arange(offsets[0], offsets[-1])
    session = np.asarray(histories.session[offsets[0] : offsets[-1]])
    # A start at the user's end means no target; no row of the user reaches it then.
    target = session[np.minimum(start - offsets[0], len(session) - 1)] if len(session) else session
    is_target = (rows >= start) & (session == target)
    return rows[is_target], start[is_target]


def _user_of(data: PreparedData, rows: np.ndarray) -> Int64[np.ndarray, " n"]:
    return np.searchsorted(data.histories.offsets, rows, side="right") - 1


def _largest_sample(task: np.ndarray, score: np.ndarray, most: int) -> np.ndarray:
    """Places of at most `most` of each task, those of least score."""
    order = np.lexsort((score, task))
    starts = np.searchsorted(task[order], task[order])
    return order[np.arange(len(order)) - starts < most]


def _as_requests(
    data: PreparedData,
    chosen: Candidates,
    user: np.ndarray,
    phrasings: dict[str, tuple[str, ...]],
    seed: int,
) -> Requests:
    texts = {task: instructions.slot_value_texts(data, task) for task in instructions.SLOTS}
    pick = splitmix64(seed, user, chosen.task, 1)
    sentences = []
    for task_number, slot_value, number in zip(chosen.task, chosen.slot_value, pick, strict=True):
        task = TASKS[task_number]
        phrasing = phrasings[task][int(number) % len(phrasings[task])]
        text = texts[task][slot_value] if slot_value >= 0 and task in texts else None
        sentences.append(instructions.render(task, text, phrasing))
    return Requests(
        user.astype(np.int32),
        chosen.attach.astype(np.int64),
        chosen.task.astype(np.int32),
        chosen.slot_value.astype(np.int32),
        np.asarray(data.histories.item[chosen.row], np.int32),
        sentences,
    )
