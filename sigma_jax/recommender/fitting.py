"""Fits the reranker of a recommender on validation requests."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from sigma_jax.generation.config import SIGMA_GRID, GenerationConfig
from sigma_jax.recommender.recommender import Recommender, RecommendOptions
from sigma_jax.reranking.fit import fit_reranker
from sigma_jax.reranking.reranker import FeatureTables, Reranker
from sigma_jax.schema import RequestBatch
from sigma_jax.tasks.constraints import AllowedItems


def fit_reranker_of(
    recommender: Recommender,
    batch: RequestBatch,
    tables: FeatureTables,
    allowed: AllowedItems | None,
) -> tuple[Reranker, dict[str, float]]:
    """The reranker under which the targets of `batch` are likeliest, and metrics (fit.py).

    Args:
      recommender: its reranker, if it has one, is not used.
      tables: the counts that features are read from.
      allowed: the items that satisfy each instruction.
    """
    config = recommender.generator.config
    retrieved = config.num_beams * config.num_retrieved
    variants = [
        RecommendOptions(
            retrieved, reranks=False, generation=dataclasses.replace(config, sigma=sigma)
        )
        for sigma in sigmas_to_try(config, recommender.generator.trie.depth)
    ]
    answers = recommender.recommend_variants(batch, variants)
    ranked = {
        options.generation.sigma: (answer.items, answer.log_probs)
        for options, answer in zip(variants, answers, strict=True)
    }
    instruction = recommender.read_instructions(batch.requests.instruction)

    def features_of(rows: np.ndarray, candidates: np.ndarray) -> list[np.ndarray]:
        requests = batch.requests.take(rows)
        columns = tables.at(requests, batch.histories, candidates)
        if instruction is not None:
            inputs = jax.tree.map(lambda table: table[rows], instruction)
            scores = recommender.instruction_scores(inputs, candidates)
            columns += list(np.moveaxis(scores, -1, 0))
        return columns

    has_task_head = recommender.generator.has_task_head
    weights, metrics = fit_reranker(ranked, batch.requests, features_of, allowed, has_task_head)
    return Reranker(weights, tables), metrics


def sigmas_to_try(config: GenerationConfig, depth: int) -> tuple[str | float, ...]:
    """The configured sigma of Eq. 11 and the constants that may replace it.

    A single prefix has no deviation, so sigma is its floor. Another sigma would only scale log p.
    """
    if depth:
        return (config.sigma, *SIGMA_GRID)
    return (config.sigma_floor if config.sigma == "deviation" else config.sigma,)
