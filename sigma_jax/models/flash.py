"""Attention kernels for TPUs (Pallas), forward and backward, that keep scores out of main memory.

Each program of the grid holds all keys of one key head and some queries of the heads that share it.
Scores stay in on-chip memory from the product to the weighted sum. So the mask is the only array of
size [T, S] that is read or written, and no running maximum is needed. Any mask is possible: packed
rows and branches that share a context take the time of a causal row.

The kernels also apply Qwen3's norms of queries and keys and the rotary embedding. Heads stay side
by side, as the projections give and take them, so no array changes its order in memory. The
backward pass recomputes everything from the projections and the log-normalisers of the rows
(Dao et al. 2022, FlashAttention, section 3.1).

Axis letters as in qwen3.py, and Q: query rows of one program.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int8

from sigma_jax.losses import LOG_ZERO

ROWS = 128  # numbers of queries and of keys are multiples of it
LANES = 128  # head sizes are multiples of it
SCORES = 2**18  # most scores of one head in on-chip memory
KEYS = 4_096  # most keys that fit into on-chip memory
KEPT = "flash"  # name, for checkpoint policies, of the forward results that the backward pass needs
# Programs of one key head run one after another, because the backward pass sums over them.
_SEQUENTIAL = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"))


class Heads(NamedTuple):
    """K key heads, G query heads for each, head size H, and the epsilon of their norms."""

    K: int
    G: int
    H: int
    eps: float


def fits(tokens: int, head_dim: int) -> bool:
    """True if the kernels can attend over rows of `tokens` tokens."""
    return ROWS <= tokens <= KEYS and head_dim % LANES == 0


def flash_attend(
    queries: Float[Array, "B T N*H"],
    keys: Float[Array, "B T K*H"],
    values: Float[Array, "B T K*H"],
    mask: Bool[Array, "B T T"],
    cos: Float[Array, "B T 1 H/2"],
    sin: Float[Array, "B T 1 H/2"],
    scales: Float[Array, "2 H"] | None,
    eps: float,
    interpret: bool = False,
) -> Float[Array, "B T N*H"]:
    """`attention.attend` of normed and rotated queries and keys; heads stand side by side.

    A row that sees no key gets 0.

    Args:
      cos, sin: of the rotary angles (`attention.rotary_angles`).
      scales: of the norms of queries and of keys; None: no norms.
      interpret: True runs the kernels without a TPU, slowly, for tests.
    """
    T, H = queries.shape[1], 2 * cos.shape[-1]
    heads = Heads(keys.shape[2] // H, queries.shape[2] // keys.shape[2], H, eps)
    padding = -T % ROWS

    def padded(array: Array, *sizes: int) -> Array:
        return jnp.pad(array, ((0, 0), *((0, size) for size in sizes)))

    # Rotation: x times the cosines, plus x with its halves swapped times the signed sines.
    angles = jnp.stack([jnp.concatenate([cos, cos], -1), jnp.concatenate([-sin, sin], -1)], 1)
    angles = padded(angles[:, :, :, 0], 0, padding, 0)
    mask = padded(mask.astype(jnp.int8), padding, padding)
    if scales is not None:
        scales = scales.astype(jnp.float32)
    rows = (padded(array, padding, 0) for array in (queries, keys, values))
    return _attend(*rows, mask, angles, scales, heads, interpret)[:, :T]


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _attend(
    queries: Float[Array, "B T K*G*H"],
    keys: Float[Array, "B T K*H"],
    values: Float[Array, "B T K*H"],
    mask: Int8[Array, "B T T"],
    angles: Float[Array, "B 2 T H"],
    scales: Float[Array, "2 H"] | None,
    heads: Heads,
    interpret: bool,
) -> Float[Array, "B T K*G*H"]:
    return _forward(queries, keys, values, mask, angles, scales, heads, interpret)[0]


def _forward(queries, keys, values, mask, angles, scales, heads, interpret):
    """Weighted sums of values, and log-normalisers [B, K, G, T]."""
    (K, G, H, eps), T = heads, mask.shape[1]

    def kernel(q_ref, k_ref, v_ref, mask_ref, query_angles, key_angles, *rest):
        *scale_ref, out_ref, norm_ref = rest
        scale = _scales(scale_ref)
        is_seen = mask_ref[0].astype(jnp.int32) != 0
        key = _Head(k_ref[0], key_angles[0], scale[1], eps).rotated
        for g in range(G):
            head = slice(g * H, (g + 1) * H)
            query = _Head(q_ref[0, :, head], query_angles[0], scale[0], eps).rotated
            scores = jnp.where(is_seen, _dot(query, key, (1, 1)) * H**-0.5, LOG_ZERO)
            top = scores.max(axis=1, keepdims=True)
            weights = jnp.exp(scores - top)
            total = weights.sum(axis=1, keepdims=True)
            mixed = _dot(weights.astype(v_ref.dtype), v_ref[0], (1, 0)) / total
            # In a row that sees no key every key has weight 1.
            mixed = jnp.where(top > LOG_ZERO, mixed, 0.0)
            out_ref[0, :, head] = mixed.astype(out_ref.dtype)
            norm_ref[0, 0, g] = (top + jnp.log(total))[:, 0]

    inputs = {"queries": queries, "keys": keys, "values": values, "mask": mask}
    outputs = {
        "queries": jax.ShapeDtypeStruct(queries.shape, queries.dtype),
        "rows": jax.ShapeDtypeStruct((len(queries), K, G, T), jnp.float32),
    }
    cost = _cost(queries, keys, H, 2, 2)
    return _call("flash_forward", kernel, inputs, outputs, angles, scales, heads, cost, interpret)


def _save(queries, keys, values, mask, angles, scales, heads, interpret):
    inputs = (queries, keys, values, mask, angles, scales)
    outputs = [checkpoint_name(array, KEPT) for array in _forward(*inputs, heads, interpret)]
    return outputs[0], (*inputs, *outputs)


def _backward(heads, interpret, saved, grad):
    queries, keys, values, mask, angles, scales, mixed, log_normaliser = saved
    (K, G, H, eps), T = heads, mask.shape[1]

    def kernel(q_ref, k_ref, v_ref, mask_ref, mixed_ref, norm_ref, grad_ref, *rest):
        query_angles, key_angles, *rest, dk_sum, dv_sum = rest
        *scale_ref, dq_ref, dk_ref, dv_ref, dscale_ref = rest
        scale = _scales(scale_ref)
        rows = pl.program_id(2)

        @pl.when(rows == 0)
        def _():
            for ref in (dk_sum, dv_sum, dscale_ref):
                ref[...] = jnp.zeros_like(ref)

        is_seen = mask_ref[0].astype(jnp.int32) != 0
        key, value = _Head(k_ref[0], key_angles[0], scale[1], eps), v_ref[0]
        for g in range(G):
            head = slice(g * H, (g + 1) * H)
            query = _Head(q_ref[0, :, head], query_angles[0], scale[0], eps)
            grad = grad_ref[0, :, head]
            wide = grad.astype(jnp.float32) * mixed_ref[0, :, head].astype(jnp.float32)
            inner = wide.sum(axis=1, keepdims=True)
            scores = _dot(query.rotated, key.rotated, (1, 1)) * H**-0.5 - norm_ref[0, 0, g][:, None]
            weights = jnp.where(is_seen, jnp.exp(scores), 0.0)
            dv_sum[...] += _dot(weights.astype(grad.dtype), grad, (0, 0))
            dscores = weights * (_dot(grad, value, (1, 1)) - inner) * H**-0.5
            dscores = dscores.astype(value.dtype)
            dq, dscale = query.gradients(_dot(dscores, key.rotated, (1, 0)))
            dq_ref[0, :, head] = dq.astype(dq_ref.dtype)
            dscale_ref[0, 0, 0:1] += dscale
            dk_sum[...] += _dot(dscores, query.rotated, (0, 0))

        @pl.when(rows == pl.num_programs(2) - 1)
        def _():
            dk, dscale = key.gradients(dk_sum[...])
            dk_ref[0] = dk.astype(dk_ref.dtype)
            dv_ref[0] = dv_sum[...].astype(dv_ref.dtype)
            dscale_ref[0, 0, 1:2] += dscale

    inputs = {"queries": queries, "keys": keys, "values": values, "mask": mask}
    inputs |= {"mixed": mixed, "rows": log_normaliser, "grad": grad}
    outputs = {
        "queries": jax.ShapeDtypeStruct(queries.shape, queries.dtype),
        "keys": jax.ShapeDtypeStruct(keys.shape, keys.dtype),
        "values": jax.ShapeDtypeStruct(values.shape, values.dtype),
        "scales": jax.ShapeDtypeStruct((len(queries), K, 2, H), jnp.float32),
    }
    cost = _cost(queries, keys, H, 5, 4)
    sums = [pltpu.VMEM((T, H), jnp.float32)] * 2
    dq, dk, dv, dscale = _call(
        "flash_backward", kernel, inputs, outputs, angles, scales, heads, cost, interpret, sums
    )
    return dq, dk, dv, None, None, None if scales is None else dscale.sum((0, 1))


_attend.defvjp(_save, _backward)


class _Head:
    """Queries or keys of one head: normed if `scale` is given, then rotated."""

    def __init__(self, x: Array, angles: Array, scale: Array | None, eps: float):
        self._angles, self._scale = angles, scale
        wide = x.astype(jnp.float32)
        if scale is not None:
            self._root = jax.lax.rsqrt((wide * wide).mean(axis=1, keepdims=True) + eps)
            self._unit = wide * self._root
            wide = (self._unit * scale).astype(x.dtype).astype(jnp.float32)
        self.rotated = (wide * angles[0] + _swapped(wide) * angles[1]).astype(x.dtype)

    def gradients(self, grad: Float[Array, "Q H"]) -> tuple[Array, Array]:
        """Gradients of x and, as a row, of the scale (0 without one), given that of `rotated`."""
        grad = grad * self._angles[0] + _swapped(grad * self._angles[1])
        if self._scale is None:
            return grad, jnp.zeros((1, grad.shape[1]), jnp.float32)
        scale_grad = (grad * self._unit).sum(axis=0, keepdims=True)
        grad = grad * self._scale
        along = (grad * self._unit).mean(axis=1, keepdims=True)
        return self._root * (grad - self._unit * along), scale_grad


def _swapped(x: Array) -> Array:
    """`x` with the halves of its rows swapped."""
    return pltpu.roll(x, x.shape[1] // 2, 1)


def _scales(refs: list) -> tuple[Array | None, Array | None]:
    """Scales of queries and of keys as rows; None without norms."""
    return (refs[0][0:1], refs[0][1:2]) if refs else (None, None)


def _dot(left: Array, right: Array, contracted: tuple[int, int]) -> Array:
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)


def _rows_of(T: int) -> int:
    """Q: the largest divisor of T with at most SCORES scores, in multiples of ROWS."""
    limit = max(SCORES // T, ROWS)
    return max(size for size in range(ROWS, T + 1, ROWS) if T % size == 0 and size <= limit)


def _call(name, kernel, inputs, outputs, angles, scales, heads, cost, interpret, scratch=()):
    """Outputs of `kernel`, whose arguments are `inputs`, the angles (twice) and the scales."""
    (K, G, H, _), (B, T, _) = heads, inputs["mask"].shape
    Q = _rows_of(T)
    query_block = pl.BlockSpec((1, Q, G * H), lambda b, k, t: (b, t, k))
    key_block = pl.BlockSpec((1, T, H), lambda b, k, t: (b, 0, k))
    block = {
        "queries": query_block,
        "mixed": query_block,
        "grad": query_block,
        "keys": key_block,
        "values": key_block,
        "mask": pl.BlockSpec((1, Q, T), lambda b, k, t: (b, t, 0)),
        "rows": pl.BlockSpec((1, 1, G, Q), lambda b, k, t: (b, k, 0, t)),
        "scales": pl.BlockSpec((1, 1, 2, H), lambda b, k, t: (b, k, 0, 0)),
    }
    arrays = [*inputs.values(), angles, angles]
    blocks = [block[name] for name in inputs]
    blocks.append(pl.BlockSpec((1, 2, Q, H), lambda b, k, t: (b, 0, t, 0)))
    blocks.append(pl.BlockSpec((1, 2, T, H), lambda b, k, t: (b, 0, 0, 0)))
    if scales is not None:
        arrays.append(scales)
        blocks.append(pl.BlockSpec((2, H), lambda b, k, t: (0, 0)))
    return pl.pallas_call(
        kernel,
        grid=(B, K, T // Q),
        in_specs=blocks,
        out_specs=[block[name] for name in outputs],
        out_shape=list(outputs.values()),
        scratch_shapes=scratch,
        compiler_params=_SEQUENTIAL,
        cost_estimate=cost,
        interpret=interpret,
        name=name,
    )(*arrays)


def _cost(queries: Array, keys: Array, H: int, products: int, arrays: int) -> pl.CostEstimate:
    """Cost of `products` of queries with keys; `arrays` times the inputs' bytes are moved."""
    pairs = queries.size * keys.shape[1] // H
    moved = arrays * (queries.size + 2 * keys.size) * queries.dtype.itemsize
    return pl.CostEstimate(
        flops=2 * products * pairs * H, transcendentals=pairs, bytes_accessed=moved
    )
