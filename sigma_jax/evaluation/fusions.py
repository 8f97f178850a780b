"""Other ways to fuse prefixes and items, beside the adaptive one (APF, Eq. 10-11 of SIGMA).

Of a model that searches codes, without what counts say:

    sigma of Eq. 11   the deviation of the beam scores as the paper has it, without a floor
    constant sigma    the number in its place that serves validation requests best (COBRA has one)
    first prefix      only the items of the best prefix
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int32

from sigma_jax import metrics
from sigma_jax.generation.generator import Choice, Generator
from sigma_jax.schema import Requests

JUDGED = 10  # length of the lists that constants are chosen by
CONSTANTS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)


def fuses(generator: Generator) -> bool:
    """Whether there are prefixes and cosines to be fused."""
    has_both = generator.trie.depth > 0 and generator.item_query != "none"
    return has_both and generator.config.ranking == "fused"


def best_constant(
    generator: Generator,
    prompts: Mapping[str, np.ndarray],
    requests: Requests,
    seen: Int32[np.ndarray, "N S"],
) -> float:
    """The one of CONSTANTS with the highest NDCG@10 of `requests`, the lower one on ties.

    The mean of the lists with the `seen` items kept and left out, for one constant serves both.
    """
    config = generator.config
    choices = [
        Choice(left_out, config=dataclasses.replace(config, sigma=sigma))
        for sigma in CONSTANTS
        for left_out in (None, seen)
    ]
    gains = [
        metrics.ndcg(metrics.item_ranks(found.items, requests.target), JUDGED).mean()
        for found in generator.variants(prompts, JUDGED, choices)
    ]
    return CONSTANTS[int(np.reshape(gains, (-1, 2)).mean(axis=1).argmax())]


def other_fusions(generator: Generator, constant: float) -> dict[str, Choice]:
    """name -> how to rank so; `constant` as of `best_constant`."""
    changes = {
        "sigma of Eq. 11": {"sigma": "deviation", "sigma_floor": 0.0},
        "constant sigma": {"sigma": constant},
        "first prefix": {"ranking": "first_prefix"},
    }
    return {
        f"SIGMA without prior, {name}": Choice(
            config=dataclasses.replace(generator.config, **fields)
        )
        for name, fields in changes.items()
    }
