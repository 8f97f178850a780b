"""Tests of residual k-means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.models.rqvae import quantise
from sigma_jax.tokenizer import kmeans as module
from sigma_jax.tokenizer.kmeans import cluster_sums, kmeans, nearest, plus_plus, residual_kmeans


@pytest.fixture
def points():
    return np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)


def test_blocks_change_nothing(points, monkeypatch):
    centres = points[:7]
    unblocked = nearest(points, centres), *cluster_sums(points, centres)
    monkeypatch.setattr(module, "BLOCK", 8)
    blocked = nearest(points, centres), *cluster_sums(points, centres)
    for one, other in zip(blocked, unblocked, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    distance = np.square(points[:, None] - centres).sum(-1)
    np.testing.assert_array_equal(unblocked[0], distance.argmin(1))
    np.testing.assert_array_equal(unblocked[2], np.bincount(distance.argmin(1), minlength=7))


def test_lloyd_iterations_equal_a_plain_loop(points):
    key = jax.random.key(1)
    centres = np.float64(plus_plus(jnp.asarray(points), 5, key))
    for _ in range(4):
        centre_of = np.square(points[:, None] - centres).sum(-1).argmin(1)
        centres = np.array([points[centre_of == c].mean(0) for c in range(5)])
    np.testing.assert_allclose(kmeans(jnp.asarray(points), 5, 4, key), centres, atol=1e-5)


def test_plus_plus_takes_every_distinct_point_once():
    points = np.repeat(np.float32([[0, 0], [5, 0], [0, 5], [9, 9]]), 6, axis=0)
    centres = np.asarray(plus_plus(jnp.asarray(points), 4, jax.random.key(0)))
    assert len(np.unique(centres, axis=0)) == 4


def test_more_centres_than_points_represent_each_point_exactly(points):
    few = jnp.asarray(points[:5])
    codebooks = residual_kmeans(few, levels=3, count=8, iterations=3, key=jax.random.key(0))
    codes, residuals = quantise(few, codebooks)
    assert np.isfinite(codebooks).all()
    assert len(np.unique(codes[:, 0])) == 5
    np.testing.assert_allclose(residuals[:, -1], 0, atol=1e-5)


def test_each_level_lowers_the_error(points):
    codebooks = residual_kmeans(jnp.asarray(points), 3, 4, 5, jax.random.key(0))
    _, residuals = quantise(jnp.asarray(points), codebooks)
    errors = np.square(residuals).sum((0, 2))
    assert (np.diff(errors) < 0).all()
