"""The TPU's attention gives what plain attention gives, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.models import flash
from sigma_jax.models.flash import fits, flash_attend
from sigma_jax.models.qwen3 import attend, branch_mask

# Batch, queries, query heads, key heads, head size; 300 queries are no multiple of a block.
SHAPES = [(2, 300, 4, 2, 64), (1, 384, 2, 2, 128)]


def make(shape, dtype: str):
    """Queries, keys, values, a mask of branches and padding, weights of what comes out."""
    B, T, N, K, H = shape
    rng = np.random.default_rng(0)
    queries, keys, values = (jnp.asarray(rng.normal(size=(B, T, n, H)), dtype) for n in (N, K, K))
    segment = np.sort(rng.integers(0, 4, (B, T)), axis=1).astype(np.int32)  # 0 sees nobody
    branch = np.where(rng.random((B, T)) < 0.5, rng.integers(1, 4, (B, T)), 0)
    attach = rng.integers(0, T, (B, T))
    mask = branch_mask(*map(jnp.asarray, (segment, branch, attach)))
    assert not bool(mask.any(axis=-1).all())
    return queries, keys, values, mask, jnp.asarray(rng.normal(size=(B, T, N, H)), jnp.float32)


@pytest.mark.parametrize("scores", [flash.SCORES, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_attend(monkeypatch, shape, scores):
    """With room for few scores at a time a head's queries are several programs'."""
    monkeypatch.setattr(flash, "SCORES", scores)
    *inputs, mask, weights = make(shape, "float32")

    def run(function):
        def total(*inputs):
            mixed = function(*inputs, mask)
            return (mixed * weights).sum(), mixed

        return jax.value_and_grad(total, (0, 1, 2), has_aux=True)(*inputs)

    (_, found), gradients = run(lambda *arrays: flash_attend(*arrays, interpret=True))
    (_, expected), wanted = run(attend)
    np.testing.assert_allclose(found, expected, atol=5e-6)
    sees_nobody = ~np.asarray(mask.any(axis=-1))
    assert not np.asarray(found)[sees_nobody].any()
    for one, other in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_sixteen_bits_stay_sixteen_bits():
    *inputs, mask, _ = make(SHAPES[0], "bfloat16")
    found = flash_attend(*inputs, mask, interpret=True)
    assert found.dtype == jnp.bfloat16
    wide = [each.astype(jnp.float32) for each in inputs]
    np.testing.assert_allclose(found.astype(jnp.float32), attend(*wide, mask), atol=0.02)


def test_a_few_queries_are_no_matter_for_it():
    assert fits(512, 512) and not fits(2, 512) and not fits(512, 100_000)
