"""Item texts as vectors of a pre-trained sentence encoder, in place of stage 1.

Needs the package sentence-transformers (`pip install -e ".[encoder]"`), and with it torch, while
the data is prepared and at no other time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Float32

from sigma_jax.schema import Catalogue

ITEMS = 4_096  # whose texts are held at a time

Encode = Callable[[list[str]], Float32[np.ndarray, "N D"]]


def load_encoder(name: str) -> Encode:
    """The sentence-transformers model of that name or folder. ValueError if there is none."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ValueError(
            f'data.text_encoder={name!r} needs sentence-transformers: pip install -e ".[encoder]"'
        ) from error
    try:
        model = SentenceTransformer(name)
    except Exception as error:  # of the hub, of files, of the network
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"data.text_encoder={name!r} cannot be loaded ({reason}); name a model or its folder."
        ) from error
    if model.device.type == "cpu":
        model.float()  # half precision, as some are stored, takes a CPU several times as long
    return lambda texts: model.encode(texts, show_progress_bar=False, convert_to_numpy=True)


def save_text_vectors(encode: Encode, catalogue: Catalogue, folder: Path) -> int:
    """Writes text_vectors.npy float32 [I, D], a piece at a time; D."""
    out = None
    for start in range(0, len(catalogue), ITEMS):
        items = np.arange(start, min(start + ITEMS, len(catalogue)))
        found = np.asarray(encode([sentence(text) for text in catalogue.texts(items)]), np.float32)
        if out is None:
            shape = (len(catalogue), found.shape[1])
            out = np.lib.format.open_memmap(folder / "text_vectors.npy", "w+", np.float32, shape)
        out[items] = found
        logging.info("data: %d of %d texts encoded", items[-1] + 1, len(catalogue))
    out.flush()
    return out.shape[1]


def sentence(text: str) -> str:
    """A JSON text as sentence encoders expect it: {"title": "Soap", "price": 2} -> "Soap. 2"."""
    return ". ".join(str(value) for value in json.loads(text).values())
