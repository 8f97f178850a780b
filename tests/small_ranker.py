"""Rankers over the small recommender, driven by prompts."""

import dataclasses

import numpy as np
import small_recommender

from sigma_jax.generation.beam import Prompts
from sigma_jax.generation.generator import Generator
from sigma_jax.index.trie_build import build_trie
from sigma_jax.recommender.ranking import Ranker, Recommendations, Variant
from sigma_jax.reranking.features import ItemFeatures, RankingInputs


def make_ranker(
    network, tables, depth, config, item_query="token", lexical=None, mesh=None
) -> Ranker:
    """A ranker of all items of small_recommender.py, with prefixes of `depth` codes."""
    trie = build_trie(small_recommender.semantic_ids().codes, depth, small_recommender.CODES)
    return Ranker(Generator(network, tables, trie, config, item_query, mesh=mesh), lexical)


def batch(**changes) -> Prompts:
    """The prompts of small_recommender.py."""
    return Prompts(**small_recommender.prompts(**changes))


def variants(
    ranker: Ranker, prompts: Prompts, count: int, inputs, configs=None, active=None
) -> list[Recommendations]:
    """The lists for each of `inputs` (RankingInputs), by default with the config of the ranker."""
    configs = configs or [ranker.generator.config] * len(inputs)
    each = [
        Variant(count, config, each_inputs)
        for each_inputs, config in zip(inputs, configs, strict=True)
    ]
    return ranker.rank(prompts, each, active)


def lists(ranker: Ranker, prompts: Prompts, count: int, seen=None) -> Recommendations:
    """The lists without features; items in `seen` are left out."""
    return variants(ranker, prompts, count, [RankingInputs(seen=seen)])[0]


def no_features(requests: int, row=None) -> ItemFeatures:
    """History features of no item, so that the other features are read."""
    empty = np.zeros((requests, 1, 2), np.float32)
    return ItemFeatures(np.full((requests, 1), np.iinfo(np.int32).max, np.int32), empty, row)


def with_config(ranker: Ranker, **changes):
    """The config of the ranker with changed fields."""
    return dataclasses.replace(ranker.generator.config, **changes)
