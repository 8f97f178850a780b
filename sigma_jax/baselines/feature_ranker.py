"""The reranker's features without a recommender network: counts and neighbours alone.

It shows how much of SIGMA's quality comes from the features of reranking/. Its weights and its
interactions are fitted on validation requests, as those of the reranker are (reranking/fit.py). It
does not read instructions.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float32, Int64

from sigma_jax.baselines.popularity import Popularity
from sigma_jax.baselines.ranking import ScoringBaseline
from sigma_jax.reranking.features import ItemFeatures
from sigma_jax.reranking.fit import ABSENT, examples_of, fit_weights
from sigma_jax.reranking.interactions import DEPTH, Interactions, fit_interactions
from sigma_jax.reranking.reranker import HISTORY_FEATURES, FeatureTables, feature_values
from sigma_jax.reranking.trending import TRENDING_FEATURES
from sigma_jax.schema import PreparedData, Requests

EQUAL_WEIGHTS = np.ones(len(HISTORY_FEATURES) + len(TRENDING_FEATURES), np.float32)
CANDIDATES = 640  # of a request in the fit: as many as SIGMA's reranker is fitted on


@dataclasses.dataclass(frozen=True)
class FeatureRanker(ScoringBaseline):
    """Ranks items by the weighted sum of their history features and trending features.

    The interactions are added to the best items of the sum.
    """

    tables: FeatureTables
    weights: Float32[np.ndarray, " F"]
    popularity: Popularity
    interactions: Interactions | None = None

    def fitted(self, data: PreparedData, requests: Requests) -> FeatureRanker:
        """The baseline fitted so that the targets of `requests` are likeliest.

        A request counts if its target is among the best `CANDIDATES` items under equal weights.
        """
        equal = dataclasses.replace(self, weights=np.ones_like(self.weights))
        candidates = equal.recommend(data, requests, CANDIDATES, False, None)
        answered = np.flatnonzero((candidates == requests.target[:, None]).any(axis=1))
        if not len(answered):
            return self
        candidates, requests = candidates[answered], requests.take(answered)
        columns = self.tables.at(requests, data.histories, candidates)
        target = (candidates == requests.target[:, None]).argmax(axis=1)
        is_item = candidates >= 0
        # The first column of the fit is the network's; an item that is missing gets no probability.
        network = np.where(is_item, 0.0, ABSENT).astype(np.float32)
        everything = np.ones(candidates.shape, bool)
        start = np.append(1.0, np.zeros(len(columns)))
        columns = [network, *columns]
        _, weights, _ = fit_weights(columns, target, everything, start)
        row = np.zeros(len(target), np.int32)
        examples = examples_of(columns, weights[None], row, target, everything)
        interactions, _ = fit_interactions(examples, np.ones(1))
        weights = weights[1:].astype(np.float32)
        return dataclasses.replace(self, weights=weights, interactions=interactions)

    def scores(
        self, data: PreparedData, requests: Requests, rows: Int64[np.ndarray, " n"]
    ) -> Float32[np.ndarray, "n I"]:
        """The score of every item for some requests."""
        features, trending = self.tables.features(requests.take(rows), data.histories)
        width = features.values.shape[-1]
        scores = (trending.astype(np.float32) @ self.weights[width:])[features.row]
        add_listed(scores, features, self.weights[:width])
        if self.interactions is not None:
            best = np.argpartition(-scores, min(DEPTH, scores.shape[1]) - 1, axis=1)[:, :DEPTH]
            nothing = np.zeros((*best.shape, 1), np.float32)  # in place of log p
            values = feature_values(features, trending, best)
            inputs = np.concatenate([nothing, values], axis=-1)
            added = self.interactions.added(inputs, np.ones((len(best), 1), np.float32))
            scores[np.arange(len(best))[:, None], best] += np.asarray(added)
        return scores


def add_listed(
    scores: Float32[np.ndarray, "n I"], features: ItemFeatures, weights: Float32[np.ndarray, " F"]
) -> None:
    """Adds the weighted history features of the listed items to `scores`, in place."""
    num_items = scores.shape[1]
    for of_row, items, values in zip(scores, features.items, features.values, strict=True):
        count = np.searchsorted(items, num_items)  # padding is larger than any item
        of_row[items[:count]] += values[:count].astype(np.float32) @ weights
