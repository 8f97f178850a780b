"""Attention of a Qwen3 block: norms, rotary embedding, who looks at whom, on any device.

Axis letters as in qwen3.py.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from sigma_jax.models import flash
from sigma_jax.models.lora import ENDINGS, INPUTS, adapted
from sigma_jax.runtime.sharding import by_rows_and_heads, constrain, is_cut, on_tpu

if TYPE_CHECKING:
    from sigma_jax.models.qwen3 import KVCache, Qwen3Config

# Logical axes of activations (runtime/sharding.py).
HIDDEN = ("rows", None, None)  # B T D
HEADS = ("rows", None, "heads", None)  # B T N H
KV_HEADS = ("rows", None, "kv_heads", None)  # B T K H


def rms_norm(
    x: Float[Array, "*B D"], scale: Float[Array, " D"], eps: float
) -> Float[Array, "*B D"]:
    """x / root mean square, times scale; in float32, as squares overflow or vanish in 16 bits."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale.astype(jnp.float32)).astype(x.dtype)


def rotary_angles(
    positions: Int32[Array, "B T"], head_dim: int, theta: float
) -> tuple[Float[Array, "B T 1 H/2"], Float[Array, "B T 1 H/2"]]:
    """Cosine and sine of position * theta^(-2i/H), for all heads.

    float32: bfloat16 cannot tell position 257 from 258.
    """
    # On the host, rounded to float32 twice, as where the checkpoints were trained: compiled, XLA's
    # power differs in the last bit, of which position 3000 makes 3e-4 in the logits.
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    power = (float(theta) ** exponent.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1) / power
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B T N H"], rotary) -> Float[Array, "B T N H"]:
    """Pairs (x[i], x[i + H/2]) turned by the angles of `rotary_angles`."""
    cos, sin = rotary
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x.dtype)


def attend(
    queries: Float[Array, "B T N H"],
    keys: Float[Array, "B S K H"],
    values: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """Grouped-query attention: N/K queries share a key. A row that sees nobody gets 0."""
    B, T, N, H = queries.shape
    S, K = keys.shape[1:3]
    G = N // K
    # Batch axes first, and the G queries of a key as further rows of one product: on a CPU a
    # training step takes up to a tenth less than with five-axis einsums; on a TPU it is the same.
    rows = queries.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
    keys, values = keys.transpose(0, 2, 1, 3), values.transpose(0, 2, 1, 3)
    mixed = _attend(rows, keys, values, jnp.broadcast_to(mask[:, None], (B, G, T, S)))
    mixed = mixed.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
    return jnp.where(mask.any(axis=-1)[:, :, None, None], mixed, 0)


@jax.custom_vjp
def _attend(rows, keys, values, mask):
    """`attend` of B K (G * T) H over B K S H under a mask B G T S."""
    return _attend_forward(rows, keys, values, mask)[0]


def _attend_forward(rows, keys, values, mask):
    B, G, T, S = mask.shape
    K, H = rows.shape[1], rows.shape[3]
    scores = jnp.einsum("BKTH,BKSH->BKTS", rows, keys, preferred_element_type=jnp.float32)
    scores = (scores * H**-0.5).reshape(B, K, G, T, S)
    # A large finite number, not -inf: the softmax of a row of -inf, and its gradient, are NaN.
    scores = jnp.where(mask[:, None], scores, -1e30)
    # float32: in 16 bits the sum over many keys loses the small ones.
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype).reshape(B, K, G * T, S)
    mixed = jnp.einsum("BKTS,BKSH->BKTH", weights, values)
    return mixed, (rows, keys, values, weights, mixed)


def _attend_backward(kept, given):
    # The sum that a softmax's gradient takes off is that of given * mixed, of H numbers a row and
    # not of S (Dao et al. 2022, FlashAttention, appendix B): a tenth of a step on a CPU.
    rows, keys, values, weights, mixed = kept
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    of_weights = product("BKTH,BKSH->BKTS", given, values)
    level = (given.astype(jnp.float32) * mixed).sum(-1, keepdims=True)
    of_scores = weights * (of_weights - level) * rows.shape[-1] ** -0.5
    of_scores = of_scores.astype(rows.dtype)
    return (
        product("BKTS,BKSH->BKTH", of_scores, keys).astype(rows.dtype),
        product("BKTS,BKTH->BKSH", of_scores, rows).astype(keys.dtype),
        product("BKTS,BKTH->BKSH", weights, given).astype(values.dtype),
        None,
    )


_attend.defvjp(_attend_forward, _attend_backward)


def attention(
    config: Qwen3Config, weights: dict, x: Float[Array, "B T D"], rotary, mask, cache, layer
) -> tuple[Float[Array, "B T D"], KVCache | None]:
    """The attention of layer number `layer`, with what it adds to `cache`."""
    # As many keys as queries: nothing stands in a cache before them.
    is_fast = mask.shape[-1] == x.shape[1] and on_tpu() and x.dtype == jnp.bfloat16
    if is_fast and flash.fits(x.shape[1], config.head_dim):
        return _flash_attention(config, weights, x, rotary, mask, cache, layer)
    queries = constrain(adapted(x, weights, "query", config.lora), *HEADS)
    keys = constrain(adapted(x, weights, "key", config.lora), *KV_HEADS)
    values = constrain(adapted(x, weights, "value", config.lora), *KV_HEADS)
    if config.has_qk_norm:
        queries = rms_norm(queries, weights["query_norm"], config.norm_eps)
        keys = rms_norm(keys, weights["key_norm"], config.norm_eps)
    queries, keys = rotate(queries, rotary), rotate(keys, rotary)
    if cache is not None:
        cache = cache._written(layer, keys, values)
        keys, values = (rows.astype(x.dtype) for rows in cache._first(layer, mask.shape[-1]))
    mixed = constrain(attend(queries, keys, values, mask), *HEADS)
    return constrain(adapted(mixed, weights, "out", config.lora, 2), *HIDDEN), cache


def _flash_attention(
    config: Qwen3Config, weights: dict, x: Float[Array, "B T D"], rotary, mask, cache, layer
) -> tuple[Float[Array, "B T D"], KVCache | None]:
    """`attention` by the TPU's kernel (flash.py), each device on its own rows and key heads. Heads
    stay side by side, [B, T, N * H], for [N, H] lies in another order in memory."""
    heads = "kv_heads" if is_cut("kv_heads", config.num_kv_heads) else None
    axes, angles = ("rows", None, heads), ("rows", None, None, None)
    matrices = _matrices(weights)
    flat = [
        constrain(adapted(x, matrices, name, config.lora), *axes)
        for name in ("query", "key", "value")
    ]
    scales = ()
    if config.has_qk_norm:
        scales = (jnp.stack([weights["query_norm"], weights["key_norm"]]),)

    def run(queries, keys, values, mask, cos, sin, scales=None):
        return flash.flash_attend(queries, keys, values, mask, cos, sin, scales, config.norm_eps)

    of_arrays = [axes] * 3 + [HIDDEN, angles, angles, *[(None, None) for _ in scales]]
    mixed = by_rows_and_heads(run, of_arrays)(*flat, mask, *rotary, *scales)
    if cache is not None:  # the kernel keeps to itself what it makes of keys
        shape = (*x.shape[:2], config.num_kv_heads, config.head_dim)
        keys, values = (each.reshape(shape) for each in flat[1:])
        if config.has_qk_norm:
            keys = rms_norm(keys, weights["key_norm"], config.norm_eps)
        cache = cache._written(layer, rotate(keys, rotary), values)
    return constrain(adapted(mixed, matrices, "out", config.lora), *HIDDEN), cache


def _matrices(weights: dict) -> dict[str, Array]:
    """The weights of `_flash_attention`'s products, inputs flat and outputs flat."""
    flat = {}
    for name, weight in weights.items():
        inputs = INPUTS.get(name.removesuffix(ENDINGS[0]), 1)
        flat[name] = weight.reshape(math.prod(weight.shape[:inputs]), -1)
    return flat
