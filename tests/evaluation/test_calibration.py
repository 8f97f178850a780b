"""Calibration: groups of equal size, and the distance of probability and share."""

import numpy as np
import pytest

from sigma_jax.evaluation import calibration as module
from sigma_jax.evaluation.calibration import expected_error, reliability


def test_groups_hold_equal_numbers_in_ascending_order(monkeypatch):
    monkeypatch.setattr(module, "BINS", 2)
    groups = reliability(np.array([0.8, 0.1, 0.6, 0.2]), np.array([True, False, False, False]))
    np.testing.assert_allclose(groups, [[0.15, 0.0, 2], [0.7, 0.5, 2]])
    assert expected_error(groups) == pytest.approx((0.15 + 0.2) / 2)


@pytest.mark.parametrize("sharpness, is_true", [(1.0, True), (2.0, False)])
def test_true_probabilities_have_a_small_error_and_too_sure_ones_a_large_one(sharpness, is_true):
    rng = np.random.default_rng(0)
    truth = rng.random(20_000)
    is_hit = rng.random(len(truth)) < truth
    odds = (truth / (1 - truth)) ** sharpness
    error = expected_error(reliability(odds / (1 + odds), is_hit))
    assert (error < 0.015) == is_true


def test_no_request_has_no_error():
    groups = reliability(np.zeros(0), np.zeros(0, bool))
    assert groups.shape == (0, 3) and expected_error(groups) == 0
