"""Tests of the head beside a sentence encoder: what it keeps, what it adds, its files."""

import numpy as np
import pytest
from flax import nnx

from sigma_jax.encoders import grounding_head
from sigma_jax.encoders.grounding_head import GroundedVectors, GroundingHead, HeadConfig

E, W = 12, 4


def grounded(weight=0.5, seed=0):
    config = HeadConfig(width=W, hidden_width=8, weight=weight)
    return GroundedVectors(GroundingHead(E, config, rngs=nnx.Rngs(seed)), config)


def rows(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, E)).astype(np.float32)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_cosine_is_the_mean_of_both_cosines_by_weight():
    head, vectors = grounded(weight=0.5), rows(5)
    found = head(vectors)
    assert found.shape == (5, E + W) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    plain = unit(vectors)
    of_head = np.asarray(head.head(plain))
    np.testing.assert_allclose(np.linalg.norm(of_head, axis=1), 1, atol=1e-5)
    expected = (plain @ plain.T + 0.25 * of_head @ of_head.T) / 1.25
    np.testing.assert_allclose(found @ found.T, expected, atol=1e-5)


def test_without_weight_the_encoder_is_alone():
    vectors = rows(5)
    found = grounded(weight=0.0)(vectors)
    np.testing.assert_allclose(found @ found.T, unit(vectors) @ unit(vectors).T, atol=1e-6)


def test_a_vector_depends_on_nothing_but_its_row(monkeypatch):
    vectors = rows(7)
    together = grounded()(vectors)
    np.testing.assert_allclose(grounded()(vectors[3:4]), together[3:4], atol=1e-6)
    np.testing.assert_allclose(grounded()(3 * vectors), together, atol=1e-6)
    monkeypatch.setattr(grounding_head, "MOST_ROWS", 3)
    np.testing.assert_allclose(grounded()(vectors), together, atol=1e-6)
    assert grounded()(vectors[:0]).shape == (0, E + W)


def test_files(tmp_path):
    grounded(seed=3).save(tmp_path)
    loaded = GroundedVectors.load(tmp_path)
    np.testing.assert_array_equal(loaded(rows(4)), grounded(seed=3)(rows(4)))
    assert not np.allclose(loaded(rows(4)), grounded(seed=4)(rows(4)), atol=1e-3)
    assert GroundedVectors.load(tmp_path / "nowhere") is None
    (tmp_path / grounding_head.SETTINGS).write_text('{"width": 4}')
    with pytest.raises(ValueError, match=r"grounding_head.json is damaged .* run the stage"):
        GroundedVectors.load(tmp_path)


@pytest.mark.parametrize("field, value", [("width", 0), ("hidden_width", 0), ("weight", -0.1)])
def test_bad_sizes(field, value):
    fields = {"width": 4, "hidden_width": 8, "weight": 0.5} | {field: value}
    with pytest.raises(ValueError, match=f"head.{field}={value}; use"):
        HeadConfig(**fields)
