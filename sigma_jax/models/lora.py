"""Low-rank additions to the layers of a backbone whose own weights stay (Hu et al. 2022, LoRA).

Each matrix W of a layer becomes W + alpha / rank * A B, of which A [inputs, rank] and B [rank,
outputs] alone are trained; B starts at 0, so that the model starts as it was. What is saved is the
sum: whoever reads it knows of no additions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from sigma_jax.models.project import project

if TYPE_CHECKING:
    from sigma_jax.models.qwen3 import Qwen3

# The matrices of a layer, and how many of their first dimensions are inputs.
INPUTS = {"query": 1, "key": 1, "value": 1, "out": 2, "gate": 1, "up": 1, "down": 1}
ENDINGS = ("_a", "_b")


@dataclasses.dataclass(frozen=True)
class Lora:
    """How the additions are made. ValueError for what is no rank or no factor."""

    rank: int
    alpha: float  # the additions count alpha / rank

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"lora_rank={self.rank} is not a rank; use 1 or more, or 0 for none.")
        if not self.alpha > 0:
            raise ValueError(f"lora_alpha={self.alpha} is not a factor; use 32.0.")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def add_lora(backbone: Qwen3, lora: Lora, rngs: nnx.Rngs) -> None:
    """Gives `backbone` additions that do not change it yet, in float32 whatever its weights are."""
    rank = lora.rank
    for name, inputs in INPUTS.items():
        shape, axes = backbone.layers[name].shape, backbone.layers[name].get_metadata("axes")
        ins, outs = slice(1, 1 + inputs), slice(1 + inputs, None)
        deviation = math.prod(shape[ins]) ** -0.5
        first = jax.random.normal(rngs.params(), (shape[0], *shape[ins], rank), jnp.float32)
        second = jnp.zeros((shape[0], rank, *shape[outs]), jnp.float32)
        a, b = (name + ending for ending in ENDINGS)
        backbone.layers[a] = nnx.Param(deviation * first, axes=("layers", *axes[ins], "rank"))
        backbone.layers[b] = nnx.Param(second, axes=("layers", "rank", *axes[outs]))
    backbone.config = dataclasses.replace(backbone.config, lora=lora)


def adapted(
    x: Array, weights: Mapping[str, Array], name: str, lora: Lora | None, axes: int = 1
) -> Array:
    """`project` by the weight `name` of a layer, and by its addition where there is one; checkpoint
    policies know it by that name."""
    whole = project(x, weights[name], axes)
    if lora is not None:
        a, b = (weights[name + ending] for ending in ENDINGS)
        whole += project(lora.scale * project(x, a, axes), b)
    return checkpoint_name(whole, name)


def fold(backbone: Qwen3) -> None:
    """Puts the sum in place of each weight, in its type, and takes the additions away, where there
    are any. All processes that have a part of the weights have to ask."""
    lora = backbone.config.lora
    if lora is None:
        return
    for name in INPUTS:
        weight = backbone.layers[name]
        a, b = (backbone.layers.pop(name + ending)[...] for ending in ENDINGS)
        weight[...] = _sum(weight[...], a, b, lora.scale)
    backbone.config = dataclasses.replace(backbone.config, lora=None)


@jax.jit
def _sum(weight: Array, a: Array, b: Array, scale: float) -> Array:
    by_layer = (((a.ndim - 1,), (1,)), ((0,), (0,)))
    added = jax.lax.dot_general(a, b, by_layer, precision=jax.lax.Precision.HIGHEST)
    return (weight.astype(jnp.float32) + scale * added).astype(weight.dtype)


def is_kept(path: tuple[str, ...]) -> bool:
    """Whether the parameter at this path of a model with additions stays as it is: all of its
    backbone but them."""
    return path[0] == "backbone" and not path[-1].endswith(ENDINGS)
