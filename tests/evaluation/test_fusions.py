"""Other fusions: what stands in for sigma, by validation, and where there is nothing to fuse."""

import dataclasses

import numpy as np
import pytest
import small_recommender
from small_recommender import prompts, recommender, semantic_ids

from sigma_jax import metrics
from sigma_jax.evaluation.fusions import SIGMA_CONSTANTS, best_constant, fuses, other_fusions
from sigma_jax.generation.generator import Generator
from sigma_jax.schema import Requests

CONFIG = dataclasses.replace(small_recommender.CONFIG, sigma_floor=1.0)


@pytest.fixture(scope="module")
def generator() -> Generator:
    model, tables = recommender()
    return Generator.create(model, tables, semantic_ids(), 1, CONFIG)


def wanting(target) -> Requests:
    size = len(target)
    rows = np.zeros(size, np.int32)
    return Requests(rows, rows, rows, rows - 1, np.array(target, np.int32), [""] * size)


@pytest.mark.parametrize("wants", [0, -1])
def test_the_constant_is_the_one_that_ranks_the_targets_highest(generator, wants):
    """Targets are what the lowest, or the highest, constant puts far ahead of the other."""
    seen = np.full((3, 1), -1, np.int32)
    model, tables = recommender()
    lists = {}
    for sigma in SIGMA_CONSTANTS:
        config = dataclasses.replace(CONFIG, sigma=sigma)
        lists[sigma] = Generator.create(model, tables, semantic_ids(), 1, config)(prompts(), 10)
    ours, other = lists[SIGMA_CONSTANTS[wants]].items, lists[SIGMA_CONSTANTS[-1 - wants]].items
    behind = [
        [row.index(i) if i in row else 10 for i in one]
        for one, row in zip(ours.tolist(), other.tolist(), strict=True)
    ]
    lead = np.array(behind) - np.arange(10)
    target = ours[np.arange(3), lead.argmax(axis=1)]
    gains = {
        sigma: metrics.ndcg(metrics.item_ranks(found.items, target), 10).mean()
        for sigma, found in lists.items()
    }
    assert gains[SIGMA_CONSTANTS[wants]] > gains[SIGMA_CONSTANTS[-1 - wants]]
    best = best_constant(generator, prompts(), wanting(target), seen)
    assert gains[best] == max(gains.values())


def test_other_fusions_differ_in_what_their_names_say(generator):
    ways = {name: choice.config for name, choice in other_fusions(generator, 0.5).items()}
    assert ways == {
        "SIGMA without reranker, sigma of Eq. 11": dataclasses.replace(CONFIG, sigma_floor=0.0),
        "SIGMA without reranker, constant sigma": dataclasses.replace(CONFIG, sigma=0.5),
        "SIGMA without reranker, first prefix": dataclasses.replace(CONFIG, ranking="first_prefix"),
    }


def test_nothing_is_fused_without_codes_or_without_a_query(generator):
    assert fuses(generator)
    model, tables = recommender()
    assert not fuses(Generator.create(model, tables, semantic_ids(), 0, CONFIG))
    assert not fuses(Generator.create(model, tables, semantic_ids(), 1, CONFIG, "none"))
    first = dataclasses.replace(CONFIG, ranking="first_prefix")
    assert not fuses(Generator.create(model, tables, semantic_ids(), 1, first))
