"""Promises of the history features: relations.py, covisitation.py, ease.py and neighbours."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sparse
from small_histories import ITEMS, histories_of, plain_data, plain_requests, random_users

from sigma_jax.histories import first_row_of_day, history_ranges, request_times
from sigma_jax.reranking.features import ItemFeatures
from sigma_jax.reranking.history import ease, embedding_neighbours
from sigma_jax.reranking.history.covisitation import SMOOTHING, count_covisits, strongest_entries
from sigma_jax.reranking.history.ease import fit_ease
from sigma_jax.reranking.history.embedding_neighbours import nearest_items
from sigma_jax.reranking.history.relations import (
    PADDING,
    RELATION_UNITS,
    RELATIONS,
    Relations,
    list_features,
    values_at,
)
from sigma_jax.schema import DAY, Requests


@pytest.fixture(scope="module", params=[False, True], ids=["lines", "baskets"])
def histories(request):
    """Histories with four sessions a day; a session has one item or several."""
    plain = histories_of(random_users(request.param))
    return dataclasses.replace(plain, time=(100 + plain.session // 4).astype(np.int64) * DAY + 9)


@pytest.fixture(scope="module")
def vectors():
    """[I, 6]: random item vectors, unit length."""
    rows = np.random.default_rng(0).normal(size=(ITEMS, 6)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def sums(histories, request: int, requests: Requests, table, decay: float, sessions: int):
    """[I]: decayed sum of the rows of `table` of the last sessions' items, by a plain loop."""
    total, user = np.zeros(ITEMS), requests.user[request]
    if user >= 0:
        last = histories.session[requests.history_end[request] - 1]
        for row in range(histories.offsets[user], requests.history_end[request]):
            age = last - histories.session[row]
            if age < sessions:
                total += decay**age * table[histories.item[row]]
    return total


def test_relation_features_equal_plain_loops(histories, vectors):
    data = plain_data(histories)
    made = Relations.make(data, vectors, ITEMS)
    requests = plain_requests(histories)
    assert requests.user[-1] == -1
    times = request_times(histories, requests)
    entries = made.tables(histories, *history_ranges(histories, requests), times)
    features = list_features(
        [entries[name] for name in RELATION_UNITS], list(RELATION_UNITS.values())
    )
    assert len(features.items) == len(requests)
    raw = count_covisits(histories, ITEMS).toarray()
    training = np.concatenate(
        [
            histories.item[a:b]
            for a, b in zip(histories.offsets[:-1], histories.valid_start, strict=True)
        ]
    )
    damping = np.sqrt(np.bincount(training, minlength=ITEMS) + SMOOTHING)
    tables = {"covisitation": raw / damping, "reverse_covisitation": raw.T / damping}
    # Other relations have tests of their own.
    tables = {name: getattr(made, name).toarray() for name in RELATIONS} | tables
    units = {"covisitation": 0.1, "reverse_covisitation": 0.1, "embedding_neighbours": 0.1}
    units = {name: how.unit for name, how in RELATIONS.items()} | units
    units = np.array([units[name.removesuffix("_today")] for name in RELATION_UNITS])
    for row in range(len(requests)):
        expected = {
            name: sums(histories, row, requests, tables[name], how.decay, how.sessions or 1_000)
            for name, how in RELATIONS.items()
        }
        start, end = histories.offsets[requests.user[row]], requests.history_end[row]
        today = [r for r in range(start, end) if histories.time[r] // DAY == times[row] // DAY]
        for name, table in tables.items():
            expected[f"{name}_today"] = table[histories.item[today]].sum(axis=0)
        expected = np.stack([expected[name] for name in RELATION_UNITS], axis=-1)
        here = features.items[row][features.items[row] < PADDING]
        assert (np.diff(here) > 0).all() and (features.items[row, len(here) :] == PADDING).all()
        assert set(here) == set(np.flatnonzero(expected.any(axis=1)))
        found = features.values[row, : len(here)]  # float16: three digits
        np.testing.assert_allclose(found, np.log1p(expected[here] / units), 1e-3, 1e-6)


def test_a_log_without_times_has_no_interactions_of_the_day(histories):
    timeless = dataclasses.replace(histories, time=np.zeros_like(histories.time))
    requests = plain_requests(histories)
    starts, ends = history_ranges(histories, requests)
    for log, has_today in ((histories, True), (timeless, False)):
        first = first_row_of_day(log, starts, ends, request_times(log, requests))
        assert (first < ends).any() == has_today


def test_covisitation_counts_forwards_more_than_backwards():
    """Two users with one item a session took 1 and then 2."""
    made = Relations.make(
        plain_data(histories_of([[[1], [2], [5], [6]], [[1], [2], [7], [8]]])), np.eye(ITEMS), 5
    )
    assert made.covisitation[1, 2] > made.covisitation[2, 1] > 0
    assert made.reverse_covisitation[2, 1] > made.reverse_covisitation[1, 2] > 0


def test_validation_and_test_targets_are_not_counted():
    users = [[[1], [2], [3], [4]], [[5], [6], [7], [8]]]
    counts = count_covisits(histories_of(users), ITEMS).toarray()
    assert counts[1, 2] > 0 and counts[5, 6] > 0
    assert not counts[[3, 4, 7, 8]].any() and not counts[:, [3, 4, 7, 8]].any()


def test_strongest_entries_keeps_the_largest_of_each_row():
    table = np.random.default_rng(0).integers(0, 6, (20, 15)).astype(np.float32)
    kept = strongest_entries(sparse.csr_matrix(table), 4).toarray()
    for row, values in enumerate(table):
        order = np.lexsort((np.arange(15), -values))[:4]
        expected = np.zeros(15)
        expected[order] = values[order]
        np.testing.assert_array_equal(kept[row], expected)


@pytest.mark.parametrize("count", [1, 4, 28, 100])
def test_nearest_items_equal_those_of_a_comparison_of_all_pairs(vectors, count, monkeypatch):
    monkeypatch.setattr(
        embedding_neighbours, "COSINES_A_STEP", 8 * ITEMS
    )  # the last step is not full
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    kept = min(count, ITEMS - 2)
    next_one = -np.sort(-cosines, axis=1)[:, kept : kept + 1]
    expected = np.maximum(cosines - next_one, 0)
    np.testing.assert_allclose(nearest_items(vectors, count).toarray(), expected, atol=1e-6)


def user_rows(histories) -> np.ndarray:
    """[U, I]: 1 where a user has an item in training rows."""
    rows = np.zeros((histories.num_users, ITEMS))
    for user in range(histories.num_users):
        rows[user, histories.item[histories.offsets[user] : histories.valid_start[user]]] = 1
    return rows


@pytest.mark.parametrize("count", [3, 100])
def test_ease_is_the_linear_model_that_predicts_each_item_from_the_others(
    histories, count, monkeypatch
):
    """The loop fits each item by least squares over the others; the penalty adds rows."""
    monkeypatch.setattr(ease, "ROWS_A_STEP", 8)  # the last step is not full
    users = user_rows(histories)
    known = np.flatnonzero(users.any(axis=0))
    penalty = np.sqrt(users.sum(axis=0)[known].mean()) * np.eye(len(known))
    expected = np.zeros((ITEMS, ITEMS))
    for place, item in enumerate(known):
        others = np.delete(np.arange(len(known)), place)
        left = np.concatenate([users[:, known[others]], penalty[others][:, others]])
        right = np.append(users[:, item], np.zeros(len(others)))
        expected[known[others], item] = np.linalg.lstsq(left, right, rcond=None)[0]
    for row in expected:
        row[np.argsort(-row)[count:]] = 0
    found = fit_ease(plain_data(histories), count)
    np.testing.assert_allclose(found.toarray(), np.maximum(expected, 0), atol=1e-4)


@pytest.mark.parametrize("users, items", [(4, 9), (9, 4), (5, 5)])
def test_both_ways_to_the_inverse_of_ease(users, items):
    has = (np.random.default_rng(users).random((users, items)) < 0.4).astype(np.float32)
    expected = np.linalg.inv(has.T @ has + 1.5 * np.eye(items))
    rows, diagonal = ease._inverse(sparse.csr_matrix(has), 1.5)
    for part in (slice(0, 3), slice(2, 4)):
        np.testing.assert_allclose(rows(part), expected[part], atol=1e-5)
    np.testing.assert_allclose(diagonal, np.diag(expected), atol=1e-5)


def test_ease_of_too_many_items_keeps_those_with_the_most_users(histories, monkeypatch):
    monkeypatch.setattr(ease, "MAX_EASE_ITEMS", 5)
    users = user_rows(histories).sum(axis=0)
    found = fit_ease(plain_data(histories), 100)
    kept = np.unique(np.concatenate(found.nonzero()))
    assert 2 <= len(kept) <= 5
    assert users[kept].min() >= np.sort(users)[-5]


def test_ease_of_a_log_with_one_item_is_empty():
    one = histories_of([[[1], [1], [2], [3]]])
    assert fit_ease(plain_data(one), 5).nnz == 0


def test_a_catalogue_of_two_items_has_no_neighbours():
    assert nearest_items(np.eye(2, dtype=np.float32), 5).nnz == 0


def test_values_at_gives_the_features_of_each_candidate():
    items = np.array([[2, 5, 9, PADDING]], np.int32)
    values = np.array([[[0.1, 1], [0.2, 2], [0.3, 3], [0.0, 0]]], np.float32)
    found = values_at(ItemFeatures(items, values), np.array([[9, 1, -1, 2, 30]], np.int32))
    np.testing.assert_allclose(found, [[[0.3, 3], [0, 0], [0, 0], [0.1, 1], [0, 0]]])
