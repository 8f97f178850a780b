"""A trained head beside a frozen sentence encoder: grounding that forgets nothing.

A grounded vector is the encoder's unit vector v with the head's unit vector g(v) beside it:

    [v, weight * g(v)] / sqrt(1 + weight^2),    g(v) = unit(W2 gelu(W1 v))

So a cosine is a mean of the encoder's cosine and the head's. The stage `grounding_head` trains the
head by Eq. 1-3 of SIGMA.

Axes: E dimensions of the encoder, H hidden ones, W dimensions of the head.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32

from sigma_jax.data.vectors import unit_rows
from sigma_jax.losses import unit
from sigma_jax.models.weights import load_weights, save_weights
from sigma_jax.runtime.config import check_at_least
from sigma_jax.runtime.files import read_json, write_json
from sigma_jax.shapes import power_of_two

SETTINGS, WEIGHTS = "grounding_head.json", "weights.safetensors"
MOST_ROWS = 8_192  # that the head reads at once


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The sizes of a head. ValueError for a size below 1 or a negative weight."""

    width: int  # W
    hidden_width: int  # H
    weight: float  # of the head beside the encoder; 0 leaves the encoder alone

    def __post_init__(self):
        check_at_least(1, self, "width", "hidden_width", group="head.")
        check_at_least(0, self, "weight", group="head.")


class GroundingHead(nnx.Module):
    """Unit vectors of an encoder to unit vectors of relevance."""

    def __init__(self, encoder_width: int, config: HeadConfig, *, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal()
        shape = (encoder_width, config.hidden_width)
        self.hidden = nnx.Param(init(rngs.params(), shape), axes=("embed", "mlp"))
        shape = (config.hidden_width, config.width)
        self.output = nnx.Param(init(rngs.params(), shape), axes=("mlp", None))

    def __call__(self, vectors: Float[Array, "B E"]) -> Float[Array, "B W"]:
        """g of unit vectors."""
        # A unit vector has numbers of size 1 / sqrt(E), too small for the curve of gelu.
        scaled = vectors * vectors.shape[-1] ** 0.5
        return unit(jax.nn.gelu(scaled @ self.hidden[...]) @ self.output[...])


@functools.partial(jax.jit, static_argnums=0)
def apply_head(
    graph: nnx.GraphDef, state: nnx.State, vectors: Float[Array, "B E"]
) -> Float[Array, "B W"]:
    """g of unit vectors. Heads with equal shapes share its programs."""
    return nnx.merge(graph, state)(vectors)


class GroundedVectors:
    """Vectors of a sentence encoder to grounded vectors, on the host."""

    def __init__(self, head: GroundingHead, config: HeadConfig):
        self.head, self.config = head, config
        self._graph, self._state = nnx.split(head)

    def __call__(self, vectors: Float[np.ndarray, "N E"]) -> Float32[np.ndarray, "N E+W"]:
        """The grounded vectors, unit length, of vectors of any length."""
        plain, weight = unit_rows(vectors), self.config.weight
        parts = [
            self._of_head(plain[start : start + MOST_ROWS])
            for start in range(0, len(plain), MOST_ROWS)
        ]
        of_head = np.concatenate([np.zeros((0, self.config.width), np.float32), *parts])
        return np.concatenate([plain, weight * of_head], axis=1) / (1 + weight**2) ** 0.5

    def _of_head(self, vectors: Float32[np.ndarray, "n E"]) -> Float32[np.ndarray, "n W"]:
        """g, computed for a power of two of rows, so that few programs are compiled."""
        padding = power_of_two(len(vectors)) - len(vectors)
        padded = np.pad(vectors, ((0, padding), (0, 0)))
        found = apply_head(self._graph, self._state, jnp.asarray(padded))
        return np.asarray(found)[: len(vectors)]

    def save(self, folder: Path) -> None:
        """Writes the head into `folder`."""
        save_weights(self.head, folder / WEIGHTS)
        encoder_width = self.head.hidden[...].shape[0]
        settings = {"encoder_width": encoder_width, **dataclasses.asdict(self.config)}
        write_json(folder / SETTINGS, settings)

    @classmethod
    def load(cls, folder: Path) -> GroundedVectors | None:
        """The head in `folder`; None if there is none. ValueError if it is damaged."""
        if not (folder / SETTINGS).exists():
            return None
        settings = read_json(folder / SETTINGS)
        try:
            encoder_width = int(settings.pop("encoder_width"))
            config = HeadConfig(**settings)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{folder / SETTINGS} is damaged or of another version ({error}); delete {folder} "
                "and run the stage grounding_head again."
            ) from error
        head = GroundingHead(encoder_width, config, rngs=nnx.Rngs(0))
        load_weights(head, folder / WEIGHTS)
        return cls(head, config)
