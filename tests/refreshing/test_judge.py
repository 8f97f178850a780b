"""The judgement compares two recommenders fairly, and knows the error of the difference."""

import numpy as np
from small_histories import histories_of, plain_data

from sigma_jax.refreshing.judge import Comparison, compare, error_over_users, known_part
from sigma_jax.schema import RequestBatch, Requests


def requests(user, task, target, history_end=0) -> Requests:
    count = len(user)
    as_int = [np.array(values, np.int32) for values in (user, task, target)]
    ends = np.full(count, history_end, np.int64)
    none = np.full(count, -1, np.int32)
    return Requests(as_int[0], ends, as_int[1], none, as_int[2], [""] * count)


def test_tasks_count_equally_and_the_difference_is_paired():
    """Task 0 has three requests and task 1 one: they weigh 1/6 each and 1/2."""
    asked = requests([0, 1, 2, 3], [0, 0, 0, 1], [5, 5, 5, 5])
    after = np.array([[5, 1], [1, 5], [1, 2], [5, 1]])
    before = np.array([[5, 1], [5, 1], [1, 2], [1, 2]])
    found, tasks = compare(asked, after, before)
    second = 1 / np.log2(3)
    np.testing.assert_allclose(found.ndcg, (1 + second) / 6 + 0.5)
    np.testing.assert_allclose(found.ndcg_before, 2 / 6)
    np.testing.assert_allclose(found.difference, (second - 1) / 6 + 0.5)
    assert found.hit_rate == 2 / 6 + 0.5 and found.hit_rate_before == 2 / 6
    assert tasks["JustForYou"]["requests"] == 3 and tasks["Query"]["ndcg_before"] == 0


def test_the_error_is_that_of_a_mean_and_requests_of_a_user_go_together():
    gain = np.random.default_rng(0).normal(size=400)
    weight, users = np.full(400, 1 / 400), np.arange(400)
    single = error_over_users(weight, gain, users)
    np.testing.assert_allclose(single, gain.std(ddof=1) / 20, rtol=1e-6)
    # Four equal requests of each user tell no more than one of them.
    repeated = error_over_users(np.full(1600, 1 / 1600), np.repeat(gain, 4), np.repeat(users, 4))
    np.testing.assert_allclose(repeated, single, rtol=1e-6)
    assert error_over_users(weight, gain, np.zeros(400)) == float("inf")


def test_a_refresh_is_worse_only_beyond_the_error():
    assert Comparison(9, 0.1, 0.2, 0.1, 0.2, -0.1, 0.09).is_worse
    assert not Comparison(9, 0.1, 0.2, 0.1, 0.2, -0.1, 0.11).is_worse


def test_the_running_recommender_sees_the_histories_without_items_that_it_lacks():
    histories = histories_of([[[3], [7], [4]], [[7, 1], [2], [3]]])
    batch = RequestBatch.of(requests([1], [0], [3], history_end=6), plain_data(histories))
    cut = known_part(batch, 7)
    start = cut.histories.offsets[1]
    assert cut.histories.before(1, int(cut.requests.history_end[0])).tolist() == [1, 2]
    assert cut.histories.item[start:].tolist() == [1, 2, 3]
    assert cut.histories.offsets.tolist() == [0, 2, 5]
