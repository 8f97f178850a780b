"""Rankings equal a full sort: with ties, without seen items, and inside the allowed items."""

import numpy as np
import pytest
from small_baselines import ITEMS, make_data, make_histories, make_requests

from sigma_jax.baselines.ranking import rank_all_items, top_items
from sigma_jax.tasks.constraints import allowed_items

TASKS = ("JustForYou", "Category", "Query")


def fully_sorted(items, scores, tie_order, k):
    """The k best items by Python's sort."""
    ranked = sorted(
        zip(items, scores, strict=True), key=lambda pair: (-pair[1], tie_order[pair[0]])
    )
    return [item for item, _ in ranked[:k]]


@pytest.mark.parametrize("k", [1, 3, 50, 99, 100, 200])
@pytest.mark.parametrize("distinct", [1, 2, 5, 1000])
def test_the_best_items_are_those_of_a_full_sort(k, distinct):
    random = np.random.default_rng(k + distinct)
    tie_order = random.permutation(300)
    items = random.choice(300, 100, replace=False)
    scores = random.integers(distinct, size=100).astype(np.float32)
    found = top_items(items, scores, tie_order, k)
    assert found.tolist() == fully_sorted(items, scores, tie_order, k)


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_every_request_is_ranked_among_its_own_items(exclude_seen):
    histories = make_histories(baskets=True)
    data, requests = make_data(histories), make_requests(histories, TASKS)
    scores = np.random.default_rng(1).integers(3, size=(len(requests), ITEMS)).astype(np.float32)
    tie_order = np.arange(ITEMS)[::-1]
    allowed = allowed_items(data, requests)
    assert {allowed.of(row) is None for row in range(len(requests))} == {True, False}
    variants = [(exclude_seen, limit) for limit in (None, allowed)]
    lists = rank_all_items(lambda rows: scores[rows], data, requests, 20, variants, tie_order)
    for (_, limit), found in zip(variants, lists, strict=True):
        for row, user in enumerate(requests.user):
            items = np.arange(ITEMS)
            if limit is not None and limit.of(row) is not None:
                items = np.unique(limit.of(row))
            if exclude_seen and user >= 0:
                seen = histories.item[histories.offsets[user] : requests.history_end[row]]
                items = np.setdiff1d(items, seen)
            expected = fully_sorted(items, scores[row, items], tie_order, 20)
            assert found[row].tolist() == expected + [-1] * (20 - len(expected))
