"""Where a pre-trained encoder is: a folder, or a name on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from sigma_jax.encoders.sentence_encoder import SentenceEncoder

FILES = ("*.json", "*.safetensors", "*/config.json", "*/*.safetensors")  # of a hub's folder


def load_encoder(name: str) -> SentenceEncoder:
    """The sentence encoder `name`.

    Args:
      name: a folder, or a name on the Hugging Face hub.

    Raises:
      ValueError: there is no such model, or it is damaged or not supported.
    """
    folder = Path(name)
    if folder.is_dir():
        return SentenceEncoder.load(folder)
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(name, allow_patterns=list(FILES))
    except Exception as error:  # of the hub, the network or the disk
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"data.text_encoder={name!r} is no folder and cannot be had from the Hugging Face hub "
            f"({reason}); give the folder of a model."
        ) from error
    return SentenceEncoder.load(Path(found))
