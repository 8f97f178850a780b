"""Fits the reranker of a recommender on validation requests."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from sigma_jax.generation.config import SIGMA_GRID, GenerationConfig
from sigma_jax.recommender.recommender import Recommender, RecommendOptions
from sigma_jax.recommender.requests import DEFAULT_INSTRUCTION
from sigma_jax.reranking.features import NAMES_THINGS
from sigma_jax.reranking.fit import (
    ABSENT,
    fit_novel,
    fit_reranker,
    fitted_values,
    satisfies_instruction,
)
from sigma_jax.reranking.instruction import INSTRUCTION_FEATURES
from sigma_jax.reranking.novelty import Novelty
from sigma_jax.reranking.reranker import FeatureTables, Reranker
from sigma_jax.reranking.semantic import SEMANTIC_FEATURES
from sigma_jax.schema import RequestBatch
from sigma_jax.tasks.constraints import AllowedItems

NOVEL_REQUESTS = 300  # that the weights of novel instructions are fitted on
MOST_CANDIDATES = 16_384  # of which log p is known
LIKELIEST, NEAREST = 300, 200  # candidates by log p, and by meaning


def fit_reranker_of(
    recommender: Recommender,
    batch: RequestBatch,
    tables: FeatureTables,
    allowed: AllowedItems | None,
    novelty: Novelty | None = None,
) -> tuple[Reranker, dict[str, float]]:
    """The reranker under which the targets of `batch` are likeliest, and metrics (fit.py).

    Args:
      recommender: its reranker, if it has one, is not used.
      tables: the counts that features are read from.
      allowed: the items that satisfy each instruction.
      novelty: of instructions; None fits no weights for novel ones.
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
    if novelty is None or not has_task_head or allowed is None:
        return Reranker(weights, tables), metrics
    number = len(weights.calibration)
    weights = fit_novel(weights, *_novel_requests(recommender, batch, tables, allowed))
    if len(weights.calibration) == number:
        return Reranker(weights, tables), metrics
    return Reranker(weights, tables, novelty), metrics | fitted_values(weights)


def _novel_requests(
    recommender: Recommender, batch: RequestBatch, tables: FeatureTables, allowed: AllowedItems
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Arguments of `fit_novel` from requests that name things, read as if they were novel."""
    names_things = NAMES_THINGS[batch.requests.task] > 0
    rows = np.flatnonzero((allowed.row >= 0) & names_things)
    rows = rows[np.linspace(0, len(rows) - 1, min(NOVEL_REQUESTS, len(rows))).astype(int)]
    requests = batch.requests.take(rows)
    general = [DEFAULT_INSTRUCTION] * len(rows)
    plain = dataclasses.replace(
        batch.take(rows), requests=dataclasses.replace(requests, instruction=general)
    )
    total = len(recommender.parts.semantic_ids.codes)
    count = min(total, MOST_CANDIDATES)
    answer = recommender.recommend(plain, RecommendOptions(count, reranks=False))
    inputs = recommender.read_instructions(requests.instruction)
    scores = recommender.instruction_scores(inputs, answer.items)[..., -len(SEMANTIC_FEATURES) :]
    order = np.argsort(-scores.sum(axis=-1), axis=1, kind="stable")[:, :NEAREST]
    nearest = np.take_along_axis(answer.items, order, axis=1)
    lists = [
        np.unique(
            np.concatenate(
                [answer.items[n, :LIKELIEST], nearest[n], allowed.of(row)[:NEAREST], [target]]
            )
        )
        for n, (row, target) in enumerate(zip(rows, requests.target, strict=True))
    ]
    lists = [items[items >= 0] for items in lists]
    candidates = np.full((len(rows), max(map(len, lists), default=1)), -1, np.int32)
    log_p = np.full(candidates.shape, ABSENT, np.float32)
    for n, items in enumerate(lists):
        candidates[n, : len(items)] = items
        is_found = answer.items[n] >= 0
        of_items = np.full(total, answer.log_probs[n][is_found].min(), np.float32)
        of_items[answer.items[n][is_found]] = answer.log_probs[n][is_found]
        log_p[n, : len(items)] = of_items[items]
    of_instruction = np.moveaxis(recommender.instruction_scores(inputs, candidates), -1, 0)
    for number in range(len(INSTRUCTION_FEATURES) - len(SEMANTIC_FEATURES)):
        of_instruction[number] = 0  # features of words and of the network
    columns = [log_p, *tables.at(requests, batch.histories, candidates), *of_instruction]
    target = (candidates == requests.target[:, None]).argmax(axis=1)
    return columns, target, satisfies_instruction(allowed, rows, candidates)


def sigmas_to_try(config: GenerationConfig, depth: int) -> tuple[str | float, ...]:
    """The configured sigma of Eq. 11 and the constants that may replace it.

    A single prefix has no deviation, so sigma is its floor. Another sigma would only scale log p.
    """
    if depth:
        return (config.sigma, *SIGMA_GRID)
    return (config.sigma_floor if config.sigma == "deviation" else config.sigma,)
