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
from sigma_jax.grounding.pairs import PairBatches, check_mixture, held_out, mixture
from sigma_jax.grounding.recall import candidate_items, recalls
from sigma_jax.grounding.texts import load_tokenizer, token_table
from sigma_jax.models.backbone import BackboneConfig, make_backbone
from sigma_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from sigma_jax.runtime import hosts
from sigma_jax.runtime.config import OptimizerConfig, TrainConfig, check_at_least
from sigma_jax.schema import PreparedData, load_item_vectors


@dataclasses.dataclass(frozen=True)
class GroundingConfig:
    """Fields of configs/grounding.py."""

    optimizer: OptimizerConfig
    train: TrainConfig  # batch_size counts pairs: 2 * batch_size texts
    backbone: BackboneConfig
    encoder: TextEncoderConfig
    max_tokens: int  # of a text
    token_quantile: float  # share of texts that fit into the static length of a batch
    query_instruction: str  # stands before queries and themes
    mixture: dict[str, float]  # view -> weight; views without pairs are left out
    temperature: float  # tau of Eq. 1
    id_temperature: float  # tau of P_ID in Eq. 3
    kd_weight: float  # weight of Eq. 3; Eq. 2 has weight 1; 0: no distillation
    masks_false_negatives: bool  # losses.contrastive_loss with keys; False: as in the paper
    encode_rows: int  # texts encoded at a time within a step; 0: all at once
    loss_rows: int  # rows of the [2B, 2B] matrices computed at a time
    eval_pairs: int  # most held-out pairs of a view in a report
    eval_candidates: int  # most items ranked in a report; 0: all
    eval_batch_size: int  # texts encoded at a time outside of training

    def __post_init__(self):
        check_mixture(self.mixture)
        if self.train.accumulate > 1:
            raise ValueError(
                f"train.accumulate={self.train.accumulate} would separate anchors from negatives; "
                "use 1, and encode_rows to save memory."
            )
        check_at_least(1, self, "max_tokens", "loss_rows", "eval_pairs", "eval_batch_size")
        check_at_least(0, self, "kd_weight", "encode_rows", "eval_candidates")
        for name in ("temperature", "id_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}; use more than 0, such as 0.05.")
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
        self.id_vectors = self._id_vectors(workdir / "teacher" / "id_vectors.npy")
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

    def _id_vectors(self, teacher: Path) -> np.ndarray | None:
        if not self.config.kd_weight:
            return None
        vectors = self.data.id_vectors
        if vectors is None and teacher.exists():
            vectors = load_item_vectors(teacher)
        if vectors is None:
            logging.warning(
                "grounding: no distillation (Eq. 3), because neither the data nor a teacher has ID "
                "vectors"
            )
        elif len(vectors) != len(self.data.catalogue):
            raise ValueError(
                f"there are {len(vectors)} ID vectors for {len(self.data.catalogue)} items; "
                "run the teacher or `sigma_jax.prepare` again."
            )
        return vectors

    def batches(self, rows: Int64[np.ndarray, " n"] | None = None) -> grain.MapDataset:
        """Element s is the batch of step s (`PairBatches.batch`), or `rows` of it."""
        return self.pairs.dataset(rows)

    @property
    def epoch_steps(self) -> float:
        """Number of steps that draw as many pairs as the views have."""
        pairs = sum(len(self.data.pairs[view].right) for view in self.pairs.shares)
        return pairs / self.config.train.batch_size

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
        """`recall_K/VIEW` of held-out pairs, and `candidates`, the number of ranked items.

        Other right items of the same left side are ranked too, so recall@1 of a query with many
        items cannot reach 1.
        """
        encoder = BatchEncoder(model, self.config.eval_batch_size, self.mesh)
        chosen = {
            view: held_out(pairs, self.table, self.config.eval_pairs, self.seed)
            for view, pairs in self.data.pairs.items()
            if pairs.is_heldout.any()
        }
        if not chosen:
            return {}
        right = np.concatenate([items for _, items in chosen.values()])
        items = len(self.data.catalogue)
        candidates = candidate_items(right, items, self.config.eval_candidates, self.seed)
        vectors = encoder.rows(self.table, candidates)
        metrics = {"candidates": float(len(candidates))}
        for view, (left, right) in chosen.items():
            distinct, inverse = np.unique(left, return_inverse=True)
            recall = recalls(
                encoder.rows(self.table, distinct)[inverse],
                vectors,
                np.searchsorted(candidates, right),
                rows_of(left, candidates),
            )
            metrics |= {f"recall_{k}/{view}": float(hit.mean()) for k, hit in recall.items()}
        return metrics

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
    keys = batch["key"] if config.masks_false_negatives else None
    contrast, accuracy = losses.contrastive_loss(
        vectors, config.temperature, keys, config.loss_rows
    )
    metrics = {"contrastive": contrast, "in_batch_accuracy": accuracy}
    if "id_vectors" not in batch:
        return contrast, metrics
    distillation = losses.distillation_loss(
        vectors,
        batch["id_vectors"],
        config.temperature,
        config.id_temperature,
        batch["has_id"],
        keys,
        config.loss_rows,
    )
    loss = contrast + config.kd_weight * distillation
    return loss, {**metrics, "distillation": distillation}


def rows_of(items: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Row of each of `items` in the sorted `candidates`; -1 if it is not there."""
    row = np.minimum(np.searchsorted(candidates, items), len(candidates) - 1)
    return np.where(candidates[row] == items, row, -1)
