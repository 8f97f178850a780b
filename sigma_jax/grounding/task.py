"""Stage `grounding`: item vectors v_text from relevance pairs (section 2.1 of SIGMA, Eq. 1-3)."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int64

from sigma_jax import losses
from sigma_jax.grounding.encode import BatchEncoder, save_encoder
from sigma_jax.grounding.loss import RelevanceConfig, relevance_loss
from sigma_jax.grounding.pairs import PairBatches, id_vectors_of, mixture
from sigma_jax.grounding.recall import held_out_recalls
from sigma_jax.grounding.texts import load_tokenizer, token_table
from sigma_jax.models.backbone import BackboneConfig, make_backbone
from sigma_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from sigma_jax.runtime import hosts
from sigma_jax.runtime.config import check_at_least
from sigma_jax.schema import PreparedData


@dataclasses.dataclass(frozen=True)
class GroundingConfig(RelevanceConfig):
    """Fields of configs/grounding.py."""

    backbone: BackboneConfig
    encoder: TextEncoderConfig
    max_tokens: int  # of a text
    token_quantile: float  # share of texts that fit into the static length of a batch
    query_instruction: str  # stands before queries and themes
    encode_rows: int  # texts encoded at a time within a step, to save memory; 0: all at once
    eval_batch_size: int  # texts encoded at a time outside of training

    def __post_init__(self):
        super().__post_init__()
        check_at_least(1, self, "max_tokens", "eval_batch_size")
        check_at_least(0, self, "encode_rows")
        if not 0 < self.token_quantile <= 1:
            raise ValueError(f"token_quantile={self.token_quantile}; use a share, such as 0.99.")


class GroundingTask:
    """The stage as a Task: contrastive learning over the views, distillation from ID vectors."""

    def __init__(
        self, config: GroundingConfig, workdir: Path, seed: int, mesh: Mesh | None = None
    ) -> None:
        self.config = config
        self.seed = seed
        self.mesh = mesh
        self.batch_rows = 2 * config.train.batch_size
        self.encoded = workdir / "train" / "grounding" / "text_vectors.npy"
        self.encode_seconds = 0.0
        self.data = PreparedData.load(workdir / "data")
        self.table = token_table(
            self.data,
            workdir / "train" / "grounding",
            config.max_tokens,
            config.token_quantile,
            config.query_instruction,
        )
        self.id_vectors = id_vectors_of(self.data, workdir) if config.kd_weight else None
        shares = mixture(config.mixture, self.data)
        pairs = config.train.batch_size
        self.pairs = PairBatches(self.data, self.table, shares, self.id_vectors, pairs, seed)
        parts = ", ".join(f"{view} {share:.2f}" for view, share in shares.items())
        logging.info(
            "grounding: %d texts of up to %d tokens (%.1f %% truncated), views %s, distillation %s",
            len(self.table.key),
            self.table.length,
            100 * self.table.truncated,
            parts,
            "off" if self.id_vectors is None else "on",
        )

    def batches(self, rows: Int64[np.ndarray, " n"] | None = None) -> grain.MapDataset:
        """Element s is the batch of step s (`PairBatches.batch`), or `rows` of it."""
        return self.pairs.dataset(rows)

    @property
    def epoch_steps(self) -> float:
        """Number of steps that draw as many pairs as the views have."""
        return self.pairs.epoch_steps

    def model(self, rngs: nnx.Rngs) -> TextEncoder:
        """The text encoder before its first step."""
        folder = self.data.text_tokenizer_folder
        vocab_size = load_tokenizer(folder).get_vocab_size()
        backbone = make_backbone(self.config.backbone, vocab_size, rngs, folder)
        return TextEncoder(self.config.encoder, backbone, rngs=rngs)

    def tables(self) -> dict[str, np.ndarray]:
        """None: ID vectors come with the batch, so that a table of 10^8 items stays on disk."""
        return {}

    def param_group(self, path: tuple[str, ...]) -> str:
        """The optimizer's group of the parameter at `path`."""
        return param_group(self.config, path)

    def loss(
        self, model: TextEncoder, tables: dict, batch: dict[str, Array], key: Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Eq. 2 + kd_weight * Eq. 3 over the global batch."""
        return grounding_loss(self.config, model, tables, batch, key)

    def report(self, model: TextEncoder, tables: dict) -> dict[str, float]:
        """`recall_K/VIEW` of held-out pairs, and `candidates`, the number of ranked items."""
        encoder = BatchEncoder(model, self.config.eval_batch_size, self.mesh)

        def vectors_of(rows: np.ndarray) -> np.ndarray:
            return encoder.rows(self.table, rows)

        return held_out_recalls(self.data, self.table, vectors_of, self.config, self.seed)

    def finalize_on_all_hosts(self, model: TextEncoder, mesh: Mesh) -> None:
        """Encodes all items on the devices of all processes; the first process writes them."""
        start_time = time.monotonic()
        model.backbone.fold_lora()
        encoder = BatchEncoder(model, self.config.eval_batch_size, mesh)
        items, size = len(self.data.catalogue), encoder.batch_size
        vectors = None

        def create() -> None:
            nonlocal vectors
            self.encoded.parent.mkdir(parents=True, exist_ok=True)
            shape = (items, self.config.encoder.width)
            vectors = np.lib.format.open_memmap(self.encoded, "w+", np.float32, shape)

        hosts.by_first(create)
        for start in range(0, items, size):
            rows = np.arange(start, min(start + size, items))
            encoded = encoder(*self.table.batch(rows))
            if vectors is not None:
                vectors[start : start + size] = encoded
        if vectors is not None:
            vectors.flush()
        self.encode_seconds = time.monotonic() - start_time

    def refit(self) -> None:
        """None: nothing is trained after this task."""

    def finish(self, model: TextEncoder, tables: dict, folder: Path) -> dict:
        """Writes text_vectors.npy of all items and the encoder for later texts.

        Returns the metrics of the manifest.
        """
        items = len(self.data.catalogue)
        model.backbone.fold_lora()
        shutil.move(self.encoded, folder / "text_vectors.npy")
        save_encoder(
            model,
            self.config.backbone,
            self.data.text_tokenizer_folder,
            self.table.length,
            self.config.query_instruction,
            folder,
        )
        return {
            "items": items,
            "distinct_texts": len(np.unique(self.table.key[:items])),
            "tokens_per_text": self.table.length,
            "truncated_texts": self.table.truncated,
            "has_distillation": self.id_vectors is not None,
            "pairs": {view: len(pairs.right) for view, pairs in self.data.pairs.items()},
            "encode_seconds": self.encode_seconds,
        }


def param_group(config: GroundingConfig, path: tuple[str, ...]) -> str:
    """The optimizer's group of the parameter at `path`.

    Text embeddings have a learning rate of their own: from scratch a row of the table is used far
    less often than other weights.
    """
    is_token_head = path[-1] == "head"  # this stage predicts no tokens
    if is_token_head or config.backbone.is_frozen(path):
        return "frozen"
    return "table" if path[-1] == "embedding" else "base"


def grounding_loss(
    config: GroundingConfig, model: TextEncoder, tables: dict, batch: dict[str, Array], key: Array
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Eq. 2 + kd_weight * Eq. 3 of SIGMA over the global batch; Eq. 3 if it has ID vectors.

    Metrics: `contrastive`, `in_batch_accuracy` and, with ID vectors, `distillation`.
    """

    def encode(rows):
        tokens, lengths, number = rows
        # Each chunk has a dropout key of its own.
        return model(tokens, lengths, key=jax.random.fold_in(key, number[0]))

    count = len(batch["length"])
    rows = (batch["tokens"], batch["length"], jnp.arange(count))
    # Chunks recompute their activations: memory for one chunk, negatives from all chunks.
    vectors = losses.map_row_chunks(encode, rows, config.encode_rows or count)
    return relevance_loss(config, vectors, batch)
