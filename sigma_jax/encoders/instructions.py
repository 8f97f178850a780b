"""Sentence vectors of instructions. The same instruction is often asked again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from sigma_jax.encoders.find import load_encoder
from sigma_jax.encoders.sentence_encoder import SentenceEncoder
from sigma_jax.runtime.artifacts import read_manifest

KEPT = 100_000  # vectors in memory


class InstructionEncoder:
    """A sentence encoder that keeps the vectors of the last instructions."""

    def __init__(self, encoder: SentenceEncoder):
        self.encoder = encoder
        self._known: dict[str, Float32[np.ndarray, " E"]] = {}

    def __call__(self, texts: Sequence[str]) -> Float32[np.ndarray, "N E"]:
        """The vector of each instruction."""
        known = self._known
        new = [text for text in dict.fromkeys(texts) if text not in known]
        found = dict(zip(new, self.encoder.encode(new), strict=True)) if new else {}
        vectors = [found[text] if text in found else known[text] for text in texts]
        if len(known) + len(found) > KEPT:
            self._known = found  # other threads still read the old vectors
        else:
            known.update(found)
        return np.array(vectors, np.float32).reshape(len(texts), -1)


def encoder_of_workdir(workdir: Path) -> InstructionEncoder | None:
    """The encoder of the text vectors in `workdir`; None if they are not made by one.

    Raises:
      ValueError: the encoder cannot be had any more, or is damaged.
    """
    name = read_manifest(workdir, "data").metrics["sentence_encoder"]
    return InstructionEncoder(load_encoder(name)) if name else None


def encoder_in(folder: Path) -> InstructionEncoder | None:
    """The encoder in a folder of an export; None if there is none. ValueError if it is damaged."""
    return InstructionEncoder(SentenceEncoder.load(folder)) if folder.exists() else None
