"""Sizes and switches of a backbone: the Qwen3 block, or Llama's."""

from __future__ import annotations

import dataclasses

from sigma_jax.models import flash

DTYPES = ("float32", "bfloat16", "float16")
# Results of a layer that are kept for the backward pass beside its input, by the names that
# `linear.project` and flash.py give them. The layer's last product is not needed there.
_ATTENTION = ("out", flash.KEPT)
REMAT = {
    "none": None,  # everything is kept
    "layer": (),
    "attention": _ATTENTION,
    "light": ("query", "key", "value", "gate", "up", *_ATTENTION),
}


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Rank and factor of low-rank additions. ValueError if the rank or the factor is too small."""

    rank: int
    alpha: float  # the additions are multiplied by alpha / rank

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"lora_rank={self.rank} is not a rank; use 1 or more, or 0 for none.")
        if not self.alpha > 0:
            raise ValueError(f"lora_alpha={self.alpha} is not a factor; use 32.0.")

    @property
    def scale(self) -> float:
        """Factor of the product A B."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class Qwen3Config:
    """Sizes and switches of a backbone. ValueError if they do not fit together."""

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
    dropout: float  # of the output of each attention and MLP; applied only if a key is given
    dtype: str  # of activations and matrix products
    param_dtype: str  # of stored weights
    # Results that the backward pass recomputes, a layer at a time. "layer": everything but the
    # layer's input. "attention": keeps attention's output (3 to 4 times the memory). "light": keeps
    # products and attention (13 to 14 times). "none": nothing is recomputed.
    remat: str
    lora: LoraConfig | None = None  # low-rank additions; the layers' own weights are then frozen

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
            # Our block does not mind, but Hugging Face's Llama would not load the saved folder.
            raise ValueError(
                f"width={self.width} is no multiple of num_heads={self.num_heads}, which Llama "
                "requires; use a multiple, or has_qk_norm=True."
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
