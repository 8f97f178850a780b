"""Promises of the repeat features: their values by plain loops, and what the model learns."""

import dataclasses

import numpy as np
import pytest
from small_histories import ITEMS, histories_of, plain_data, plain_requests, random_users

from sigma_jax.histories import count_training_rows, history_ranges, request_times
from sigma_jax.reranking.history.repeats import DAYS, DECAYS, RHYTHM, RepeatModel, rhythm_of
from sigma_jax.schema import DAY

WEEKLY = 1  # an item that is due every seven days


@pytest.fixture(scope="module")
def histories():
    """Baskets, two days apart, with some items twice in a basket."""
    plain = histories_of(random_users(baskets=True))
    return dataclasses.replace(plain, time=(50 + 2 * plain.session.astype(np.int64)) * DAY)


@pytest.fixture(scope="module")
def rhythmic():
    """Users who take an item a day for 100 days: one every 7 days, the others at random."""
    rng, users = np.random.default_rng(0), []
    for first in rng.integers(0, 7, 80):
        items = rng.integers(WEEKLY + 1, ITEMS, 100)
        items[first::7] = WEEKLY
        users.append([[item] for item in items.tolist()])
    plain = histories_of(users)
    return dataclasses.replace(plain, time=(200 + plain.session.astype(np.int64)) * DAY)


@pytest.fixture(scope="module")
def model(rhythmic):
    return RepeatModel.fit(plain_data(rhythmic))


def naive(histories, row: int, requests, time: int, popularity) -> dict[int, list[float]]:
    """item -> RHYTHM of one request, by plain loops."""
    user = requests.user[row]
    rows = range(histories.offsets[user], requests.history_end[row])
    events = [(int(histories.item[r]), int(histories.session[r]), histories.time[r]) for r in rows]
    last, first = events[-1][1], events[0][1]
    of_user = last - first + 1
    found = {}
    for item in {event[0] for event in events}:
        ages = [(time - t) / DAY for i, _, t in events if i == item]
        sessions = sorted({last - s for i, s, _ in events if i == item})
        gap = (max(ages) - min(ages)) / max(len(sessions) - 1, 1)
        found[item] = [
            len(ages),
            *(sum(np.exp(-age / days) for age in ages) for days in DAYS),
            len(sessions),
            len(sessions) / of_user,
            *(sum(decay**s for s in sessions) for decay in DECAYS),
            min(ages),
            max(ages),
            sessions[0],
            gap,
            min(ages) / (gap + 0.5),
            popularity[item],
            of_user,
            len({event[0] for event in events}),
            len(events) / of_user,
            (time - max(t for _, _, t in events)) / DAY,
        ]
    return found


def test_rhythm_equals_plain_loops(histories):
    requests = plain_requests(histories)
    times = request_times(histories, requests)
    popularity = count_training_rows(plain_data(histories))
    request, item, rhythm = rhythm_of(
        histories, *history_ranges(histories, requests), times, popularity
    )
    assert rhythm.shape == (len(item), len(RHYTHM))
    assert len(requests) - 1 not in request  # the last one has no history
    for row in range(len(requests) - 1):
        expected = naive(histories, row, requests, times[row], popularity)
        assert sorted(expected) == item[request == row].tolist()
        for number, values in zip(item[request == row], rhythm[request == row], strict=True):
            np.testing.assert_allclose(values, np.log1p(expected[number]), 1e-5, 1e-5)


def test_the_model_learns_when_an_item_is_due(rhythmic, model):
    """On the day it is due the weekly item is likely, and on the other days it is not."""
    user = np.repeat(np.arange(rhythmic.num_users), 7)
    ends = rhythmic.offsets[user] + np.tile(np.arange(90, 97), rhythmic.num_users)
    times = np.asarray(rhythmic.time)[ends]
    probability = model.probabilities(rhythmic, rhythmic.offsets[user], ends, times)
    assert probability.shape == (len(user), ITEMS)
    is_next = rhythmic.item[ends] == WEEKLY
    of_weekly = probability[:, WEEKLY].toarray()[:, 0]
    assert of_weekly[is_next].mean() > 3 * of_weekly[~is_next].mean()


def test_probabilities_are_true_on_average(rhythmic, model):
    """Calibrated over all own items, though only a share of those not taken were examples."""
    ends = np.asarray(rhythmic.valid_start)
    times = np.asarray(rhythmic.time)[ends]
    probability = model.probabilities(rhythmic, rhythmic.offsets[:-1], ends, times)
    taken = sum(
        len(set(rhythmic.item[a:b]) & set(rhythmic.item[start:a]))
        for start, a, b in zip(rhythmic.offsets[:-1], ends, rhythmic.test_start, strict=True)
    )
    assert probability.sum() == pytest.approx(taken, rel=0.3)


def test_where_nobody_repeats_the_model_gives_nothing():
    users = [[[4 * user + n] for n in range(4)] for user in range(7)]
    histories = histories_of(users)
    requests = plain_requests(histories)
    made = RepeatModel.fit(plain_data(histories))
    tables = made.tables(histories, *history_ranges(histories, requests), np.zeros(8, np.int64))
    assert not made.layers and not tables["repeat_model"].nnz and tables["repeat_count"].nnz


def test_it_learns_from_training_rows_alone(rhythmic, model):
    """Validation and test rows may say anything."""
    item = np.asarray(rhythmic.item).copy()
    for start, end in zip(rhythmic.valid_start, rhythmic.offsets[1:], strict=True):
        item[start:end] = ITEMS - 1
    other = RepeatModel.fit(plain_data(dataclasses.replace(rhythmic, item=item)))
    for (a, b), (c, d) in zip(model.layers, other.layers, strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)
    np.testing.assert_array_equal(model.popularity, other.popularity)


def test_a_saved_model_is_the_same_and_goes_over_more_items(rhythmic, model, tmp_path):
    model.save(tmp_path)
    loaded = RepeatModel.load(tmp_path).over(ITEMS + 5)
    ends = np.asarray(rhythmic.test_start)
    where = rhythmic, rhythmic.offsets[:-1], ends, np.asarray(rhythmic.time)[ends]
    before, after = model.tables(*where), loaded.tables(*where)
    for name, table in before.items():
        table.resize(after[name].shape)
        assert (table != after[name]).nnz == 0


def test_a_log_without_times_is_read(histories):
    timeless = dataclasses.replace(histories, time=np.zeros_like(histories.time))
    requests = plain_requests(timeless)
    popularity = count_training_rows(plain_data(timeless))
    none = np.zeros(len(requests), np.int64)
    *_, rhythm = rhythm_of(timeless, *history_ranges(timeless, requests), none, popularity)
    assert np.isfinite(rhythm).all()
