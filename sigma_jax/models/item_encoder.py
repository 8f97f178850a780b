"""Items as vectors: the fused item vector of section 2.2 of SIGMA, MLP(v_ID, v_text, v_img).

The pre-trained vectors are inputs, not parameters, unless the config says that one of them
trains on; then it starts as a copy and belongs to the optimizer's group of tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from sigma_jax.losses import unit

PRETRAINED = ("id", "text", "image")
OWN = "own"  # learnt from scratch: without pre-trained vectors, or beside them
TABLES = (*PRETRAINED, OWN)
AXES = ("items", None)


@dataclasses.dataclass(frozen=True)
class ItemEncoderConfig:
    """How pre-trained item vectors become fused ones."""

    fused_width: int  # 128 in the paper
    hidden_width: int
    inputs: tuple[str, ...]  # which of TABLES to use where they exist
    trainable: tuple[str, ...]  # which of them to train on


class ItemEncoder(nnx.Module):
    """Item rows to fused vectors, by a two-layer MLP beside a linear path.

    The linear path starts as a rotation (or a projection, where fused vectors are shorter): items
    near each other as they come in are near each other from the first step on. The paper leaves
    the shape of the MLP open.
    """

    def __init__(
        self,
        config: ItemEncoderConfig,
        vectors: Mapping[str, Float[Array, "I D"] | tuple[int, int]],
        *,
        rngs: nnx.Rngs,
    ):
        """`vectors` gives each table to be used, or its shape when values are restored later
        (of the table "own" always: it starts at random).

        Raises:
          ValueError: no table that the config names is given.
        """
        self.config = config
        self.names = tuple(name for name in TABLES if name in config.inputs and name in vectors)
        if not self.names:
            raise ValueError(
                f"item_encoder.inputs={config.inputs} but the data has {sorted(vectors)}; "
                "name one that exists."
            )
        shapes = {name: getattr(vectors[name], "shape", vectors[name]) for name in self.names}
        # Every row at unit length: the tables meet on equal terms.
        self.trained = nnx.Dict(
            {
                name: nnx.Param(_start(name, vectors[name], shapes[name], rngs), axes=AXES)
                for name in self.names
                if name in config.trainable
            }
        )
        width = sum(shape[1] for shape in shapes.values())
        init = nnx.initializers.lecun_normal()
        straight = nnx.initializers.orthogonal()
        self.linear = nnx.Param(straight(rngs.params(), (width, config.fused_width)))
        self.inner = nnx.Param(init(rngs.params(), (width, config.hidden_width)))
        self.inner_bias = nnx.Param(jnp.zeros((config.hidden_width,)))
        self.outer = nnx.Param(0.1 * init(rngs.params(), (config.hidden_width, config.fused_width)))

    def __call__(
        self, items: Int[Array, " *n"], tables: Mapping[str, Float[Array, "I D"]]
    ) -> Float[Array, "... D"]:
        """Fused vectors of `items`, not normalised. `tables` holds the frozen vectors."""
        parts = [
            self.trained[name][items]
            if name in self.trained
            else unit(jnp.take(tables[name], items, axis=0))
            for name in self.names
        ]
        x = jnp.concatenate(parts, axis=-1)
        hidden = jax.nn.gelu(x @ self.inner[...] + self.inner_bias[...])
        return x @ self.linear[...] + hidden @ self.outer[...]


def _start(name: str, vectors, shape: tuple[int, int], rngs: nnx.Rngs) -> Float[Array, "I D"]:
    if isinstance(vectors, tuple):
        return unit(jax.random.normal(rngs.params(), shape))
    vectors = jnp.asarray(vectors)
    if name == "text":
        # Sentence encoders put all texts into one corner, where cosines tell little apart.
        vectors = vectors - vectors.mean(axis=0)
    return unit(vectors)
