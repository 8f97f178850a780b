"""All baselines of an evaluation, with the settings that each may choose on validation requests.

A baseline has as many tries as its grid has settings. The settings with the highest NDCG@10 on
validation requests are kept, also for the refit, which adds the validation rows to the counts. So
do SIGMA's own settings: they are chosen before its refit and kept in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from absl import logging
from jaxtyping import Float32, Int32

from sigma_jax import metrics
from sigma_jax.baselines.covisitation import CoVisitation
from sigma_jax.baselines.feature_ranker import FeatureRanker
from sigma_jax.baselines.item_knn import ItemKnn
from sigma_jax.baselines.popularity import Popularity
from sigma_jax.baselines.recent import RecentCoVisitation, RecentPopularity
from sigma_jax.baselines.sasrec import BEFORE_REFIT
from sigma_jax.baselines.transition_graph import GraphSettings, TransitionGraph
from sigma_jax.baselines.user_most_frequent import UserMostFrequent, UserMostFrequentLately
from sigma_jax.schema import Histories, PreparedData, Requests
from sigma_jax.tasks.constraints import AllowedItems

NEIGHBOURS = 100  # items kept for each item in the relations of FeatureRanker, as in the presets
# For sessions of one item.
SEQUENTIAL = ("Co-visitation with a memory", "Transition graph", "Features without a network")
MOST_REQUESTS = 1_000  # validation requests that settings are chosen on
RANK_CUTOFF = 10  # settings are chosen by NDCG at this rank
MEMORIES = (30.0, 91.0, 365.0, 1460.0)  # days
DECAYS = (0.9, 0.95, 0.98, 0.99)  # of a session relative to the next one
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
    """How a baseline chooses its settings, and how it is fitted with them."""

    make: Callable[[PreparedData, Popularity, Any], Baseline]
    # (training data, its popularity, validation requests) -> settings
    choose: Callable[[PreparedData, Popularity, Requests], Any] = lambda data, popular, valid: None


def specs(
    data: PreparedData, vectors: Mapping[str, Float32[np.ndarray, "I D"]], seed: int
) -> dict[str, BaselineSpec]:
    """`all_specs` without those that are too slow for the log.

    Baskets join nearly all items with one another, so SEQUENTIAL would take minutes and gigabytes.
    """
    left_out = SEQUENTIAL if holds_baskets(data.histories) else ()
    found = all_specs(data, vectors, seed)
    return {name: spec for name, spec in found.items() if name not in left_out}


def all_specs(
    data: PreparedData, vectors: Mapping[str, Float32[np.ndarray, "I D"]], seed: int
) -> dict[str, BaselineSpec]:
    """The baselines that the tables of `data` allow, by name.

    Args:
      vectors: item vectors by kind (data.vectors.item_vectors). Those of texts are features of
        items; without them those of IDs.
    """
    found = {
        "Popularity": BaselineSpec(lambda data, popular, _: popular),
        "User's most frequent": BaselineSpec(lambda data, popular, _: UserMostFrequent(popular)),
        "User's most frequent lately": from_grid(UserMostFrequentLately.fit, DECAYS),
        "Co-visitation": BaselineSpec(lambda data, popular, _: CoVisitation.fit(data, seed)),
    }
    if np.asarray(data.histories.time).any():
        found["Popularity with a memory"] = from_grid(RecentPopularity.fit, MEMORIES)
        found["Co-visitation with a memory"] = from_grid(RecentCoVisitation.fit, MEMORIES)
    features = vectors.get("text", vectors.get("id"))
    if features is not None:
        found["Item kNN on texts" if "text" in vectors else "Item kNN on IDs"] = from_grid(
            lambda data, popular, given: ItemKnn.make(features, popular, given[1], given[0]),
            KNN_GRID,
        )
        found["Transition graph"] = from_grid(
            lambda data, popular, given: TransitionGraph.fit(data, features, popular, given),
            GRAPH_GRID,
        )
        make = FeatureRanker.make
        found["Features without a network"] = BaselineSpec(
            lambda data, popular, weights: make(data, features, NEIGHBOURS, popular, weights),
            lambda data, popular, valid: (
                make(data, features, NEIGHBOURS, popular).fitted(data, valid).weights
            ),
        )
    return found


def holds_baskets(histories: Histories) -> bool:
    """Whether more than a tenth of the interactions share a session with the one before them."""
    session = np.asarray(histories.session)
    is_same = session[1:] == session[:-1]
    first = np.asarray(histories.offsets[1:-1])
    is_same[first[(first > 0) & (first < len(session))] - 1] = False  # another user's
    return bool(is_same.mean() > 0.1) if len(is_same) else False


def from_grid(make: Callable[..., Baseline], grid: tuple[Any, ...]) -> BaselineSpec:
    """A baseline that chooses one of the settings of `grid`."""

    def choose(data: PreparedData, popularity: Popularity, valid: Requests) -> Any:
        if not len(valid):
            return grid[0]
        quality = [validation_ndcg(make(data, popularity, given), data, valid) for given in grid]
        return grid[int(np.argmax(quality))]

    return BaselineSpec(make, choose)


def validation_ndcg(baseline: Baseline, data: PreparedData, valid: Requests) -> float:
    """NDCG@10 on validation requests, averaged over lists with and without seen items."""
    ranks = [
        metrics.item_ranks(
            baseline.recommend(data, valid, RANK_CUTOFF, exclude_seen, None), valid.target
        )
        for exclude_seen in (False, True)
    ]
    return float(np.mean([metrics.ndcg(of_mode, RANK_CUTOFF).mean() for of_mode in ranks]))


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
    if len(valid) > MOST_REQUESTS:
        drawn = np.random.default_rng(seed).permutation(len(valid))[:MOST_REQUESTS]
        valid = valid.take(np.sort(drawn))
    popularity = Popularity.fit(data, seed)
    chosen = {name: spec.choose(data, popularity, valid) for name, spec in found.items()}
    logging.info("baselines: settings chosen on validation requests: %s", shown(chosen))
    fitted = {
        name + (BEFORE_REFIT if is_refitted else ""): spec.make(data, popularity, chosen[name])
        for name, spec in found.items()
    }
    if is_refitted:
        data = data.with_validation()
        popularity = Popularity.fit(data, seed)
        fitted |= {name: spec.make(data, popularity, chosen[name]) for name, spec in found.items()}
    return fitted


def shown(chosen: Mapping[str, Any]) -> str:
    """The settings that are one of a grid, as text."""
    of_grids = {
        name: settings
        for name, settings in chosen.items()
        if settings is not None and not isinstance(settings, np.ndarray)
    }
    return ", ".join(f"{name}: {settings}" for name, settings in of_grids.items()) or "none"
