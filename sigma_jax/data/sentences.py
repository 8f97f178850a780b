"""Item texts as vectors of a pre-trained sentence encoder, which replaces the stage `grounding`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Float32

from sigma_jax.schema import Catalogue

ITEMS_AT_ONCE = 4_096  # their texts are held in memory

Encode = Callable[[list[str]], Float32[np.ndarray, "N D"]]


def save_text_vectors(encode: Encode, catalogue: Catalogue, folder: Path) -> int:
    """Writes FOLDER/text_vectors.npy, float32 [I, D], a piece at a time. Returns D."""
    out = None
    for start in range(0, len(catalogue), ITEMS_AT_ONCE):
        items = np.arange(start, min(start + ITEMS_AT_ONCE, len(catalogue)))
        sentences = [sentence(text) for text in catalogue.texts(items)]
        vectors = np.asarray(encode(sentences), np.float32)
        if out is None:
            shape = (len(catalogue), vectors.shape[1])
            out = np.lib.format.open_memmap(folder / "text_vectors.npy", "w+", np.float32, shape)
        out[items] = vectors
        logging.info("data: %d of %d texts encoded", items[-1] + 1, len(catalogue))
    out.flush()
    return out.shape[1]


def sentence(text: str) -> str:
    """The values of a JSON text, as sentence encoders expect them.

    Worked example: {"title": "Soap", "price": 2} -> "Soap. 2".
    """
    return ". ".join(str(value) for value in json.loads(text).values())
