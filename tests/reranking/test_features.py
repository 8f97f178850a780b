"""Promises of sigma_jax/reranking/features.py."""

import jax.numpy as jnp
import numpy as np

from sigma_jax.reranking.features import RankingInputs, add_scores


def test_scores_multiply_probabilities_as_in_float64_also_at_the_extremes():
    rng = np.random.default_rng(0)
    prob = rng.dirichlet(np.ones(25), 4)[:, :24]  # one item of each row is not a candidate
    prob[1] *= 1e-30  # other items have nearly all probability
    prob[2] /= prob[2].sum()  # other items have none
    score = rng.choice([0, -200, 200, -3, 5], (4, 24)).astype(np.float64)
    score[3] = -200
    rest = np.log(np.maximum(1 - prob.sum(axis=1, keepdims=True), 1e-300))
    rest += score.min(axis=1, keepdims=True)  # other items have the lowest score
    total = np.logaddexp(rest, np.logaddexp.reduce(np.log(prob) + score, axis=1)[:, None])
    result = add_scores(
        jnp.asarray(np.log(prob), jnp.float32),
        jnp.asarray(score, jnp.float32),
    )
    expected = np.log(prob) + score - total
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(result[3], np.log(prob[3]), rtol=1e-4)  # equal scores change nothing
    nothing = add_scores(jnp.full((1, 4), -jnp.inf), jnp.zeros((1, 4)))
    assert (np.asarray(nothing) == -np.inf).all()


def test_a_batch_has_extra_candidates_as_wide_as_its_own_requests_need():
    extra = np.full((3, 4_096), -1, np.int32)
    extra[0, :3_000], extra[1, :70], extra[2, :10] = np.arange(3_000), np.arange(70), np.arange(10)
    inputs = RankingInputs(extra=extra)
    wide, narrow = inputs.of_rows(np.array([1, 0])), inputs.of_rows(np.array([2, 1]))
    np.testing.assert_array_equal(wide.extra, extra[[1, 0]])
    np.testing.assert_array_equal(narrow.extra, extra[[2, 1], :256])
    assert RankingInputs().of_rows(np.array([0])).extra is None
