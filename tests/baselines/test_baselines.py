"""Each baseline equals a plain loop, learns from training rows only, and keeps the constraints."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sparse
from small_baselines import (
    ITEMS,
    VECTORS,
    heldout_rows,
    make_data,
    make_histories,
    make_requests,
)

from sigma_jax import metrics
from sigma_jax.baselines.covisitation import CoVisitation
from sigma_jax.baselines.feature_ranker import EQUAL_WEIGHTS
from sigma_jax.baselines.popularity import Popularity
from sigma_jax.baselines.recent import with_partners
from sigma_jax.baselines.registry import GRAPH_GRID, KNN_GRID, Baseline, specs
from sigma_jax.baselines.user_most_frequent import UserMostFrequent, UserMostFrequentLately
from sigma_jax.reranking.history.covisitation import count_covisits
from sigma_jax.schema import (
    DAY,
    TASKS,
    Histories,
    PreparedData,
    Requests,
)
from sigma_jax.tasks.constraints import allowed_items

SETTINGS = {  # of the baselines that choose them
    "User's most frequent lately": (0.9, False),
    "Popularity with a memory": 91.0,
    "Co-visitation with a memory": 91.0,
    "Item kNN on texts": KNN_GRID[1],
    "Transition graph": GRAPH_GRID[1],
    "Features without a network": EQUAL_WEIGHTS,
}
BASELINES = (
    *("Popularity", "User's most frequent", "User's most frequent lately", "Co-visitation"),
    *list(SETTINGS)[1:],
)


def fit(name: str, data: PreparedData) -> Baseline:
    """The baseline `name` with the settings of SETTINGS."""
    found = specs(data, {"text": VECTORS}, 0)
    assert tuple(found) == BASELINES
    spec = found[name]
    return spec.make(spec.count(data), Popularity.fit(data, 0), SETTINGS.get(name))


@pytest.fixture(params=[False, True], ids=["single items", "baskets"])
def data(request):
    return make_data(make_histories(request.param))


def naive_covisits(histories: Histories, items: int) -> np.ndarray:
    """The covisits of every two interactions of a user, by the docstring of covisitation.py."""
    covisits = np.zeros((items, items))
    for user in range(histories.num_users):
        rows = range(histories.offsets[user], histories.valid_start[user])
        for a in rows:
            for b in rows:
                gap = histories.session[b] - histories.session[a]
                if a == b or gap < 0:
                    continue
                between = sum(
                    histories.session[a] < histories.session[c] < histories.session[b] for c in rows
                )
                left, right = histories.item[a], histories.item[b]
                if gap == 0:
                    covisits[left, right] += 0.75
                elif 1 + between <= 20:
                    covisits[left, right] += 1 / (1 + between)
                    covisits[right, left] += 0.5 / (1 + between)
    return covisits


def test_covisits_equal_a_plain_loop(data):
    covisits = count_covisits(data.histories, ITEMS).toarray()
    np.testing.assert_allclose(covisits, naive_covisits(data.histories, ITEMS), atol=1e-4)


def test_covisits_of_single_items_follow_the_distance_of_interactions():
    histories = make_histories(False, users=6)
    expected = np.zeros((ITEMS, ITEMS))
    for user in range(histories.num_users):
        items = histories.before(user, histories.valid_start[user])
        for first in range(len(items)):
            for distance in range(1, min(20, len(items) - 1 - first) + 1):
                expected[items[first], items[first + distance]] += 1 / distance
                expected[items[first + distance], items[first]] += 0.5 / distance
    np.testing.assert_allclose(count_covisits(histories, ITEMS).toarray(), expected, atol=1e-5)


def test_scores_of_covisitation_equal_a_plain_loop(data):
    histories = data.histories
    requests = make_requests(histories)
    fitted = CoVisitation.fit(data, 0)
    rankings = fitted.recommend(data, requests, 5, False, None)
    covisits = naive_covisits(histories, ITEMS) / np.sqrt(data.catalogue.popularity + 5.0)
    for row in range(histories.num_users):
        scores = np.zeros(ITEMS)
        last = histories.session[requests.history_end[row] - 1]
        for event in range(histories.offsets[row], requests.history_end[row]):
            age = last - histories.session[event]
            if age < 5:
                scores += 0.7**age * covisits[histories.item[event]]
        best = np.sort(scores)[::-1][:5]
        np.testing.assert_allclose(scores[rankings[row]], best, rtol=1e-4)


def test_user_most_frequent_ranks_by_count_and_then_by_the_latest_session(data):
    histories = data.histories
    requests = make_requests(histories)
    rankings = UserMostFrequent.fit(data, 0).recommend(data, requests, 4, False, None)
    for row in range(histories.num_users):
        keys = {}
        for event in range(histories.offsets[row], requests.history_end[row]):
            count, _ = keys.get(histories.item[event], (0, 0))
            keys[histories.item[event]] = (count + 1, histories.session[event])
        expected = sorted(keys.values(), reverse=True)[:4]
        ranked = [keys[item] for item in rankings[row] if item in keys]
        assert ranked == expected


def test_older_sessions_of_a_user_count_less(data):
    histories, requests = data.histories, make_requests(data.histories)
    fitted = fit("User's most frequent lately", data)
    rankings = fitted.recommend(data, requests, ITEMS, False, None)
    for row in range(histories.num_users):
        end, scores = requests.history_end[row], np.zeros(ITEMS)
        for event in range(histories.offsets[row], end):
            age = histories.session[end - 1] - histories.session[event]
            scores[histories.item[event]] += 0.9**age
        best = np.sort(scores)[::-1]
        np.testing.assert_allclose(scores[rankings[row]], best, rtol=1e-5)
        unseen = [item for item in rankings[row] if not scores[item]]
        assert unseen == sorted(unseen, key=lambda item: fitted.popularity.rank[item])


def test_an_item_may_count_once_in_a_session(data):
    histories, requests = data.histories, make_requests(data.histories)
    popularity = Popularity.fit(data, 0)
    found = UserMostFrequentLately(0.9, True, popularity).scores(
        data, requests, np.arange(histories.num_users)
    )
    for row in range(histories.num_users):
        start, end = histories.offsets[row], requests.history_end[row]
        pairs = set(zip(histories.session[start:end], histories.item[start:end], strict=True))
        expected = np.zeros(ITEMS)
        for session, item in pairs:
            expected[item] += 0.9 ** (histories.session[end - 1] - session)
        np.testing.assert_allclose(found[row], expected, rtol=1e-5)


def test_popularity_equals_a_plain_count(data):
    requests = make_requests(data.histories)
    counts = data.catalogue.popularity
    popularity = Popularity.fit(data, 0)
    seen_included = popularity.recommend(data, requests, 10, False, None)
    seen_excluded = popularity.recommend(data, requests, 10, True, None)
    for row in range(data.histories.num_users):
        assert counts[seen_included[row]].tolist() == sorted(counts, reverse=True)[:10]
        seen = set(data.histories.before(row, requests.history_end[row]).tolist())
        free = sorted((counts[i] for i in range(ITEMS) if i not in seen), reverse=True)
        ranking = seen_excluded[row]
        assert counts[ranking[ranking >= 0]].tolist() == free[:10]


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_rankings_keep_the_constraints_and_hold_no_item_twice(data, baseline, exclude_seen):
    tasks = ("JustForYou", "Category", "Query", "Season", "Holiday")
    requests = make_requests(data.histories, tasks)
    allowed = allowed_items(data, requests)
    rankings = fit(baseline, data).recommend(data, requests, 12, exclude_seen, allowed)
    assert rankings.shape == (len(requests), 12) and rankings.dtype == np.int32
    for row, ranking in enumerate(rankings):
        returned = ranking[ranking >= 0]
        assert (ranking[len(returned) :] == -1).all()  # padding comes last
        assert len(set(returned)) == len(returned)
        free = set(range(ITEMS)) if allowed.of(row) is None else set(allowed.of(row).tolist())
        if exclude_seen and requests.user[row] >= 0:
            free -= set(
                data.histories.before(requests.user[row], requests.history_end[row]).tolist()
            )
        assert set(returned) <= free
        assert len(returned) == min(12, len(free))  # popular items fill up the list


def test_allowed_items_are_those_of_each_slot_value(data):
    requests = make_requests(data.histories, ("Category", "Query", "Season", "Holiday", "Discover"))
    allowed = allowed_items(data, requests)
    for row in range(len(requests)):
        slot_value = requests.slot_value[row]
        match TASKS[requests.task[row]]:
            case "Category":
                expected = np.flatnonzero(data.catalogue.category == slot_value)
            case "Query":
                expected = data.queries.items.of(slot_value)
            case "Discover":
                assert allowed.of(row) is None
                continue
            case _:
                expected = data.themes.items.of(slot_value)
        assert sorted(allowed.of(row)) == sorted(expected)


@pytest.mark.parametrize("baseline", BASELINES)
def test_heldout_rows_do_not_reach_the_fit(data, baseline):
    histories = data.histories
    item = histories.item.copy()
    heldout = heldout_rows(histories)
    item[heldout] = (item[heldout] + 7) % ITEMS
    changed = dataclasses.replace(data, histories=dataclasses.replace(histories, item=item))
    starts = histories.offsets[:-1]
    before = make_requests(histories)
    before = dataclasses.replace(
        before, history_end=np.append(np.maximum(histories.valid_start, starts), 0)
    )
    results = [
        fit(baseline, version).recommend(version, before, 10, False, None)
        for version in (data, changed)
    ]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    "baseline",
    [
        pytest.param(name, marks=(pytest.mark.slow, pytest.mark.nightly))
        if name == "Features without a network"
        else name
        for name in BASELINES
    ],
)
def test_order_inside_a_basket_changes_nothing(baseline):
    data = make_data(make_histories(True))
    histories = data.histories
    rng = np.random.default_rng(2)
    user = np.repeat(np.arange(histories.num_users), np.diff(histories.offsets))
    shuffled = np.lexsort((rng.random(len(user)), histories.session, user))
    assert (shuffled != np.arange(len(user))).any()
    other = dataclasses.replace(histories, item=histories.item[shuffled])
    other = dataclasses.replace(data, histories=other)
    requests = make_requests(histories)
    for exclude_seen in (False, True):
        results = [
            fit(baseline, version).recommend(version, requests, 10, exclude_seen, None)
            for version in (data, other)
        ]
        np.testing.assert_array_equal(*results)


def test_recent_popularity_equals_a_plain_count(data):
    """Interactions of the days before the request count exp(-age / memory)."""
    histories, requests = data.histories, make_requests(data.histories)
    rankings = fit("Popularity with a memory", data).recommend(data, requests, ITEMS, False, None)
    training = np.setdiff1d(np.arange(len(histories.item)), heldout_rows(histories))
    for row in range(histories.num_users):
        now = histories.time[requests.history_end[row]] // DAY
        scores = np.zeros(ITEMS)
        for event in training:
            age = now - histories.time[event] // DAY
            if age > 0:
                scores[histories.item[event]] += np.exp(-age / 91)
        np.testing.assert_allclose(scores[rankings[row]], np.sort(scores)[::-1], rtol=1e-5)


def test_an_item_keeps_its_partners_with_the_highest_sums():
    """Two rows of item 0, one of item 2; each item keeps two partners."""
    table = sparse.csr_matrix([[1.0, 2, 0, 3], [4, 0, 0, 2], [0, 1, 5, 2]])
    kept = with_partners(table, np.array([0, 0, 2], np.int32), 2).toarray()
    np.testing.assert_array_equal(kept, [[1, 0, 0, 3], [4, 0, 0, 2], [0, 0, 5, 2]])


def test_recent_covisits_equal_a_plain_loop(data):
    """A pair of sessions belongs to the day of the later one, and counts on later days."""
    histories, requests = data.histories, make_requests(data.histories)
    fitted = fit("Co-visitation with a memory", data)
    rankings = fitted.recommend(data, requests, ITEMS, False, None)
    day = histories.time // DAY
    pairs, counts = [], []  # (from, to, day, weight), (item, day)
    for user in range(histories.num_users):
        rows = range(histories.offsets[user], histories.valid_start[user])
        for a in rows:
            counts.append((histories.item[a], day[a]))
            for b in rows:
                gap = histories.session[b] - histories.session[a]
                between = sum(
                    histories.session[a] < histories.session[c] < histories.session[b] for c in rows
                )
                left, right = histories.item[a], histories.item[b]
                if a != b and gap == 0:
                    pairs.append((left, right, day[b], 0.75))
                elif gap > 0 and 1 + between <= 20:
                    pairs.append((left, right, day[b], 1 / (1 + between)))
                    pairs.append((right, left, day[b], 0.5 / (1 + between)))
    for row in range(0, histories.num_users, 5):
        end = requests.history_end[row]
        now = day[end]
        covisits, popularity = np.zeros((ITEMS, ITEMS)), np.zeros(ITEMS)
        for left, right, when, weight in pairs:
            covisits[left, right] += weight * np.exp(-(now - when) / 91) * (when < now)
        for item, when in counts:
            popularity[item] += np.exp(-(now - when) / 91) * (when < now)
        scores = np.zeros(ITEMS)
        for event in range(histories.offsets[row], end):
            age = histories.session[end - 1] - histories.session[event]
            if age < 5:
                scores += 0.7**age * covisits[histories.item[event]]
        scores /= np.sqrt(popularity + 5)
        best = np.sort(scores)[::-1]
        np.testing.assert_allclose(scores[rankings[row]], best, rtol=1e-4, atol=1e-6)


def unit(vectors: np.ndarray) -> np.ndarray:
    centred = vectors - vectors.mean(axis=0)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def test_the_transition_graph_equals_a_plain_loop(data):
    histories, requests = data.histories, make_requests(data.histories)
    rankings = fit("Transition graph", data).recommend(data, requests, ITEMS, False, None)
    given, steps = GRAPH_GRID[1], np.zeros((ITEMS, ITEMS))
    for user in range(histories.num_users):
        rows = range(histories.offsets[user], histories.valid_start[user])
        for a in rows:
            for b in rows:
                if histories.session[b] == histories.session[a] + 1:
                    steps[histories.item[a], histories.item[b]] += 1
                    steps[histories.item[b], histories.item[a]] += 0.5
    joined = (steps > 0).astype(float)
    cosines = unit(VECTORS) @ unit(VECTORS).T
    graph = given.one_step * np.log1p(steps) + given.two_steps * np.log1p(joined @ joined)
    graph += given.similarity * cosines
    for row in range(histories.num_users):
        end, scores = requests.history_end[row], np.zeros(ITEMS)
        for event in range(histories.offsets[row], end):
            age = histories.session[end - 1] - histories.session[event]
            if age < given.sessions:
                scores += given.decay**age * graph[histories.item[event]]
        best = np.sort(scores)[::-1]
        np.testing.assert_allclose(scores[rankings[row]], best, rtol=1e-4, atol=1e-5)


def test_item_knn_equals_a_plain_loop(data):
    histories, requests = data.histories, make_requests(data.histories)
    rankings = fit("Item kNN on texts", data).recommend(data, requests, ITEMS, False, None)
    sessions, decay = KNN_GRID[1]
    cosines = unit(VECTORS) @ unit(VECTORS).T
    for row in range(histories.num_users):
        end, scores = requests.history_end[row], np.zeros(ITEMS)
        for event in range(histories.offsets[row], end):
            age = histories.session[end - 1] - histories.session[event]
            if age < sessions:
                scores += decay**age * cosines[histories.item[event]]
        best = np.sort(scores)[::-1]
        np.testing.assert_allclose(scores[rankings[row]], best, rtol=1e-4, atol=1e-5)


def test_features_are_weighted_as_validation_targets_ask(data):
    """Each item has its weighted features; weights that fit the targets rank them higher."""
    requests = make_requests(data.histories)
    equal = fit("Features without a network", data)
    weighted = dataclasses.replace(
        equal, weights=np.arange(1, len(equal.weights) + 1, dtype=np.float32)
    )
    every = np.tile(np.arange(ITEMS, dtype=np.int32), (len(requests), 1))
    columns = np.stack(equal.tables.at(requests, data.histories, every), axis=-1)
    scores = weighted.scores(data, requests, np.arange(len(requests)))
    np.testing.assert_allclose(scores, columns @ weighted.weights, rtol=1e-3)
    popular = dataclasses.replace(requests, target=np.repeat(equal.popularity.order[:1], 26))
    fitted = equal.fitted(data, popular)
    ranks = [
        metrics.item_ranks(b.recommend(data, popular, ITEMS, False, None), popular.target).mean()
        for b in (equal, fitted)
    ]
    assert ranks[1] < ranks[0] / 2


def load_amazon(folder: Path) -> Histories:
    path = next(folder.glob("*.inter.json"))
    users = list(json.loads(path.read_text()).values())
    offsets = np.concatenate([[0], np.cumsum([len(items) for items in users])])
    session = np.concatenate([np.arange(len(items)) for items in users]).astype(np.int32)
    item = np.concatenate(users).astype(np.int32)
    ends = offsets[1:]
    return Histories(item, session.astype(np.int64), session, offsets, ends - 2, ends - 1)


@pytest.mark.skipif("SIGMA_AMAZON" not in os.environ, reason="SIGMA_AMAZON is not set")
@pytest.mark.parametrize(
    ("name", "seen_included", "seen_excluded"),
    [("Beauty", 0.0770, 0.0844), ("Scientific", 0.1101, 0.1159)],
)
def test_covisitation_is_close_to_the_published_results(name, seen_included, seen_excluded):
    """R@10 within 6 % on the same files; the paper does not say which rows its fit used."""
    histories = load_amazon(Path(os.environ["SIGMA_AMAZON"]) / name)
    data = make_data(histories, int(histories.item.max()) + 1)
    users = np.arange(histories.num_users, dtype=np.int32)
    target = histories.item[histories.test_start]
    zeros = np.zeros_like(users)
    requests = Requests(users, histories.test_start, zeros, zeros - 1, target, [""] * len(users))
    fitted = CoVisitation.fit(data, 0)
    for exclude_seen, expected in ((False, seen_included), (True, seen_excluded)):
        rankings = fitted.recommend(data, requests, 10, exclude_seen, None)
        ranks = metrics.item_ranks(rankings, target)
        assert metrics.hits(ranks, 10).mean() == pytest.approx(expected, rel=0.06)
