"""A small log, its catalogue and requests, for the tests of baselines."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa

from sigma_jax.schema import (
    DAY,
    TASKS,
    Catalogue,
    Histories,
    Links,
    PreparedData,
    Queries,
    Requests,
    Themes,
    Users,
)

ITEMS = 40
VECTORS = np.random.default_rng(4).normal(size=(ITEMS, 6)).astype(np.float32)


def heldout_rows(histories: Histories) -> np.ndarray:
    """The rows of the validation and test targets and all after them."""
    ranges = [
        np.arange(histories.valid_start[user], histories.offsets[user + 1])
        for user in range(histories.num_users)
    ]
    return np.concatenate(ranges)


def make_histories(baskets: bool, users: int = 25, seed: int = 0) -> Histories:
    rng = np.random.default_rng(seed)
    item, session, offsets, valid, test = [], [], [0], [], []
    for _ in range(users):
        sizes = rng.integers(1, 6, rng.integers(3, 30)) if baskets else np.ones(12, int)
        starts = offsets[-1] + np.concatenate([[0], np.cumsum(sizes)])
        item.append(np.minimum(rng.geometric(0.1, sizes.sum()) - 1, ITEMS - 1))
        session.append(np.repeat(np.arange(len(sizes)), sizes))
        offsets.append(starts[-1])
        valid.append(starts[-3])
        test.append(starts[-2])
    item, session = np.concatenate(item).astype(np.int32), np.concatenate(session).astype(np.int32)
    arrays = (np.array(values, np.int64) for values in (offsets, valid, test))
    user = np.repeat(np.arange(users), np.diff(offsets))
    time = (10 * session.astype(np.int64) + 3 * user) * DAY
    return Histories(item, time, session, *arrays)


def make_data(histories: Histories, items: int = ITEMS) -> PreparedData:
    rng = np.random.default_rng(1)
    names = [str(item) for item in range(items)]
    table = pa.table({"item_id": names, "text": names, "title": names})
    training = np.setdiff1d(np.arange(len(histories.item)), heldout_rows(histories))
    popularity = np.bincount(histories.item[training], minlength=items)
    category = rng.integers(0, 3, items).astype(np.int32)
    catalogue = Catalogue(table, category, pa.array(["x", "y", "z"]), popularity)
    query_items = Links.from_edges(rng.integers(0, 4, 30), rng.integers(0, items, 30), 4)
    theme_items = Links.from_edges(rng.integers(0, 2, 20), rng.integers(0, items, 20), 2)
    none = np.zeros(0, np.int64)
    return PreparedData(
        Path("none"),
        catalogue,
        histories,
        Users(pa.table({"user_id": names[: histories.num_users]})),
        Queries(pa.array(["a", "b", "c", "d"]), query_items),
        Themes(
            pa.array(["spring", "easter"]), pa.array(["season", "holiday"]), theme_items,
            none.astype(np.int32), none, none,
        ),
        {},
        None,
        None,
        None,
    )  # fmt: skip


def make_requests(histories: Histories, tasks=("JustForYou",)) -> Requests:
    users = np.concatenate([np.arange(histories.num_users), [-1]]).astype(np.int32)
    size = len(users)
    history_end = np.append(histories.test_start, 0)
    target = np.append(histories.item[histories.test_start], 0).astype(np.int32)
    task = np.array([TASKS.index(tasks[n % len(tasks)]) for n in range(size)], np.int32)
    limits = {"Category": 3, "Query": 4, "Season": 1, "Holiday": 2}
    slot_value = [n % limits[TASKS[t]] if TASKS[t] in limits else -1 for n, t in enumerate(task)]
    return Requests(users, history_end, task, np.array(slot_value, np.int32), target, [""] * size)


def valid_requests(data: PreparedData) -> Requests:
    """Requests whose targets are the first rows of the validation sessions."""
    requests = make_requests(data.histories)
    end = np.append(data.histories.valid_start, 0)
    target = np.append(data.histories.item[data.histories.valid_start], 0).astype(np.int32)
    return dataclasses.replace(requests, history_end=end, target=target)
