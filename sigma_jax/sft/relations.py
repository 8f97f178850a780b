"""What relations between items say of a request: which items go with those of its history.

    ties    to what users take with an item and after it (sigma_jax/baselines/covisitation.py)
    back    to what users took before it: who has bought the case has bought the camera. Of the
            last session alone.
    near    to the items whose vectors, as the model has learnt them, lie nearest. A query is one
            point; a user with two tastes has two.
    ridge   to the items that theirs foretell, all items of a history weighed against one another:
            two that say the same count once. Over the whole history.
    own     the lines of the history with the item itself, each decayed by 0.9 a session

A relation is a sparse matrix [I, I] of the strongest entries of each row, and a feature of an item
is log(1 + s / u), s being its entries in the rows of the latest items, decayed by the session, and
u a small entry (`ASKED`).

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

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse as sparse
from jaxtyping import Array, Float, Float32, Int32, Int64

from sigma_jax.baselines.candidates import history_ranges, ragged, training_rows
from sigma_jax.baselines.covisitation import (
    DECAY,
    REQUESTS_A_STEP,
    SESSIONS,
    count_ties,
    damped,
    recent_items,
    strongest,
)
from sigma_jax.generation.bias import ItemFeatures
from sigma_jax.generation.trie import power_of_two
from sigma_jax.schema import DAY, Histories, PreparedData, Requests


@dataclasses.dataclass(frozen=True)
class Asking:
    """Which items of a history a relation is asked for."""

    sessions: int | None  # the last so many; None: all
    decay: float  # of a session
    unit: float  # what makes a difference from none


ASKED = {
    "ties": Asking(SESSIONS, DECAY, 0.1),
    "back": Asking(1, DECAY, 0.1),
    "near": Asking(SESSIONS, DECAY, 0.1),
    "ridge": Asking(None, 0.95, 0.01),
}
OWN = Asking(None, 0.9, 0.1)
TODAY = "_today"  # behind the name of a relation that is asked for the day's items alone
RELATED = (*ASKED, "own", *(f"{name}{TODAY}" for name in ASKED))
UNITS = tuple((ASKED | {"own": OWN})[name.removesuffix(TODAY)].unit for name in RELATED)
MOST_LISTED = 512  # items of a request that a relation may name: the strongest
COSINES_A_STEP = 2**24  # entries of [items, I] that exist at once
ROWS_A_STEP = 4_096  # of a square of items
MOST_RIDGED = 16_384  # items in `ridge`, those most users have: their square is held thrice
PADDING = np.iinfo(np.int32).max
DAMAGE = (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True)
class Relations:
    """One sparse matrix a relation, float32 [I, I]; row: item of the history."""

    ties: sparse.csr_matrix
    back: sparse.csr_matrix
    near: sparse.csr_matrix
    ridge: sparse.csr_matrix

    @classmethod
    def make(
        cls, data: PreparedData, vectors: Float[np.ndarray, "I D"], neighbours: int
    ) -> Relations:
        """The strongest `neighbours` of each item, by training rows and by the model's `vectors`
        (of unit length)."""
        raw = count_ties(data.histories, len(data.catalogue))
        ties, back = (strongest(damped(table, data), neighbours) for table in (raw, raw.T.tocsr()))
        return cls(ties, back, nearest(vectors, neighbours), ridge(data, neighbours))

    def features(
        self, requests: Requests, histories: Histories, times: Int64[np.ndarray, " N"]
    ) -> ItemFeatures:
        """RELATED of each request's items that any relation knows of, ascending; NumPy arrays.

        `times`: when each request is made, in unix seconds; 0 where a log has no times.
        """
        starts, ends = history_ranges(histories, requests)
        today = first_of_day(histories, starts, ends, times)
        found = {
            name: self._related(name, how, histories, starts, ends) for name, how in ASKED.items()
        }
        found["own"] = recent_items(
            histories, starts, ends, self.ties.shape[0], OWN.decay, OWN.sessions
        )
        found["own"].eliminate_zeros()  # a thousand sessions ago
        for name, how in ASKED.items():
            alike = dataclasses.replace(how, sessions=None, decay=1.0)
            found[f"{name}{TODAY}"] = self._related(name, alike, histories, today, ends)
        return listed([found[name] for name in RELATED], UNITS)

    def _related(
        self, name: str, how: Asking, histories: Histories, starts, ends
    ) -> sparse.csr_matrix:
        """[N, I]: the strongest entries of what one relation says of each request."""
        relation, parts = getattr(self, name), []
        for first in range(0, len(starts), REQUESTS_A_STEP):
            rows = slice(first, first + REQUESTS_A_STEP)
            latest = recent_items(
                histories, starts[rows], ends[rows], relation.shape[0], how.decay, how.sessions
            )
            parts.append(strongest((latest @ relation).tocsr(), MOST_LISTED))
        return sparse.vstack(parts, format="csr")

    def over(self, num_items: int, near: sparse.csr_matrix | None = None) -> Relations:
        """The same over more items, which no training row knows of; `near` in place of its own."""
        tables = {name: getattr(self, name).copy() for name in ASKED}
        tables |= {} if near is None else {"near": near.copy()}
        for table in tables.values():
            table.resize((num_items, num_items))
        return Relations(**tables)

    def save(self, folder: Path) -> None:
        """Writes NAME.npz for each relation."""
        for name in ASKED:
            sparse.save_npz(folder / f"{name}.npz", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> Relations:
        """What `save` wrote. One of DAMAGE where a file is missing or damaged."""
        return cls(**{name: sparse.load_npz(folder / f"{name}.npz") for name in ASKED})


def first_of_day(
    histories: Histories,
    starts: Int64[np.ndarray, " N"],
    ends: Int64[np.ndarray, " N"],
    times: Int64[np.ndarray, " N"],
) -> Int64[np.ndarray, " N"]:
    """The first row of each history on the day (UTC) of its request; `ends` where there is none."""
    lines = ragged(starts, ends)
    request = np.repeat(np.arange(len(starts)), np.maximum(ends - starts, 0))
    is_today = histories.time[lines] // DAY == times[request] // DAY
    count = np.bincount(request[is_today & (times[request] > 0)], minlength=len(starts))
    return ends - count  # rows are in order of time


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


def nearest(vectors: Float[np.ndarray, "I D"], count: int, start: int = 0) -> sparse.csr_matrix:
    """float32 [I, I]: the `count` items nearest to each from `start` on, by how much nearer they
    are than the next.

    Rows of `vectors` have unit length. Exact: every pair is compared, some rows at a time.
    """
    total = len(vectors)
    count = min(count, total - 2)
    if count < 1:
        return sparse.csr_matrix((total, total), dtype=np.float32)
    table = jnp.asarray(vectors)
    size = int(np.clip(COSINES_A_STEP // total, 1, total - start))
    items, values = [], []
    for first in range(start, total, size):
        rows = np.minimum(np.arange(first, first + size), total - 1)  # one shape, one compilation
        near, item = jax.device_get(_nearest(table, jnp.asarray(rows), count + 1))
        items.append(item[:, :count])
        values.append(near[:, :count] - near[:, count:])
    items, values = (np.concatenate(parts)[: total - start] for parts in (items, values))
    ends = np.maximum(np.arange(total + 1) - start, 0) * count
    found = sparse.csr_matrix((values.ravel(), items.ravel(), ends), shape=(total, total))
    found.eliminate_zeros()
    found.sort_indices()
    return found


def ridge(data: PreparedData, count: int) -> sparse.csr_matrix:
    """float32 [I, I]: the `count` items that each speaks most for, in the linear model that best
    foretells each item of a user from his others (EASE, Steck 2019, Eq. 8):

        B = -P / diag(P) with 0 in the diagonal,    P = (X^T X + lambda)^-1

    X: which users have which items in training rows; lambda: the users an item has on average.
    """
    users = data.histories.num_users
    starts, ends = data.histories.offsets[:-1], data.histories.valid_start
    user = np.repeat(np.arange(users), np.maximum(ends - starts, 0))
    item = np.asarray(data.histories.item[training_rows(data.histories)])
    total = len(data.catalogue)
    has = sparse.csr_matrix((np.ones(len(item), np.float32), (user, item)), shape=(users, total))
    has.data[:] = 1  # repeats have been summed
    count_users = np.asarray(has.sum(axis=0)).reshape(-1)
    known = np.flatnonzero(count_users)
    if len(known) < 2:
        return sparse.csr_matrix((total, total), dtype=np.float32)
    known = np.sort(known[np.argsort(-count_users[known], kind="stable")[:MOST_RIDGED]])
    has = has[:, known]
    inverse = (has.T @ has).toarray()
    inverse[np.diag_indices(len(known))] += count_users[known].mean()
    inverse = scipy.linalg.inv(inverse, overwrite_a=True, check_finite=False)
    scale = np.diag(inverse).copy()
    count = min(count, len(known) - 1)
    rows, columns, values = [], [], []
    for first in range(0, len(known), ROWS_A_STEP):
        part = -inverse[first : first + ROWS_A_STEP] / scale
        here = np.arange(len(part))
        part[here, first + here] = 0
        best = np.argpartition(-part, count - 1, axis=1)[:, :count]
        rows.append(np.repeat(known[first + here], count))
        columns.append(known[best].reshape(-1))
        values.append(np.take_along_axis(part, best, axis=1).reshape(-1))
    rows, columns, values = (np.concatenate(parts) for parts in (rows, columns, values))
    is_for = values > 0
    entries = (values[is_for], (rows[is_for], columns[is_for]))
    return sparse.csr_matrix(entries, shape=(total, total))


@functools.partial(jax.jit, static_argnums=2)
def _nearest(
    vectors: Float[Array, "I D"], rows: Int32[Array, " n"], count: int
) -> tuple[Float32[Array, "n k"], Int32[Array, "n k"]]:
    cosines = jnp.einsum("nD,ID->nI", vectors[rows], vectors, precision=jax.lax.Precision.HIGHEST)
    is_self = rows[:, None] == jnp.arange(vectors.shape[0])
    return jax.lax.top_k(jnp.where(is_self, -jnp.inf, cosines), count)
