"""Fits the reranker of a recommender on validation requests."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jaxtyping import Float32, Int, Int32

from sigma_jax.generation.config import SIGMA_GRID, GenerationConfig
from sigma_jax.recommender.ranking import Recommendations
from sigma_jax.recommender.recommender import (
    Recommender,
    RecommendOptions,
    with_general_instructions,
)
from sigma_jax.reranking.calibration import DEPTH, Calibration, fit_calibrations
from sigma_jax.reranking.fit import (
    ABSENT,
    MIN_TARGETS,
    fit_novel,
    fit_reranker,
    fitted_values,
    satisfies_instruction,
)
from sigma_jax.reranking.instruction import INSTRUCTION_FEATURES
from sigma_jax.reranking.novelty import NAMES_THINGS, Novelty
from sigma_jax.reranking.reranker import FeatureTables, Reranker, RerankerWeights
from sigma_jax.reranking.semantic import SEMANTIC_FEATURES
from sigma_jax.schema import TASKS, RequestBatch, Requests
from sigma_jax.tasks.constraints import AllowedItems

CALIBRATION_REQUESTS = 400  # of each task
NOVEL_REQUESTS = 300  # that the weights of novel instructions are fitted on
# A novel instruction says less about a thing than its name does. It is most like a category.
NOVEL_AS = ("Category", "Query")
MOST_CANDIDATES = 16_384  # of which log p is known
LIKELIEST, NEAREST = 300, 200  # candidates by log p, and by meaning


def fit_reranker_of(
    recommender: Recommender,
    batch: RequestBatch,
    judges: RequestBatch,
    tables: FeatureTables,
    allowed: AllowedItems | None,
    novelty: Novelty | None = None,
    has_interactions: bool = True,
) -> tuple[Reranker, dict[str, float]]:
    """The reranker under which the targets of `batch` are likeliest, and metrics (fit.py).

    Args:
      recommender: its reranker, if it has one, is not used.
      judges: the requests that probabilities are calibrated on (`judges_of`).
      tables: the counts that features are read from.
      allowed: the items that satisfy each instruction.
      novelty: of instructions; None fits no weights for novel ones.
      has_interactions: False fits the sum of the features alone.
    """
    generator, config = recommender.generator, recommender.generator.config
    retrieved = config.num_beams * config.num_retrieved
    variants = [
        RecommendOptions(
            retrieved, reranks=False, generation=dataclasses.replace(config, sigma=sigma)
        )
        for sigma in sigmas_to_try(config, generator.trie.depth, generator.has_item_head)
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
    weights, interactions, metrics = fit_reranker(
        ranked, batch.requests, features_of, allowed, has_task_head, has_interactions
    )
    reranker = Reranker(weights, tables, interactions)
    if metrics["reranker_targets"] < MIN_TARGETS:
        return reranker, metrics
    if novelty is not None and allowed is not None and has_task_head:
        rows = _rows_like_novel(batch.requests, allowed)
        if rows is not None:
            weights = fit_novel(weights, *_as_if_novel(recommender, batch, rows, tables, allowed))
            reranker = Reranker(weights, tables, interactions, novelty)
    weights = _calibrated(recommender.with_reranker(reranker), judges, weights)
    return dataclasses.replace(reranker, weights=weights), metrics | fitted_values(weights)


def _rows_like_novel(requests: Requests, allowed: AllowedItems) -> Int[np.ndarray, " n"] | None:
    """The requests that the weights of novel instructions are fitted on; None: too few."""
    of_task = [
        np.flatnonzero((requests.task == TASKS.index(task)) & (allowed.row >= 0))
        for task in NOVEL_AS
    ]
    enough = [rows for rows in of_task if len(rows) >= MIN_TARGETS]
    return enough[0][:NOVEL_REQUESTS] if enough else None


def judges_of(more: RequestBatch, fitted: Requests) -> RequestBatch:
    """At most CALIBRATION_REQUESTS requests of each task out of `more`.

    Those that no weight was fitted on come first: fitted weights are too sure of their own
    requests. Where they are too few, others fill up.
    """
    requests = more.requests

    def number(of: Requests) -> Int[np.ndarray, " N"]:
        return of.user.astype(np.int64) * len(TASKS) + of.task

    is_fitted = np.isin(number(requests), number(fitted))
    order = np.argsort(is_fitted, kind="stable")
    rows = [
        order[requests.task[order] == task][:CALIBRATION_REQUESTS]
        for task in np.unique(requests.task)
    ]
    return more.take(np.sort(np.concatenate(rows)))


def _calibrated(
    recommender: Recommender, judges: RequestBatch, weights: RerankerWeights
) -> RerankerWeights:
    """`weights` with the calibration of the lists that `recommender` gives with them.

    Novel instructions get the mean calibration of the tasks that name things.
    """
    answer = recommender.recommend(judges, RecommendOptions(DEPTH))
    is_hit = answer.items == judges.requests.target[:, None]
    known = answer.tasks.sum(axis=1) > 0.5  # not novel
    calibration = fit_calibrations(answer.log_probs[known], is_hit[known], answer.tasks[known])
    if len(calibration) < len(weights.calibration):
        mean = np.array(calibration)[NAMES_THINGS].mean(axis=0).tolist()
        calibration = (*calibration, Calibration(*mean))
    return dataclasses.replace(weights, calibration=calibration)


def _as_if_novel(
    recommender: Recommender,
    batch: RequestBatch,
    rows: Int[np.ndarray, " n"],
    tables: FeatureTables,
    allowed: AllowedItems,
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Arguments of `fit_novel` from the requests `rows`, read as if they were novel.

    Candidates are items that are likely for a general instruction, items that are near by meaning,
    and items that satisfy the instruction.
    """
    requests = batch.requests.take(rows)
    general = with_general_instructions(batch.take(rows), np.ones(len(rows), bool))
    count = min(len(recommender.parts.semantic_ids.codes), MOST_CANDIDATES)
    answer = recommender.recommend(general, RecommendOptions(count, reranks=False))
    inputs = recommender.read_instructions(requests.instruction)
    scores = recommender.instruction_scores(inputs, answer.items)[..., -len(SEMANTIC_FEATURES) :]
    order = np.argsort(-scores.sum(axis=-1), axis=1, kind="stable")[:, :NEAREST]
    candidates = sorted_rows(
        [
            np.concatenate([likely, near, allowed.of(row)[:NEAREST], requests.target[[place]]])
            for place, (row, likely, near) in enumerate(
                zip(
                    rows,
                    answer.items[:, :LIKELIEST],
                    np.take_along_axis(answer.items, order, axis=1),
                    strict=True,
                )
            )
        ]
    )
    log_p = np.where(candidates >= 0, log_p_of(answer, candidates), ABSENT).astype(np.float32)
    of_instruction = list(np.moveaxis(recommender.instruction_scores(inputs, candidates), -1, 0))
    read = len(INSTRUCTION_FEATURES) - len(SEMANTIC_FEATURES)  # features of network and words
    of_instruction[:read] = [np.zeros_like(log_p)] * read
    columns = [log_p, *tables.at(requests, batch.histories, candidates), *of_instruction]
    target = (candidates == requests.target[:, None]).argmax(axis=1)
    return columns, target, satisfies_instruction(allowed, rows, candidates)


def sorted_rows(lists: list[np.ndarray]) -> Int32[np.ndarray, "n C"]:
    """The distinct items of each list, ascending, as rows that are padded with -1."""
    distinct = [np.unique(items[items >= 0]) for items in lists]
    rows = np.full((len(lists), max(map(len, distinct), default=0)), -1, np.int32)
    for row, items in zip(rows, distinct, strict=True):
        row[: len(items)] = items
    return rows


def log_p_of(
    answer: Recommendations, candidates: Int32[np.ndarray, "n C"]
) -> Float32[np.ndarray, "n C"]:
    """log p of each candidate; the least of the request for items that `answer` does not have."""
    found = np.zeros(candidates.shape, np.float32)
    for row, (items, log_p) in enumerate(zip(answer.items, answer.log_probs, strict=True)):
        order = np.argsort(items, kind="stable")[(items < 0).sum() :]
        place = np.searchsorted(items[order], candidates[row])
        place = np.minimum(place, max(len(order) - 1, 0))
        is_there = items[order][place] == candidates[row]
        found[row] = np.where(is_there, log_p[order][place], log_p[order].min())
    return found


def sigmas_to_try(
    config: GenerationConfig, depth: int, has_item_head: bool
) -> tuple[str | float, ...]:
    """The configured sigma of Eq. 11 and the constants that may replace it.

    A single prefix has no deviation, so sigma is its floor. Another sigma would only scale log p.
    An item head gives prefixes and items their probabilities together, so sigma changes little.
    """
    if depth:
        return (config.sigma,) if has_item_head else (config.sigma, *SIGMA_GRID)
    return (config.sigma_floor if config.sigma == "deviation" else config.sigma,)
