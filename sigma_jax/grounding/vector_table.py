"""The texts of the stage `grounding_head` as vectors of a sentence encoder, kept on disk.

Row i is the text of item i. After the items come the left texts of each view (queries, themes).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, Int64

from sigma_jax.data.sentences import Encode, save_in_pieces
from sigma_jax.data.vectors import unit_rows
from sigma_jax.grounding.texts import CHUNK, first_equal, first_rows
from sigma_jax.runtime import hosts
from sigma_jax.runtime.files import atomic_folder
from sigma_jax.schema import PreparedData, load_item_vectors, read_npy

LEFT, KEY = "left.npy", "key.npy"


@dataclasses.dataclass(frozen=True)
class VectorTable:
    """The vectors of all texts, memory-mapped."""

    items: Float32[np.ndarray, "I E"]
    left: Float32[np.ndarray, "texts-I E"]
    key: Int32[np.ndarray, " texts"]  # equal vectors share a key
    first_row: dict[str, int]  # view -> row of its first left text

    @classmethod
    def make(cls, data: PreparedData, encode: Encode, cache: Path) -> VectorTable:
        """The vectors of `data`; those of left texts are written to `cache` if they are not there.

        Args:
          encode: queries and themes to vectors.
        """
        items = load_item_vectors(data.folder / "text_vectors.npy")
        manifest = (data.folder / "manifest.json").read_bytes()
        folder = cache / f"vectors-{hashlib.sha256(manifest).hexdigest()[:16]}"

        def write() -> None:
            if folder.exists():
                return
            with atomic_folder(folder) as out:
                left = _left_vectors(data, encode, items.shape[1], out / LEFT)
                np.save(out / KEY, first_equal(np.concatenate([_hashes(items), _hashes(left)])))

        hosts.by_first(write)
        return cls(items, read_npy(folder / LEFT, 2), read_npy(folder / KEY, 1), first_rows(data))

    def inputs(self, rows: Int64[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """{"vector": [B, E]} of `rows`, unit length, for `PairBatches`."""
        is_item = rows < len(self.items)
        vectors = np.empty((len(rows), self.items.shape[1]), np.float32)
        vectors[is_item] = self.items[rows[is_item]]
        vectors[~is_item] = self.left[rows[~is_item] - len(self.items)]
        return {"vector": unit_rows(vectors)}


def _left_vectors(
    data: PreparedData, encode: Encode, width: int, path: Path
) -> Float32[np.ndarray, "L E"]:
    """The vectors of the left texts of all views, which are written to `path`."""
    texts = [text for view in first_rows(data) for text in data.pairs[view].left_texts.to_pylist()]
    if not texts:
        np.save(path, np.zeros((0, width), np.float32))
    else:
        save_in_pieces(
            lambda rows: encode(texts[rows.start : rows.stop]), len(texts), path, "left texts"
        )
    return read_npy(path, 2)


def _hashes(vectors: Float32[np.ndarray, "n E"]) -> np.ndarray:
    """A 64-bit hash of each row: the sum of its words times random weights, modulo 2^64."""
    weights = np.random.default_rng(0).integers(0, 2**64, vectors.shape[1], np.uint64)

    def parts() -> Iterator[np.ndarray]:
        yield np.zeros(0, np.uint64)
        for start in range(0, len(vectors), CHUNK):
            words = np.ascontiguousarray(vectors[start : start + CHUNK], np.float32)
            yield words.view(np.uint32).astype(np.uint64) @ weights

    return np.concatenate(list(parts()))
