"""Text vectors (v_text of SIGMA): pooled hidden states of a backbone, projected, at unit length."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from sigma_jax.losses import unit
from sigma_jax.models.qwen3 import Qwen3, causal_mask

POOLINGS = ("mean", "last")


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """Pooling and projection after the backbone. ValueError if they do not fit together."""

    width: int  # of the vectors; 64 in the paper
    pooling: str  # "mean" over the text's tokens, or its "last" token
    is_causal: bool  # False: every token sees all tokens of the text

    def __post_init__(self):
        if self.pooling not in POOLINGS:
            raise ValueError(f"encoder.pooling={self.pooling!r} is unknown; use one of {POOLINGS}.")
        if self.pooling == "last" and not self.is_causal:
            raise ValueError(
                'encoder.pooling="last" is for causal encoders; use "mean" or is_causal=True.'
            )
        if self.width < 1:
            raise ValueError(f"encoder.width={self.width} is not a size; use 64.")


class TextEncoder(nnx.Module):
    """A language model `backbone` and a linear `projection` of its pooled hidden states."""

    def __init__(self, config: TextEncoderConfig, backbone: Qwen3, *, rngs: nnx.Rngs):
        self.config = config
        self.backbone = backbone
        init = nnx.initializers.lecun_normal()
        shape = (backbone.config.width, config.width)
        self.projection = nnx.Param(init(rngs.params(), shape), axes=("embed", None))

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, " B"],
        key: jax.Array | None = None,
    ) -> Float[Array, "B D"]:
        """Unit vectors of texts; text b has `lengths[b]` tokens, followed by padding."""
        time = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        is_real = time[None] < lengths[:, None]
        if self.config.is_causal:
            mask = causal_mask(is_real.astype(jnp.int32))
        else:
            mask = is_real[:, :, None] & is_real[:, None, :]
        positions = jnp.broadcast_to(time, tokens.shape)
        hidden, _ = self.backbone(self.backbone.embed(tokens), positions, mask, key=key)
        # float32: in bfloat16 a sum over many tokens loses the later ones.
        hidden = hidden.astype(jnp.float32)
        if self.config.pooling == "mean":
            total = jnp.where(is_real[..., None], hidden, 0).sum(axis=1)
            pooled = total / jnp.maximum(lengths, 1)[:, None]
        else:
            last = jnp.maximum(lengths - 1, 0)[:, None, None]
            pooled = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
        return unit(pooled @ self.projection[...].astype(jnp.float32))
