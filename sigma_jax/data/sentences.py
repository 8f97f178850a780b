"""Item texts as vectors of a pre-trained sentence encoder, which replaces the stage `grounding`.

It needs the package sentence-transformers (`pip install 'sigma_jax[encoder]'`) and with it torch,
only while the data is prepared.
"""

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


def load_encoder(name: str) -> Encode:
    """The sentence-transformers model `name` as a function: N texts -> float32 vectors [N, D].

    Args:
      name: a folder, or a name on the Hugging Face hub.

    Raises:
      ValueError: the package is not installed, or the model cannot be loaded.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ValueError(
            f"data.text_encoder={name!r} needs sentence-transformers: pip install "
            "'sigma_jax[encoder]'."
        ) from error
    try:
        model = SentenceTransformer(name)
    except Exception as error:  # from the hub, from files or from the network
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"data.text_encoder={name!r} cannot be loaded ({reason}); give the name of a model "
            "or its folder."
        ) from error
    if model.device.type == "cpu":
        model.float()  # some are stored in half precision, which is several times slower on a CPU
    return lambda texts: model.encode(texts, show_progress_bar=False, convert_to_numpy=True)


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
