"""Candidates and log-probabilities that the weights of novel instructions are fitted on."""

import numpy as np

from sigma_jax.recommender.fitting import log_p_of, sorted_rows
from sigma_jax.recommender.ranking import Recommendations


def test_rows_hold_the_distinct_items_of_each_list():
    rows = sorted_rows([np.array([5, 3, -1, 5]), np.array([9]), np.array([-1])])
    assert rows.tolist() == [[3, 5], [9, -1], [-1, -1]]


def test_a_candidate_without_an_answer_gets_the_least_log_probability():
    items = np.array([[7, 2, -1], [4, 9, 1]])
    log_p = np.array([[-0.5, -2.0, -np.inf], [-1.0, -3.0, -4.0]], np.float32)
    answer = Recommendations(items, log_p, *[log_p] * 3, *[log_p[:, 0]] * 2, np.ones((2, 1)))
    found = log_p_of(answer, np.array([[2, 7, 8], [1, 4, 5]], np.int32))
    np.testing.assert_array_equal(found, [[-2.0, -0.5, -2.0], [-4.0, -1.0, -4.0]])
