"""What novel instructions are fitted on, and the requests that probabilities are calibrated on."""

import numpy as np
from small_baselines import make_data, make_histories

from sigma_jax.recommender import fitting
from sigma_jax.recommender.fitting import judges_of, log_p_of, sorted_rows
from sigma_jax.recommender.ranking import Recommendations
from sigma_jax.schema import RequestBatch, Requests


def test_rows_hold_the_distinct_items_of_each_list():
    rows = sorted_rows([np.array([5, 3, -1, 5]), np.array([9]), np.array([-1])])
    assert rows.tolist() == [[3, 5], [9, -1], [-1, -1]]


def test_a_candidate_without_an_answer_gets_the_least_log_probability():
    items = np.array([[7, 2, -1], [4, 9, 1]])
    log_p = np.array([[-0.5, -2.0, -np.inf], [-1.0, -3.0, -4.0]], np.float32)
    answer = Recommendations(items, log_p, *[log_p] * 3, *[log_p[:, 0]] * 2, np.ones((2, 1)))
    found = log_p_of(answer, np.array([[2, 7, 8], [1, 4, 5]], np.int32))
    np.testing.assert_array_equal(found, [[-2.0, -0.5, -2.0], [-4.0, -1.0, -4.0]])


def requests_of(pairs: list[tuple[int, int]]) -> Requests:
    """Requests of users and tasks."""
    user, task = np.array(pairs, np.int32).T
    return Requests(user, user.astype(np.int64), task, user, user, [""] * len(user))


def test_probabilities_are_calibrated_on_requests_that_nothing_was_fitted_on(monkeypatch):
    monkeypatch.setattr(fitting, "CALIBRATION_REQUESTS", 3)
    fitted = [(user, 0) for user in range(4)] + [(user, 1) for user in range(5)]
    fresh = [(user, 0) for user in range(4, 9)] + [(7, 1)]  # of task 1 there is one alone
    more = RequestBatch.of(requests_of(sorted(fitted + fresh)), make_data(make_histories(False)))
    judges = judges_of(more, requests_of(fitted)).requests
    found = list(zip(judges.user.tolist(), judges.task.tolist(), strict=True))
    assert found == sorted([(4, 0), (5, 0), (6, 0), (7, 1), (0, 1), (1, 1)])
