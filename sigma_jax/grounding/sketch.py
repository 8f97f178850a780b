"""Stage 1 as shapes, for a look ahead without data (runtime/preflight.py)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from sigma_jax.grounding.task import GroundingConfig, grounding_loss, label
from sigma_jax.models.qwen3 import Qwen3, Qwen3Config
from sigma_jax.models.sizes import Sizes
from sigma_jax.models.text_encoder import TextEncoder
from sigma_jax.runtime.preflight import Sketch, backbone_flops


def sketch(config: GroundingConfig, backbone: Qwen3Config, sizes: Sizes) -> Sketch:
    """What GroundingTask trains, every text as long as one may be."""
    model = nnx.eval_shape(
        lambda: TextEncoder(config.encoder, Qwen3(backbone, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    )
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
    return Sketch(
        model,
        functools.partial(label, config),
        functools.partial(grounding_loss, config),
        {},
        batch,
        config.train.batch_size,
        rows * tokens,
        backbone_flops(backbone, tokens),
    )
