"""Tests of attention and matrix products: values and gradients equal those of plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.models.attention import attend
from sigma_jax.models.linear import matmul


def draw(*shapes, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def naive(queries, keys, values, mask):
    group = queries.shape[2] // keys.shape[2]
    keys, values = (jnp.repeat(x, group, axis=2) for x in (keys, values))
    scores = jnp.einsum("BTNH,BSNH->BNTS", queries, keys) / queries.shape[-1] ** 0.5
    scores = jnp.where(mask[:, None], scores, -1e30)
    mixed = jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(scores), values)
    return mixed * mask.any(-1)[:, :, None, None]


@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (3, 1)])
def test_attention_and_its_gradients_are_those_of_the_formula(heads):
    N, K = heads
    *arrays, weight = draw((2, 5, N, 4), (2, 7, K, 4), (2, 7, K, 4), (2, 5, N, 4))
    mask = jnp.asarray(np.random.default_rng(1).random((2, 5, 7)) < 0.6).at[0, 3].set(False)

    def total(function):
        return lambda *x: (function(*x, mask) * weight).sum()

    actual, expected = (
        jax.jit(jax.value_and_grad(total(function), (0, 1, 2)))(*arrays)
        for function in (attend, naive)
    )
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_gradients_keep_16_bits():
    arrays = draw((1, 3, 2, 4), (1, 3, 2, 4), (1, 3, 2, 4), dtype=jnp.bfloat16)
    mask = jnp.ones((1, 3, 3), bool)

    def total(*x):
        return attend(*x, mask).astype(jnp.float32).sum()

    grads = jax.jit(jax.grad(total, (0, 1, 2)))(*arrays)
    assert {grad.dtype for grad in grads} == {jnp.dtype(jnp.bfloat16)}
    wide = [x.astype(jnp.float32) for x in arrays]
    expected = jax.jit(jax.grad(lambda *x: naive(*x, mask).sum(), (0, 1, 2)))(*wide)
    for one, other in zip(grads, expected, strict=True):
        np.testing.assert_allclose(one.astype(jnp.float32), other, atol=0.05)


@pytest.mark.parametrize(
    ("x", "weight", "axes"),
    [((2, 3, 4), (4, 9), 1), ((2, 3, 9), (9, 4), 1), ((5, 4), (4, 2, 3), 1)]
    + [((2, 3, 2, 4), (2, 4, 5), 2)],
)
def test_matmul_and_its_gradients_are_those_of_tensordot(x, weight, axes):
    arrays = draw(x, weight)
    [cotangent] = draw(jax.eval_shape(lambda *both: jnp.tensordot(*both, axes), *arrays).shape)

    def product_and_gradients(function):
        def run(*both):
            product, pullback = jax.vjp(lambda *both: function(*both, axes), *both)
            return product, pullback(cotangent)

        return jax.tree.leaves(jax.jit(run)(*arrays))

    both = (product_and_gradients(function) for function in (matmul, jnp.tensordot))
    for one, other in zip(*both, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
