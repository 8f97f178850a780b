"""The reranker: a log-linear model over features, multiplied to the probability of Eq. 10.

A network that sees an item a dozen times learns less about it than plain counts tell: which items
are bought together, and whether people buy the same things again. APF multiplies the probability of
the prefix by that of the item (Eq. 10 of SIGMA). The reranker multiplies one more factor to it:

    log p(i) + a * covisitation(i) + b * reverse_covisitation(i) + ... + z * lexical_match(i)

There are history features (history/), trending features (trending.py) and
instruction features (instruction.py). fit.py fits their weights. If nobody buys an item twice, the
weight of `repeat_count` is far below 0. If people buy the same milk every week, it is above 0. A
small network then ranks the best items of this sum anew (interactions.py).

At last the probabilities are calibrated (calibration.py).

A user who asks for something new wants the usual items least of all. So a network with a task head
has weights for each task. They are mixed by the probability of the tasks. Instructions that are
unlike those of training have weights of their own (novelty.py).

Axes: N requests, C candidates of a request, F features, I items, T rows of the trending table, G
trending features.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Float, Float16, Float32, Int32, Int64

from sigma_jax.histories import history_ranges, request_times
from sigma_jax.reranking.calibration import Calibration
from sigma_jax.reranking.features import ItemFeatures
from sigma_jax.reranking.history.relations import (
    DAMAGE,
    RELATION_UNITS,
    Relations,
    list_features,
    values_at,
)
from sigma_jax.reranking.history.repeats import REPEAT_UNITS, RepeatModel
from sigma_jax.reranking.instruction import INSTRUCTION_FEATURES
from sigma_jax.reranking.interactions import Interactions
from sigma_jax.reranking.novelty import Novelty
from sigma_jax.reranking.trending import TRENDING_FEATURES, TrendingCounts
from sigma_jax.runtime.config import check_at_least
from sigma_jax.schema import Histories, PreparedData, Requests

UNITS = RELATION_UNITS | REPEAT_UNITS
HISTORY_FEATURES = tuple(UNITS)
FEATURES = (*HISTORY_FEATURES, *TRENDING_FEATURES, *INSTRUCTION_FEATURES)


@dataclasses.dataclass(frozen=True)
class RerankerConfig:
    """The reranker and what it is fitted on."""

    neighbours: int  # items kept for each item in every relation; 0: no reranker
    fit_requests: int  # validation requests of the task with the highest weight
    has_repeat_model: bool  # False: the feature repeat_model is 0
    has_interactions: bool  # False: the sum of the features alone (interactions.py)

    def __post_init__(self):
        check_at_least(0, self, "neighbours", group="reranker.")
        check_at_least(1, self, "fit_requests", group="reranker.")


@dataclasses.dataclass(frozen=True)
class RerankerWeights:
    """The fitted values: sigma of Eq. 11, and for each feature a weight for every task.

    A network without a task head has one weight for all tasks. With a task head and a sentence
    encoder, a last weight is for novel instructions.
    """

    sigma: str | float
    of: dict[str, tuple[float, ...]]
    # For every task: what makes a printed probability how often such an item is the one that is
    # taken. It changes no ranking.
    calibration: tuple[Calibration, ...]

    @property
    def by_task(self) -> Float32[np.ndarray, "tasks F"]:
        """The weights as one array."""
        return np.array([self.of[name] for name in FEATURES], np.float32).T


@dataclasses.dataclass(frozen=True)
class FeatureTables:
    """The tables behind the features: relations between items, repeats, and trending items."""

    relations: Relations
    repeats: RepeatModel
    trends: TrendingCounts

    @classmethod
    def make(
        cls,
        data: PreparedData,
        vectors: Float[np.ndarray, "I D"],
        neighbours: int,
        has_repeat_model: bool = True,
        covisits: sparse.csr_matrix | None = None,
    ) -> FeatureTables:
        """Counts of the training rows, and neighbours by the item vectors (unit length).

        Args:
          covisits: `count_covisits` of the training rows, where they are counted already.
        """
        relations = Relations.make(data, vectors, neighbours, covisits)
        repeats = RepeatModel.fit(data) if has_repeat_model else RepeatModel.nothing(data)
        return cls(relations, repeats, TrendingCounts.make(data))

    def with_rows(
        self,
        data: PreparedData,
        rows: Int64[np.ndarray, " n"],
        vectors: Float[np.ndarray, "I D"],
        neighbours: int,
        covisits: sparse.csr_matrix,
    ) -> FeatureTables:
        """The tables of a log that has grown; the network of the repeats is kept.

        Args:
          data: the log; items and rows of these tables come first for each user.
          rows: its training rows that these tables do not count yet.
          vectors: of the network, unit length.
          neighbours: as in RerankerConfig.
          covisits: co-visitation counts of all training rows of `data`.
        """
        items = len(data.catalogue)
        item, time = (np.asarray(a[rows]) for a in (data.histories.item, data.histories.time))
        repeats = self.repeats.over(items)
        popularity = repeats.popularity + np.bincount(item, minlength=items)
        return FeatureTables(
            Relations.make(data, vectors, neighbours, covisits),
            dataclasses.replace(repeats, popularity=popularity),
            self.trends.with_rows(item, time, items),
        )

    def features(
        self, requests: Requests, histories: Histories
    ) -> tuple[ItemFeatures, Float16[np.ndarray, "T I G"]]:
        """HISTORY_FEATURES of the requests, and the trending table of their days."""
        times = request_times(histories, requests)
        where = histories, *history_ranges(histories, requests), times
        tables = self.relations.tables(*where) | self.repeats.tables(*where)
        features = list_features([tables[name] for name in UNITS], list(UNITS.values()))
        table, row = self.trends.at(times)
        return dataclasses.replace(features, row=row), table

    def at(
        self, requests: Requests, histories: Histories, candidates: Int32[np.ndarray, "N C"]
    ) -> list[Float32[np.ndarray, "N C"]]:
        """HISTORY_FEATURES and TRENDING_FEATURES of some items; any value for item -1."""
        values = feature_values(*self.features(requests, histories), candidates)
        return list(np.moveaxis(values, -1, 0))

    def over(
        self, num_items: int, embedding_neighbours: sparse.csr_matrix | None = None
    ) -> FeatureTables:
        """The tables over more items, which have no counts; with other neighbours if given."""
        trends = dataclasses.replace(self.trends, num_items=num_items)
        relations = self.relations.over(num_items, embedding_neighbours)
        return FeatureTables(relations, self.repeats.over(num_items), trends)

    def save(self, folder: Path) -> None:
        """Writes an .npz for each relation, for the repeats and for the trending counts."""
        self.relations.save(folder)
        self.repeats.save(folder)
        self.trends.save(folder)

    @classmethod
    def load(cls, folder: Path) -> FeatureTables:
        """The tables that `save` wrote. An error of DAMAGE if a file is missing or damaged."""
        return cls(Relations.load(folder), RepeatModel.load(folder), TrendingCounts.load(folder))


def feature_values(
    features: ItemFeatures,
    trending: Float16[np.ndarray, "T I G"],
    candidates: Int32[np.ndarray, "N C"],
) -> Float32[np.ndarray, "N C F+G"]:
    """The values of `FeatureTables.features` of some items; any value for item -1."""
    of_trending = trending[features.row[:, None], np.maximum(candidates, 0)]
    return np.concatenate([values_at(features, candidates), of_trending], axis=-1)


@dataclasses.dataclass(frozen=True)
class Reranker:
    """Fitted weights and the tables their features are read from."""

    weights: RerankerWeights
    tables: FeatureTables
    interactions: Interactions | None = None
    novelty: Novelty | None = None  # where the weights have a last row for novel instructions

    def save(self, folder: Path) -> None:
        """Writes reranker.json, the tables, and the networks where there are any."""
        (folder / "reranker.json").write_text(json.dumps(dataclasses.asdict(self.weights)))
        self.tables.save(folder)
        if self.interactions is not None:
            self.interactions.save(folder)
        if self.novelty is not None:
            self.novelty.save(folder)

    @classmethod
    def load(cls, folder: Path) -> Reranker:
        """The reranker that `save` wrote. ValueError if a file is missing or damaged."""
        try:
            stored = json.loads((folder / "reranker.json").read_text())
            of = {name: tuple(map(float, stored["of"][name])) for name in FEATURES}
            calibration = tuple(Calibration(*map(float, row)) for row in stored["calibration"])
            weights = RerankerWeights(stored["sigma"], of, calibration)
            tables, interactions = FeatureTables.load(folder), Interactions.load(folder)
            return cls(weights, tables, interactions, Novelty.load(folder))
        except DAMAGE as error:
            raise ValueError(
                f"{folder}: reranker.json or an .npz beside it is damaged or of another version "
                f"({error}); delete {folder}, and its copy where --artifacts was given, and run "
                "again: training continues from the last checkpoint."
            ) from error
