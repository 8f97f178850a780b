"""Alternatives to the adaptive fusion of prefixes and items (APF, Eq. 10-11 of SIGMA).

They apply to a model that searches codes, and they rank without the reranker:

    sigma of Eq. 11   the deviation of the beam scores as in the paper, without a floor
    constant sigma    one number for all requests, the best on validation requests (as in COBRA)
    first prefix      only the items of the best prefix
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int32

from sigma_jax import metrics
from sigma_jax.generation.config import SIGMA_GRID
from sigma_jax.generation.generator import Choice, Generator
from sigma_jax.schema import Requests

RANK_CUTOFF = 10  # a constant is chosen by NDCG at this rank
SIGMA_CONSTANTS = (*SIGMA_GRID, 1.4, 2.0)


def fuses(generator: Generator) -> bool:
    """Whether the model ranks by both prefixes and cosines, so that there is something to fuse."""
    has_both = generator.trie.depth > 0 and generator.item_query != "none"
    return has_both and generator.config.ranking == "fused"


def best_constant(
    generator: Generator,
    prompts: Mapping[str, np.ndarray],
    requests: Requests,
    seen: Int32[np.ndarray, "N S"],
) -> float:
    """The value of SIGMA_CONSTANTS with the highest NDCG@10 on `requests`; the lower one on ties.

    NDCG is averaged over lists with the `seen` items included and excluded: one constant serves
    both.
    """
    config = generator.config
    choices = [
        Choice(excluded, config=dataclasses.replace(config, sigma=sigma))
        for sigma in SIGMA_CONSTANTS
        for excluded in (None, seen)
    ]
    ndcg = [
        metrics.ndcg(metrics.item_ranks(result.items, requests.target), RANK_CUTOFF).mean()
        for result in generator.variants(prompts, RANK_CUTOFF, choices)
    ]
    return SIGMA_CONSTANTS[int(np.reshape(ndcg, (-1, 2)).mean(axis=1).argmax())]


def other_fusions(generator: Generator, constant: float) -> dict[str, Choice]:
    """Method name -> how it ranks; `constant` is the result of `best_constant`."""
    changes = {
        "sigma of Eq. 11": {"sigma": "deviation", "sigma_floor": 0.0},
        "constant sigma": {"sigma": constant},
        "first prefix": {"ranking": "first_prefix"},
    }
    return {
        f"SIGMA without reranker, {name}": Choice(
            config=dataclasses.replace(generator.config, **fields)
        )
        for name, fields in changes.items()
    }
