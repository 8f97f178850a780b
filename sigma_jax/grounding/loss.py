"""The loss of relevance pairs: Eq. 1-3 of SIGMA."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jaxtyping import Array, Float

from sigma_jax import losses
from sigma_jax.grounding.pairs import check_mixture
from sigma_jax.runtime.config import OptimizerConfig, TrainConfig, check_at_least


@dataclasses.dataclass(frozen=True)
class RelevanceConfig:
    """Fields of the stages that learn from relevance pairs. ValueError for a wrong value."""

    optimizer: OptimizerConfig
    train: TrainConfig  # batch_size counts pairs: 2 * batch_size texts
    mixture: dict[str, float]  # view -> weight; views without pairs are left out
    temperature: float  # tau of Eq. 1
    id_temperature: float  # tau of P_ID in Eq. 3
    kd_weight: float  # weight of Eq. 3; Eq. 2 has weight 1; 0: no distillation
    masks_false_negatives: bool  # losses.contrastive_loss with keys; False: as in the paper
    loss_rows: int  # rows of the [2B, 2B] matrices computed at a time
    eval_pairs: int  # most held-out pairs of a view in a report
    eval_candidates: int  # most items ranked in a report; 0: all

    def __post_init__(self):
        check_mixture(self.mixture)
        if self.train.accumulate > 1:
            raise ValueError(
                f"train.accumulate={self.train.accumulate} would separate anchors from negatives; "
                "use 1."
            )
        check_at_least(1, self, "loss_rows", "eval_pairs")
        check_at_least(0, self, "kd_weight", "eval_candidates")
        for name in ("temperature", "id_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}; use more than 0, such as 0.05.")


def relevance_loss(
    config: RelevanceConfig, vectors: Float[Array, "2B D"], batch: Mapping[str, Array]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Eq. 2 + kd_weight * Eq. 3 of SIGMA over the global batch; Eq. 3 if it has ID vectors.

    Metrics: `contrastive`, `in_batch_accuracy` and, with ID vectors, `distillation`.

    Args:
      vectors: unit length; first the left sides of B pairs, then their right sides.
      batch: the arrays of `PairBatches.batch`.
    """
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
