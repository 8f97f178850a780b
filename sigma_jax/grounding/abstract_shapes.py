"""Stage `grounding` as abstract shapes: preflight compiles it without data or devices."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from sigma_jax.grounding.encode import BatchEncoder, vectors_of
from sigma_jax.grounding.task import GroundingConfig, grounding_loss, param_group
from sigma_jax.models.config import Qwen3Config
from sigma_jax.models.qwen3 import Qwen3
from sigma_jax.models.text_encoder import TextEncoder
from sigma_jax.runtime import sharding
from sigma_jax.runtime.preflight.estimate import (
    AbstractStage,
    CatalogueSizes,
    Inference,
    backbone_flops,
)
from sigma_jax.runtime.state import shardings, split_model


def abstract_stage(
    config: GroundingConfig, backbone: Qwen3Config, sizes: CatalogueSizes
) -> AbstractStage:
    """Shapes of the training of GroundingTask, all texts at `max_tokens`."""
    rows, tokens = 2 * config.train.batch_size, config.max_tokens
    batch = {
        "tokens": jax.ShapeDtypeStruct((rows, tokens), jnp.int32),
        "length": jax.ShapeDtypeStruct((rows,), jnp.int32),
        "key": jax.ShapeDtypeStruct((rows,), jnp.int32),
        "view": jax.ShapeDtypeStruct((rows,), jnp.int32),
    }
    if config.kd_weight and "id" in sizes.vectors:
        batch["id_vectors"] = jax.ShapeDtypeStruct((rows, sizes.vectors["id"]), jnp.float32)
        batch["has_id"] = jax.ShapeDtypeStruct((rows,), jnp.bool_)
    return AbstractStage(
        _model(config, backbone),
        functools.partial(param_group, config),
        functools.partial(grounding_loss, config),
        {},
        batch,
        config.train.batch_size,
        rows * tokens,
        backbone_flops(backbone, tokens),
    )


def inference(config: GroundingConfig, backbone: Qwen3Config, mesh: Mesh) -> Inference:
    """Encoding of one batch of texts at `max_tokens` by BatchEncoder, as at the end of training."""
    backbone = dataclasses.replace(backbone, lora=None)
    model = _model(config, backbone)
    rows = BatchEncoder(model, config.eval_batch_size, mesh).batch_size
    template, params, rest = split_model(model, lambda path: "frozen")
    sharding_of = shardings(template, mesh)
    placed = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding_of[name])
        for name, leaf in {**params, **rest}.items()
    }
    graph, state = nnx.split(template.merge(placed, {}))
    by_row = sharding.rows(mesh)
    tokens = jax.ShapeDtypeStruct((rows, config.max_tokens), jnp.int32, sharding=by_row)
    lengths = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=by_row)
    return Inference(
        lambda *arguments: vectors_of(graph, *arguments, where=sharding.replicated(mesh)),
        (state, tokens, lengths),
        "texts",
        rows,
        backbone_flops(backbone, config.max_tokens) / 3 * rows * config.max_tokens,
    )


def encode_choices(config: GroundingConfig, devices: int) -> list[tuple[str, GroundingConfig]]:
    """(flag, config) pairs that encode half the texts at a time, a quarter, ... one per device."""
    choices, texts = [], (config.encode_rows or 2 * config.train.batch_size) // 2
    while texts and texts % devices == 0:
        changed = dataclasses.replace(config, encode_rows=texts)
        choices.append((f"--config.encode_rows={texts}", changed))
        texts //= 2
    return choices


def _model(config: GroundingConfig, backbone: Qwen3Config) -> TextEncoder:
    def make() -> TextEncoder:
        language_model = Qwen3(backbone, rngs=nnx.Rngs(0))
        return TextEncoder(config.encoder, language_model, rngs=nnx.Rngs(0))

    return nnx.eval_shape(make)
