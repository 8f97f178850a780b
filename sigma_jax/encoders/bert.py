"""The BERT family of text encoders: BERT (MiniLM, E5, BGE, GTE), RoBERTa and XLM-RoBERTa.

`load_bert` reads a Hugging Face folder (config.json and safetensors) without torch. A layer is

    x = norm(x + attention(x)),  x = norm(x + down(gelu(up(x))))

with biases everywhere (Devlin et al., 2019). Each weight is one array for all layers, with a
leading axis "layers", and the layers run under `jax.lax.scan`. Axis letters are those of qwen3.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from sigma_jax.models.folders import TensorFolder, read_folder_json, size_of

# model_type -> prefix that its tensors may have, and whether positions follow the padding token.
FAMILIES = {
    "bert": ("bert.", False),
    "roberta": ("roberta.", True),
    "xlm-roberta": ("roberta.", True),
}
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
# Names of tensors outside the layers, and in layer number {}. A matrix is stored [outputs, inputs].
EMBEDDINGS = {
    "words": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "types": "embeddings.token_type_embeddings.weight",
    "scale": "embeddings.LayerNorm.weight",
    "shift": "embeddings.LayerNorm.bias",
}
LAYERS = {
    "query": "attention.self.query.weight",
    "query_bias": "attention.self.query.bias",
    "key": "attention.self.key.weight",
    "key_bias": "attention.self.key.bias",
    "value": "attention.self.value.weight",
    "value_bias": "attention.self.value.bias",
    "out": "attention.output.dense.weight",
    "out_bias": "attention.output.dense.bias",
    "attention_scale": "attention.output.LayerNorm.weight",
    "attention_shift": "attention.output.LayerNorm.bias",
    "up": "intermediate.dense.weight",
    "up_bias": "intermediate.dense.bias",
    "down": "output.dense.weight",
    "down_bias": "output.dense.bias",
    "mlp_scale": "output.LayerNorm.weight",
    "mlp_shift": "output.LayerNorm.bias",
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The sizes of an encoder."""

    vocab_size: int
    width: int  # D
    num_layers: int
    num_heads: int  # N
    mlp_width: int  # F
    max_positions: int
    num_types: int
    norm_eps: float
    activation: str
    first_position: int  # of the first token: 0, or after the padding token's in RoBERTa

    @property
    def head_dim(self) -> int:
        """H, the width of a head."""
        return self.width // self.num_heads

    @property
    def max_tokens(self) -> int:
        """The longest text that has positions."""
        return self.max_positions - self.first_position


def weight_shapes(config: BertConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """(shape, logical axes) of the weights outside the layers, and of one layer, by name."""
    D, N, H, F = config.width, config.num_heads, config.head_dim, config.mlp_width
    outside = {
        "words": ((config.vocab_size, D), ("vocab", "embed")),
        "positions": ((config.max_positions, D), (None, "embed")),
        "types": ((config.num_types, D), (None, "embed")),
        "scale": ((D,), ("embed",)),
        "shift": ((D,), ("embed",)),
    }
    heads = ((D, N, H), ("embed", "heads", "head_dim"))
    head_bias = ((N, H), ("heads", "head_dim"))
    of_width = ((D,), ("embed",))
    layer = {
        **{name: heads for name in ("query", "key", "value")},
        **{f"{name}_bias": head_bias for name in ("query", "key", "value")},
        "out": ((N, H, D), ("heads", "head_dim", "embed")),
        "up": ((D, F), ("embed", "mlp")),
        "up_bias": ((F,), ("mlp",)),
        "down": ((F, D), ("mlp", "embed")),
        **{
            name: of_width
            for name in ("out_bias", "attention_scale", "attention_shift")
            + ("down_bias", "mlp_scale", "mlp_shift")
        },
    }
    return outside, layer


class Bert(nnx.Module):
    """An encoder: tokens to hidden states. `load_bert` fills its weights."""

    def __init__(self, config: BertConfig):
        self.config = config
        outside, layer = weight_shapes(config)
        self.embeddings = nnx.Dict(
            {
                name: nnx.Param(jnp.zeros(shape), axes=axes)
                for name, (shape, axes) in outside.items()
            }
        )
        self.layers = nnx.Dict(
            {
                name: nnx.Param(jnp.zeros((config.num_layers, *shape)), axes=("layers", *axes))
                for name, (shape, axes) in layer.items()
            }
        )

    def __call__(
        self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"]
    ) -> Float[Array, "B T D"]:
        """Hidden states of the last layer; text b has `lengths[b]` tokens, followed by padding."""
        config, table = self.config, self.embeddings
        time = jnp.arange(tokens.shape[1])
        is_real = time[None] < lengths[:, None]
        x = table["words"][...][tokens] + table["types"][...][0]
        x = x + table["positions"][...][config.first_position + time]
        x = layer_norm(x, table["scale"][...], table["shift"][...], config.norm_eps)
        weights = {name: weight[...] for name, weight in self.layers.items()}
        step = functools.partial(layer, config, is_real)
        x, _ = jax.lax.scan(lambda x, of_layer: (step(of_layer, x), None), x, weights)
        return x


def layer_norm(
    x: Float[Array, "... D"], scale: Float[Array, " D"], shift: Float[Array, " D"], eps: float
) -> Float[Array, "... D"]:
    """`x` at mean 0 and deviation 1, times `scale`, plus `shift`; computed in float32."""
    values = x.astype(jnp.float32)
    centred = values - values.mean(-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    return (normed * scale + shift).astype(x.dtype)


def layer(
    config: BertConfig,
    is_real: Bool[Array, "B T"],
    weights: Mapping[str, Array],
    x: Float[Array, "B T D"],
) -> Float[Array, "B T D"]:
    """The output of one layer. Padding is seen by no token."""

    def heads(name: str) -> Float[Array, "B N T H"]:  # heads first: products are twice as fast
        of_tokens = jnp.einsum("BTD,DNH->BTNH", x, weights[name]) + weights[f"{name}_bias"]
        return of_tokens.swapaxes(1, 2)

    query, key, value = heads("query"), heads("key"), heads("value")
    logits = jnp.einsum("BNTH,BNSH->BNTS", query, key) * config.head_dim**-0.5
    logits = jnp.where(is_real[:, None, None, :], logits.astype(jnp.float32), -1e30)
    mixed = jnp.einsum("BNTS,BNSH->BNTH", jax.nn.softmax(logits, axis=-1).astype(x.dtype), value)
    added = jnp.einsum("BNTH,NHD->BTD", mixed, weights["out"]) + weights["out_bias"]
    norm = functools.partial(layer_norm, eps=config.norm_eps)
    x = norm(x + added, weights["attention_scale"], weights["attention_shift"])
    up = ACTIVATIONS[config.activation](
        jnp.einsum("BTD,DF->BTF", x, weights["up"]) + weights["up_bias"]
    )
    down = jnp.einsum("BTF,FD->BTD", up, weights["down"]) + weights["down_bias"]
    return norm(x + down, weights["mlp_scale"], weights["mlp_shift"])


def read_bert_config(folder: Path) -> BertConfig:
    """The sizes in FOLDER/config.json. ValueError for another architecture or a bad value."""
    path = folder / "config.json"
    raw = read_folder_json(path)
    kind = raw.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(
            f"{path}: model_type={kind!r} is no encoder; known are {', '.join(FAMILIES)}."
        )
    kind_of_position = raw.get("position_embedding_type", "absolute")
    if kind_of_position != "absolute":
        raise ValueError(f"{path}: position_embedding_type={kind_of_position!r} is not supported.")
    activation = raw.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"{path}: hidden_act={activation!r} is not supported; use {', '.join(ACTIVATIONS)}."
        )
    size = functools.partial(size_of, path, raw)
    _, follows_padding = FAMILIES[kind]
    config = BertConfig(
        vocab_size=size("vocab_size"),
        width=size("hidden_size"),
        num_layers=size("num_hidden_layers"),
        num_heads=size("num_attention_heads"),
        mlp_width=size("intermediate_size"),
        max_positions=size("max_position_embeddings"),
        num_types=size("type_vocab_size", 2),
        norm_eps=float(raw.get("layer_norm_eps", 1e-12)),
        activation=activation,
        first_position=int(raw.get("pad_token_id") or 0) + 1 if follows_padding else 0,
    )
    if config.width % config.num_heads:
        raise ValueError(
            f"{path}: hidden_size={config.width} is no multiple of "
            f"num_attention_heads={config.num_heads}; download it again."
        )
    return config


def load_bert(folder: Path) -> Bert:
    """The encoder in a folder, in float32.

    Raises:
      ValueError: the folder is missing, damaged, incomplete, or of another architecture.
    """
    config = read_bert_config(folder)
    outside, of_layer = weight_shapes(config)
    model = nnx.eval_shape(lambda: Bert(config))
    with contextlib.ExitStack() as stack:
        tensors = TensorFolder(folder, stack)
        prefix = next(
            (p for p, _ in FAMILIES.values() if f"{p}{EMBEDDINGS['words']}" in tensors), ""
        )

        def read(name: str, shape: tuple[int, ...], inputs: int) -> np.ndarray:
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            old = old.replace("LayerNorm.bias", "LayerNorm.beta")
            stored = next((n for n in (prefix + name, prefix + old) if n in tensors), prefix + name)
            return tensors.matrix(stored, shape, inputs)

        def inputs_of(name: str, shape: tuple[int, ...]) -> int:
            return 0 if len(shape) == 1 or name.endswith("_bias") else 2 if name == "out" else 1

        embeddings = {
            name: jnp.asarray(read(EMBEDDINGS[name], shape, 0))
            for name, (shape, _) in outside.items()
        }
        layers = {}
        for name, (shape, _) in of_layer.items():
            inputs = inputs_of(name, shape)
            parts = [
                read(f"encoder.layer.{number}.{LAYERS[name]}", shape, inputs)
                for number in range(config.num_layers)
            ]
            layers[name] = jnp.asarray(np.stack(parts))
    params = nnx.state(model, nnx.Param)
    flat = [
        (path, param.replace({"embeddings": embeddings, "layers": layers}[path[0]][path[1]]))
        for path, param in nnx.to_flat_state(params)
    ]
    nnx.update(model, nnx.from_flat_state(flat))
    return model
