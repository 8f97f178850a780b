"""Other fusions: the constant that replaces sigma, and recommenders without anything to fuse."""

import dataclasses

import numpy as np
import pytest
import small_ranker
import small_recommender
from small_recommender import recommender

from sigma_jax import metrics
from sigma_jax.evaluation.fusions import SIGMA_CONSTANTS, best_constant, fuses, other_fusions
from sigma_jax.generation.config import GenerationConfig
from sigma_jax.recommender.recommender import RecommendOptions
from sigma_jax.reranking.features import RankingInputs
from sigma_jax.schema import RequestBatch, Requests

CONFIG = dataclasses.replace(small_recommender.CONFIG, sigma_floor=1.0)
PROMPTS = small_ranker.batch()


class SmallRecommender:
    """The small ranker with the part of the interface of Recommender that fusions use."""

    def __init__(self, config: GenerationConfig = CONFIG, depth: int = 1, item_query="token"):
        self.ranker = small_ranker.make_ranker(*recommender(), depth, config, item_query)
        self.generator = self.ranker.generator

    def recommend_variants(self, batch, variants):
        """The lists for PROMPTS; no user has seen an item."""
        [count] = {options.count for options in variants}
        configs = [options.generation for options in variants]
        inputs = [RankingInputs()] * len(variants)
        return small_ranker.variants(self.ranker, PROMPTS, count, inputs, configs)


@pytest.fixture(scope="module")
def small() -> SmallRecommender:
    return SmallRecommender()


def batch_with(target) -> RequestBatch:
    """One request with each target."""
    rows = np.zeros(len(target), np.int32)
    texts = [""] * len(target)
    requests = Requests(rows, rows, rows, rows - 1, np.array(target, np.int32), texts)
    return RequestBatch(requests, None, None)


@pytest.mark.parametrize("chosen", [0, -1])
def test_the_best_constant_ranks_the_targets_highest(small, chosen):
    """Targets are items that the lowest (or highest) constant ranks far above the other one."""
    lists = {}
    for sigma in SIGMA_CONSTANTS:
        config = dataclasses.replace(CONFIG, sigma=sigma)
        lists[sigma] = small_ranker.lists(SmallRecommender(config).ranker, PROMPTS, 10).items
    best, worst = SIGMA_CONSTANTS[chosen], SIGMA_CONSTANTS[-1 - chosen]
    rank_in_worst = [
        [row.index(item) if item in row else 10 for item in items]
        for items, row in zip(lists[best].tolist(), lists[worst].tolist(), strict=True)
    ]
    lead = np.array(rank_in_worst) - np.arange(10)
    target = lists[best][np.arange(3), lead.argmax(axis=1)]
    ndcg = {
        sigma: metrics.ndcg(metrics.item_ranks(items, target), 10).mean()
        for sigma, items in lists.items()
    }
    assert ndcg[best] > ndcg[worst]
    assert ndcg[best_constant(small, batch_with(target))] == max(ndcg.values())


def test_other_fusions_change_the_settings_that_their_names_say():
    options = RecommendOptions(20, generation=CONFIG)
    fusions = other_fusions(options, 0.5)
    assert {name: fusion.generation for name, fusion in fusions.items()} == {
        "SIGMA without reranker, sigma of Eq. 11": dataclasses.replace(CONFIG, sigma_floor=0.0),
        "SIGMA without reranker, constant sigma": dataclasses.replace(CONFIG, sigma=0.5),
        "SIGMA without reranker, first prefix": dataclasses.replace(CONFIG, fusion="first_prefix"),
    }
    assert all(fusion.count == 20 and not fusion.reranks for fusion in fusions.values())


def test_nothing_is_fused_without_codes_or_without_an_item_query(small):
    assert fuses(small)
    assert not fuses(SmallRecommender(depth=0))
    assert not fuses(SmallRecommender(item_query="none"))
    assert not fuses(SmallRecommender(dataclasses.replace(CONFIG, fusion="first_prefix")))
