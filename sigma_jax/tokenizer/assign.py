"""Semantic IDs of item vectors by a trained tokenizer: `load_tokenizer(folder).assign(vectors)`.

New items get their SIDs in the same way; encoder and codebooks do not change.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Int32

from sigma_jax.data.vectors import JoinedVectors
from sigma_jax.models.rqvae import RqVae, RqVaeConfig
from sigma_jax.models.weights import load_weights, save_weights
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.runtime.files import read_json
from sigma_jax.schema import read_npy

SETTINGS = "tokenizer.json"
ROWS = 8192  # vectors encoded at a time


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A trained tokenizer: item vectors to SIDs."""

    model: RqVae

    def assign(self, vectors: Float[np.ndarray, "I D"] | JoinedVectors) -> Int32[np.ndarray, "I L"]:
        """SIDs of `vectors`; a memory-mapped array is read in blocks.

        Raises:
          ValueError: the vectors have another size than those of the training, or are not finite.
        """
        return assign_codes(self.model, vectors, ROWS)


def assign_codes(
    model: RqVae, vectors: Float[np.ndarray, "I D"] | JoinedVectors, rows: int
) -> Int32[np.ndarray, "I L"]:
    """SIDs of `vectors`, computed for `rows` vectors at a time. Raises as `Tokenizer.assign`."""
    if vectors.ndim != 2 or vectors.shape[1] != model.input_size:
        raise ValueError(
            f"item vectors have shape {vectors.shape} but the tokenizer was trained on vectors of "
            f"{model.input_size} values; use the vectors of the same grounding stage."
        )
    graphdef, state = nnx.split(model)

    @jax.jit
    def assign(state, block):
        return nnx.merge(graphdef, state).assign(block)

    rows = max(min(rows, len(vectors)), 1)
    codes = np.empty((len(vectors), model.config.levels), np.int32)
    for start in range(0, len(vectors), rows):
        block = np.zeros((rows, vectors.shape[1]), np.float32)  # one shape is compiled once
        part = vectors[start : start + rows]
        if not np.isfinite(part).all():
            row = start + int(np.flatnonzero(~np.isfinite(part).all(axis=1))[0])
            raise ValueError(f"item vector {row} is not finite; run the grounding stage again.")
        block[: len(part)] = part
        codes[start : start + rows] = np.asarray(assign(state, block))[: len(part)]
    return codes


def save_tokenizer(model: RqVae, folder: Path) -> None:
    """Writes codebooks.npy (float32 [L, C, H]), weights.safetensors and tokenizer.json."""
    np.save(folder / "codebooks.npy", np.asarray(model.codebooks[...], np.float32))
    save_weights(model, folder / "weights.safetensors")
    settings = {
        "model": dataclasses.asdict(model.config),
        "input_size": model.input_size,
        "has_encoder": model.has_encoder,
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in an artifact's folder. ValueError if it is missing or damaged."""
    settings = read_json(folder / SETTINGS)
    if missing := {"model", "input_size", "has_encoder"} - settings.keys():
        raise ValueError(
            f"{folder / SETTINGS} has no {sorted(missing)}; delete {folder} and run the stage "
            "tokenizer again."
        )
    config = to_dataclass(RqVaeConfig, settings["model"], "model")
    model = RqVae(config, settings["input_size"], settings["has_encoder"], rngs=nnx.Rngs(0))
    load_weights(model, folder / "weights.safetensors")
    codebooks = read_npy(folder / "codebooks.npy", 3)
    if codebooks.shape != model.codebooks.shape:
        raise ValueError(
            f"{folder / 'codebooks.npy'} has shape {codebooks.shape} but {SETTINGS} says "
            f"{model.codebooks.shape}; delete {folder} and run the stage tokenizer again."
        )
    model.codebooks[...] = jax.numpy.asarray(codebooks)
    return Tokenizer(model)
