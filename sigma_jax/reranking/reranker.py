"""What counts say about a request, fused with the model's probability.

A model that meets an item a dozen times knows less about it than plain counts do: which items are
bought together, and whether people here come back to what they had. APF multiplies the prefix's
probability by the item's (Eq. 10 of SIGMA); this multiplies one more factor to it,

    log p(i) + a * ties(i) + b * back(i) + c * near(i) + d * own(i) + ...

of the features of reranking/relations.py (what goes with the items of the history), of
reranking/trending.py
(what everybody takes at the time) and of reranking/instruction.py (what the instruction asks for,
whoever
asks, by the model's answer to it and by its words, so that favourites do not crowd it out). Their
weights and the sigma of Eq. 11 are fitted on validation requests, together with a weight of log p,
so that the targets are most probable among the items the model retrieves; what is kept is divided
by that weight, which changes no ranking. Where nobody takes an item twice d comes out far below 0,
where people buy the same milk every week above it.

Each request says two things: which item was taken, and, where it asks for a query, a category or a
theme, which items would have done. So the loss is -log P(target) - log P(what was asked for), and
counts may not buy the one by the other.

Whoever asks for something new wants what he has least of all. A model that tells which task an
instruction is of (RecommenderNetwork.task_logits) has weights for each; its own doubt mixes them.

Axes: N requests, C candidates of a request, F features.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Float, Float16, Float32, Int32

from sigma_jax.generation.config import GenerationConfig
from sigma_jax.generation.generator import Choice
from sigma_jax.histories import request_times
from sigma_jax.reranking.features import ItemFeatures
from sigma_jax.reranking.instruction import INSTRUCTION_FEATURES, Told
from sigma_jax.reranking.relations import DAMAGE, HISTORY_FEATURES, Relations, values_at
from sigma_jax.reranking.trending import TRENDING_FEATURES, Trends
from sigma_jax.schema import Histories, PreparedData, Requests

FEATURES = (*HISTORY_FEATURES, *TRENDING_FEATURES, *INSTRUCTION_FEATURES)


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """How much counts may say."""

    neighbours: int  # of an item in each relation; 0: no prior, and the configured sigma
    fit_requests: int  # validation requests of the task with the highest weight

    def __post_init__(self):
        if self.neighbours < 0:
            raise ValueError(f"prior.neighbours={self.neighbours}; use 0 or more.")
        if self.fit_requests < 1:
            raise ValueError(f"prior.fit_requests={self.fit_requests}; use 1 or more.")


@dataclasses.dataclass(frozen=True)
class PriorWeights:
    """What is fitted; for each of FEATURES a weight of each of TASKS, or of all of them in one."""

    sigma: str | float  # of Eq. 11
    of: dict[str, tuple[float, ...]]

    @property
    def by_task(self) -> Float32[np.ndarray, "tasks F"]:
        """The weights of the features, as the generator takes them."""
        return np.array([self.of[name] for name in FEATURES], np.float32).T


@dataclasses.dataclass(frozen=True)
class Counts:
    """What the features are read from."""

    relations: Relations
    trends: Trends

    @classmethod
    def make(cls, data: PreparedData, vectors: Float[np.ndarray, "I D"], neighbours: int) -> Counts:
        """From training rows, and the model's item vectors (of unit length)."""
        return cls(Relations.make(data, vectors, neighbours), Trends.make(data))

    def features(
        self, requests: Requests, histories: Histories
    ) -> tuple[ItemFeatures, Float16[np.ndarray, "T I G"]]:
        """HISTORY_FEATURES and TRENDING_FEATURES of the requests, as the generator takes them."""
        times = request_times(histories, requests)
        related = self.relations.features(requests, histories, times)
        table, row = self.trends.at(times)
        return dataclasses.replace(related, row=row), table

    def at(
        self, requests: Requests, histories: Histories, candidates: Int32[np.ndarray, "N C"]
    ) -> list[Float32[np.ndarray, "N C"]]:
        """Each of HISTORY_FEATURES and TRENDING_FEATURES of some items of each request; of item
        -1 no matter what."""
        features, table = self.features(requests, histories)
        related = values_at(features, candidates)
        trends = table[features.row[:, None], np.maximum(candidates, 0)]
        return list(np.moveaxis(np.concatenate([related, trends], axis=-1), -1, 0))

    def over(self, num_items: int, near: sparse.csr_matrix | None = None) -> Counts:
        """The same over more items, of which nothing is counted; `near` in place of its own."""
        trends = dataclasses.replace(self.trends, num_items=num_items)
        return Counts(self.relations.over(num_items, near), trends)

    def save(self, folder: Path) -> None:
        """Writes an .npz for each relation and one of the trends."""
        self.relations.save(folder)
        self.trends.save(folder)

    @classmethod
    def load(cls, folder: Path) -> Counts:
        """What `save` wrote. One of DAMAGE where a file is missing or damaged."""
        return cls(Relations.load(folder), Trends.load(folder))


@dataclasses.dataclass(frozen=True)
class Prior:
    """Fitted weights with the counts they go with."""

    weights: PriorWeights
    counts: Counts

    def choice(
        self,
        config: GenerationConfig,
        requests: Requests,
        histories: Histories,
        told: Told | None,
        seen: Int32[np.ndarray, "N S"] | None = None,
    ) -> Choice:
        """How a generator of `config` ranks for `requests`, given what their instructions say.

        The fitted sigma stands in for "deviation", not for a number.
        """
        if config.sigma == "deviation":
            config = dataclasses.replace(config, sigma=self.weights.sigma)
        features, table = self.counts.features(requests, histories)
        return Choice(seen, features, self.weights.by_task, config, table, told)

    def save(self, folder: Path) -> None:
        """Writes prior.json and the counts."""
        (folder / "prior.json").write_text(json.dumps(dataclasses.asdict(self.weights)))
        self.counts.save(folder)

    @classmethod
    def load(cls, folder: Path) -> Prior:
        """What `save` wrote. ValueError where a file is missing or damaged."""
        try:
            found = json.loads((folder / "prior.json").read_text())
            of = {name: tuple(map(float, found["of"][name])) for name in FEATURES}
            return cls(PriorWeights(found["sigma"], of), Counts.load(folder))
        except DAMAGE as error:
            raise ValueError(
                f"{folder}: prior.json or an .npz beside it is damaged or of another version "
                f"({error}); delete {folder}, and its copy where --artifacts was given, and run "
                "again, which goes on from the last checkpoint."
            ) from error
