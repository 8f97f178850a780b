"""Numbers of constraints: the items of each are those that evaluation allows."""

import dataclasses

import numpy as np

from sigma_jax import metrics
from sigma_jax.schema import TASKS, Links
from sigma_jax.tasks.constraints import (
    NEW_CATEGORY,
    NO_CONSTRAINT,
    Constraints,
    allowed_items,
    pad_rows,
)
from sigma_jax.tasks.requests import make_requests


def test_pad_rows_worked_example():
    links = Links.from_edges(np.array([0, 0, 2]), np.array([4, 7, 2]), 3)
    assert pad_rows(links).tolist() == [[4, 7], [NO_CONSTRAINT, NO_CONSTRAINT], [2, NO_CONSTRAINT]]


def test_items_of_a_constraint_are_those_that_evaluation_allows(shop):
    share = 0.8
    constraints = Constraints.make(shop, share)
    requests = make_requests(shop, "valid", 0, 50, share)
    numbers = constraints.numbers(requests.task, requests.slot_value)
    allowed = allowed_items(shop, requests)
    tail = metrics.long_tail(shop.catalogue.popularity, share)
    by_item = constraints.by_item(len(shop.catalogue))
    seen = set()
    for row, number in enumerate(numbers):
        task = TASKS[requests.task[row]]
        seen.add(task)
        satisfying = np.flatnonzero((by_item == number).any(axis=1))
        if task in ("JustForYou", "Discover"):
            assert number == (NO_CONSTRAINT if task == "JustForYou" else NEW_CATEGORY)
        elif task == "Longtail":
            assert satisfying.tolist() == np.flatnonzero(tail).tolist()
        else:
            assert satisfying.tolist() == sorted(set(allowed.of(row).tolist()))
            assert requests.target[row] in satisfying
    assert seen == set(TASKS)


def test_an_item_with_too_many_constraints_keeps_the_broadest(shop, monkeypatch):
    constraints = Constraints.make(shop, 0.8)
    complete = constraints.by_item(len(shop.catalogue))
    sizes = np.diff(constraints.items.offsets)
    monkeypatch.setattr("sigma_jax.tasks.constraints.MAX_CONSTRAINTS_PER_ITEM", 2)
    few = constraints.by_item(len(shop.catalogue))
    assert few.shape[1] == 2 < complete.shape[1]
    for all_numbers, kept in zip(complete, few, strict=True):
        broadest = sorted(-sizes[k] for k in all_numbers if k != NO_CONSTRAINT)[:2]
        assert [-sizes[k] for k in kept if k != NO_CONSTRAINT] == broadest


def test_tasks_without_targets_in_the_data_have_no_slot_values(shop):
    flat = np.ones(len(shop.catalogue), np.int64)
    catalogue = dataclasses.replace(shop.catalogue, popularity=flat)
    poor = dataclasses.replace(shop, catalogue=catalogue, queries=None, themes=None)
    assert list(Constraints.make(poor, 0.8).slot_values) == ["Category"]
