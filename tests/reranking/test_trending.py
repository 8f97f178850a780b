"""Promises of sigma_jax/reranking/trending.py."""

import dataclasses

import numpy as np
import pytest
from small_histories import ITEMS, histories_of, plain_data, plain_requests, random_users

from sigma_jax.histories import request_times
from sigma_jax.reranking import trending
from sigma_jax.reranking.trending import MEMORY, TRENDING_FEATURES, UNIT, TrendingCounts
from sigma_jax.schema import DAY

USERS = random_users(baskets=True)


@pytest.fixture(scope="module")
def histories():
    """Histories with a session a day; users start on different days at different hours."""
    plain = histories_of(USERS)
    user = np.repeat(np.arange(len(USERS)), np.diff(plain.offsets))
    day = 18_000 + 5 * user + plain.session
    return dataclasses.replace(plain, time=day.astype(np.int64) * DAY + 3_600 * (user % 20))


def counts(histories, day: int, memory: float) -> np.ndarray:
    """[I]: decayed training interactions before a day, by a plain loop."""
    total = np.zeros(ITEMS)
    for user in range(histories.num_users):
        for row in range(histories.offsets[user], histories.valid_start[user]):
            if histories.time[row] < day * DAY:
                total[histories.item[row]] += np.exp(-(day - histories.time[row] / DAY) / memory)
    return total


def test_trending_features_equal_plain_loops(histories):
    times = request_times(histories, plain_requests(histories))
    table, row = TrendingCounts.make(plain_data(histories)).at(times)
    assert len(table) >= len(np.unique(times // DAY)) == len(np.unique(row)) > 1
    assert table.shape[1:] == (ITEMS, len(TRENDING_FEATURES))
    for number, time in enumerate(times):
        for trend, memory in enumerate(MEMORY.values()):
            expected = np.log1p(counts(histories, time // DAY, memory) / UNIT)
            np.testing.assert_allclose(table[row[number], :, trend], expected, rtol=2e-3, atol=2e-3)


def test_the_day_of_a_request_and_later_days_are_not_counted(histories):
    made = TrendingCounts.make(plain_data(histories))
    now = int(np.median(made.time)) // DAY * DAY
    later = made.time >= now
    other = dataclasses.replace(made, item=np.where(later, 0, made.item))
    assert later.any() and (made.item[later] != 0).any()
    for seconds in (0, DAY - 1):
        first, second = (t.at(np.array([now + seconds]))[0] for t in (made, other))
        np.testing.assert_array_equal(first, second)
    assert (made.at(np.array([now + DAY]))[0] != other.at(np.array([now + DAY]))[0]).any()


def test_the_table_of_a_day_is_made_once_and_few_are_kept(histories):
    made = TrendingCounts.make(plain_data(histories))
    days = np.arange(18_010, 18_010 + 2 * trending.DAYS_KEPT, dtype=np.int64) * DAY
    together, row = made.at(days)
    for number, day in enumerate(days):
        [one], [first] = made.at(day[None])
        assert first == 0
        assert made.at(np.array([day, day + 5]))[0] is made.at(day[None])[0]
        np.testing.assert_allclose(one, together[row[number]], rtol=2e-3, atol=2e-3)
        assert len(made._of_day) <= trending.DAYS_KEPT
    assert made.at(np.zeros(0, np.int64))[1].shape == (0,)


def test_too_many_days_share_rows_of_the_table(histories, monkeypatch):
    made = TrendingCounts.make(plain_data(histories))
    times = np.arange(18_000, 18_064, dtype=np.int64) * DAY
    fine, row = made.at(times)
    assert len(fine) == len(times)
    monkeypatch.setattr(trending, "MAX_ENTRIES", 20 * ITEMS * len(TRENDING_FEATURES))
    coarse, of = made.at(times)
    assert len(coarse) == 16
    for number in range(len(times)):  # the row of that day, or of up to three days before
        day = (times[number] // DAY) // 4 * 4 - 18_000
        if day >= 0:
            np.testing.assert_array_equal(coarse[of[number]], fine[row[day]])


@pytest.mark.parametrize("days", [1, 5, 64])
def test_groups_of_requests_have_the_exact_day_of_each(histories, monkeypatch, days):
    made = TrendingCounts.make(plain_data(histories))
    times = np.random.default_rng(0).integers(18_000, 18_064, 50) * DAY
    fine, row = made.at(times)
    monkeypatch.setattr(trending, "MAX_ENTRIES", days * ITEMS * len(TRENDING_FEATURES))
    parts = made.together(times)
    assert sorted(np.concatenate(parts)) == list(range(50)) and (len(parts) == 1) == (days == 64)
    for rows in parts:
        table, of = made.at(times[rows])
        assert len(table) <= days
        np.testing.assert_allclose(table[of], fine[row[rows]], rtol=2e-3, atol=2e-3)


def test_without_times_all_features_are_0(histories):
    timeless = dataclasses.replace(histories, time=np.zeros_like(histories.time))
    times = request_times(timeless, plain_requests(timeless))
    table, row = TrendingCounts.make(plain_data(timeless)).at(times)
    assert table.shape[0] == 1 and not table.any() and not row.any()


def test_requests_without_a_time_come_a_day_after_the_log(histories):
    requests = plain_requests(histories)
    times = request_times(histories, requests)
    np.testing.assert_array_equal(times[:-1], histories.time[histories.test_start])
    ends = np.append(histories.offsets[1:], 0)
    now = request_times(histories, dataclasses.replace(requests, history_end=ends))
    assert (now == histories.time.max() + DAY).all() and times[-1] == now[-1]
