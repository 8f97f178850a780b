"""Promises of sigma_jax/generation/fusion.py (Eq. 10-11 of SIGMA)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.generation import fusion

TAU = 0.05


def naive_log_prob(beam_scores, is_valid_beam, cosines, is_valid_item, sigma=None):
    """Eq. 10-11 in float64 with the retrieved normaliser, one item at a time."""
    out = np.full(cosines.shape, -np.inf)
    for row in range(len(beam_scores)):
        scores = [s for s, ok in zip(beam_scores[row], is_valid_beam[row], strict=True) if ok]
        deviation = np.std(np.float64(scores)) if sigma is None else sigma
        for k in range(beam_scores.shape[1]):
            if not is_valid_beam[row, k]:
                continue
            logits = np.float64(cosines[row, k]) * deviation / TAU
            total = sum(
                np.exp(x) for x, ok in zip(logits, is_valid_item[row, k], strict=True) if ok
            )
            for r in np.flatnonzero(is_valid_item[row, k]):
                out[row, k, r] = beam_scores[row, k] + np.log(np.exp(logits[r]) / total)
    return out


@pytest.fixture
def beams():
    """(beam scores, is_valid_beam, cosines, is_valid_item) of 4 requests."""
    rng = np.random.default_rng(0)
    beam_scores = np.sort(-rng.exponential(2, (4, 5)))[:, ::-1].astype(np.float32)
    cosines = rng.uniform(-1, 1, (4, 5, 6)).astype(np.float32)
    is_valid_beam = np.arange(5) < np.array([[5], [3], [1], [4]])
    is_valid_item = rng.random((4, 5, 6)) < 0.7
    is_valid_item[..., 0] = True
    return np.where(is_valid_beam, beam_scores, -np.inf), is_valid_beam, cosines, is_valid_item


@pytest.mark.parametrize("sigma", ["deviation", 0.7])
def test_fuse_equals_equations_10_and_11(beams, sigma):
    beam_scores, is_valid_beam, cosines, is_valid_item = beams
    factor = fusion.inverse_temperature(beam_scores, is_valid_beam, TAU, sigma, floor=0.0)
    normaliser = fusion.retrieved_log_normaliser(cosines, is_valid_item, factor)
    log_prob = fusion.fuse(beam_scores, is_valid_beam, cosines, is_valid_item, normaliser, factor)
    expected = naive_log_prob(*beams, sigma=None if sigma == "deviation" else sigma)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5, atol=1e-5)
    assert (np.isfinite(log_prob) == (is_valid_beam[..., None] & is_valid_item)).all()


@pytest.mark.parametrize("scores", [[-3.0, -np.inf], [-2.0, -2.0], [-np.inf, -np.inf]])
def test_the_deviation_of_equal_or_invalid_beams_is_the_floor(scores):
    scores = np.float32([scores])
    is_valid = np.isfinite(scores)
    np.testing.assert_allclose(fusion.beam_deviation(scores, is_valid, 0.25), [0.25])


def test_the_deviation_of_large_scores_does_not_cancel():
    scores = np.float32([[-400.0, -400.01]])
    result = fusion.beam_deviation(scores, np.ones((1, 2), bool), 0.0)
    np.testing.assert_allclose(result, [np.std(np.float64(scores))], rtol=1e-4)


def test_the_gradient_through_fuse_is_finite(beams):
    beam_scores, is_valid_beam, cosines, is_valid_item = map(jnp.asarray, beams)

    def total(cosines):
        factor = fusion.inverse_temperature(beam_scores, is_valid_beam, TAU, "deviation", 0.1)
        normaliser = fusion.retrieved_log_normaliser(cosines, is_valid_item, factor)
        out = fusion.fuse(beam_scores, is_valid_beam, cosines, is_valid_item, normaliser, factor)
        return jnp.where(jnp.isfinite(out), out, 0).sum()

    assert jnp.isfinite(jax.grad(total)(cosines)).all()


def test_sigma_0_and_absent_items_give_no_nan():
    cosines = np.float32([[[0.5, -np.inf]]])
    is_item = np.array([[[True, False]]])
    factor = np.zeros(1, np.float32)
    normaliser = fusion.retrieved_log_normaliser(cosines, is_item, factor)
    log_prob = fusion.fuse(
        np.float32([[-1.0]]), np.ones((1, 1), bool), cosines, is_item, normaliser, factor
    )
    np.testing.assert_allclose(log_prob, [[[-1.0, -np.inf]]])


def test_an_error_names_impossible_settings():
    scores, is_valid = np.zeros((1, 2), np.float32), np.ones((1, 2), bool)
    with pytest.raises(ValueError, match="sigma='std'"):
        fusion.inverse_temperature(scores, is_valid, TAU, "std", 0.1)
    with pytest.raises(ValueError, match="temperature=0"):
        fusion.inverse_temperature(scores, is_valid, 0, "deviation", 0.1)


def test_first_prefix_keeps_the_items_of_the_best_valid_beam():
    log_prob, beams = np.zeros((2, 3), np.float32), np.int32([[0, 1, 0], [0, 1, 1]])
    scores = np.float32([[-1, -2], [-1, -2]])
    is_valid = np.array([[True, True], [False, True]])
    kept = fusion.keep_first_prefix(log_prob, beams, scores, is_valid)
    np.testing.assert_array_equal(np.isfinite(kept), [[True, False, True], [False, True, True]])


def naive_merge(items, log_prob, count):
    """`merge` of one request by a plain loop."""
    best = {}
    for index, (item, score) in enumerate(zip(items, log_prob, strict=True)):
        if item >= 0 and score > -np.inf:
            if item not in best or score > best[item][0]:
                best[item] = (score, index)
    ranked = sorted(best.items(), key=lambda entry: (-entry[1][0], entry[0]))[:count]
    rows = [(item, score, index) for item, (score, index) in ranked]
    return rows + [(-1, -np.inf, -1)] * (count - len(rows))


@pytest.mark.parametrize("count", [1, 5, 40])
def test_merge_equals_a_plain_loop(count):
    rng = np.random.default_rng(count)
    items = rng.integers(-1, 12, (8, 20)).astype(np.int32)
    log_prob = -rng.integers(0, 9, (8, 20)).astype(np.float32)  # many ties
    log_prob[rng.random((8, 20)) < 0.2] = -np.inf
    result = fusion.merge(items, log_prob, count)
    for row in range(8):
        expected = naive_merge(items[row], log_prob[row], count)
        for array, column in zip(result, zip(*expected, strict=True), strict=True):
            if array.dtype == jnp.int32 and array is result[2]:
                # Either index of two equal entries of an item is right: compare their items.
                index = np.asarray(array[row])
                pointed = np.where(index >= 0, items[row][index], -1)
                np.testing.assert_array_equal(pointed, result[0][row])
                continue
            np.testing.assert_array_equal(array[row], column)
