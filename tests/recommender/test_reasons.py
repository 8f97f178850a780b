"""Explanations in words and numbers."""

import numpy as np
import pytest

from sigma_jax.recommender.explanations import Explanations, ItemSteps
from sigma_jax.recommender.reasons import beams_of, in_words, steps_of
from sigma_jax.reranking.reranker import FEATURES


def one_item(
    values: dict[str, float], weights: dict[str, float], typical: dict[str, float] | None = None
) -> ItemSteps:
    """An item in the prefix (2, 5) of P = 1/2, which has 1/4 of it."""

    def of(named: dict[str, float]) -> np.ndarray:
        return np.array([[[named.get(name, 0.0) for name in FEATURES]]])

    def log(share: float) -> np.ndarray:
        return np.log([[share]])

    return ItemSteps(
        np.array([[[2, 5]]]),
        np.array([[1.5]]),
        log(1 / 8),
        of(values),
        of(weights),
        of(typical or {}),
        log(0.3),
        of({"ever": -0.4}),
        log(0.2),
    )


def test_steps_hold_the_features_that_mattered_most_first():
    """Instructions lower all items but this one, so its 0 matters most."""
    typical = {"semantic_match": -3.0, "week": -0.4}
    weights = {"ever": 0.1, "week": -0.5, "semantic_match": 2.0}
    steps = one_item({"ever": 2.0, "week": 1.0, "ease": 3.0}, weights, typical)
    found = steps_of(steps, 0, 0, float(np.log(0.5)), float(np.log(0.25)))
    assert found["codes"] == [2, 5] and found["sigma"] == 1.5
    shares = [found[name] for name in ("in_prefix", "network", "summed", "ranked", "probability")]
    np.testing.assert_allclose(shares, [0.25, 0.125, 0.3, 0.2, 0.25], rtol=1e-5)
    match, ever, week = found["features"]
    assert [one["feature"] for one in (match, ever, week)] == ["semantic_match", "ever", "week"]
    assert found["score"] == pytest.approx(sum(one["contribution"] for one in found["features"]))
    assert (ever["value"], ever["weight"], ever["interaction"]) == (2.0, 0.1, -0.4)
    assert match["contribution"] == 0 and match["factor"] == pytest.approx(np.exp(3), rel=1e-5)


def test_an_item_in_no_beam_has_no_codes():
    steps = one_item({}, {})
    steps.codes[:] = -1
    assert steps_of(steps, 0, 0, 0.0, -1.0)["codes"] == []


def test_beams_end_where_there_are_no_more():
    codes = np.array([[[3], [1], [-1]]])
    explanations = Explanations(one_item({}, {}), codes, np.array([[-0.5, -1, -np.inf]]))
    found = [(one["codes"], one["score"]) for one in beams_of(explanations, 0)]
    assert found == [([3], -0.5), ([1], -1.0)]


@pytest.mark.parametrize(
    "feature, value, text",
    [
        ("week", np.log1p(23 / 0.1), "23 interactions of all users in the last week"),
        ("ever", np.log1p(4 / 0.1), "4 interactions of all users in all"),
        ("repeat_count", np.log1p(2.7 / 0.1), "2.7 times"),
        ("repeat_model", np.log1p(0.34 / 0.01), "34 per cent"),
        ("covisitation_today", np.log1p(0.5 / 0.1), "today's items, strength 0.5"),
        ("instruction_score", -np.log(20), "20 times less likely"),
        ("instruction_score", 0.0, "it fits the instruction alone"),
        ("lexical_match", -0.4, "lacks words of the instruction: -0.40"),
        ("lexical_match", 0.0, "no item's text has more words"),
        ("semantic_match", 0.5, "nearer to"),
        ("semantic_group_match", -1.2, "further from the instruction than the nearest: -1.20"),
        ("semantic_group_match", 0.0, "the nearest to the instruction"),
    ],
)
def test_values_in_words(feature, value, text):
    assert text in in_words(feature, value)


def test_every_feature_has_words():
    assert len({in_words(name, 1.0) for name in FEATURES}) == len(FEATURES)
