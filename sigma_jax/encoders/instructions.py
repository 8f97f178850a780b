"""Sentence vectors of instructions. The same instruction is often asked again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from sigma_jax.data.vectors import unit_rows
from sigma_jax.encoders.find import load_encoder
from sigma_jax.encoders.grounding_head import GroundedVectors
from sigma_jax.encoders.sentence_encoder import SentenceEncoder
from sigma_jax.runtime.artifacts import read_manifest

KEPT = 100_000  # vectors in memory
ENCODER, HEAD = "sentence_encoder", "grounding_head"  # folders


class InstructionEncoder:
    """A sentence encoder, with its grounding head, that keeps the last instructions' vectors."""

    def __init__(self, encoder: SentenceEncoder, head: GroundedVectors | None = None):
        """Args:
        head: as trained beside the encoder; None takes the encoder's vectors as they are.
        """
        self.encoder, self.head = encoder, head
        self._known: dict[str, Float32[np.ndarray, " E"]] = {}

    def __call__(self, texts: Sequence[str]) -> Float32[np.ndarray, "N E"]:
        """The vector of each instruction, unit length."""
        known = self._known
        new = [text for text in dict.fromkeys(texts) if text not in known]
        found = (
            dict(zip(new, self.grounded(self.encoder.encode_queries(new)), strict=True))
            if new
            else {}
        )
        vectors = [found[text] if text in found else known[text] for text in texts]
        if len(known) + len(found) > KEPT:
            self._known = found  # other threads still read the old vectors
        else:
            known.update(found)
        return np.array(vectors, np.float32).reshape(len(texts), -1)

    def grounded(self, vectors: Float[np.ndarray, "N E"]) -> Float32[np.ndarray, "N D"]:
        """Vectors of the sentence encoder in the space of the items' vectors, unit length."""
        return unit_rows(vectors) if self.head is None else self.head(vectors)


def plain_encoder_of(workdir: Path) -> SentenceEncoder | None:
    """The sentence encoder of the text vectors in WORKDIR/data; None if they are not made by one.

    Raises:
      ValueError: the encoder cannot be had any more, or is damaged.
    """
    name = read_manifest(workdir, "data").metrics["sentence_encoder"]
    return load_encoder(name) if name else None


def encoder_of_workdir(workdir: Path) -> InstructionEncoder | None:
    """The encoder of `plain_encoder_of` with the head that was trained beside it, if one was."""
    encoder = plain_encoder_of(workdir)
    if encoder is None:
        return None
    return InstructionEncoder(encoder, GroundedVectors.load(workdir / HEAD))


def encoder_in(folder: Path) -> InstructionEncoder | None:
    """The encoder of an export's model folder; None without one. ValueError if it is damaged."""
    if not (folder / ENCODER).exists():
        return None
    return InstructionEncoder(
        SentenceEncoder.load(folder / ENCODER), GroundedVectors.load(folder / HEAD)
    )
