"""Stage `grounding_head`: a head beside the sentence encoder, from relevance pairs (Eq. 1-3).

The encoder itself stays as it is: its vectors are computed once. So the stage takes seconds, and
the encoder forgets nothing.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import grain
import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int64

from sigma_jax.data.sentences import save_in_pieces
from sigma_jax.encoders.grounding_head import GroundedVectors, GroundingHead, HeadConfig
from sigma_jax.encoders.instructions import plain_encoder_of
from sigma_jax.grounding.loss import RelevanceConfig, relevance_loss
from sigma_jax.grounding.pairs import PairBatches, id_vectors_of, mixture
from sigma_jax.grounding.recall import held_out_recalls
from sigma_jax.grounding.vector_table import VectorTable
from sigma_jax.schema import PreparedData


@dataclasses.dataclass(frozen=True)
class GroundingHeadConfig(RelevanceConfig):
    """Fields of configs/grounding_head.py."""

    head: HeadConfig


class GroundingHeadTask:
    """The stage as a Task: contrastive learning over the views, distillation from ID vectors."""

    def __init__(
        self, config: GroundingHeadConfig, workdir: Path, seed: int, mesh: Mesh | None = None
    ) -> None:
        """The stage over the data in `workdir`, whose text vectors a sentence encoder made."""
        self.config, self.seed = config, seed
        self.batch_rows = 2 * config.train.batch_size
        self.data = PreparedData.load(workdir / "data")
        encoder = plain_encoder_of(workdir)
        cache = workdir / "train" / "grounding_head"
        self.table = VectorTable.make(self.data, encoder.encode_queries, cache)
        id_vectors = id_vectors_of(self.data, workdir) if config.kd_weight else None
        shares = mixture(config.mixture, self.data)
        pairs = config.train.batch_size
        self.pairs = PairBatches(self.data, self.table, shares, id_vectors, pairs, seed)

    def batches(self, rows: Int64[np.ndarray, " n"] | None = None) -> grain.MapDataset:
        """Element s is the batch of step s (`PairBatches.batch`), or `rows` of it."""
        return self.pairs.dataset(rows)

    @property
    def epoch_steps(self) -> float:
        """Number of steps that draw as many pairs as the views have."""
        return self.pairs.epoch_steps

    def model(self, rngs: nnx.Rngs) -> GroundingHead:
        """The head before its first step."""
        return GroundingHead(self.table.items.shape[1], self.config.head, rngs=rngs)

    def tables(self) -> dict[str, np.ndarray]:
        """None: vectors come with the batch, so that a table of 10^8 items stays on disk."""
        return {}

    def param_group(self, path: tuple[str, ...]) -> str:
        """The optimizer's group of the parameter at `path`: all have one learning rate."""
        return "base"

    def loss(
        self, model: GroundingHead, tables: dict, batch: dict[str, Array], key: jax.Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Eq. 2 + kd_weight * Eq. 3 over the global batch, of the head's vectors."""
        return relevance_loss(self.config, model(batch["vector"]), batch)

    def report(self, model: GroundingHead, tables: dict) -> dict[str, float]:
        """`recall_K/VIEW` of held-out pairs by grounded vectors, and their number of candidates.

        `encoder_recall_10/VIEW` is that of the sentence encoder alone.
        """
        grounded = GroundedVectors(model, self.config.head)

        def plain(rows: np.ndarray) -> np.ndarray:
            return self.table.inputs(rows)["vector"]

        def with_head(rows: np.ndarray) -> np.ndarray:
            return grounded(plain(rows))

        before = held_out_recalls(self.data, self.table, plain, self.config, self.seed)
        after = held_out_recalls(self.data, self.table, with_head, self.config, self.seed)
        of_encoder = {name: value for name, value in before.items() if "recall_10/" in name}
        return after | {f"encoder_{name}": value for name, value in of_encoder.items()}

    def finalize_on_all_hosts(self, model: GroundingHead, mesh: Mesh) -> None:
        """Does nothing: one process finishes the stage."""

    def refit(self) -> None:
        """None: nothing is trained after this task."""

    def finish(self, model: GroundingHead, tables: dict, folder: Path) -> dict:
        """Writes text_vectors.npy, the grounded vectors of all items, and the head.

        Returns the metrics of the manifest.
        """
        grounded, items = GroundedVectors(model, self.config.head), self.table.items

        def of_rows(rows: range) -> np.ndarray:
            return grounded(items[rows.start : rows.stop])

        save_in_pieces(of_rows, len(items), folder / "text_vectors.npy", "grounded item vectors")
        grounded.save(folder)
        return {
            "items": len(items),
            "has_distillation": self.pairs.id_vectors is not None,
            "pairs": {view: len(pairs.right) for view, pairs in self.data.pairs.items()},
        }
