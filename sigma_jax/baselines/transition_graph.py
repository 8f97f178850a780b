"""A training-free heuristic over the graph of item transitions, after arXiv 2605.07125.

Items that follow one another in training are joined. A request is answered from the items that are
one or two steps from its last items, and from those that look like them:

    score(j) = sum over the last items i of
               decay ** age(i) * (one_step * log(1 + n(i, j)) + two_steps * log(1 + m(i, j))
                                  + similarity * cosine(i, j))

n counts transitions between i and j: one for each from i to j, half of one for each back. Each item
keeps its `EDGES` strongest ones. m counts the paths of two steps between them. Equal scores are in
the order of popularity.

The paper ranks candidates by hop first. With `one_step` far above `similarity` this is the same.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Float32, Int64

from sigma_jax.baselines.popularity import Popularity
from sigma_jax.baselines.ranking import ScoringBaseline
from sigma_jax.histories import (
    history_ranges,
    items_of_sessions,
    recent_item_weights,
    training_sessions,
)
from sigma_jax.reranking.history.covisitation import strongest_entries
from sigma_jax.schema import PreparedData, Requests

EDGES = 100  # transitions kept for each item. Baskets join nearly all items with one another.
BACKWARD = 0.5  # weight of a transition from the later item to the earlier one


@dataclasses.dataclass(frozen=True)
class GraphSettings:
    """The weights of a `TransitionGraph`, chosen on validation requests."""

    sessions: int  # last sessions of a history that are read
    decay: float  # weight of a session relative to the next one
    one_step: float
    two_steps: float
    similarity: float


@dataclasses.dataclass(frozen=True)
class TransitionGraph(ScoringBaseline):
    """Ranks items by their distance in the transition graph and by their similarity."""

    settings: GraphSettings
    transitions: sparse.csr_matrix  # float32 [I, I]: n above
    vectors: Float32[np.ndarray, "I D"]  # unit length, around the mean item
    popularity: Popularity

    def scores(
        self, data: PreparedData, requests: Requests, rows: Int64[np.ndarray, " n"]
    ) -> Float32[np.ndarray, "n I"]:
        """The score of every item for some requests."""
        settings, num_items = self.settings, self.transitions.shape[0]
        starts, ends = history_ranges(data.histories, requests)
        recent = recent_item_weights(
            data.histories, starts[rows], ends[rows], num_items, settings.decay, settings.sessions
        )
        read = np.unique(recent.indices)
        recent = recent[:, read]
        graph = settings.one_step * self.transitions[read].log1p()
        if settings.two_steps:
            joined = is_joined(self.transitions)
            graph = graph + settings.two_steps * (joined[read] @ joined).log1p()
        similarity = np.asarray(recent @ self.vectors[read]) @ self.vectors.T
        return (recent @ graph).toarray() + np.float32(settings.similarity) * similarity


def strongest_transitions(data: PreparedData) -> sparse.csr_matrix:
    """float32 [I, I]: n of the training rows, with the `EDGES` largest entries of each row."""
    forward = count_transitions(data)
    return strongest_entries((forward + BACKWARD * forward.T).tocsr(), EDGES)


def count_transitions(data: PreparedData) -> sparse.csr_matrix:
    """float32 [I, I]: how often the column's item is in the session after one with the row's."""
    histories, num_items = data.histories, len(data.catalogue)
    user, begin, end = training_sessions(histories)
    earlier = np.flatnonzero(user[:-1] == user[1:])
    ones = np.ones(len(earlier))
    left = items_of_sessions(histories, num_items, begin[earlier], end[earlier], ones)
    right = items_of_sessions(histories, num_items, begin[earlier + 1], end[earlier + 1], ones)
    return (left.T @ right).tocsr()


def is_joined(transitions: sparse.csr_matrix) -> sparse.csr_matrix:
    """`transitions` with 1 for every entry."""
    ones = np.ones(transitions.nnz, np.float32)
    return sparse.csr_matrix(
        (ones, transitions.indices, transitions.indptr), shape=transitions.shape
    )
