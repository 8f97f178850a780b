"""Tests of recall@k against counting; ties have their expectation."""

import itertools

import numpy as np

from sigma_jax.grounding.recall import candidate_items, recalls


def test_recall_equals_counting():
    random = np.random.default_rng(0)
    left, items = random.normal(size=(300, 4)), random.normal(size=(150, 4))
    right_rows, left_rows = random.integers(0, 150, 300), random.integers(-1, 150, 300)
    left_rows[left_rows == right_rows] = -1
    recall = recalls(left.astype(np.float32), items.astype(np.float32), right_rows, left_rows)
    for row in range(300):
        scores = [(-left[row] @ items[i], i) for i in range(150) if i != left_rows[row]]
        rank = [i for _, i in sorted(scores)].index(right_rows[row])
        assert [recall[k][row] for k in (1, 10, 100)] == [rank < k for k in (1, 10, 100)]


def test_ties_count_as_their_expectation_over_all_orders():
    left = np.ones((1, 1), np.float32)
    items = np.array([[2.0], [1.0], [1.0], [1.0]] + [[0.0]] * 20, np.float32)
    # With the better item: never at k = 1, always at k = 10. Without it: a third at k = 1.
    recall = recalls(left, items, np.array([2]), np.array([-1]))
    assert recall[1][0] == 0 and recall[10][0] == 1
    recall = recalls(left, items[1:], np.array([1]), np.array([-1]))
    orders = list(itertools.permutations(range(3)))
    np.testing.assert_allclose(recall[1][0], np.mean([order[0] == 1 for order in orders]))


def test_candidates_hold_every_right_item():
    right = np.array([90, 3, 3, 77])
    chosen = candidate_items(right, 100, 10, seed=0)
    assert len(chosen) == 10 and set(right) <= set(chosen) and (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(candidate_items(right, 100, 0, 0), np.arange(100))
    np.testing.assert_array_equal(candidate_items(right, 8, 10, 0), np.arange(8))
    assert len(candidate_items(np.arange(20), 100, 10, 0)) == 20


def test_other_candidates_come_from_the_whole_catalogue():
    right = np.arange(900)
    others = np.setdiff1d(candidate_items(right, 10_000, 1_000, seed=0), right)
    assert len(others) == 100
    assert 30 < (others >= 5_000).sum() < 70
