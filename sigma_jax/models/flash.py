"""Attention on TPUs without scores in memory: one Pallas kernel forward and one backward.

A program of the grid holds all keys of one key head, and some queries of the heads that share it;
their scores live in on-chip memory from the product to the weighted sum, so nothing of size
[T, S] but the mask is read or written, and no running maximum is needed. The mask is any mask:
packed rows and branches that share a context cost what a causal row does.

What stands between the projections and the scores (Qwen3's norms of queries and keys, the rotary
embedding) happens inside too: heads stay side by side as products leave and take them, and nothing
is brought into another order in memory. The backward pass makes all of it again from the
projections and the rows' log-normalisers (Dao et al. 2022, FlashAttention, section 3.1).

Axis letters as in qwen3.py; Q query rows of a program, G query heads of a key head.
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

ROWS = 128  # queries and keys come in multiples of it
LANES = 128  # and head sizes
SCORES = 2**18  # of one head in on-chip memory
KEYS = 4_096  # more do not fit on the chip
KEPT = "flash"  # what the backward pass needs of the forward one, to checkpoint policies
# Programs of one key head run in turn: the backward pass adds up over them.
_IN_TURN = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"))


class Heads(NamedTuple):
    """Key heads, query heads of each, their size, the epsilon of their norms."""

    K: int
    G: int
    H: int
    eps: float


def fits(tokens: int, head_dim: int) -> bool:
    """Whether rows of so many tokens are a matter for these kernels."""
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
    """What `attend` of qwen3.py gives once queries and keys are normed and turned, for any mask,
    heads side by side. A row that sees nobody gets 0.

    Args:
      cos, sin: of the angles that queries and keys are turned by.
      scales: of the norms of queries and of keys; None: there are none.
      interpret: runs where there is no TPU, slowly, for tests.
    """
    T, H = queries.shape[1], 2 * cos.shape[-1]
    heads = Heads(keys.shape[2] // H, queries.shape[2] // keys.shape[2], H, eps)
    more = -T % ROWS

    def padded(array: Array, *sizes: int) -> Array:
        return jnp.pad(array, ((0, 0), *((0, size) for size in sizes)))

    # Turning: x times the cosines, and its halves in each other's place times the signed sines.
    angles = jnp.stack([jnp.concatenate([cos, cos], -1), jnp.concatenate([-sin, sin], -1)], 1)
    angles = padded(angles[:, :, :, 0], 0, more, 0)
    mask = padded(mask.astype(jnp.int8), more, more)
    if scales is not None:
        scales = scales.astype(jnp.float32)
    rows = (padded(each, more, 0) for each in (queries, keys, values))
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
    """(mixed values, log-normalisers [B, K, G, T])."""
    (K, G, H, eps), T = heads, mask.shape[1]

    def kernel(q_ref, k_ref, v_ref, mask_ref, of_queries, of_keys, *rest):
        *scale_ref, out_ref, norm_ref = rest
        scale = _scales(scale_ref)
        is_seen = mask_ref[0].astype(jnp.int32) != 0
        key = _Head(k_ref[0], of_keys[0], scale[1], eps).ready
        for g in range(G):
            own = slice(g * H, (g + 1) * H)
            query = _Head(q_ref[0, :, own], of_queries[0], scale[0], eps).ready
            scores = jnp.where(is_seen, _dot(query, key, (1, 1)) * H**-0.5, LOG_ZERO)
            top = scores.max(axis=1, keepdims=True)
            weights = jnp.exp(scores - top)
            total = weights.sum(axis=1, keepdims=True)
            mixed = _dot(weights.astype(v_ref.dtype), v_ref[0], (1, 0)) / total
            # A row that sees nobody: everyone has weight 1.
            mixed = jnp.where(top > LOG_ZERO, mixed, 0.0)
            out_ref[0, :, own] = mixed.astype(out_ref.dtype)
            norm_ref[0, 0, g] = (top + jnp.log(total))[:, 0]

    inputs = {"queries": queries, "keys": keys, "values": values, "mask": mask}
    outputs = {
        "queries": jax.ShapeDtypeStruct(queries.shape, queries.dtype),
        "rows": jax.ShapeDtypeStruct((len(queries), K, G, T), jnp.float32),
    }
    cost = _cost(queries, keys, H, 2, 2)
    return _call("flash_forward", kernel, inputs, outputs, angles, scales, heads, cost, interpret)


def _save(queries, keys, values, mask, angles, scales, heads, interpret):
    given = (queries, keys, values, mask, angles, scales)
    found = [checkpoint_name(each, KEPT) for each in _forward(*given, heads, interpret)]
    return found[0], (*given, *found)


def _backward(heads, interpret, saved, grad):
    queries, keys, values, mask, angles, scales, mixed, log_normaliser = saved
    (K, G, H, eps), T = heads, mask.shape[1]

    def kernel(q_ref, k_ref, v_ref, mask_ref, mixed_ref, norm_ref, grad_ref, *rest):
        of_queries, of_keys, *rest, dk_sum, dv_sum = rest
        *scale_ref, dq_ref, dk_ref, dv_ref, dscale_ref = rest
        scale = _scales(scale_ref)
        rows = pl.program_id(2)

        @pl.when(rows == 0)
        def _():
            for ref in (dk_sum, dv_sum, dscale_ref):
                ref[...] = jnp.zeros_like(ref)

        is_seen = mask_ref[0].astype(jnp.int32) != 0
        key, value = _Head(k_ref[0], of_keys[0], scale[1], eps), v_ref[0]
        for g in range(G):
            own = slice(g * H, (g + 1) * H)
            query = _Head(q_ref[0, :, own], of_queries[0], scale[0], eps)
            grad = grad_ref[0, :, own]
            wide = grad.astype(jnp.float32) * mixed_ref[0, :, own].astype(jnp.float32)
            inner = wide.sum(axis=1, keepdims=True)
            scores = _dot(query.ready, key.ready, (1, 1)) * H**-0.5 - norm_ref[0, 0, g][:, None]
            weights = jnp.where(is_seen, jnp.exp(scores), 0.0)
            dv_sum[...] += _dot(weights.astype(grad.dtype), grad, (0, 0))
            pulled = weights * (_dot(grad, value, (1, 1)) - inner) * H**-0.5
            pulled = pulled.astype(value.dtype)
            dq, dscale = query.gradients(_dot(pulled, key.ready, (1, 0)))
            dq_ref[0, :, own] = dq.astype(dq_ref.dtype)
            dscale_ref[0, 0, 0:1] += dscale
            dk_sum[...] += _dot(pulled, query.ready, (0, 0))

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
    """Queries or keys of one head: normed, where `scale` is given, and turned."""

    def __init__(self, x: Array, angles: Array, scale: Array | None, eps: float):
        self._angles, self._scale = angles, scale
        wide = x.astype(jnp.float32)
        if scale is not None:
            self._root = jax.lax.rsqrt((wide * wide).mean(axis=1, keepdims=True) + eps)
            self._unit = wide * self._root
            wide = (self._unit * scale).astype(x.dtype).astype(jnp.float32)
        self.ready = (wide * angles[0] + _swapped(wide) * angles[1]).astype(x.dtype)

    def gradients(self, grad: Float[Array, "Q H"]) -> tuple[Array, Array]:
        """Of x and, as a row, of the scale (0 without one), where `grad` is that of `ready`."""
        grad = grad * self._angles[0] + _swapped(grad * self._angles[1])
        if self._scale is None:
            return grad, jnp.zeros((1, grad.shape[1]), jnp.float32)
        of_scale = (grad * self._unit).sum(axis=0, keepdims=True)
        grad = grad * self._scale
        along = (grad * self._unit).mean(axis=1, keepdims=True)
        return self._root * (grad - self._unit * along), of_scale


def _swapped(x: Array) -> Array:
    return pltpu.roll(x, x.shape[1] // 2, 1)


def _scales(refs: list) -> tuple[Array | None, Array | None]:
    """Of queries and of keys, as rows."""
    return (refs[0][0:1], refs[0][1:2]) if refs else (None, None)


def _dot(left: Array, right: Array, contracted: tuple[int, int]) -> Array:
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)


def _rows_of(T: int) -> int:
    """Queries of a program: the most that divide T and whose scores fit."""
    most = max(SCORES // T, ROWS)
    return max(size for size in range(ROWS, T + 1, ROWS) if T % size == 0 and size <= most)


def _call(name, kernel, inputs, outputs, angles, scales, heads, cost, interpret, scratch=()):
    """The kernel over the arrays `inputs`, then the angles of queries and keys and the scales."""
    (K, G, H, _), (B, T, _) = heads, inputs["mask"].shape
    Q = _rows_of(T)
    wide = pl.BlockSpec((1, Q, G * H), lambda b, k, t: (b, t, k))
    one = pl.BlockSpec((1, T, H), lambda b, k, t: (b, 0, k))
    block = {
        "queries": wide,
        "mixed": wide,
        "grad": wide,
        "keys": one,
        "values": one,
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
        compiler_params=_IN_TURN,
        cost_estimate=cost,
        interpret=interpret,
        name=name,
    )(*arrays)


def _cost(queries: Array, keys: Array, H: int, products: int, arrays: int) -> pl.CostEstimate:
    """Of `products` of queries and keys and as many reads or writes of `arrays` like queries."""
    pairs = queries.size * keys.shape[1] // H
    moved = arrays * (queries.size + 2 * keys.size) * queries.dtype.itemsize
    return pl.CostEstimate(
        flops=2 * products * pairs * H, transcendentals=pairs, bytes_accessed=moved
    )
