"""Products of activations with weights, and what their gradients cost on a CPU."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sigma_jax.runtime.sharding import on_tpu


def project(x: Array, weight: Array, axes: int = 1) -> Array:
    """The product over the last `axes` dimensions of `x` and the first of `weight`."""
    if on_tpu():
        return jnp.tensordot(x, weight, axes)
    lead, inputs = x.shape[: x.ndim - axes], weight.shape[:axes]
    flat = _product(x.reshape(*lead, math.prod(inputs)), weight.reshape(math.prod(inputs), -1))
    return flat.reshape(*lead, *weight.shape[axes:])


@jax.custom_vjp
def _product(x: Float[Array, "*B D"], weight: Float[Array, "D F"]) -> Float[Array, "*B F"]:
    return x @ weight


def _forward(x, weight):
    return x @ weight, (x, weight)


def _backward(kept, gradient):
    # XLA's products on a CPU lay out anew what stands on the left of a gradient of weights: the
    # narrower side costs least. A training step of `local` takes a tenth less.
    x, weight = kept
    rows = x.reshape(-1, x.shape[-1])
    given = gradient.reshape(-1, gradient.shape[-1])
    first = (((0,), (0,)), ((), ()))
    if rows.shape[1] <= given.shape[1]:
        of_weight = jax.lax.dot_general(rows, given, first)
    else:
        of_weight = jax.lax.dot_general(given, rows, first).T
    return gradient @ weight.T, of_weight


_product.defvjp(_forward, _backward)
