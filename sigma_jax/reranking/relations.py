"""What relations between items say of a request: which items go with those of its history.

    ties    to what users take with an item and after it (sigma_jax/baselines/covisitation.py)
    back    to what users took before it: who has bought the case has bought the camera. Of the
            last session alone.
    near    to the items whose vectors, as the model has learnt them, lie nearest_items. A query
    is one
            point; a user with two tastes has two.
    fit_ease   to the items that theirs foretell, all items of a history weighed against one
    another:
            two that say the same count once. Over the whole history.
    own     the lines of the history with the item itself, each decayed by 0.9 a session

A relation is a sparse matrix [I, I] of the strongest_entries entries of each row, and a feature
of an item
is log(1 + s / u), s being its entries in the rows of the latest items, decayed by the session, and
u a small entry (`RELATIONS`).

Each relation has a second feature, of the lines of the request's own day alone, all alike: who is
still at it takes what goes with what he has just taken. All 0 where the day has seen nothing of the
user yet, or a log has no times.

Axes: N requests, S items of a request that a relation knows of, F features, I items.
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

from sigma_jax.histories import (
    first_row_of_day,
    history_ranges,
    recent_item_weights,
)
from sigma_jax.reranking.covisitation import (
    DECAY,
    REQUESTS_A_STEP,
    SESSIONS,
    count_covisits,
    damp_by_popularity,
    strongest_entries,
)
from sigma_jax.reranking.ease import fit_ease
from sigma_jax.reranking.embedding_neighbours import nearest_items
from sigma_jax.reranking.features import ItemFeatures
from sigma_jax.schema import Histories, PreparedData, Requests
from sigma_jax.shapes import power_of_two


@dataclasses.dataclass(frozen=True)
class RelationSpec:
    """Which items of a history a relation is asked for."""

    sessions: int | None  # the last so many; None: all
    decay: float  # of a session
    unit: float  # what makes a difference from none


RELATIONS = {
    "covisitation": RelationSpec(SESSIONS, DECAY, 0.1),
    "reverse_covisitation": RelationSpec(1, DECAY, 0.1),
    "embedding_neighbours": RelationSpec(SESSIONS, DECAY, 0.1),
    "ease": RelationSpec(None, 0.95, 0.01),
}
REPEAT_SPEC = RelationSpec(None, 0.9, 0.1)
TODAY = "_today"  # behind the name of a relation that is asked for the day's items alone
HISTORY_FEATURES = (*RELATIONS, "repeat_count", *(f"{name}{TODAY}" for name in RELATIONS))
UNITS = tuple(
    (RELATIONS | {"repeat_count": REPEAT_SPEC})[name.removesuffix(TODAY)].unit
    for name in HISTORY_FEATURES
)
MOST_LISTED = 512  # items of a request that a relation may name: the strongest_entries
PADDING = np.iinfo(np.int32).max
DAMAGE = (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True)
class Relations:
    """One sparse matrix a relation, float32 [I, I]; row: item of the history."""

    covisitation: sparse.csr_matrix
    reverse_covisitation: sparse.csr_matrix
    embedding_neighbours: sparse.csr_matrix
    ease: sparse.csr_matrix

    @classmethod
    def make(
        cls, data: PreparedData, vectors: Float[np.ndarray, "I D"], neighbours: int
    ) -> Relations:
        """The strongest_entries `neighbours` of each item, by training rows and by the model's
        `vectors`
        (of unit length)."""
        raw = count_covisits(data.histories, len(data.catalogue))
        ties, back = (
            strongest_entries(damp_by_popularity(table, data), neighbours)
            for table in (raw, raw.T.tocsr())
        )
        return cls(ties, back, nearest_items(vectors, neighbours), fit_ease(data, neighbours))

    def features(
        self, requests: Requests, histories: Histories, times: Int64[np.ndarray, " N"]
    ) -> ItemFeatures:
        """HISTORY_FEATURES of each request's items that any relation knows of, ascending; NumPy
        arrays.

        `times`: when each request is made, in unix seconds; 0 where a log has no times.
        """
        starts, ends = history_ranges(histories, requests)
        today = first_row_of_day(histories, starts, ends, times)
        found = {
            name: self._related(name, how, histories, starts, ends)
            for name, how in RELATIONS.items()
        }
        found["repeat_count"] = recent_item_weights(
            histories,
            starts,
            ends,
            self.covisitation.shape[0],
            REPEAT_SPEC.decay,
            REPEAT_SPEC.sessions,
        )
        found["repeat_count"].eliminate_zeros()  # a thousand sessions ago
        for name, how in RELATIONS.items():
            alike = dataclasses.replace(how, sessions=None, decay=1.0)
            found[f"{name}{TODAY}"] = self._related(name, alike, histories, today, ends)
        return listed([found[name] for name in HISTORY_FEATURES], UNITS)

    def _related(
        self, name: str, how: RelationSpec, histories: Histories, starts, ends
    ) -> sparse.csr_matrix:
        """[N, I]: the strongest_entries entries of what one relation says of each request."""
        relation, parts = getattr(self, name), []
        for first in range(0, len(starts), REQUESTS_A_STEP):
            rows = slice(first, first + REQUESTS_A_STEP)
            latest = recent_item_weights(
                histories, starts[rows], ends[rows], relation.shape[0], how.decay, how.sessions
            )
            parts.append(strongest_entries((latest @ relation).tocsr(), MOST_LISTED))
        return sparse.vstack(parts, format="csr")

    def over(self, num_items: int, near: sparse.csr_matrix | None = None) -> Relations:
        """The same over more items, which no training row knows of; `near` in place of its own."""
        tables = {name: getattr(self, name).copy() for name in RELATIONS}
        tables |= {} if near is None else {"embedding_neighbours": near.copy()}
        for table in tables.values():
            table.resize((num_items, num_items))
        return Relations(**tables)

    def save(self, folder: Path) -> None:
        """Writes NAME.npz for each relation."""
        for name in RELATIONS:
            sparse.save_npz(folder / f"{name}.npz", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> Relations:
        """What `save` wrote. One of DAMAGE where a file is missing or damaged."""
        return cls(**{name: sparse.load_npz(folder / f"{name}.npz") for name in RELATIONS})


def listed(tables: Sequence[sparse.csr_matrix], units: Sequence[float]) -> ItemFeatures:
    """The tables [N, I] side by side, as log(1 + value / unit), over the items any of them has."""
    known = functools.reduce(lambda a, b: a + b, tables).tocsr()
    known.sort_indices()
    count = known.shape[0]
    # Few distinct shapes: few compilations.
    width = power_of_two(np.diff(known.indptr).max(initial=0))
    items = np.full((count, width), PADDING, np.int32)
    values = np.zeros((count, width, len(tables)), np.float16)  # the largest array of a ranking
    for row in range(count):
        here = known.indices[known.indptr[row] : known.indptr[row + 1]]
        items[row, : len(here)] = here
        for number, (table, unit) in enumerate(zip(tables, units, strict=True)):
            columns = slice(*table.indptr[row : row + 2])
            places = np.searchsorted(here, table.indices[columns])
            values[row, places, number] = np.log1p(table.data[columns] / unit)
    return ItemFeatures(items, values)


def values_at(
    features: ItemFeatures, candidates: Int32[np.ndarray, "N C"]
) -> Float32[np.ndarray, "N C F"]:
    """The features of each candidate, 0 where it is not listed; NumPy arrays."""
    values = np.zeros((*candidates.shape, features.values.shape[-1]), np.float32)
    for row, (wanted, items) in enumerate(zip(candidates, features.items, strict=True)):
        places = np.minimum(np.searchsorted(items, wanted), len(items) - 1)
        is_listed = items[places] == wanted
        values[row, is_listed] = features.values[row, places[is_listed]]
    return values
