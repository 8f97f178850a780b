"""Shortcuts of a log: its figures equal those of plain loops, and fall where no rule helps."""

import numpy as np
import pytest
from small_baselines import ITEMS, VECTORS, make_data, make_histories, valid_requests

from sigma_jax.evaluation.shortcuts import shortcut_figures
from sigma_jax.schema import Histories, PreparedData


def test_figures_equal_plain_loops():
    data = make_data(make_histories(False))
    histories, valid = data.histories, valid_requests(data)
    figures = shortcut_figures(data, VECTORS, valid, 0)
    follows = np.zeros((ITEMS, ITEMS))
    for user in range(histories.num_users):
        for row in range(histories.offsets[user], histories.valid_start[user] - 1):
            follows[histories.item[row], histories.item[row + 1]] += 1
    distinct = [(follows[a] > 0).sum() for a in range(ITEMS) for _ in range(int(follows[a].sum()))]
    assert figures["branching"] == np.sort(distinct)[(len(distinct) - 1) // 2]
    joined = (follows + follows.T) > 0
    last = histories.item[histories.valid_start - 1]
    near = [joined[a, b] for a, b in zip(last, valid.target, strict=False)]
    two = [(joined[a] & joined[b]).any() for a, b in zip(last, valid.target, strict=False)]
    assert figures["one_step"] == pytest.approx(np.mean(near))
    assert figures["two_steps"] == pytest.approx(np.mean(np.logical_or(near, two)))
    unit = VECTORS - VECTORS.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit @ unit.T
    shares = [(cosines[a] < cosines[a, b]).mean() for a, b in zip(last, valid.target, strict=False)]
    assert figures["smoothness"] == pytest.approx(np.mean(shares), abs=1e-6)


def circle(step) -> PreparedData:
    """Thirty users; each goes on from its first item by `step(user, item)`."""
    items = []
    for user in range(30):
        items.append(user % ITEMS)
        for _ in range(9):
            items.append(step(user, items[-1]))
    session = np.tile(np.arange(10, dtype=np.int32), 30)
    ends = np.arange(0, 301, 10)
    arrays = (ends, ends[1:] - 2, ends[1:] - 1)
    item = np.array(items, np.int32)
    return make_data(Histories(item, session.astype(np.int64), session, *arrays))


def test_a_log_where_each_item_has_one_successor_is_all_shortcut():
    fixed = circle(lambda user, item: (item + 1) % ITEMS)
    rng = np.random.default_rng(0)
    random = circle(lambda user, item: int(rng.integers(ITEMS)))
    angle = 2 * np.pi * np.arange(ITEMS) / ITEMS
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    sure, unsure = (shortcut_figures(d, vectors, valid_requests(d), 0) for d in (fixed, random))
    assert sure["branching"] == 1 and unsure["branching"] > 4
    assert sure["one_step"] > 0.9 > 0.5 > unsure["one_step"]
    assert sure["smoothness"] > 0.9 and abs(unsure["smoothness"] - 0.5) < 0.15
    assert "smoothness" not in shortcut_figures(fixed, None, valid_requests(fixed), 0)
    assert shortcut_figures(fixed, None, valid_requests(fixed).take(np.arange(0)), 0) == {}
