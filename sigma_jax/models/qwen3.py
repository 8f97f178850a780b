"""The Qwen3 decoder in Flax NNX, and Llama's, whose block lacks the query/key norms.

Axis letters, here and everywhere in this package; einsum strings use only these:

    B batch         T query time    S key time      D model width
    N query heads   K key heads     G = N / K       H head size
    F feed-forward  V vocabulary    I items         L SID levels
    C codes         M beams         E trie edges

Each weight is one array for all layers, with a leading axis "layers". The layers run under
`jax.lax.scan`, so compile time does not grow with depth. A mask [B, T, S] alone decides which keys
a query sees. So padding on either side, packed rows, branches and beams that share a prompt need
no code here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray

from sigma_jax.models.attention import HIDDEN, KVCache, attention, rms_norm, rotary_angles
from sigma_jax.models.config import REMAT, LoraConfig, Qwen3Config
from sigma_jax.models.linear import add_lora, fold_lora, project
from sigma_jax.runtime.sharding import constrain, gathered


def causal_mask(segment: Int32[Array, "B T"]) -> Bool[Array, "B T T"]:
    """True where token i sees token j: j <= i in the same segment.

    Segment 0 is padding: it sees nothing and nothing sees it.
    Worked example: segment [1 1 2 0] -> rows [1000, 1100, 0010, 0000].
    """
    time = jnp.arange(segment.shape[1])
    is_same = (segment[:, :, None] == segment[:, None, :]) & (segment[:, :, None] > 0)
    return is_same & (time[None, :] <= time[:, None])


def branch_mask(
    segment: Int32[Array, "B T"], branch: Int32[Array, "B T"], attach: Int32[Array, "B T"]
) -> Bool[Array, "B T T"]:
    """`causal_mask` in which the branches of one context do not see each other.

    Branch 0 is the context. A token of another branch sees its own branch, and the context before
    row number `attach`. Worked example: branch [0 0 1 2 2], attach [0 0 2 1 1], one segment:
    rows [10000, 11000, 11100, 10010, 10011].
    """
    time = jnp.arange(segment.shape[1])
    is_same_branch = branch[:, :, None] == branch[:, None, :]
    is_context = (branch[:, None, :] == 0) & (time < attach[:, :, None])
    return causal_mask(segment) & (is_same_branch | is_context)


def swiglu(
    weights: Mapping[str, Array], x: Float[Array, "B T D"], lora: LoraConfig | None = None
) -> Float[Array, "B T D"]:
    """Output of the feed-forward layer: down(silu(gate x) * up x)."""
    gate = constrain(project(x, weights, "gate", lora), "rows", None, "mlp")
    up = constrain(project(x, weights, "up", lora), "rows", None, "mlp")
    return constrain(project(jax.nn.silu(gate) * up, weights, "down", lora), *HIDDEN)


def drop(x: Float[Array, "B T D"], rate: float, key: PRNGKeyArray | None) -> Float[Array, "B T D"]:
    """`x` after inverted dropout; `x` itself if `key` is None or `rate` is 0."""
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def block(
    config: Qwen3Config,
    weights: Mapping[str, Array],
    x: Float[Array, "B T D"],
    rotary,
    mask,
    cache,
    layer,
    key,
) -> tuple[Float[Array, "B T D"], KVCache | None]:
    """Output of one layer, and `cache` with the layer's new keys and values.

    x + attention(norm x), then x + swiglu(norm x). `weights` are those of this layer, `layer` is
    its number in the cache, `rotary` comes from `rotary_angles`; `key` turns dropout on.
    """
    keys = (None, None) if key is None else jax.random.split(key)
    normed = rms_norm(x, weights["attention_norm"], config.norm_eps)
    added, cache = attention(config, weights, normed, rotary, mask, cache, layer)
    x = x + drop(added, config.dropout, keys[0])
    normed = rms_norm(x, weights["mlp_norm"], config.norm_eps)
    return x + drop(swiglu(weights, normed, config.lora), config.dropout, keys[1]), cache


@dataclasses.dataclass(frozen=True)
class Weight:
    """Shape, logical axes and standard deviation at the start; deviation 0: all ones (norms)."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    deviation: float

    def param(self, config: Qwen3Config, rngs: nnx.Rngs) -> nnx.Param:
        """The weight at its start, in the config's `param_dtype`."""
        dtype = jnp.dtype(config.param_dtype)
        if self.deviation == 0:
            return nnx.Param(jnp.ones(self.shape, dtype), axes=self.axes)
        values = self.deviation * jax.random.normal(rngs.params(), self.shape, jnp.float32)
        return nnx.Param(values.astype(dtype), axes=self.axes)


def table_weight(config: Qwen3Config) -> Weight:
    """The weight of the embedding, and of the head.

    With its deviation, the tied logits of unit-scale hidden states start at scale 1.
    """
    shape = (config.vocab_size, config.width)
    return Weight(shape, ("vocab", "embed"), config.width**-0.5)


def layer_weights(config: Qwen3Config) -> dict[str, Weight]:
    """The weights of one layer, by name.

    The deviation is 1/sqrt(inputs). Weights that write to the residual stream are scaled by the
    deviation of the embeddings / sqrt(2 * layers). So the sum of all layers does not outweigh the
    tokens. `align_attention` then changes the start of queries and outputs.
    """
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
    """`weight` with the leading axis "layers"."""
    shape, axes = (config.num_layers,) + weight.shape, ("layers",) + weight.axes
    return Weight(shape, axes, weight.deviation)


def align_attention(layers: Mapping[str, nnx.Param], config: Qwen3Config) -> None:
    """Starts attention as a copy of similar tokens (mimetic start, Trockman and Kolter 2023).

    Each query head starts half as its key head, so tokens attend to tokens like them. The output
    starts as the transpose of the value, so an attended token is copied. Recommendations repeat
    items and codes of the prompt, and without this start a model first has to learn to copy.
    Changes `layers` in place; weights from a folder replace this start.
    """
    group = config.num_heads // config.num_kv_heads
    key = jnp.repeat(layers["key"][...], group, axis=2)
    layers["query"][...] = (layers["query"][...] + key) * 0.5**0.5
    value = jnp.repeat(layers["value"][...], group, axis=2)
    scale = table_weight(config).deviation / (group * math.sqrt(config.num_layers))
    layers["out"][...] = (value * scale).transpose(0, 2, 3, 1)


class Qwen3(nnx.Module):
    """A decoder over embeddings: `embed` embeds text tokens, the caller any others.

    Every parameter has its logical axes as metadata `axes`; `logical_axes` collects them.
    """

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        self.config = config
        self.embedding = table_weight(config).param(config, rngs)
        weights = layer_weights(config)
        self.layers = nnx.Dict(
            {name: stacked(weights[name], config).param(config, rngs) for name in weights}
        )
        align_attention(self.layers, config)
        self.final_norm = Weight((config.width,), ("embed",), 0).param(config, rngs)
        if not config.is_tied:
            self.head = table_weight(config).param(config, rngs)
        if config.lora is not None:
            add_lora(self.layers, config.lora, rngs)

    def add_lora(self, lora: LoraConfig, rngs: nnx.Rngs) -> None:
        """Adds trainable matrices of low rank to all layers; they do not change the output yet."""
        add_lora(self.layers, lora, rngs)
        self.config = dataclasses.replace(self.config, lora=lora)

    def fold_lora(self) -> None:
        """Replaces the layers' matrices by their sums with the additions; nothing without any.

        Every process that holds a part of the weights must call it.
        """
        if self.config.lora is None:
            return
        fold_lora(self.layers, self.config.lora)
        self.config = dataclasses.replace(self.config, lora=None)

    def embed(self, tokens: Int32[Array, "B T"]) -> Float[Array, "B T D"]:
        """Rows of the text table. Ids outside it are clipped; the caller replaces their rows."""
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
        """Hidden states after the final norm, and the cache extended by T rows if one is given.

        Args:
          positions: for the rotary embedding.
          mask: the rows that each token sees, itself included. Without a cache S = T; with one they
            are the first S rows of the cache, and its other rows cost nothing.
          cache: keys and values of earlier tokens; the T new rows go to length..length+T.
          key: turns dropout on.

        Raises:
          ValueError: the new rows do not fit into the cache (checked only outside jit, where the
            length is known).
        """
        config = self.config
        if cache is not None:
            cache.check_room(embeddings.shape[1])
        rotary = rotary_angles(positions, config.head_dim, config.rope_theta)
        weights = {name: weight[...] for name, weight in self.layers.items()}
        axes = {name: weight.get_metadata("axes")[1:] for name, weight in self.layers.items()}

        def run_layer(carry, layer_inputs):
            x, cache = carry
            layer, weights, key = layer_inputs
            # Cast before gathering: half the bytes travel.
            weights = {name: weight.astype(config.dtype) for name, weight in weights.items()}
            weights = gathered(weights, axes)
            return block(config, weights, x, rotary, mask, cache, layer, key), None

        if config.remat != "none":
            # Under scan nothing is merged across layers, so the barrier against it would only cost.
            policy = jax.checkpoint_policies.save_only_these_names(*REMAT[config.remat])
            run_layer = jax.checkpoint(run_layer, prevent_cse=False, policy=policy)
        keys = None if key is None else jax.random.split(key, config.num_layers)
        carry = (embeddings.astype(config.dtype), cache)
        inputs = (jnp.arange(config.num_layers), weights, keys)
        (x, cache), _ = jax.lax.scan(run_layer, carry, inputs)
        if cache is not None:
            length = cache.length + embeddings.shape[1]
            cache = dataclasses.replace(cache, length=length)
        return rms_norm(x, self.final_norm[...], config.norm_eps), cache

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Logits over the vocabulary, float32, by the head or the tied embedding table."""
        table = self.embedding if self.config.is_tied else self.head
        table = table[...].astype(self.config.dtype)
        return jnp.einsum("...D,VD->...V", hidden, table, preferred_element_type=jnp.float32)


def logical_axes(module: nnx.Module) -> dict[tuple, tuple[str, ...]]:
    """Logical axes of the parameters of `module` that declare them, by path."""
    params = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {path: p.get_metadata("axes") for path, p in params if "axes" in p.get_metadata()}
