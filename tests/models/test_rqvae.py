"""Tests of the RQ-VAE against float64 loops, and of its start and its unused codes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sigma_jax.models.rqvae import RqVae, RqVaeConfig, quantise

CONFIG = RqVaeConfig(
    levels=2,
    codebook_size=4,
    latent_size=3,
    hidden_sizes=(5,),
    commitment=0.25,
    decay=0.9,
    revive_below=0.0,
)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(10, 6)).astype(np.float32)
    codebooks = rng.normal(size=(2, 4, 3)).astype(np.float32)
    return vectors, codebooks


def make(arrays, **changes) -> RqVae:
    vectors, codebooks = arrays
    model = RqVae(dataclasses.replace(CONFIG, **changes), 6, True, rngs=nnx.Rngs(0))
    model.start_encoder(jnp.asarray(vectors))
    model.start_codebooks(jnp.asarray(codebooks), batch_rows=10)
    return model


def naive_quantise(latents, codebooks):
    codes, residuals = [], []
    for latent in np.float64(latents):
        row, rest = [], [latent]
        for codebook in np.float64(codebooks):
            row.append(int(np.argmin(((rest[-1] - codebook) ** 2).sum(-1))))
            rest.append(rest[-1] - codebook[row[-1]])
        codes.append(row)
        residuals.append(rest)
    return np.array(codes), np.array(residuals)


def test_quantise_equals_a_float64_loop(arrays):
    _, codebooks = arrays
    latents = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)
    codes, residuals = quantise(jnp.asarray(latents), jnp.asarray(codebooks))
    expected_codes, expected_residuals = naive_quantise(latents, codebooks)
    np.testing.assert_array_equal(codes, expected_codes)
    np.testing.assert_allclose(residuals, expected_residuals, atol=1e-5)


def test_loss_and_moved_codebooks_equal_a_float64_loop(arrays):
    vectors, codebooks = arrays
    model = make(arrays)
    latents = np.asarray(model.encode(jnp.asarray(vectors)))
    codes, residuals = naive_quantise(latents, codebooks)
    decoded = np.asarray(model.decode(jnp.asarray(latents - residuals[:, -1], jnp.float32)))
    loss, _ = model.loss(jnp.asarray(vectors), jax.random.key(0))
    reconstruction = ((decoded - vectors) ** 2).sum() / 10
    commitment = (residuals[:, 1:] ** 2).sum() / 10
    np.testing.assert_allclose(loss, reconstruction + 0.25 * commitment, rtol=1e-5)
    for level in range(2):
        for code in range(4):
            assigned = residuals[codes[:, level] == code, level]
            count = 0.9 * 10 / 4 + 0.1 * len(assigned)
            total = 0.9 * 10 / 4 * codebooks[level, code] + 0.1 * assigned.sum(0)
            np.testing.assert_allclose(model.counts[level, code], count, rtol=1e-5)
            np.testing.assert_allclose(model.codebooks[level, code], total / count, atol=1e-5)


def test_gradient_passes_straight_through_the_quantiser(arrays):
    x = jnp.asarray(arrays[0])
    model = make(arrays, commitment=0.0)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        return nnx.merge(graphdef, params, rest, copy=True).loss(x, jax.random.key(0))[0]

    _, residuals = quantise(model.encode(x), model.codebooks[...])
    offset = jax.lax.stop_gradient(residuals[:, -1])

    def as_if_unquantised(params):
        twin = nnx.merge(graphdef, params, rest, copy=True)
        decoded = twin.decode(twin.encode(x) - offset)
        return jnp.square(decoded - x).sum(-1).mean()

    actual, expected = jax.grad(loss)(params), jax.grad(as_if_unquantised)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual, expected)
    assert jnp.abs(actual["encoder"]["linear"][...]).max() > 0


def test_unused_codes_become_residuals_of_the_batch(arrays):
    vectors, codebooks = arrays
    codebooks = codebooks.copy()
    codebooks[0, 3] = 1e3  # far from all residuals
    model = make((vectors, codebooks), revive_below=0.5)
    model.counts[0, 3] = 0.0
    latents = np.asarray(model.encode(jnp.asarray(vectors)))
    _, metrics = model.loss(jnp.asarray(vectors), jax.random.key(0))
    assert metrics["revived_codes"] == 1
    distance = np.abs(latents - np.asarray(model.codebooks[0, 3])).max(-1)
    assert distance.min() < 1e-6
    assert model.counts[0, 3] == 10 / 4


def test_without_encoder_latents_are_the_vectors(arrays):
    vectors, _ = arrays
    model = RqVae(CONFIG, 6, False, rngs=nnx.Rngs(0))
    model.start_encoder(jnp.asarray(vectors))
    np.testing.assert_array_equal(model.encode(jnp.asarray(vectors)), vectors)
    np.testing.assert_array_equal(model.decode(jnp.asarray(vectors)), vectors)
    assert model.codebooks.shape == (2, 4, 6)
    assert not jax.tree.leaves(nnx.state(model, nnx.Param))


@pytest.mark.parametrize("latent_size", [6, 8])
def test_encoder_as_wide_as_the_vectors_starts_lossless(arrays, latent_size):
    vectors = jnp.asarray(arrays[0])
    config = dataclasses.replace(CONFIG, latent_size=latent_size)
    model = RqVae(config, 6, True, rngs=nnx.Rngs(0))
    model.start_encoder(vectors)
    np.testing.assert_allclose(model.decode(model.encode(vectors)), vectors, atol=1e-5)


@pytest.mark.parametrize(
    "field, value", [("levels", 0), ("levels", 17), ("codebook_size", 65_537), ("decay", 1.0)]
)
def test_bad_sizes_are_named(field, value):
    with pytest.raises(ValueError, match=f"model.{field}={value}"):
        dataclasses.replace(CONFIG, **{field: value})
