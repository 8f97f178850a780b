"""Attention of a Qwen3 block with its norms, rotary embedding and cache, on any device.

Axis letters as in qwen3.py.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from sigma_jax.models import flash
from sigma_jax.models.config import Qwen3Config
from sigma_jax.models.linear import INPUT_AXES, LORA_SUFFIXES, project
from sigma_jax.runtime.sharding import by_rows_and_heads, constrain, is_sharded, on_tpu

# Logical axes of activations (runtime/sharding.py).
HIDDEN = ("rows", None, None)  # B T D
HEADS = ("rows", None, "heads", None)  # B T N H
KV_HEADS = ("rows", None, "kv_heads", None)  # B T K H


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Rotated keys and values of all layers; the first `length` of S rows are used."""

    keys: Float[Array, "layers B S K H"]
    values: Float[Array, "layers B S K H"]
    length: Int32[Array, ""]

    @classmethod
    def empty(cls, config: Qwen3Config, batch: int, size: int, dtype: str | None = None) -> KVCache:
        """A cache of `size` free rows; `dtype` None means the config's."""
        shape = (config.num_layers, batch, size, config.num_kv_heads, config.head_dim)
        dtype = dtype or config.dtype
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.int32(0))

    @property
    def size(self) -> int:
        """S: the number of rows, used and free."""
        return self.keys.shape[2]

    def extended(self, size: int) -> KVCache:
        """This cache with `size` rows in all. ValueError if it has more already."""
        if size < self.size:
            raise ValueError(
                f"size={size} is below the cache's {self.size} rows; use {self.size} or more."
            )
        widths = ((0, 0), (0, 0), (0, size - self.size), (0, 0), (0, 0))
        return KVCache(jnp.pad(self.keys, widths), jnp.pad(self.values, widths), self.length)

    def check_room(self, rows: int) -> None:
        """ValueError if `rows` more do not fit. Inside jit the length is unknown and unchecked."""
        # dynamic_update_slice clamps its start: without room, new rows would overwrite old ones.
        is_known = not isinstance(self.length, jax.core.Tracer)
        used = int(self.length) if is_known else 0
        if used + rows > self.size:
            raise ValueError(
                f"{rows} new rows after {used} do not fit a cache of {self.size}; "
                f"use KVCache.extended({used + rows})."
            )

    def write(self, layer, keys, values) -> KVCache:
        """This cache with rows length..length+T of one layer replaced.

        `length` stays: it grows once a forward pass, after all layers.
        """

        def put(rows, new):
            start = (layer, 0, self.length, 0, 0)
            return jax.lax.dynamic_update_slice(rows, new[None].astype(rows.dtype), start)

        return KVCache(put(self.keys, keys), put(self.values, values), self.length)

    def read(self, layer, count: int) -> tuple[Float[Array, "B count K H"], ...]:
        """Keys and values of the first `count` rows of one layer."""

        def get(rows):
            sizes = (1, rows.shape[1], count, *rows.shape[3:])
            return jax.lax.dynamic_slice(rows, (layer, 0, 0, 0, 0), sizes)[0]

        return get(self.keys), get(self.values)


def rms_norm(
    x: Float[Array, "*B D"], scale: Float[Array, " D"], eps: float
) -> Float[Array, "*B D"]:
    """`x` divided by its root mean square, times `scale`.

    Computed in float32, because squares overflow or vanish in 16 bits.
    """
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale.astype(jnp.float32)).astype(x.dtype)


def rotary_angles(
    positions: Int32[Array, "B T"], head_dim: int, theta: float
) -> tuple[Float[Array, "B T 1 H/2"], Float[Array, "B T 1 H/2"]]:
    """Cosine and sine of position * theta^(-2i/H), the same for all heads.

    float32, because bfloat16 cannot tell position 257 from 258.
    """
    # Computed on the host and rounded to float32 twice, as in the code that trained the
    # checkpoints. XLA's power differs in the last bit, which changes logits by 3e-4 at position
    # 3000.
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    power = (float(theta) ** exponent.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1) / power
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B T N H"], rotary) -> Float[Array, "B T N H"]:
    """`x` with its pairs (x[i], x[i + H/2]) rotated by the angles of `rotary_angles`."""
    cos, sin = rotary
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return rotated.astype(x.dtype)


def attend(
    queries: Float[Array, "B T N H"],
    keys: Float[Array, "B S K H"],
    values: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """Grouped-query attention: N/K query heads share a key head. A row that sees no key gets 0."""
    B, T, N, H = queries.shape
    S, K = keys.shape[1:3]
    G = N // K
    # Batch axes come first and the G queries of a key are further rows of one product. On a CPU a
    # training step takes up to a tenth less than with five-axis einsums; on a TPU the same time.
    rows = queries.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
    keys, values = keys.transpose(0, 2, 1, 3), values.transpose(0, 2, 1, 3)
    mixed = _attend(rows, keys, values, jnp.broadcast_to(mask[:, None], (B, G, T, S)))
    mixed = mixed.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
    return jnp.where(mask.any(axis=-1)[:, :, None, None], mixed, 0)


@jax.custom_vjp
def _attend(rows, keys, values, mask):
    """`attend` with rows [B, K, G * T, H], keys and values [B, K, S, H], mask [B, G, T, S]."""
    return _attend_forward(rows, keys, values, mask)[0]


def _attend_forward(rows, keys, values, mask):
    B, G, T, S = mask.shape
    K, H = rows.shape[1], rows.shape[3]
    scores = jnp.einsum("BKTH,BKSH->BKTS", rows, keys, preferred_element_type=jnp.float32)
    scores = (scores * H**-0.5).reshape(B, K, G, T, S)
    # Not -inf: the softmax of a row of -inf, and its gradient, are NaN.
    scores = jnp.where(mask[:, None], scores, -1e30)
    # float32: in 16 bits a sum over many keys loses the small ones.
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype).reshape(B, K, G * T, S)
    mixed = jnp.einsum("BKTS,BKSH->BKTH", weights, values)
    return mixed, (rows, keys, values, weights, mixed)


def _attend_backward(saved, grad):
    # The sum that a softmax's gradient subtracts equals the sum of grad * mixed: H numbers a row
    # instead of S (Dao et al. 2022, FlashAttention, appendix B). It saves a tenth of a CPU step.
    rows, keys, values, weights, mixed = saved
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    weights_grad = product("BKTH,BKSH->BKTS", grad, values)
    subtracted = (grad.astype(jnp.float32) * mixed).sum(-1, keepdims=True)
    scores_grad = weights * (weights_grad - subtracted) * rows.shape[-1] ** -0.5
    scores_grad = scores_grad.astype(rows.dtype)
    return (
        product("BKTS,BKSH->BKTH", scores_grad, keys).astype(rows.dtype),
        product("BKTS,BKTH->BKSH", scores_grad, rows).astype(keys.dtype),
        product("BKTS,BKTH->BKSH", weights, grad).astype(values.dtype),
        None,
    )


_attend.defvjp(_attend_forward, _attend_backward)


def attention(
    config: Qwen3Config,
    weights: Mapping[str, Array],
    x: Float[Array, "B T D"],
    rotary,
    mask,
    cache,
    layer,
) -> tuple[Float[Array, "B T D"], KVCache | None]:
    """Output of the attention of one layer, and `cache` with the layer's new keys and values.

    `weights` are those of this layer; `layer` is its number in the cache.
    """
    # With as many keys as queries the cache holds no earlier rows.
    can_be_fast = mask.shape[-1] == x.shape[1] and on_tpu() and x.dtype == jnp.bfloat16
    if can_be_fast and flash.fits(x.shape[1], config.head_dim):
        return _flash_attention(config, weights, x, rotary, mask, cache, layer)
    queries = constrain(project(x, weights, "query", config.lora), *HEADS)
    keys = constrain(project(x, weights, "key", config.lora), *KV_HEADS)
    values = constrain(project(x, weights, "value", config.lora), *KV_HEADS)
    if config.has_qk_norm:
        queries = rms_norm(queries, weights["query_norm"], config.norm_eps)
        keys = rms_norm(keys, weights["key_norm"], config.norm_eps)
    queries, keys = rotate(queries, rotary), rotate(keys, rotary)
    if cache is not None:
        cache = cache.write(layer, keys, values)
        keys, values = (rows.astype(x.dtype) for rows in cache.read(layer, mask.shape[-1]))
    mixed = constrain(attend(queries, keys, values, mask), *HEADS)
    return constrain(project(mixed, weights, "out", config.lora, 2), *HIDDEN), cache


def _flash_attention(
    config: Qwen3Config,
    weights: Mapping[str, Array],
    x: Float[Array, "B T D"],
    rotary,
    mask,
    cache,
    layer,
) -> tuple[Float[Array, "B T D"], KVCache | None]:
    """`attention` by the TPU kernel of flash.py; each device computes its own rows and key heads.

    Heads stay side by side, [B, T, N * H], because [N, H] has another order in memory.
    """
    heads = "kv_heads" if is_sharded("kv_heads", config.num_kv_heads) else None
    axes, angles = ("rows", None, heads), ("rows", None, None, None)
    matrices = _matrices(weights)
    flat = [
        constrain(project(x, matrices, name, config.lora), *axes)
        for name in ("query", "key", "value")
    ]
    scales = ()
    if config.has_qk_norm:
        scales = (jnp.stack([weights["query_norm"], weights["key_norm"]]),)

    def attend_local(queries, keys, values, mask, cos, sin, scales=None):
        return flash.flash_attend(queries, keys, values, mask, cos, sin, scales, config.norm_eps)

    array_axes = [axes] * 3 + [HIDDEN, angles, angles, *[(None, None) for _ in scales]]
    mixed = by_rows_and_heads(attend_local, array_axes)(*flat, mask, *rotary, *scales)
    if cache is not None:  # the kernel does not return its normed and rotated keys
        shape = (*x.shape[:2], config.num_kv_heads, config.head_dim)
        keys, values = (heads.reshape(shape) for heads in flat[1:])
        if config.has_qk_norm:
            keys = rms_norm(keys, weights["key_norm"], config.norm_eps)
        cache = cache.write(layer, rotate(keys, rotary), values)
    return constrain(project(mixed, matrices, "out", config.lora), *HIDDEN), cache


def _matrices(weights: Mapping[str, Array]) -> dict[str, Array]:
    """`weights` as matrices: input axes flattened into one, output axes into another."""
    flat = {}
    for name, weight in weights.items():
        input_axes = INPUT_AXES.get(name.removesuffix(LORA_SUFFIXES[0]), 1)
        flat[name] = weight.reshape(math.prod(weight.shape[:input_axes]), -1)
    return flat
