"""The fused item vector of section 2.2 of SIGMA: MLP(v_ID, v_text, v_img).

The tables of pre-trained vectors are frozen inputs, except those that the config makes trainable. A
trainable table starts as a copy and belongs to the optimizer's group "table".
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
ID_EMBEDDING = "id_embedding"  # a trained table that starts at random, not from ID vectors
TABLES = (*PRETRAINED, ID_EMBEDDING)
AXES = ("items", None)
# An instruction is read as an item whose only input is a text vector: item -2 - r is row r of
# tables["instructions"]. Item -1 is none.
INSTRUCTION = -2


@dataclasses.dataclass(frozen=True)
class ItemEncoderConfig:
    """Widths and input tables of the item encoder."""

    fused_width: int  # 128 in the paper
    hidden_width: int  # of the MLP
    inputs: tuple[str, ...]  # names out of TABLES; those that the data lack are skipped
    trainable: tuple[str, ...]  # the inputs that are trained
    # Add a linear path to the MLP; False: the MLP alone, as in the paper.
    has_linear_path: bool


class ItemEncoder(nnx.Module):
    """Item numbers to fused vectors, by a two-layer MLP, and a linear path if the config says so.

    The linear path starts as a rotation, or as a projection if fused vectors are shorter. So items
    with near input vectors have near fused vectors from the first step. The paper leaves the shape
    of the MLP open.
    """

    def __init__(
        self,
        config: ItemEncoderConfig,
        vectors: Mapping[str, Float[Array, "I D"] | tuple[int, int]],
        *,
        rngs: nnx.Rngs,
    ):
        """Makes an encoder of the tables that are in both `config.inputs` and `vectors`.

        Args:
          vectors: each table, or its shape if values are restored later. ID_EMBEDDING is always
            given by its shape.

        Raises:
          ValueError: `vectors` has none of the config's tables.
        """
        self.config = config
        self.names = tuple(name for name in TABLES if name in config.inputs and name in vectors)
        if not self.names:
            raise ValueError(
                f"item_encoder.inputs={config.inputs} but the data have {sorted(vectors)}; "
                "name one of these."
            )
        shapes = {name: getattr(vectors[name], "shape", vectors[name]) for name in self.names}
        # Every row has unit length, so that no table outweighs another.
        self.trained = nnx.Dict(
            {
                name: nnx.Param(_start(name, vectors[name], shapes[name], rngs), axes=AXES)
                for name in self.names
                if name in config.trainable
            }
        )
        width = sum(shape[1] for shape in shapes.values())
        init = nnx.initializers.lecun_normal()
        if config.has_linear_path:
            straight = nnx.initializers.orthogonal()
            self.linear = nnx.Param(straight(rngs.params(), (width, config.fused_width)))
        self.inner = nnx.Param(init(rngs.params(), (width, config.hidden_width)))
        self.inner_bias = nnx.Param(jnp.zeros((config.hidden_width,)))
        scale = 0.1 if config.has_linear_path else 1.0
        shape = (config.hidden_width, config.fused_width)
        self.outer = nnx.Param(scale * init(rngs.params(), shape))

    def __call__(
        self, items: Int[Array, " *n"], tables: Mapping[str, Float[Array, "I D"]]
    ) -> Float[Array, "... D"]:
        """Fused vectors of `items`, of any length. `tables` holds the frozen tables."""
        return self._fused([self._inputs(name, items, tables) for name in self.names])

    def of_prompt(
        self, items: Int[Array, "B T"], tables: Mapping[str, Float[Array, "I D"]]
    ) -> Float[Array, "B T D"]:
        """Fused vectors of the items and instructions of prompts; any vector where there is none.

        Args:
          items: items, or INSTRUCTION - r for an instruction, or -1.
          tables: holds "instructions" if there are any: text vectors [R, E] that all prompts share,
            or [B, R, E], R of each prompt.
        """
        parts = [self._inputs(name, jnp.maximum(items, 0), tables) for name in self.names]
        if "instructions" in tables:
            vectors, rows = tables["instructions"], jnp.maximum(INSTRUCTION - items, 0)
            if vectors.ndim == 2:
                vectors = jnp.take(vectors, rows, axis=0)
            else:
                vectors = jnp.take_along_axis(vectors, rows[..., None], axis=1)
            texts = unit(vectors.astype(jnp.float32))
            is_instruction = (items <= INSTRUCTION)[..., None]
            parts = [
                jnp.where(is_instruction, texts if name == "text" else 0.0, part)
                for name, part in zip(self.names, parts, strict=True)
            ]
        return self._fused(parts)

    def _inputs(self, name: str, items: Int[Array, " *n"], tables) -> Float[Array, "... E"]:
        """The vectors of `items` in one of the tables, unit length."""
        if name in self.trained:
            return self.trained[name][items]
        return unit(jnp.take(tables[name], items, axis=0))

    def _fused(self, parts: list[Float[Array, "... E"]]) -> Float[Array, "... D"]:
        """The fused vectors of the inputs `parts`, in the order of `names`."""
        x = jnp.concatenate(parts, axis=-1)
        hidden = jax.nn.gelu(x @ self.inner[...] + self.inner_bias[...])
        fused = hidden @ self.outer[...]
        return x @ self.linear[...] + fused if self.config.has_linear_path else fused


def _start(name: str, vectors, shape: tuple[int, int], rngs: nnx.Rngs) -> Float[Array, "I D"]:
    if isinstance(vectors, tuple):
        return unit(jax.random.normal(rngs.params(), shape))
    vectors = jnp.asarray(vectors)
    if name == "text":
        # Vectors of sentence encoders share a large mean, which hides their differences.
        vectors = vectors - vectors.mean(axis=0)
    return unit(vectors)
