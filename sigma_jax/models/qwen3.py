"""The Qwen3 block in Flax NNX, and Llama's, which is the same without query/key norms.

Axis letters, here and everywhere in this package; einsum strings use only these:

    B batch         T query time    S key time      D model width
    N query heads   K key heads     G = N / K       H head size
    F feed-forward  V vocabulary    I items         L SID levels
    C codes         M beams         E trie edges

All layers live in one array a weight, with a leading axis "layers", and run under `jax.lax.scan`:
compile time does not grow with depth. Who sees whom is said by a mask [B, T, S] alone, so padding
on either side, packed rows, branches and beams that share a prompt need nothing from the model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray

from sigma_jax.models import flash
from sigma_jax.models.attention import HIDDEN, attention, rms_norm, rotary_angles
from sigma_jax.models.lora import Lora, adapted, add_lora
from sigma_jax.runtime.sharding import constrain, gathered

DTYPES = ("float32", "bfloat16", "float16")
# What is kept of a layer for the backward pass, beside its input: products by their weights' names.
# The last product of a layer is of no use to it.
_ATTENTION = ("out", flash.KEPT)
REMAT = {
    "none": None,  # all that is made
    "layer": (),
    "attention": _ATTENTION,
    "light": ("query", "key", "value", "gate", "up", *_ATTENTION),
}


@dataclasses.dataclass(frozen=True)
class Qwen3Config:
    """Sizes and switches of a backbone. ValueError where they do not fit together."""

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int  # independent of width / num_heads
    mlp_width: int
    rope_theta: float
    norm_eps: float
    is_tied: bool  # the head is the embedding table
    has_qk_norm: bool  # True: Qwen3; False: Llama
    dropout: float  # of what each attention and MLP adds; acts only where a key is given
    dtype: str  # of activations and matrix products
    param_dtype: str  # of stored weights
    # What the backward pass computes again, a layer at a time: "layer" all but its input,
    # "attention" not what attention gave (3 to 4 times the memory), "light" no product and no
    # attention (13 to 14 times), "none" nothing.
    remat: str
    lora: Lora | None = None  # of layers whose own weights stay

    def __post_init__(self):
        for name in ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "mlp_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not a size; use 1 or more.")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} does not divide into num_kv_heads="
                f"{self.num_kv_heads} groups; use a multiple of {self.num_kv_heads}."
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} has no rotary halves; use an even number.")
        if not self.has_qk_norm and self.width % self.num_heads:
            # Our block does not mind, but Hugging Face's Llama would not load what we save.
            raise ValueError(
                f"width={self.width} is no multiple of num_heads={self.num_heads}, as Llama's has "
                f"to be; use another, or has_qk_norm=True."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} is not a share; use 0 <= dropout < 1.")
        if not self.rope_theta > 0:
            raise ValueError(f"rope_theta={self.rope_theta} is not a rotary base; use 10000.0.")
        for name, allowed in (("dtype", DTYPES), ("param_dtype", DTYPES), ("remat", REMAT)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(allowed)}."
                )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys (rotated) and values of `length` rows out of S, for all layers."""

    keys: Float[Array, "layers B S K H"]
    values: Float[Array, "layers B S K H"]
    length: Int32[Array, ""]

    @classmethod
    def empty(cls, config: Qwen3Config, batch: int, size: int, dtype: str | None = None) -> KVCache:
        """A cache of `size` free rows; `dtype` None is the config's."""
        shape = (config.num_layers, batch, size, config.num_kv_heads, config.head_dim)
        dtype = dtype or config.dtype
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.int32(0))

    @property
    def size(self) -> int:
        """S: rows used and free."""
        return self.keys.shape[2]

    def extended(self, size: int) -> KVCache:
        """The same rows with room for `size` in all. ValueError if that is fewer than now."""
        if size < self.size:
            raise ValueError(f"size={size} is below the cache's {self.size} rows; use at least it.")
        widths = ((0, 0), (0, 0), (0, size - self.size), (0, 0), (0, 0))
        return KVCache(jnp.pad(self.keys, widths), jnp.pad(self.values, widths), self.length)

    def _checked_room(self, rows: int) -> None:
        # dynamic_update_slice clamps its start: without room, new rows would overwrite old ones.
        is_known = not isinstance(self.length, jax.core.Tracer)
        used = int(self.length) if is_known else 0
        if used + rows > self.size:
            raise ValueError(
                f"{rows} new rows after {used} do not fit a cache of {self.size}; "
                f"use KVCache.extended({used + rows})."
            )

    def _written(self, layer, keys, values) -> KVCache:
        """Rows length..length+T of one layer replaced; `length` itself moves once a forward."""

        def put(whole, new):
            start = (layer, 0, self.length, 0, 0)
            return jax.lax.dynamic_update_slice(whole, new[None].astype(whole.dtype), start)

        return KVCache(put(self.keys, keys), put(self.values, values), self.length)

    def _first(self, layer, count: int) -> tuple[Float[Array, "B count K H"], ...]:
        """Keys and values of one layer's first `count` rows."""

        def get(whole):
            sizes = (1, whole.shape[1], count, *whole.shape[3:])
            return jax.lax.dynamic_slice(whole, (layer, 0, 0, 0, 0), sizes)[0]

        return get(self.keys), get(self.values)


def causal_mask(segment: Int32[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Token i sees j <= i of its own segment; segment 0 is padding, sees and is seen by nobody.

    Worked example: segment [1 1 2 0] -> rows [1000, 1100, 0010, 0000].
    """
    time = jnp.arange(segment.shape[1])
    is_same = (segment[:, :, None] == segment[:, None, :]) & (segment[:, :, None] > 0)
    return is_same & (time[None, :] <= time[:, None])


def branch_mask(
    segment: Int32[Array, "B T"], branch: Int32[Array, "B T"], attach: Int32[Array, "B T"]
) -> Bool[Array, "B T T"]:
    """`causal_mask` where branches of one context do not see each other.

    Branch 0 is the context. A token of another branch sees its own branch and the context rows
    before row attach. Worked example: branch [0 0 1 2 2], attach [0 0 2 1 1], one segment:
    rows [10000, 11000, 11100, 10010, 10011].
    """
    time = jnp.arange(segment.shape[1])
    is_own = branch[:, :, None] == branch[:, None, :]
    is_context = (branch[:, None, :] == 0) & (time < attach[:, :, None])
    return causal_mask(segment) & (is_own | is_context)


def swiglu(
    weights: dict, x: Float[Array, "B T D"], lora: Lora | None = None
) -> Float[Array, "B T D"]:
    """down(silu(gate x) * up x)."""
    gate = constrain(adapted(x, weights, "gate", lora), "rows", None, "mlp")
    up = constrain(adapted(x, weights, "up", lora), "rows", None, "mlp")
    return constrain(adapted(jax.nn.silu(gate) * up, weights, "down", lora), *HIDDEN)


def drop(x: Float[Array, "B T D"], rate: float, key: PRNGKeyArray | None) -> Float[Array, "B T D"]:
    """Inverted dropout; unchanged where `key` is None or `rate` 0."""
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def block(
    config: Qwen3Config, weights: dict, x: Float[Array, "B T D"], rotary, mask, cache, layer, key
) -> tuple[Float[Array, "B T D"], KVCache | None]:
    """One layer: x + attention(norm x), then x + swiglu(norm x)."""
    keys = (None, None) if key is None else jax.random.split(key)
    normed = rms_norm(x, weights["attention_norm"], config.norm_eps)
    added, cache = attention(config, weights, normed, rotary, mask, cache, layer)
    x = x + drop(added, config.dropout, keys[0])
    normed = rms_norm(x, weights["mlp_norm"], config.norm_eps)
    return x + drop(swiglu(weights, normed, config.lora), config.dropout, keys[1]), cache


@dataclasses.dataclass(frozen=True)
class Weight:
    """Shape, logical axes and initialiser of one weight; deviation 0 starts at 1 (norms)."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    deviation: float

    def param(self, config: Qwen3Config, rngs: nnx.Rngs) -> nnx.Param:
        dtype = jnp.dtype(config.param_dtype)
        if self.deviation == 0:
            return nnx.Param(jnp.ones(self.shape, dtype), axes=self.axes)
        values = self.deviation * jax.random.normal(rngs.params(), self.shape, jnp.float32)
        return nnx.Param(values.astype(dtype), axes=self.axes)


def table_weight(config: Qwen3Config) -> Weight:
    """Embedding and head alike: with it, tied logits of unit-scale states start at scale 1."""
    shape = (config.vocab_size, config.width)
    return Weight(shape, ("vocab", "embed"), config.width**-0.5)


def layer_weights(config: Qwen3Config) -> dict[str, Weight]:
    """The weights of one layer. Deviation 1/sqrt(inputs); what is added to the residual stream
    starts at the scale of the embeddings and smaller by sqrt(2 * layers), so that all layers do not
    drown the tokens themselves. `align_attention` then ties queries to keys, outputs to values."""
    D, N, K = config.width, config.num_heads, config.num_kv_heads
    H, F = config.head_dim, config.mlp_width
    added = table_weight(config).deviation / math.sqrt(2 * config.num_layers)
    weights = {
        "attention_norm": Weight((D,), ("embed",), 0),
        "query": Weight((D, N, H), ("embed", "heads", "head_dim"), D**-0.5),
        "key": Weight((D, K, H), ("embed", "kv_heads", "head_dim"), D**-0.5),
        "value": Weight((D, K, H), ("embed", "kv_heads", "head_dim"), D**-0.5),
        "out": Weight((N, H, D), ("heads", "head_dim", "embed"), (N * H) ** -0.5 * added),
        "mlp_norm": Weight((D,), ("embed",), 0),
        "gate": Weight((D, F), ("embed", "mlp"), D**-0.5),
        "up": Weight((D, F), ("embed", "mlp"), D**-0.5),
        "down": Weight((F, D), ("mlp", "embed"), F**-0.5 * added),
    }
    if config.has_qk_norm:
        weights["query_norm"] = Weight((H,), ("head_dim",), 0)
        weights["key_norm"] = Weight((H,), ("head_dim",), 0)
    return weights


def stacked(weight: Weight, config: Qwen3Config) -> Weight:
    """`weight` for all layers."""
    shape, axes = (config.num_layers,) + weight.shape, ("layers",) + weight.axes
    return Weight(shape, axes, weight.deviation)


def align_attention(layers: Mapping[str, nnx.Param], config: Qwen3Config) -> None:
    """Lets attention start by copying what is alike (mimetic start, Trockman and Kolter 2023).

    Each query head starts half as its key head: tokens look at tokens like them. The output starts
    as the transpose of the value: what is looked at arrives as it was. A recommender repeats items
    and codes of its prompt; otherwise it learns to copy first. Weights from a folder replace this.
    """
    group = config.num_heads // config.num_kv_heads
    key = jnp.repeat(layers["key"][...], group, axis=2)
    layers["query"][...] = (layers["query"][...] + key) * 0.5**0.5
    value = jnp.repeat(layers["value"][...], group, axis=2)
    scale = table_weight(config).deviation / (group * math.sqrt(config.num_layers))
    layers["out"][...] = (value * scale).transpose(0, 2, 3, 1)


class Qwen3(nnx.Module):
    """A decoder over embeddings: text tokens are embedded by `embed`, others by the caller.

    Every parameter carries its logical axes as metadata `axes`; `logical_axes` collects them.
    """

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        self.config = config
        self.embedding = table_weight(config).param(config, rngs)
        layers = layer_weights(config).items()
        self.layers = nnx.Dict({n: stacked(w, config).param(config, rngs) for n, w in layers})
        align_attention(self.layers, config)
        self.final_norm = Weight((config.width,), ("embed",), 0).param(config, rngs)
        if not config.is_tied:
            self.head = table_weight(config).param(config, rngs)
        if config.lora is not None:
            add_lora(self, config.lora, rngs)

    def embed(self, tokens: Int32[Array, "B T"]) -> Float[Array, "B T D"]:
        """Rows of the text table. Ids outside it are clipped: their rows are the caller's."""
        rows = self.embedding[...].at[tokens].get(mode="clip", wrap_negative_indices=False)
        return constrain(rows.astype(self.config.dtype), *HIDDEN)

    def __call__(
        self,
        embeddings: Float[Array, "B T D"],
        positions: Int32[Array, "B T"],
        mask: Bool[Array, "B T S"],
        cache: KVCache | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Hidden states after the final norm.

        Without a cache S = T. With one, the T new rows are written at length..length+T, and the
        cache comes back with length + T; `mask` says which of its first S rows each new token
        sees, itself included, and the others cost nothing. `key` turns dropout on. ValueError if
        the new rows do not fit (where the length is known: outside jit).
        """
        config = self.config
        if cache is not None:
            cache._checked_room(embeddings.shape[1])
        rotary = rotary_angles(positions, config.head_dim, config.rope_theta)
        weights = {name: weight[...] for name, weight in self.layers.items()}
        axes = {name: weight.get_metadata("axes")[1:] for name, weight in self.layers.items()}

        def run(carry, layer_inputs):
            x, cache = carry
            layer, weights, key = layer_inputs
            # Cast first: half the bytes are gathered.
            weights = {name: weight.astype(config.dtype) for name, weight in weights.items()}
            weights = gathered(weights, axes)
            return block(config, weights, x, rotary, mask, cache, layer, key), None

        if config.remat != "none":
            # Under scan nothing can be merged across layers, so the barrier would only cost.
            policy = jax.checkpoint_policies.save_only_these_names(*REMAT[config.remat])
            run = jax.checkpoint(run, prevent_cse=False, policy=policy)
        keys = None if key is None else jax.random.split(key, config.num_layers)
        carry = (embeddings.astype(config.dtype), cache)
        inputs = (jnp.arange(config.num_layers), weights, keys)
        (x, cache), _ = jax.lax.scan(run, carry, inputs)
        if cache is not None:
            length = cache.length + embeddings.shape[1]
            cache = dataclasses.replace(cache, length=length)
        return rms_norm(x, self.final_norm[...], config.norm_eps), cache

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Scores over the vocabulary, float32, from the embedding table or the head."""
        table = self.embedding if self.config.is_tied else self.head
        table = table[...].astype(self.config.dtype)
        return jnp.einsum("...D,VD->...V", hidden, table, preferred_element_type=jnp.float32)


def logical_axes(module: nnx.Module) -> dict[tuple, tuple[str, ...]]:
    """Path -> logical axes of every parameter of `module` that declares them."""
    params = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {path: p.get_metadata("axes") for path, p in params if "axes" in p.get_metadata()}
