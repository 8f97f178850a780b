"""Products of activations with a layer's matrices, and low-rank additions to the matrices (LoRA).

With additions each matrix W of a layer becomes W + alpha / rank * A B (Hu et al. 2022, LoRA).
Only A [inputs, rank] and B [rank, outputs] are trained. B starts at 0, so that the model starts
unchanged. Saved folders hold the sums W + alpha / rank * A B, so their readers need no LoRA.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from sigma_jax.models.config import LoraConfig
from sigma_jax.runtime.sharding import on_tpu

# The matrices of a layer: name -> number of leading axes that are inputs.
INPUT_AXES = {"query": 1, "key": 1, "value": 1, "out": 2, "gate": 1, "up": 1, "down": 1}
LORA_SUFFIXES = ("_a", "_b")  # of the additions' names: query_a, query_b


def project(
    x: Array,
    weights: Mapping[str, Array],
    name: str,
    lora: LoraConfig | None,
    input_axes: int = 1,
) -> Array:
    """`x` times the matrix `name` of a layer, with its low-rank addition if `lora` is given.

    The result carries `name` for checkpoint policies (`config.REMAT`).
    """
    projected = matmul(x, weights[name], input_axes)
    if lora is not None:
        a, b = (weights[name + suffix] for suffix in LORA_SUFFIXES)
        projected += matmul(lora.scale * matmul(x, a, input_axes), b)
    return checkpoint_name(projected, name)


def matmul(x: Array, weight: Array, input_axes: int = 1) -> Array:
    """The product over the last `input_axes` axes of `x` and the first of `weight`."""
    if on_tpu():
        return jnp.tensordot(x, weight, input_axes)
    leading, inputs = x.shape[: x.ndim - input_axes], weight.shape[:input_axes]
    flat_x = x.reshape(*leading, math.prod(inputs))
    flat = _matmul(flat_x, weight.reshape(math.prod(inputs), -1))
    return flat.reshape(*leading, *weight.shape[input_axes:])


@jax.custom_vjp
def _matmul(x: Float[Array, "*B D"], weight: Float[Array, "D F"]) -> Float[Array, "*B F"]:
    return x @ weight


def _forward(x, weight):
    return x @ weight, (x, weight)


def _backward(saved, gradient):
    # XLA on a CPU copies the left factor of a weight gradient into another layout; the narrower
    # factor on the left costs least. A training step of the preset `local` takes a tenth less.
    x, weight = saved
    flat_x = x.reshape(-1, x.shape[-1])
    flat_gradient = gradient.reshape(-1, gradient.shape[-1])
    over_rows = (((0,), (0,)), ((), ()))
    if flat_x.shape[1] <= flat_gradient.shape[1]:
        weight_gradient = jax.lax.dot_general(flat_x, flat_gradient, over_rows)
    else:
        weight_gradient = jax.lax.dot_general(flat_gradient, flat_x, over_rows).T
    return gradient @ weight.T, weight_gradient


_matmul.defvjp(_forward, _backward)


def add_lora(layers: MutableMapping[str, nnx.Param], lora: LoraConfig, rngs: nnx.Rngs) -> None:
    """Puts A and B of every matrix into `layers`, float32 whatever the type of the matrices.

    `layers` holds the stacked weights of all layers. The additions start at 0.
    """
    rank = lora.rank
    for name, input_axes in INPUT_AXES.items():
        shape, axes = layers[name].shape, layers[name].get_metadata("axes")
        inputs, outputs = slice(1, 1 + input_axes), slice(1 + input_axes, None)
        deviation = math.prod(shape[inputs]) ** -0.5
        first = jax.random.normal(rngs.params(), (shape[0], *shape[inputs], rank), jnp.float32)
        second = jnp.zeros((shape[0], rank, *shape[outputs]), jnp.float32)
        a, b = (name + suffix for suffix in LORA_SUFFIXES)
        layers[a] = nnx.Param(deviation * first, axes=("layers", *axes[inputs], "rank"))
        layers[b] = nnx.Param(second, axes=("layers", "rank", *axes[outputs]))


def fold_lora(layers: MutableMapping[str, nnx.Param], lora: LoraConfig) -> None:
    """Replaces every matrix in `layers` by its sum with its addition, which is removed.

    The sums keep the type of the matrices.
    """
    for name in INPUT_AXES:
        weight = layers[name]
        a, b = (layers.pop(name + suffix)[...] for suffix in LORA_SUFFIXES)
        weight[...] = _sum(weight[...], a, b, lora.scale)


@jax.jit
def _sum(weight: Array, a: Array, b: Array, scale: float) -> Array:
    by_layer = (((a.ndim - 1,), (1,)), ((0,), (0,)))
    added = jax.lax.dot_general(a, b, by_layer, precision=jax.lax.Precision.HIGHEST)
    return (weight.astype(jnp.float32) + scale * added).astype(weight.dtype)


def is_frozen_by_lora(path: tuple[str, ...]) -> bool:
    """True for the parameters of a backbone other than its low-rank additions.

    `path` is the parameter's path in a module with the attribute `backbone`.
    """
    return path[0] == "backbone" and not path[-1].endswith(LORA_SUFFIXES)
