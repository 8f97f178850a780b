"""Vectors of texts and items by a trained encoder, and the encoder as an artifact."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float32

from sigma_jax.grounding.texts import encode, load_tokenizer
from sigma_jax.models.backbone import BackboneConfig, make_backbone
from sigma_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from sigma_jax.models.weights import load_weights, save_weights
from sigma_jax.runtime import sharding
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.runtime.files import read_json, write_json


@functools.partial(jax.jit, static_argnames=("graph", "where"))
def vectors_of(graph, state, tokens, lengths, where):
    """Unit vectors of texts by the model `nnx.merge(graph, state)`.

    `where` is the sharding of the result; None on one device.
    """
    model = nnx.merge(graph, state)
    if where is None:
        return model(tokens, lengths)
    with sharding.on_mesh(where.mesh):
        # Replicated, so that every process can read all vectors.
        return jax.lax.with_sharding_constraint(model(tokens, lengths), where)


class BatchEncoder:
    """Applies `model` to batches of any number of rows, padded to one static shape.

    If `mesh` belongs to several processes, all of them must make the same calls.
    """

    def __init__(self, model: TextEncoder, batch_size: int, mesh: Mesh | None = None):
        parts = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
        self.batch_size = -(-batch_size // parts) * parts
        self.mesh = mesh
        self.width = model.config.width
        self.graph, self.state = nnx.split(model)

    def __call__(self, tokens: np.ndarray, lengths: np.ndarray) -> Float32[np.ndarray, "B D"]:
        """Unit vectors of at most `batch_size` texts."""
        count = len(tokens)
        padding = self.batch_size - count
        batch = {
            "tokens": np.pad(tokens, ((0, padding), (0, 0))),
            "lengths": np.pad(lengths, (0, padding)),
        }
        where = None
        if self.mesh is not None:
            batch = sharding.place_batch(batch, self.mesh)
            where = sharding.replicated(self.mesh)
        return np.asarray(vectors_of(self.graph, self.state, **batch, where=where))[:count]

    def rows(self, table, rows: np.ndarray) -> Float32[np.ndarray, "n D"]:
        """Unit vectors of the texts `rows` of a TokenTable."""
        vectors = np.empty((len(rows), self.width), np.float32)
        for start in range(0, len(rows), self.batch_size):
            part = slice(start, start + self.batch_size)
            vectors[part] = self(*table.batch(rows[part]))
        return vectors


@dataclasses.dataclass(frozen=True)
class TextVectors:
    """Encodes new items, queries and themes into the space of `text_vectors.npy`."""

    tokenizer_folder: Path
    encoder: BatchEncoder
    length: int  # T: later tokens of a text are cut
    query_instruction: str  # stands before queries and themes, as in training

    def __call__(self, texts: list[str], are_queries: bool = False) -> Float32[np.ndarray, "n D"]:
        """Unit vectors of `texts`, which are items, or with `are_queries` queries or themes."""
        if are_queries:
            texts = [self.query_instruction + text for text in texts]
        tokenizer = load_tokenizer(self.tokenizer_folder)
        vectors = np.empty((len(texts), self.encoder.width), np.float32)
        for start in range(0, len(texts), self.encoder.batch_size):
            part = slice(start, start + self.encoder.batch_size)
            rows = encode(tokenizer, texts[part], self.length)
            tokens = np.zeros((len(rows), self.length), np.int32)
            for number, row in enumerate(rows):
                tokens[number, : len(row)] = row
            lengths = np.array([len(row) for row in rows], np.int32)
            vectors[part] = self.encoder(tokens, lengths)
        return vectors


def save_encoder(
    model: TextEncoder,
    config: BackboneConfig,
    tokenizer_folder: Path,
    length: int,
    query_instruction: str,
    folder: Path,
) -> None:
    """Writes the encoder to `folder`; `load_encoder` reads it.

    The files are backbone/ (a Hugging Face folder with its tokenizer), weights.safetensors and
    encoder.json.
    """
    from sigma_jax.models.hf import save_backbone

    save_backbone(model.backbone, folder / "backbone")
    for path in tokenizer_folder.iterdir():
        if path.is_file():
            (folder / "backbone" / path.name).write_bytes(path.read_bytes())
    save_weights(model, folder / "weights.safetensors", without=("backbone",))
    settings = {
        "encoder": dataclasses.asdict(model.config),
        "backbone": dataclasses.asdict(config),
        "length": length,
        "query_instruction": query_instruction,
    }
    write_json(folder / "encoder.json", settings)


def load_encoder(folder: Path, batch_size: int = 64, mesh: Mesh | None = None) -> TextVectors:
    """The encoder that `save_encoder` wrote to `folder` (WORKDIR/grounding).

    ValueError if it is missing, damaged or of another version.
    """
    settings = read_json(folder / "encoder.json")
    backbone_folder = folder / "backbone"
    try:
        stored = to_dataclass(BackboneConfig, settings["backbone"], "backbone")
        encoder_config = TextEncoderConfig(**settings["encoder"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / 'encoder.json'} is damaged or of another version ({error}); "
            f"delete {folder} and run stage grounding again."
        ) from error
    config = stored.trained(backbone_folder)
    vocab_size = load_tokenizer(backbone_folder).get_vocab_size()
    rngs = nnx.Rngs(0)
    backbone = make_backbone(config, vocab_size, rngs)
    model = TextEncoder(encoder_config, backbone, rngs=rngs)
    load_weights(model, folder / "weights.safetensors", without=("backbone",))
    encoder = BatchEncoder(model, batch_size, mesh)
    return TextVectors(backbone_folder, encoder, settings["length"], settings["query_instruction"])
