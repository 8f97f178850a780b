"""Demands are numbered so that a batch's targets satisfy theirs and others do not."""

import numpy as np

from sigma_jax import metrics
from sigma_jax.baselines.candidates import allowed_items
from sigma_jax.schema import TASKS
from sigma_jax.sft.constraints import NONE, Constraints, padded
from sigma_jax.sft.requests import make_requests


def test_padded_rows_are_links():
    from sigma_jax.schema import Links

    links = Links.from_edges(np.array([0, 0, 2]), np.array([4, 7, 2]), 3)
    assert padded(links).tolist() == [[4, 7], [NONE, NONE], [2, NONE]]


def test_items_satisfy_what_evaluation_allows(shop):
    share = 0.8
    constraints = Constraints.make(shop, share)
    requests = make_requests(shop, "valid", 0, 50, share)
    numbers = constraints.number(requests.task, requests.argument)
    allowed = allowed_items(shop, requests)
    tail = metrics.long_tail(shop.catalogue.popularity, share)
    seen = set()
    for row, number in enumerate(numbers):
        task = TASKS[requests.task[row]]
        seen.add(task)
        satisfying = np.flatnonzero((constraints.of_items == number).any(axis=1))
        if task in ("JustForYou", "Discover"):
            assert number == NONE
        elif task == "Longtail":
            assert satisfying.tolist() == np.flatnonzero(tail).tolist()
        else:
            assert satisfying.tolist() == sorted(set(allowed.of(row).tolist()))
            assert requests.target[row] in satisfying
    assert seen == set(TASKS)
