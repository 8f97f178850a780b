"""Tests of the metrics against plain loops over requests."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma_jax import metrics
from sigma_jax.schema import Links

ITEMS, REQUESTS, K = 30, 60, 20


@pytest.fixture
def world():
    rng = np.random.default_rng(3)
    rankings = np.stack([rng.permutation(ITEMS)[:K] for _ in range(REQUESTS)]).astype(np.int32)
    for row in range(REQUESTS):  # some come back short
        rankings[row, rng.integers(3, K + 1) :] = -1
    target = rng.integers(0, ITEMS, REQUESTS).astype(np.int32)
    target[::17] = -1
    codes = rng.integers(0, 3, (ITEMS, 3)).astype(np.int32)
    return rankings, target, codes


def naive_rank(ranking, is_hit):
    for rank, item in enumerate(ranking):
        if item >= 0 and is_hit(item):
            return rank
    return math.inf


@pytest.mark.parametrize("level", ["item", "sid"])
@pytest.mark.parametrize("k", [1, 5, 10, 20])
def test_accuracy_equals_plain_loop(world, level, k):
    rankings, target, codes = world
    if level == "item":
        ranks = metrics.item_ranks(rankings, target)
    else:
        ranks = metrics.sid_ranks(rankings, target, codes)
    for row in range(REQUESTS):
        wanted = target[row]
        if level == "item":
            rank = naive_rank(rankings[row], lambda item, w=wanted: item == w)
        else:
            rank = naive_rank(
                rankings[row], lambda item, w=wanted: w >= 0 and (codes[item] == codes[w]).all()
            )
        inside = rank < k
        assert metrics.hits(ranks, k)[row] == float(inside)
        expected = 1 / math.log2(rank + 2) if inside else 0
        assert metrics.ndcg(ranks, k)[row] == pytest.approx(expected, abs=1e-12)
        expected = 1 / (rank + 1) if inside else 0
        assert metrics.reciprocal_ranks(ranks, k)[row] == pytest.approx(expected, abs=1e-12)


def test_sid_level_counts_collisions_and_never_less_than_item_level(world):
    rankings, target, codes = world
    item = metrics.item_ranks(rankings, target)
    sid = metrics.sid_ranks(rankings, target, codes)
    assert (sid <= item).all() and (sid < item).any()


def test_unknown_target_is_no_hit_of_a_missing_item():
    rankings = np.full((2, 4), -1, np.int32)
    target = np.array([-1, 0], np.int32)
    absent = [metrics.ABSENT] * 2
    assert metrics.item_ranks(rankings, target).tolist() == absent
    assert metrics.sid_ranks(rankings, target, np.zeros((3, 2), np.int32)).tolist() == absent


@pytest.mark.parametrize("length", [0, 1, 5])
def test_an_absent_target_is_no_hit_at_any_k_however_short_the_ranking(length):
    rankings = np.tile(np.arange(length, dtype=np.int32), (2, 1))
    target = np.array([7, -1], np.int32)
    codes = np.arange(8, dtype=np.int32)[:, None]
    for ranks in (
        metrics.item_ranks(rankings, target),
        metrics.sid_ranks(rankings, target, codes),
    ):
        for k in (1, length, length + 1, 20, 10**9):
            for metric in (metrics.hits, metrics.ndcg, metrics.reciprocal_ranks):
                assert metric(ranks, k).tolist() == [0.0, 0.0]


def test_coverage_and_shares_equal_plain_loops(world):
    rankings, _, _ = world
    rng = np.random.default_rng(5)
    shown = {item for row in rankings[:3, :4] for item in row if item >= 0}
    assert metrics.coverage(rankings[:3, :4], ITEMS) == len(shown) / ITEMS
    is_member = rng.random(ITEMS) < 0.4
    allowed = Links.from_edges(np.array([0, 0, 1, 2, 2, 2]), np.array([1, 5, 9, 0, 1, 2]), 4)
    row = rng.integers(-1, 4, REQUESTS)
    shares = metrics.share_of(rankings, is_member)
    satisfied = metrics.satisfied(rankings, allowed, row)
    for n in range(REQUESTS):
        returned = [item for item in rankings[n] if item >= 0]
        assert shares[n] == pytest.approx(sum(is_member[i] for i in returned) / len(returned))
        if row[n] < 0:
            assert np.isnan(satisfied[n])
        else:
            inside = sum(item in allowed.of(row[n]) for item in returned)
            possible = min(len(returned), len(allowed.of(row[n])))
            assert satisfied[n] == pytest.approx(inside / max(possible, 1))


def test_nothing_returned_satisfies_nothing():
    nothing = np.full((1, 5), -1, np.int32)
    allowed = Links.from_edges(np.array([0]), np.array([2]), 1)
    assert metrics.satisfied(nothing, allowed, np.array([0])).tolist() == [0.0]
    assert metrics.share_of(nothing, np.ones(3, bool)).tolist() == [0.0]
    assert metrics.coverage(nothing, 3) == 0.0


def test_long_tail_is_what_the_most_popular_leave():
    popularity = np.array([1, 5, 1, 3, 0])
    assert metrics.long_tail(popularity, 0.8).tolist() == [True, False, True, False, True]
    assert metrics.long_tail(popularity, 0.0).all()
    assert metrics.long_tail(np.zeros(3, np.int64), 0.8).all()
    assert metrics.long_tail([50, 1, 30, 19], 0.8).tolist() == [False, True, False, True]
    assert not metrics.long_tail([5, 5], 1.0).any()


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.floats(0.1, 1.0))
def test_long_tail_leaves_the_smallest_head_of_its_share(popularity, share):
    popularity = np.array(popularity)
    head = ~metrics.long_tail(popularity, share)
    total = popularity.sum()
    assert popularity[head].sum() >= share * total - 1e-9
    if head.any():
        assert popularity[head].sum() - popularity[head].min() < share * total
        assert (~head).sum() == 0 or popularity[~head].max() <= popularity[head].min()


def test_standard_error_equals_its_definition():
    values = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    mean = sum(values) / 5
    expected = math.sqrt(sum((v - mean) ** 2 for v in values) / 4) / math.sqrt(5)
    assert metrics.standard_error(values) == pytest.approx(expected)
    assert metrics.standard_error(values[:1]) == 0.0


def test_leave_one_out_band_holds_for_every_ranking_and_catches_others(world):
    rankings, target, _ = world
    ranks = metrics.item_ranks(rankings, target)
    values = [f(ranks, k).mean() for f in (metrics.hits, metrics.ndcg) for k in (5, 10)]
    assert values[1] > values[0]
    assert metrics.leave_one_out_gap(*values, tolerance=1e-9) is None
    printed = [round(value, 4) for value in values]
    assert metrics.leave_one_out_gap(*printed, tolerance=0.5e-4) is None
    assert "cannot" in metrics.leave_one_out_gap(0.10, 0.14, 0.07, 0.09, tolerance=0.5e-4)
    assert "cannot" in metrics.leave_one_out_gap(0.10, 0.14, 0.07, 0.075, tolerance=0.5e-4)
    low, high = metrics.LEAVE_ONE_OUT_BAND
    assert (round(low, 3), round(high, 3)) == (0.289, 0.356)
