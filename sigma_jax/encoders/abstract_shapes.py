"""A sentence encoder as abstract shapes: preflight compiles it without weights or devices."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from sigma_jax.encoders.bert import FAMILIES, Bert, BertConfig, read_bert_config
from sigma_jax.encoders.sentence_encoder import (
    Decoder,
    batch_size,
    longest_text,
    read_head,
    read_modules,
    state_shardings,
)
from sigma_jax.models.folders import read_folder_json
from sigma_jax.models.hf import read_config
from sigma_jax.models.qwen3 import Qwen3
from sigma_jax.runtime import sharding
from sigma_jax.runtime.preflight.estimate import Inference, backbone_flops


def inference(folder: Path, mesh: Mesh) -> Inference:
    """Encoding of one batch of the longest texts by the encoder in `folder`.

    Raises:
      ValueError: the folder is damaged or incomplete, or has a part that is not supported.
    """
    modules = read_modules(folder)
    first = folder / modules[0]["path"]
    head = read_head(folder, modules[1:])
    if read_folder_json(first / "config.json").get("model_type") in FAMILIES:
        sizes = read_bert_config(first)
        transformer: nnx.Module = nnx.eval_shape(lambda: Bert(sizes))
        tokens = longest_text(folder, first, sizes.max_tokens)
        flops = bert_flops(sizes, tokens)
    else:
        config = read_config(
            first, dtype="float32", param_dtype="float32", remat="none", dropout=0.0
        )
        transformer = nnx.eval_shape(lambda: Decoder(Qwen3(config, rngs=nnx.Rngs(0))))
        tokens = longest_text(folder, first)
        flops = backbone_flops(config, tokens) / 3
    graph, state = nnx.split(transformer)
    state = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        state,
        state_shardings(state, mesh),
    )
    rows, by_row = batch_size(tokens, mesh.size), sharding.rows(mesh)

    def run(state: nnx.State, ids: Array, lengths: Array) -> Array:
        return head(nnx.merge(graph, state)(ids, lengths), lengths)

    return Inference(
        run,
        (
            state,
            jax.ShapeDtypeStruct((rows, tokens), jnp.int32, sharding=by_row),
            jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=by_row),
        ),
        "texts",
        rows,
        flops * rows * tokens,
    )


def bert_flops(config: BertConfig, tokens: int) -> float:
    """Operations per token of a text of `tokens`: 2 per weight, 4 D per layer and token seen."""
    weights = 4 * config.width**2 + 2 * config.width * config.mlp_width
    return config.num_layers * (2 * weights + 4 * config.width * tokens)
