"""Relation features: how an item relates to the items of the user's history.

| feature | the feature of an item is high if |
|---|---|
| covisitation | users take it with or after an item of the last sessions (covisitation.py) |
| reverse_covisitation | users take it before an item of the last session: camera before case |
| embedding_neighbours | its vector is near items of the last sessions (embedding_neighbours.py) |
| ease | a linear item-item model predicts it from the whole history (ease.py) |

A query of the network is one point. A user with two tastes needs two points, and
embedding_neighbours covers both. EASE weighs all items of a history against one another, so that
two similar items count once.

A relation is a sparse matrix [I, I] with the strongest entries of each row. The feature of an item
is log(1 + s / u). s sums its entries in the rows of the history's latest items, decayed by the
session, and u is a small entry (`RELATIONS`).

Each relation has a second feature, NAME_today, over the interactions of the request's own day
alone, without decay. It is 0 where the user has none on that day, or the log has no times.

Axes: N requests, S listed items of a request, F features, I items.
"""

from __future__ import annotations

import dataclasses
import functools
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Float, Float32, Int32, Int64

from sigma_jax.histories import first_row_of_day, recent_item_weights
from sigma_jax.reranking.features import ItemFeatures
from sigma_jax.reranking.history.covisitation import (
    DECAY,
    REQUESTS_A_STEP,
    SESSIONS,
    covisits_both_ways,
    damp_by_popularity,
    strongest_entries,
)
from sigma_jax.reranking.history.ease import fit_ease
from sigma_jax.reranking.history.embedding_neighbours import nearest_items
from sigma_jax.runtime.process import release_memory
from sigma_jax.schema import Histories, PreparedData
from sigma_jax.shapes import few_sizes


@dataclasses.dataclass(frozen=True)
class RelationSpec:
    """The items of a history that a relation reads, and its unit."""

    sessions: int | None  # number of the last sessions; None: all
    decay: float  # weight of a session relative to the next one
    unit: float  # size of a small entry; the feature is log(1 + s / unit)


RELATIONS = {
    "covisitation": RelationSpec(SESSIONS, DECAY, 0.1),
    "reverse_covisitation": RelationSpec(1, DECAY, 0.1),
    "embedding_neighbours": RelationSpec(SESSIONS, DECAY, 0.1),
    "ease": RelationSpec(None, 0.95, 0.01),
}
TODAY = "_today"  # suffix of a feature that reads the interactions of the day alone
# Feature -> the size of a small entry of its table.
RELATION_UNITS = {name: how.unit for name, how in RELATIONS.items()}
RELATION_UNITS |= {f"{name}{TODAY}": how.unit for name, how in RELATIONS.items()}
MAX_LISTED = 512  # items that a relation lists for a request, the strongest
LEAST_LISTED = 256  # size of the arrays of listed items, at least
PADDING = np.iinfo(np.int32).max
DAMAGE = (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True)
class Relations:
    """One sparse matrix for each relation, float32 [I, I]; a row is an item of the history."""

    covisitation: sparse.csr_matrix
    reverse_covisitation: sparse.csr_matrix
    embedding_neighbours: sparse.csr_matrix
    ease: sparse.csr_matrix

    @classmethod
    def make(
        cls,
        data: PreparedData,
        vectors: Float[np.ndarray, "I D"],
        neighbours: int,
        covisits: sparse.csr_matrix | None = None,
    ) -> Relations:
        """Relations of the training rows and of the network's `vectors` (unit length).

        Each row keeps its `neighbours` strongest entries.

        Args:
          covisits: `count_covisits` of the training rows, where they are counted already.
        """
        release_memory()  # the counts of baskets are large
        forward, reverse = (
            strongest_entries(damp_by_popularity(table, data), neighbours)
            for table in covisits_both_ways(data, covisits)
        )
        release_memory()
        ease = fit_ease(data, neighbours)
        release_memory()
        return cls(forward, reverse, nearest_items(vectors, neighbours), ease)

    def tables(
        self,
        histories: Histories,
        starts: Int64[np.ndarray, " N"],
        ends: Int64[np.ndarray, " N"],
        times: Int64[np.ndarray, " N"],
    ) -> dict[str, sparse.csr_matrix]:
        """The entries of each relation feature, float32 [N, I], by the names of RELATION_UNITS.

        Args:
          starts, ends: rows of each history.
          times: time of each request in unix seconds; 0 where a log has no times.
        """
        today = first_row_of_day(histories, starts, ends, times)
        tables = {
            name: self._related(name, how, histories, starts, ends)
            for name, how in RELATIONS.items()
        }
        for name, how in RELATIONS.items():
            of_day = dataclasses.replace(how, sessions=None, decay=1.0)
            tables[f"{name}{TODAY}"] = self._related(name, of_day, histories, today, ends)
        return tables

    def _related(
        self, name: str, how: RelationSpec, histories: Histories, starts, ends
    ) -> sparse.csr_matrix:
        """[N, I]: the strongest entries of one relation for each request."""
        relation, parts = getattr(self, name), []
        for first in range(0, len(starts), REQUESTS_A_STEP):
            rows = slice(first, first + REQUESTS_A_STEP)
            latest = recent_item_weights(
                histories, starts[rows], ends[rows], relation.shape[0], how.decay, how.sessions
            )
            parts.append(strongest_entries((latest @ relation).tocsr(), MAX_LISTED))
        return sparse.vstack(parts, format="csr")

    def over(self, num_items: int, neighbours: sparse.csr_matrix | None = None) -> Relations:
        """The relations over more items, which have no entries; with other neighbours if given."""
        tables = {name: getattr(self, name).copy() for name in RELATIONS}
        tables |= {} if neighbours is None else {"embedding_neighbours": neighbours.copy()}
        for table in tables.values():
            table.resize((num_items, num_items))
        return Relations(**tables)

    def save(self, folder: Path) -> None:
        """Writes NAME.npz for each relation."""
        for name in RELATIONS:
            sparse.save_npz(folder / f"{name}.npz", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> Relations:
        """The relations that `save` wrote. An error of DAMAGE if a file is missing or damaged."""
        return cls(**{name: sparse.load_npz(folder / f"{name}.npz") for name in RELATIONS})


def list_features(tables: Sequence[sparse.csr_matrix], units: Sequence[float]) -> ItemFeatures:
    """The features log(1 + entry / unit) of the items that any of the tables [N, I] has.

    Args:
      units: the unit of each table.
    """
    listed = functools.reduce(lambda a, b: a + b, tables).tocsr()
    listed.sort_indices()
    count = listed.shape[0]
    width = few_sizes(np.diff(listed.indptr).max(initial=0), LEAST_LISTED)
    items = np.full((count, width), PADDING, np.int32)
    values = np.zeros((count, width, len(tables)), np.float16)  # the largest array of a ranking
    for row in range(count):
        here = listed.indices[listed.indptr[row] : listed.indptr[row + 1]]
        items[row, : len(here)] = here
        for number, (table, unit) in enumerate(zip(tables, units, strict=True)):
            columns = slice(*table.indptr[row : row + 2])
            places = np.searchsorted(here, table.indices[columns])
            values[row, places, number] = np.log1p(table.data[columns] / unit)
    return ItemFeatures(items, values)


def values_at(
    features: ItemFeatures, candidates: Int32[np.ndarray, "N C"]
) -> Float32[np.ndarray, "N C F"]:
    """The features of each candidate; 0 if it is not listed. NumPy arrays."""
    values = np.zeros((*candidates.shape, features.values.shape[-1]), np.float32)
    for row, (chosen, items) in enumerate(zip(candidates, features.items, strict=True)):
        places = np.minimum(np.searchsorted(items, chosen), len(items) - 1)
        is_listed = items[places] == chosen
        values[row, is_listed] = features.values[row, places[is_listed]]
    return values
