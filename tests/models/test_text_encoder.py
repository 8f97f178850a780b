"""Tests of the text encoder: a vector depends on the tokens of its text and has unit length."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sigma_jax.models.config import Qwen3Config
from sigma_jax.models.qwen3 import Qwen3
from sigma_jax.models.text_encoder import TextEncoder, TextEncoderConfig

SIZES = Qwen3Config(
    50, 16, 2, 2, 1, 8, 32, 1e4, 1e-6, True, True, 0.0, "float32", "float32", "none"
)


def encoder(pooling="mean", is_causal=True):
    rngs = nnx.Rngs(0)
    return TextEncoder(TextEncoderConfig(6, pooling, is_causal), Qwen3(SIZES, rngs=rngs), rngs=rngs)


@pytest.mark.parametrize(
    ("pooling", "is_causal"), [("mean", True), ("last", True), ("mean", False)]
)
def test_padding_changes_nothing(pooling, is_causal):
    model = encoder(pooling, is_causal)
    short = jnp.array([[7, 8, 9], [4, 5, 0]])
    long = jnp.array([[7, 8, 9, 33, 34], [4, 5, 11, 12, 13]])
    lengths = jnp.array([3, 2])
    vectors = model(short, lengths)
    np.testing.assert_allclose(model(long, lengths), vectors, atol=1e-5)
    np.testing.assert_allclose(model(short[1:, :2], lengths[1:]), vectors[1:], atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_pooling_takes_the_mean_or_the_last_hidden_state():
    model, tokens = encoder(), jnp.array([[7, 8, 9]])
    mask = jnp.tril(jnp.ones((1, 3, 3), bool))
    hidden, _ = model.backbone(model.backbone.embed(tokens), jnp.arange(3)[None], mask)
    for pooling, pooled in (("mean", hidden.mean(axis=1)), ("last", hidden[:, -1])):
        expected = pooled @ model.projection[...]
        expected = expected / jnp.linalg.norm(expected)
        actual = encoder(pooling)(tokens, jnp.array([3]))
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_without_a_causal_mask_the_order_is_seen_from_both_sides():
    tokens, lengths = jnp.array([[7, 8, 9]]), jnp.array([3])
    causal, full = encoder(), encoder(is_causal=False)
    mask = jnp.ones((1, 3, 3), bool)
    hidden, _ = full.backbone(full.backbone.embed(tokens), jnp.arange(3)[None], mask)
    expected = hidden.mean(axis=1) @ full.projection[...]
    np.testing.assert_allclose(
        full(tokens, lengths), expected / jnp.linalg.norm(expected), atol=1e-5
    )
    assert not jnp.allclose(causal(tokens, lengths), full(tokens, lengths), atol=1e-3)


def test_an_empty_row_has_a_finite_vector():
    assert bool(jnp.isfinite(encoder()(jnp.zeros((1, 4), int), jnp.array([0]))).all())


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="pooling='max' is unknown"):
        TextEncoderConfig(6, "max", True)
    with pytest.raises(ValueError, match="for causal encoders"):
        TextEncoderConfig(6, "last", False)
