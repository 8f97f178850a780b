"""Targets of requests satisfy their task, and their history ends before the target session."""

import dataclasses

import numpy as np
import pytest

from sigma_jax.schema import TASKS
from sigma_jax.tasks.constraints import allowed_items
from sigma_jax.tasks.instructions import (
    HELDOUT_WORDINGS,
    TRAIN_WORDINGS,
    render,
    slot_value_texts,
)
from sigma_jax.tasks.requests import make_requests, sample_requests
from sigma_jax.tasks.targets import TaskTables


@pytest.fixture(scope="module", params=["valid", "test"])
def requests(request, shop):
    return request.param, make_requests(shop, request.param, 4, 1000, 0.8)


def test_every_user_with_a_target_has_one_request_per_task(shop, requests):
    split, requests = requests
    histories = shop.histories
    start = histories.valid_start if split == "valid" else histories.test_start
    expected = np.flatnonzero(start < histories.offsets[1:])
    assert np.array_equal(requests.user[requests.task == 0], expected)
    assert len(np.unique(requests.user * 7 + requests.task)) == len(requests)
    assert np.array_equal(requests.history_end, start[requests.user])
    assert set(requests.task.tolist()) == set(range(7))


def test_targets_satisfy_their_task(shop, requests):
    histories, longtail = shop.histories, TaskTables.make(shop, 0.8).is_longtail
    category = shop.catalogue.category
    _, requests = requests
    allowed = allowed_items(shop, requests)
    for row in range(len(requests)):
        user, history_end, target = (
            int(getattr(requests, n)[row]) for n in ("user", "history_end", "target")
        )
        task, slot_value = TASKS[requests.task[row]], int(requests.slot_value[row])
        assert target in histories.item[history_end : histories.session_end(history_end, user)]
        before = histories.before(user, history_end)
        match task:
            case "Query" | "Category" | "Season" | "Holiday":
                assert target in allowed.of(row)
            case _:
                assert slot_value == -1 and allowed.of(row) is None
        if task == "Category":
            assert (category[allowed.of(row)] == slot_value).all()
            assert len(allowed.of(row)) == (category == slot_value).sum()
        if task == "Longtail":
            assert longtail[target]
        if task == "Discover":
            assert category[target] not in category[before]
        if task in ("Season", "Holiday"):
            assert slot_value in shop.themes.active(int(histories.time[history_end]))
            assert shop.themes.kinds[slot_value].as_py() == task.lower()


def test_wordings_come_from_the_given_set(shop, requests):
    split, made = requests
    for wordings in (HELDOUT_WORDINGS, TRAIN_WORDINGS):
        requests = make_requests(shop, split, 4, 1000, 0.8, wordings)
        assert np.array_equal(requests.target, made.target)
        used = set()
        for row, sentence in enumerate(requests.instruction):
            task = TASKS[requests.task[row]]
            texts = slot_value_texts(shop, task)
            text = texts[requests.slot_value[row]] if texts else None
            options = [render(task, text, wording) for wording in wordings[task]]
            used.add((task, options.index(sentence)))
        assert len(used) > len(TASKS)


def test_requests_depend_on_the_seed_but_not_on_the_order_of_rows(shop):
    made = make_requests(shop, "valid", 4, 1000, 0.8)
    histories = shop.histories
    user = np.repeat(np.arange(histories.num_users), np.diff(histories.offsets))
    rng = np.random.default_rng(0)
    order = np.lexsort((rng.random(len(user)), histories.session, user))
    item = histories.item[order]
    assert not np.array_equal(item, histories.item)
    reordered = dataclasses.replace(shop, histories=dataclasses.replace(histories, item=item))
    again = make_requests(reordered, "valid", 4, 1000, 0.8)
    for name in ("user", "history_end", "task", "slot_value", "target", "instruction"):
        assert np.array_equal(getattr(again, name), getattr(made, name)), name
    other = make_requests(shop, "valid", 5, 1000, 0.8)
    assert not np.array_equal(other.target, made.target)


def test_a_smaller_sample_is_part_of_the_larger(shop):
    complete = make_requests(shop, "valid", 4, 1000, 0.8)
    few = make_requests(shop, "valid", 4, 3, 0.8)
    assert np.bincount(few.task).max() == 3
    keys = [set(zip(r.user, r.task, r.target, r.instruction, strict=True)) for r in (complete, few)]
    assert keys[1] < keys[0]


@pytest.mark.parametrize("is_random", [False, True])
def test_a_sample_has_at_most_so_many_requests_of_each_task(shop, is_random):
    counts = {"JustForYou": 6, "Query": 2, "Holiday": 1000, "Season": 0}
    sampled = sample_requests(shop, "valid", 4, counts, 0.8, TRAIN_WORDINGS, is_random)
    made = make_requests(shop, "valid", 4, 1000, 0.8)
    available = np.bincount(made.task, minlength=len(TASKS)).tolist()
    expected = [min(counts.get(task, 0), n) for task, n in zip(TASKS, available, strict=True)]
    assert np.bincount(sampled.task, minlength=len(TASKS)).tolist() == expected
    keys = [set(zip(r.user, r.task, r.target, r.instruction, strict=True)) for r in (sampled, made)]
    assert keys[0] < keys[1]
    assert (np.lexsort((sampled.user, sampled.task)) == np.arange(len(sampled))).all()
    first_users = made.user[made.task == 0][:6]
    assert np.array_equal(sampled.user[sampled.task == 0], first_users) == (not is_random)


def test_unknown_split_is_refused(shop):
    with pytest.raises(ValueError, match="split 'train' is unknown"):
        make_requests(shop, "train", 0, 1, 0.8)
