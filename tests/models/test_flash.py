"""Tests of the TPU attention kernels: values and gradients equal those of plain attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.ad_checkpoint import print_saved_residuals
from small_recommender import backbone_config

from sigma_jax.models import attention, flash
from sigma_jax.models.attention import KVCache, attend, rms_norm, rotary_angles, rotate
from sigma_jax.models.flash import fits, flash_attend
from sigma_jax.models.qwen3 import Qwen3, branch_mask, causal_mask

EPS = 1e-6
# B, T, N, K, H; 300 queries are no multiple of a block.
SHAPES = [(2, 300, 4, 2, 128), (1, 384, 2, 2, 128)]


def make(shape, dtype: str):
    """Queries, keys, values, a mask with branches and padding, and weights of the outputs."""
    B, T, N, K, H = shape
    rng = np.random.default_rng(0)
    queries, keys, values = (jnp.asarray(rng.normal(size=(B, T, n, H)), dtype) for n in (N, K, K))
    segment = np.sort(rng.integers(0, 4, (B, T)), axis=1).astype(np.int32)  # 0 sees no key
    branch = np.where(rng.random((B, T)) < 0.5, rng.integers(1, 4, (B, T)), 0)
    attach = rng.integers(0, T, (B, T))
    mask = jax.jit(branch_mask)(segment, branch, attach)
    assert not np.asarray(mask).any(axis=-1).all()
    return queries, keys, values, mask, jnp.asarray(rng.normal(size=(B, T, N, H)), jnp.float32)


def by_kernel(queries, keys, values, mask, angles, scales=None):
    """`flash_attend` without a TPU, with the shapes of `attend`."""
    flat = (array.reshape(*array.shape[:2], -1) for array in (queries, keys, values))
    mixed = flash_attend(*flat, mask, *angles, scales, EPS, interpret=True)
    return mixed.reshape(queries.shape)


def by_attend(queries, keys, values, mask, angles, scales=None):
    """The same by norms, rotation and `attend`."""
    if scales is not None:
        queries, keys = rms_norm(queries, scales[0], EPS), rms_norm(keys, scales[1], EPS)
    return attend(rotate(queries, angles), rotate(keys, angles), values, mask)


def angles_of(shape):
    positions = np.arange(shape[1])[None] % 50 + np.arange(shape[0])[:, None]
    return jax.jit(rotary_angles, static_argnums=(1, 2))(positions, shape[-1], 1e4)


@pytest.mark.parametrize("scores", [flash.SCORES, 1])
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_attend(monkeypatch, shape, has_norm, scores):
    """With room for few scores the queries of a head are split over several programs."""
    monkeypatch.setattr(flash, "SCORES", scores)
    *inputs, mask, weights = make(shape, "float32")
    inputs[0] *= 3.0  # so that a missing norm changes the result
    angles = angles_of(shape)
    if has_norm:
        rng = np.random.default_rng(1)
        inputs.append(jnp.asarray(rng.uniform(0.5, 1.5, (2, shape[-1])), jnp.float32))

    def run(function):
        def total(queries, keys, values, *scales):
            mixed = function(queries, keys, values, mask, angles, *scales)
            return (mixed * weights).sum(), mixed

        arguments = tuple(range(len(inputs)))
        return jax.jit(jax.value_and_grad(total, arguments, has_aux=True))(*inputs)

    (_, actual), gradients = run(by_kernel)
    (_, expected), expected_gradients = run(by_attend)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    sees_no_key = ~np.asarray(mask).any(axis=-1)
    assert not np.asarray(actual)[sees_no_key].any()
    for one, other in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6 * np.abs(other).max() + 2e-5)


def test_sixteen_bits_stay_sixteen_bits():
    *inputs, mask, _ = make(SHAPES[0], "bfloat16")
    actual = jax.jit(by_kernel)(*inputs, mask, angles_of(SHAPES[0]))
    assert actual.dtype == jnp.bfloat16
    wide = [array.astype(jnp.float32) for array in inputs]
    expected = jax.jit(by_attend)(*wide, mask, angles_of(SHAPES[0]))
    np.testing.assert_allclose(actual.astype(jnp.float32), expected, atol=0.03)


def test_few_queries_many_keys_and_narrow_heads_do_not_fit():
    assert fits(512, 128) and not fits(2, 128)
    assert not fits(100_000, 128) and not fits(512, 64)


def test_the_kernel_fills_a_cache_like_plain_attention(monkeypatch):
    """Hidden states, keys and values are equal, and so are the hidden states of later tokens."""
    config = backbone_config(head_dim=128, dtype="bfloat16")
    model, cache = Qwen3(config, rngs=nnx.Rngs(0)), KVCache.empty(config, 2, 132)
    scales = model.layers["key_norm"]
    # So that a missing norm changes the result.
    scales[...] = scales[...] * jnp.linspace(0.5, 2.0, 128)
    tokens = np.random.default_rng(0).integers(0, 20, (2, 132))
    positions = np.broadcast_to(np.arange(132), tokens.shape)
    segment = (positions < np.array([[130], [90]])).astype(np.int32)
    mask, results, calls = np.asarray(jax.jit(causal_mask)(segment)), {}, []
    new_mask = np.broadcast_to(np.tri(2, dtype=bool), (2, 2, 2))
    new_mask = np.concatenate([segment[:, None, :130].repeat(2, axis=1) > 0, new_mask], axis=-1)

    def interpreted(*arrays, **how):
        calls.append(arrays[0].shape)
        return flash_attend(*arrays, interpret=True)

    monkeypatch.setattr(flash, "flash_attend", interpreted)
    for name, is_on_tpu in (("plain", False), ("kernel", True)):
        monkeypatch.setattr(attention, "on_tpu", functools.partial(bool, is_on_tpu))

        @jax.jit
        def run(model, tokens, positions, mask, cache):
            return model(model.embed(tokens), positions, mask, cache)

        prompt = tokens[:, :130], positions[:, :130], mask[:, :130, :130]
        hidden, filled = run(model, *prompt, cache)
        new_hidden, _ = run(model, tokens[:, 130:], positions[:, 130:], new_mask, filled)
        hidden = np.asarray(hidden, np.float32) * (segment[:, :130, None] > 0)
        results[name] = [hidden, filled.keys, filled.values, new_hidden]
    assert set(calls) == {(2, 130, 256)}
    for one, other in zip(results["kernel"], results["plain"], strict=True):
        one, other = (np.asarray(array, np.float32) for array in (one, other))
        np.testing.assert_allclose(one, other, atol=0.05 * np.abs(other).max())
        assert np.abs(other).max() > 0.1


def test_a_policy_can_keep_by_name_the_results_that_the_backward_pass_needs(capsys):
    """With outputs and log-normalisers kept, the forward kernel need not run again."""
    queries, keys, values, mask, _ = make(SHAPES[1], "float32")
    angles = angles_of(SHAPES[1])
    policy = jax.checkpoint_policies.save_only_these_names(flash.KEPT)

    def mixed(queries):
        return by_kernel(queries, keys, values, mask, angles).sum()

    print_saved_residuals(jax.checkpoint(mixed, policy=policy), queries)
    kept = [line for line in capsys.readouterr().out.splitlines() if flash.KEPT in line]
    assert [line.split(" ")[0] for line in kept] == ["f32[1,384,256]", "f32[1,2,1,384]"]
