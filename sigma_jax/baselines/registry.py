"""All baselines of an evaluation, with the settings that each may choose on validation requests.

A baseline has as many tries as its grid has settings. The settings with the highest NDCG@10 on
validation requests are kept, also for the refit, which adds the validation rows to the counts. So
do SIGMA's own settings: they are chosen before its refit and kept in it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sparse
from absl import logging
from jaxtyping import Float32, Int32

from sigma_jax import metrics
from sigma_jax.baselines.covisitation import CoVisitation
from sigma_jax.baselines.feature_ranker import EQUAL_WEIGHTS, FeatureRanker
from sigma_jax.baselines.item_knn import ItemKnn
from sigma_jax.baselines.popularity import Popularity
from sigma_jax.baselines.ranking import ScoringBaseline, Variant, unit_rows
from sigma_jax.baselines.recent import (
    DailyCounts,
    DailyCovisits,
    RecentCoVisitation,
    RecentPopularity,
)
from sigma_jax.baselines.sasrec import BEFORE_REFIT
from sigma_jax.baselines.transition_graph import (
    GraphSettings,
    TransitionGraph,
    strongest_transitions,
)
from sigma_jax.baselines.user_most_frequent import UserMostFrequent, UserMostFrequentLately
from sigma_jax.reranking.history.embedding_neighbours import nearest_items
from sigma_jax.reranking.reranker import FeatureTables
from sigma_jax.schema import PreparedData, Requests
from sigma_jax.tasks.constraints import AllowedItems

NEIGHBOURS = 100  # items kept for each item in the relations of FeatureRanker, as in the presets
# They take minutes where sessions hold many items.
SLOW = ("Co-visitation with a memory", "Transition graph", "Features without a network")
MOST_REQUESTS = 1_000  # validation requests that settings are chosen on
RANK_CUTOFF = 10  # settings are chosen by NDCG at this rank
MEMORIES = (30.0, 91.0, 365.0, 1460.0)  # days
# The weight of a session relative to the next one, and whether an item counts once in a session.
FREQUENCY_GRID = tuple(itertools.product((0.9, 0.95, 0.98, 0.99), (False, True)))
KNN_GRID = ((1, 1.0), (2, 0.6), (5, 0.7), (20, 0.9))  # sessions, decay
GRAPH_GRID = (
    GraphSettings(1, 1.0, 1.0, 0.1, 1.0),
    GraphSettings(2, 0.6, 1.0, 0.1, 1.0),
    GraphSettings(2, 0.6, 1.0, 0.2, 3.0),
    GraphSettings(3, 0.6, 1.0, 0.2, 2.0),
    GraphSettings(3, 0.6, 1.0, 0.0, 1.0),
    GraphSettings(5, 0.7, 1.0, 0.1, 1.0),
)


class Baseline(Protocol):
    """A fitted baseline; baselines/__init__.py has the arguments."""

    def recommend(
        self,
        data: PreparedData,
        requests: Requests,
        k: int,
        exclude_seen: bool,
        allowed: AllowedItems | None,
    ) -> Int32[np.ndarray, "N k"]:
        """The best k items of each request, best first."""


@dataclasses.dataclass(frozen=True)
class BaselineSpec:
    """How a baseline counts, chooses its settings, and is made from both."""

    # (counts, popularity, settings) -> the fitted baseline
    make: Callable[[Any, Popularity, Any], Baseline]
    # training data -> what all settings share; it is made once before the refit and once after it
    count: Callable[[PreparedData], Any] = lambda data: None
    # (counts, popularity, training data, validation requests) -> settings
    choose: Callable[[Any, Popularity, PreparedData, Requests], Any] = lambda *_: None


def specs(
    data: PreparedData,
    vectors: Mapping[str, Float32[np.ndarray, "I D"]],
    seed: int,
    tables: Callable[[PreparedData], FeatureTables | None] = lambda data: None,
    covisits: Callable[[PreparedData], sparse.csr_matrix | None] = lambda data: None,
) -> dict[str, BaselineSpec]:
    """The baselines that the tables of `data` allow, by name.

    Args:
      vectors: item vectors by kind (data.vectors.item_vectors). Those of texts are features of
        items; without them those of IDs.
      tables: the counts of a reranker over the same rows, which save counting them again.
      covisits: the same for the counts of covisits alone.
    """
    found = {
        "Popularity": BaselineSpec(lambda _, popular, __: popular),
        "User's most frequent": BaselineSpec(lambda _, popular, __: UserMostFrequent(popular)),
        "User's most frequent lately": from_grid(
            lambda _, popular, given: UserMostFrequentLately(given[0], given[1], popular),
            FREQUENCY_GRID,
        ),
        "Co-visitation": BaselineSpec(
            lambda fitted, *_: fitted, lambda data: CoVisitation.fit(data, seed, covisits(data))
        ),
    }
    if np.asarray(data.histories.time).any():
        found["Popularity with a memory"] = from_grid(
            lambda counts, popular, memory: RecentPopularity(memory, counts, popular),
            MEMORIES,
            DailyCounts.count,
        )
        found["Co-visitation with a memory"] = from_grid(
            lambda covisits, popular, memory: RecentCoVisitation(memory, covisits, popular),
            MEMORIES,
            DailyCovisits.count,
        )
    features = vectors.get("text", vectors.get("id"))
    if features is not None:
        unit = unit_rows(features)
        found["Item kNN on texts" if "text" in vectors else "Item kNN on IDs"] = from_grid(
            lambda _, popular, given: ItemKnn(unit, popular, given[1], given[0]), KNN_GRID
        )
        found["Transition graph"] = from_grid(
            lambda counts, popular, given: TransitionGraph(given, counts, unit, popular),
            GRAPH_GRID,
            strongest_transitions,
        )
        found["Features without a network"] = BaselineSpec(
            lambda counts, popular, weights: FeatureRanker(counts, weights, popular),
            lambda data: feature_tables(data, unit, tables(data)),
            lambda counts, popular, data, valid: (
                FeatureRanker(counts, EQUAL_WEIGHTS, popular).fitted(data, valid).weights
            ),
        )
    return found


def feature_tables(
    data: PreparedData, vectors: Float32[np.ndarray, "I D"], made: FeatureTables | None
) -> FeatureTables:
    """The tables of a reranker, with neighbours by the vectors of a baseline (unit length).

    Args:
      made: tables over the same rows; None counts them.
    """
    if made is None:
        return FeatureTables.make(data, vectors, NEIGHBOURS)
    return made.over(len(vectors), nearest_items(vectors, NEIGHBOURS))


def from_grid(
    make: Callable[[Any, Popularity, Any], Baseline],
    grid: Sequence[Any],
    count: Callable[[PreparedData], Any] = lambda data: None,
) -> BaselineSpec:
    """A baseline that chooses one of the settings of `grid`."""

    def choose(counts: Any, popularity: Popularity, data: PreparedData, valid: Requests) -> Any:
        if not len(valid):
            return grid[0]
        fitted = [make(counts, popularity, given) for given in grid]
        quality = [validation_ndcg(baseline, data, valid) for baseline in fitted]
        return grid[int(np.argmax(quality))]

    return BaselineSpec(make, count, choose)


def validation_ndcg(baseline: Baseline, data: PreparedData, valid: Requests) -> float:
    """NDCG@10 on validation requests, averaged over lists with and without seen items."""
    lists = recommend_variants(baseline, data, valid, RANK_CUTOFF, [(False, None), (True, None)])
    ranks = [metrics.item_ranks(items, valid.target) for items in lists]
    return float(np.mean([metrics.ndcg(of_mode, RANK_CUTOFF).mean() for of_mode in ranks]))


def recommend_variants(
    baseline: Baseline, data: PreparedData, requests: Requests, k: int, variants: Sequence[Variant]
) -> list[Int32[np.ndarray, "N k"]]:
    """The best k items of each request under each variant (exclude_seen, allowed)."""
    if isinstance(baseline, ScoringBaseline):
        return baseline.recommend_variants(data, requests, k, variants)
    return [baseline.recommend(data, requests, k, *variant) for variant in variants]


def fit_baselines(
    found: Mapping[str, BaselineSpec],
    data: PreparedData,
    valid: Requests,
    seed: int,
    is_refitted: bool,
) -> dict[str, Baseline]:
    """The fitted baselines by name. With `is_refitted`, also as they are before the refit.

    Args:
      found: the result of `specs`.
      valid: validation requests, which settings are chosen on.
    """
    valid = some_requests(valid, seed)
    rounds = [data, data.with_validation()] if is_refitted else [data]
    popularity = [Popularity.fit(rows, seed) for rows in rounds]
    chosen, first, last = {}, {}, {}
    for name, spec in found.items():
        counts = spec.count(data)
        chosen[name] = spec.choose(counts, popularity[0], data, valid)
        fitted = [spec.make(counts, popularity[0], chosen[name])]
        for rows, popular in zip(rounds[1:], popularity[1:], strict=True):
            fitted.append(spec.make(spec.count(rows), popular, chosen[name]))
        first[name + BEFORE_REFIT], last[name] = fitted[0], fitted[-1]
    logging.info("baselines: settings chosen on validation requests: %s", shown(chosen))
    return first | last if is_refitted else last


def some_requests(requests: Requests, seed: int) -> Requests:
    """At most `MOST_REQUESTS` of the requests, drawn by the seed."""
    drawn = np.random.default_rng(seed).permutation(len(requests))[:MOST_REQUESTS]
    return requests.take(np.sort(drawn))


def shown(chosen: Mapping[str, Any]) -> str:
    """The settings that are one of a grid, as text."""
    of_grids = {
        name: settings
        for name, settings in chosen.items()
        if settings is not None and not isinstance(settings, np.ndarray)
    }
    return ", ".join(f"{name}: {settings}" for name, settings in of_grids.items()) or "none"
