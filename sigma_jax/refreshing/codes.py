"""Semantic IDs of a refresh: frozen codebooks for new items, and how well they fit them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Int32

from sigma_jax.data.vectors import JoinedVectors, item_vectors, join_vectors
from sigma_jax.models.rqvae import RqVae
from sigma_jax.schema import SemanticIds
from sigma_jax.tokenizer.assign import load_tokenizer

FILES = ("codebooks.npy", "weights.safetensors", "tokenizer.json")
SAMPLE = 16_384  # old items that new ones are compared with
MAP = "codebook_map.npy"  # old code of each level and new code; -1: no item has the new code


@dataclasses.dataclass(frozen=True)
class Drift:
    """How new items differ from old ones under the same codebooks."""

    new_items: int
    # Squared distance of a vector to the decoding of its codes over the variance of old vectors.
    error_of_old: float
    error_of_new: float
    high_error_of_old: float  # the error that a tenth of the old items exceed
    collisions_of_old: float  # share of the old items that share their SID with another old item
    collisions_of_new: float  # share of the new items whose SID an old item has
    # Total variation distance of the codes of new and old items at each level, 0 to 1. Few new
    # items are far from any distribution: compare it with `expected_distance`.
    code_distance: tuple[float, ...]
    expected_distance: tuple[float, ...]  # of as many old items drawn at random

    @property
    def is_large(self) -> bool:
        """Whether the codebooks fit new items worse than most old ones."""
        return self.new_items > 0 and self.error_of_new > self.high_error_of_old

    @property
    def lines(self) -> list[str]:
        """Lines about the drift for people; none without new items."""
        if not self.new_items:
            return []
        lines = [
            f"semantic IDs of {self.new_items} new items: error {self.error_of_new:.3f}, of old "
            f"items {self.error_of_old:.3f}; {self.collisions_of_new:.0%} share their SID with an "
            f"old item, {self.collisions_of_old:.0%} of the old ones do"
        ]
        if self.is_large:
            lines.append(
                "warning: the codebooks fit new items worse than 9 of 10 old ones; consider "
                "--config.rebuilds_codebooks=True"
            )
        return lines


def write_codes(
    start: Path, workdir: Path, inputs: tuple[str, ...], known: int, seed: int, folder: Path
) -> dict[str, Any]:
    """Writes the stage `tokenizer` with the codebooks of a workdir; returns the drift.

    Args:
      start: a workdir that has the codebooks and the SIDs of its `known` items.
      workdir: has vectors of all items.
      inputs: kinds of the vectors that the tokenizer was trained on.
    """
    tables = item_vectors(workdir)
    vectors = join_vectors({name: tables[name] for name in inputs if name in tables})
    assert vectors is not None
    for name in FILES:
        shutil.copy(start / "tokenizer" / name, folder)
    tokenizer, before = load_tokenizer(folder), SemanticIds.load(start / "tokenizer")
    codes = np.asarray(before.codes)
    if known < len(vectors):
        codes = np.concatenate([codes, tokenizer.assign(vectors[known : len(vectors)])])
    SemanticIds(codes, before.codebook_size).save(folder)
    return {"drift": dataclasses.asdict(measure(tokenizer.model, vectors, codes, known, seed))}


def measure(
    model: RqVae,
    vectors: Float[np.ndarray, "I D"] | JoinedVectors,
    codes: Int[np.ndarray, "I L"],
    known: int,
    seed: int,
) -> Drift:
    """The drift of the items behind the first `known` ones."""
    rng = np.random.default_rng(seed)
    old = np.sort(rng.permutation(known)[:SAMPLE])
    of_old = np.asarray(vectors[old], np.float32)
    variance = float(np.square(of_old - of_old.mean(axis=0)).sum(axis=1).mean())
    new_codes, size = codes[known:], model.config.codebook_size
    new = len(new_codes)
    error_of_new = 0.0
    if new:
        of_new = np.asarray(vectors[known : known + new], np.float32)
        error_of_new = float(squared_errors(model, of_new, new_codes).mean())
    sids, counts = np.unique(codes[:known], axis=0, return_counts=True)
    known_sids = {row.tobytes() for row in sids}
    drawn = codes[rng.integers(0, known, new)]
    errors = squared_errors(model, of_old, codes[old]) / max(variance, 1e-12)
    return Drift(
        new,
        float(errors.mean()),
        error_of_new / max(variance, 1e-12),
        float(np.quantile(errors, 0.9)),
        float(counts[counts > 1].sum() / known),
        float(np.mean([row.tobytes() in known_sids for row in new_codes])) if new else 0.0,
        code_distances(codes[:known], new_codes, size),
        code_distances(codes[:known], drawn, size),
    )


def squared_errors(
    model: RqVae, vectors: Float32[np.ndarray, "N D"], codes: Int[np.ndarray, "N L"]
) -> Float32[np.ndarray, " N"]:
    """The squared distance of each vector to the decoding of its codes."""
    graph, state = nnx.split(model)

    @jax.jit
    def errors(state: nnx.State, vectors: Array, codes: Array) -> Array:
        model = nnx.merge(graph, state)
        latents = model.codebooks[...][jnp.arange(codes.shape[1]), codes].sum(axis=1)
        return jnp.square(model.decode(latents) - vectors).sum(axis=1)

    return np.asarray(errors(state, jnp.asarray(vectors), jnp.asarray(codes)))


def code_distances(
    old: Int[np.ndarray, "I L"], new: Int[np.ndarray, "n L"], size: int
) -> tuple[float, ...]:
    """The total variation distance of the codes of each level; 0 without new items."""
    if not len(new):
        return (0.0,) * old.shape[1]
    distances = []
    for level in range(old.shape[1]):
        shares = [np.bincount(part[:, level], minlength=size) / len(part) for part in (old, new)]
        distances.append(float(np.abs(shares[0] - shares[1]).sum() / 2))
    return tuple(distances)


def codebook_map(
    before: Int32[np.ndarray, "i L"], after: Int32[np.ndarray, "I L"], size: int
) -> Int32[np.ndarray, "L C"]:
    """For each level and new code the old code that most of its items had; -1 without any.

    Args:
      before: old codes of the first items.
      after: new codes of all items.
    """
    mapped = np.full((before.shape[1], size), -1, np.int32)
    for level in range(before.shape[1]):
        pairs = np.stack([after[: len(before), level], before[:, level]], axis=1)
        distinct, counts = np.unique(pairs, axis=0, return_counts=True)
        order = np.argsort(counts, kind="stable")  # the largest count of a code is written last
        mapped[level, distinct[order, 0]] = distinct[order, 1]
    return mapped
