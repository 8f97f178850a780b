"""Alternatives to the adaptive fusion of prefixes and items (APF, Eq. 10-11 of SIGMA).

They apply to a model that searches codes, and they rank without the reranker:

    sigma of Eq. 11   the deviation of the beam scores as in the paper, without a floor
    constant sigma    one number for all requests, the best on validation requests (as in COBRA)
    first prefix      only the items of the best prefix
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from sigma_jax import metrics
from sigma_jax.recommender.recommender import Recommender, RecommendOptions
from sigma_jax.schema import RequestBatch

RANK_CUTOFF = 10  # a constant is chosen by NDCG at this rank
SIGMA_CONSTANTS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)


def fuses(recommender: Recommender) -> bool:
    """Whether the model ranks by both prefixes and cosines, so that there is something to fuse."""
    generator = recommender.generator
    has_both = generator.trie.depth > 0 and generator.item_query != "none"
    return has_both and generator.config.fusion == "adaptive"


def best_constant(recommender: Recommender, batch: RequestBatch) -> float:
    """The value of SIGMA_CONSTANTS with the highest NDCG@10 on `batch`; the lower one on ties.

    NDCG is averaged over lists with seen items included and excluded: one constant serves both.
    """
    config = recommender.generator.config
    variants = [
        RecommendOptions(RANK_CUTOFF, exclude_seen, False, dataclasses.replace(config, sigma=sigma))
        for sigma in SIGMA_CONSTANTS
        for exclude_seen in (False, True)
    ]
    targets = batch.requests.target
    ndcg = [
        metrics.ndcg(metrics.item_ranks(result.items, targets), RANK_CUTOFF).mean()
        for result in recommender.recommend_variants(batch, variants)
    ]
    return SIGMA_CONSTANTS[int(np.reshape(ndcg, (-1, 2)).mean(axis=1).argmax())]


def other_fusions(options: RecommendOptions, constant: float) -> dict[str, RecommendOptions]:
    """Method name -> how it ranks.

    Args:
      options: how SIGMA ranks, with its generation settings.
      constant: the result of `best_constant`.
    """
    changes: dict[str, dict[str, Any]] = {
        "sigma of Eq. 11": {"sigma": "deviation", "sigma_floor": 0.0},
        "constant sigma": {"sigma": constant},
        "first prefix": {"fusion": "first_prefix"},
    }
    return {
        f"SIGMA without reranker, {name}": dataclasses.replace(
            options, reranks=False, generation=dataclasses.replace(options.generation, **fields)
        )
        for name, fields in changes.items()
    }
