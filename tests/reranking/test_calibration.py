"""Promises of sigma_jax/reranking/calibration.py."""

import jax.numpy as jnp
import numpy as np

from sigma_jax.reranking.calibration import (
    DEPTH,
    UNCALIBRATED,
    Calibration,
    calibrated,
    fit_calibrations,
)


def lists_of(scores) -> np.ndarray:
    """Log-probabilities of lists, best first, by the softmax of the scores."""
    scores = -np.sort(-np.asarray(scores), axis=1)
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def odds(p) -> np.ndarray:
    """log(p / (1 - p)) as 32 bits have it."""
    p = np.minimum(p, 1 - np.finfo(np.float32).eps)
    return np.log(p / (1 - p))


def expected(log_p, values) -> np.ndarray:
    """The probabilities by the equations of the module, of lists without gaps."""
    of = {name: column[:, None] for name, column in zip(Calibration._fields, values.T, strict=True)}
    x = odds(np.exp(log_p))
    scaled = np.exp(log_p / of["temperature"])
    y = odds(scaled / scaled[:, :DEPTH].sum(axis=1, keepdims=True))
    score = of["slope_behind"] * x + of["tempered_behind"] * y + of["offset_behind"]
    score -= of["decline"] * np.log(1 + np.arange(log_p.shape[1]))
    first = of["slope"] * x + of["tempered"] * y + of["offset"]
    score[:, 0] = first[:, 0]
    return 1 / (1 + np.exp(-score))


def test_probabilities_are_those_of_the_equations_and_keep_the_order():
    rng = np.random.default_rng(0)
    log_p = lists_of(rng.normal(size=(4, DEPTH + 9)) * 4)
    values = np.array(
        [
            Calibration(0.5, -1.0, 0.4, -1.0, 0.3, 0.7, 0.2, 8.0),
            UNCALIBRATED,
            Calibration(0.1, 0.5, 0.3, 0.4, 2.0, 0.0, 0.5, 2.0),
            Calibration(1.0, -3.0, 1.0, 3.0, 0.0),  # would raise the items behind the first
        ]
    )
    found = np.asarray(calibrated(jnp.asarray(log_p, jnp.float32), jnp.asarray(values)))
    by_hand = np.minimum.accumulate(expected(log_p, values), axis=1)
    np.testing.assert_allclose(np.exp(found), by_hand, rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(np.exp(found[1]), np.exp(log_p[1]), rtol=1e-4)
    assert found[3, 0] == found[3, 1]
    part = calibrated(jnp.asarray(log_p[:, :DEPTH], jnp.float32), jnp.asarray(values))
    np.testing.assert_allclose(part, found[:, :DEPTH], rtol=1e-5)


def test_probabilities_of_0_and_1_stay_finite_or_infinite():
    with np.errstate(divide="ignore"):
        log_p = jnp.asarray(np.log([[0.7, 0.3, 0.0], [1.0, 0.0, 0.0], [1.0, 1e-30, 0.0]]))
    values = jnp.array([Calibration(0.5, -1.0, 0.5, -1.0, 0.0, 0.5, 0.5, 4.0)] * 3)
    found = np.asarray(calibrated(log_p, values))
    assert (np.isfinite(found) == np.isfinite(log_p)).all() and not np.isnan(found).any()


def test_the_items_close_behind_make_a_list_less_certain():
    crowd = lists_of([[0.0, -9.0, *[-20.0] * 48], [0.0, *[-9.1] * 9, *[-20.0] * 40]])
    value = Calibration(0.5, -1.0, 0.5, -1.0, 0.0, 1.0, 0.0, 8.0)
    alone, crowded = np.asarray(calibrated(jnp.asarray(crowd), jnp.array([value] * 2)))[:, 0]
    assert np.exp(alone) - np.exp(crowded) > 0.2  # x is the same up to 0.1


def test_the_calibrations_of_tasks_make_probabilities_true():
    """Hits follow other values for each task. A request is of both tasks in part."""
    rng = np.random.default_rng(0)
    count = 8_000
    log_p = lists_of(rng.normal(size=(count, 12)) * rng.choice([2, 6, 20], (count, 1)))
    shares = np.zeros((count, 3))
    shares[:, 0] = rng.choice([0.05, 0.5, 0.9], count)
    shares[:, 2] = 1 - shares[:, 0]
    tasks = np.array(
        [
            Calibration(0.2, -0.3, 0.1, -0.5, 0.7, 0.8, 0.5, 8.0),
            Calibration(0, 0, 0, 0, 0, 0, 0, 8.0),
            Calibration(0.1, 0.4, 0.3, 0.2, 0.0, 1.5, 0.0, 8.0),
        ]
    )
    p = expected(log_p, shares @ tasks)
    is_hit = rng.random(p.shape) < p
    log_p[:5, 2:] = -np.inf  # short lists
    found = np.array(fit_calibrations(log_p, is_hit, shares))
    assert (found[:, -1] == 8).all()
    away = np.abs(expected(log_p[5:], shares[5:] @ found) - p[5:])[:, :3]
    assert away.mean(axis=0).max() < 0.02
    assert found[0, 5] < found[1, 5] < found[2, 5]  # no requests: the values of all
    (common,) = fit_calibrations(log_p, is_hit, np.ones((count, 1)))
    np.testing.assert_allclose(common, found[1], rtol=0.02, atol=0.02)
