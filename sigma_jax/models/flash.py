"""Attention on TPUs without scores in memory: one Pallas kernel forward and one backward.

A program of the grid holds all keys of one key head, and some queries of the heads that share it;
their scores live in on-chip memory from the product to the weighted sum, so nothing of size
[T, S] but the mask is read or written, and no running maximum is needed. The mask is any mask:
packed rows and branches that share a context cost what a causal row does.

The backward pass makes the scores again from the rows' log-normalisers (Dao et al. 2022,
FlashAttention, section 3.1).

Axis letters as in qwen3.py; Q query rows of a program, G query heads of a key head.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int8

ROWS = 128  # queries and keys come in multiples of it
SCORES = 2**18  # of one head in on-chip memory
KEYS = 8_192  # more do not fit on the chip
LOG_ZERO = -1e30
# Programs of one key head run in turn: the backward pass adds up over them.
_IN_TURN = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"))


def fits(queries: int, keys: int) -> bool:
    """Whether so many queries and keys are a matter for these kernels."""
    return queries >= ROWS and keys <= KEYS


def flash_attend(
    queries: Float[Array, "B T N H"],
    keys: Float[Array, "B S K H"],
    values: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """What `attend` of qwen3.py gives, for any mask. A row that sees nobody gets 0.

    `interpret`: runs where there is no TPU, slowly, for tests.
    """
    B, T, N, H = queries.shape
    S, K = keys.shape[1:3]
    rows, columns = (-size % ROWS for size in (T, S))
    pad = ((0, 0), (0, 0), (0, 0))
    by_head = queries.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    by_head = jnp.pad(by_head, (*pad, (0, rows), (0, 0)))
    keys, values = (
        jnp.pad(each.transpose(0, 2, 1, 3), (*pad[:2], (0, columns), (0, 0)))
        for each in (keys, values)
    )
    mask = jnp.pad(mask.astype(jnp.int8), ((0, 0), (0, rows), (0, columns)))
    mixed = _attend(by_head, keys, values, mask, interpret)[:, :, :, :T]
    return mixed.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(
    queries: Float[Array, "B K G T H"],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    mask: Int8[Array, "B T S"],
    interpret: bool,
) -> Float[Array, "B K G T H"]:
    return _forward(queries, keys, values, mask, interpret)[0]


def _rows_of(T: int, S: int) -> int:
    """Queries of a program: the most that divide T and whose scores fit."""
    most = max(SCORES // S, ROWS)
    return max(size for size in range(ROWS, T + 1, ROWS) if T % size == 0 and size <= most)


def _specs(G: int, Q: int, S: int, H: int) -> dict[str, pl.BlockSpec]:
    """Blocks of a program (b, k, rows) of the grid."""
    return {
        "queries": pl.BlockSpec((1, 1, G, Q, H), lambda b, k, t: (b, k, 0, t, 0)),
        "keys": pl.BlockSpec((1, 1, S, H), lambda b, k, t: (b, k, 0, 0)),
        "mask": pl.BlockSpec((1, Q, S), lambda b, k, t: (b, t, 0)),
        "rows": pl.BlockSpec((1, 1, G, Q), lambda b, k, t: (b, k, 0, t)),
    }


def _dot(left: Array, right: Array, contracted: tuple[int, int]) -> Array:
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)


def _cost(queries: Array, keys: Array, products: int, arrays: int) -> pl.CostEstimate:
    """Of `products` of queries and keys and as many reads or writes of `arrays` like queries."""
    pairs = math.prod(queries.shape[:-1]) * keys.shape[2]
    moved = arrays * (queries.size + 2 * keys.size) * queries.dtype.itemsize
    return pl.CostEstimate(
        flops=2 * products * pairs * queries.shape[-1], transcendentals=pairs, bytes_accessed=moved
    )


def _forward(queries, keys, values, mask, interpret):
    """(mixed values, log-normalisers [B, K, G, T])."""
    B, K, G, T, H = queries.shape
    S = keys.shape[2]
    Q = _rows_of(T, S)
    block = _specs(G, Q, S, H)

    def kernel(q_ref, k_ref, v_ref, mask_ref, out_ref, norm_ref):
        is_seen = mask_ref[0].astype(jnp.int32) != 0
        for g in range(G):
            scores = _dot(q_ref[0, 0, g], k_ref[0, 0], (1, 1)) * H**-0.5
            scores = jnp.where(is_seen, scores, LOG_ZERO)
            top = scores.max(axis=1, keepdims=True)
            weights = jnp.exp(scores - top)
            total = weights.sum(axis=1, keepdims=True)
            mixed = _dot(weights.astype(v_ref.dtype), v_ref[0, 0], (1, 0)) / total
            # A row that sees nobody: everyone has weight 1.
            out_ref[0, 0, g] = jnp.where(top > LOG_ZERO, mixed, 0.0).astype(out_ref.dtype)
            norm_ref[0, 0, g] = (top + jnp.log(total))[:, 0]

    return pl.pallas_call(
        kernel,
        grid=(B, K, T // Q),
        in_specs=[block["queries"], block["keys"], block["keys"], block["mask"]],
        out_specs=[block["queries"], block["rows"]],
        out_shape=[
            jax.ShapeDtypeStruct(queries.shape, queries.dtype),
            jax.ShapeDtypeStruct((B, K, G, T), jnp.float32),
        ],
        compiler_params=_IN_TURN,
        cost_estimate=_cost(queries, keys, 2, 2),
        interpret=interpret,
        name="flash_forward",
    )(queries, keys, values, mask)


def _save(queries, keys, values, mask, interpret):
    mixed, log_normaliser = _forward(queries, keys, values, mask, interpret)
    return mixed, (queries, keys, values, mask, mixed, log_normaliser)


def _backward(interpret, saved, grad):
    queries, keys, values, mask, mixed, log_normaliser = saved
    B, K, G, T, H = queries.shape
    S = keys.shape[2]
    Q = _rows_of(T, S)
    block = _specs(G, Q, S, H)

    def kernel(q_ref, k_ref, v_ref, mask_ref, mixed_ref, norm_ref, grad_ref, *rest):
        dq_ref, dk_ref, dv_ref, dk_sum, dv_sum = rest
        rows = pl.program_id(2)

        @pl.when(rows == 0)
        def _():
            dk_sum[...] = jnp.zeros_like(dk_sum)
            dv_sum[...] = jnp.zeros_like(dv_sum)

        is_seen = mask_ref[0].astype(jnp.int32) != 0
        key, value = k_ref[0, 0], v_ref[0, 0]
        for g in range(G):
            query, grad = q_ref[0, 0, g], grad_ref[0, 0, g]
            wide = grad.astype(jnp.float32) * mixed_ref[0, 0, g].astype(jnp.float32)
            inner = wide.sum(axis=1, keepdims=True)
            scores = _dot(query, key, (1, 1)) * H**-0.5 - norm_ref[0, 0, g][:, None]
            weights = jnp.where(is_seen, jnp.exp(scores), 0.0)
            dv_sum[...] += _dot(weights.astype(grad.dtype), grad, (0, 0))
            pulled = weights * (_dot(grad, value, (1, 1)) - inner) * H**-0.5
            pulled = pulled.astype(key.dtype)
            dq_ref[0, 0, g] = _dot(pulled, key, (1, 0)).astype(dq_ref.dtype)
            dk_sum[...] += _dot(pulled, query, (0, 0))

        @pl.when(rows == pl.num_programs(2) - 1)
        def _():
            dk_ref[0, 0] = dk_sum[...].astype(dk_ref.dtype)
            dv_ref[0, 0] = dv_sum[...].astype(dv_ref.dtype)

    inputs = ("queries", "keys", "keys", "mask", "queries", "rows", "queries")
    found = pl.pallas_call(
        kernel,
        grid=(B, K, T // Q),
        in_specs=[block[name] for name in inputs],
        out_specs=[block[name] for name in inputs[:3]],
        out_shape=[
            jax.ShapeDtypeStruct(each.shape, each.dtype) for each in (queries, keys, values)
        ],
        scratch_shapes=[pltpu.VMEM((S, H), jnp.float32)] * 2,
        compiler_params=_IN_TURN,
        cost_estimate=_cost(queries, keys, 5, 4),
        interpret=interpret,
        name="flash_backward",
    )(queries, keys, values, mask, mixed, log_normaliser, grad)
    return *found, None


_attend.defvjp(_save, _backward)
