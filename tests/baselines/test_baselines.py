"""Each baseline equals a plain loop, learns from training rows only, and keeps the constraints."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sigma_jax import metrics
from sigma_jax.baselines.covisitation import CoVisitation
from sigma_jax.baselines.popularity import Popularity
from sigma_jax.baselines.user_most_frequent import UserMostFrequent
from sigma_jax.histories import training_rows
from sigma_jax.reranking.covisitation import count_covisits
from sigma_jax.schema import (
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
from sigma_jax.tasks.constraints import allowed_items

ITEMS = 40
BASELINES = (Popularity, UserMostFrequent, CoVisitation)


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
    return Histories(item, session.astype(np.int64), session, *arrays)


def make_data(histories: Histories, items: int = ITEMS) -> PreparedData:
    rng = np.random.default_rng(1)
    names = [str(item) for item in range(items)]
    table = pa.table({"item_id": names, "text": names, "title": names})
    popularity = np.bincount(histories.item[training_rows(histories)], minlength=items)
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
    rankings = baseline.fit(data, 0).recommend(data, requests, 12, exclude_seen, allowed)
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
    heldout = np.setdiff1d(np.arange(len(item)), training_rows(histories))
    item[heldout] = (item[heldout] + 7) % ITEMS
    changed = dataclasses.replace(data, histories=dataclasses.replace(histories, item=item))
    starts = histories.offsets[:-1]
    before = make_requests(histories)
    before = dataclasses.replace(
        before, history_end=np.append(np.maximum(histories.valid_start, starts), 0)
    )
    results = [
        baseline.fit(version, 0).recommend(version, before, 10, False, None)
        for version in (data, changed)
    ]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("baseline", BASELINES)
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
            baseline.fit(version, 0).recommend(version, requests, 10, exclude_seen, None)
            for version in (data, other)
        ]
        np.testing.assert_array_equal(*results)


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
