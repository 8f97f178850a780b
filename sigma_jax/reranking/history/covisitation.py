"""Co-visitation counts: which items users take together, and in which order.

`data/counts.py` defines the counts. A history reads them from its last sessions.

Axes: I items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Int64

from sigma_jax.data import counts, database
from sigma_jax.data.counts import COVISIT_UNIT, SMOOTHING
from sigma_jax.histories import count_training_rows
from sigma_jax.runtime.artifacts import Recipe, is_current, read_manifest, write_artifact
from sigma_jax.schema import Histories, PreparedData

SESSIONS = 5  # last sessions of a history that a request reads
DECAY = 0.7  # weight of a session relative to the next one
REQUESTS_A_STEP = 512
COUNTS = "counts"  # the artifact WORKDIR/counts, beside a recommender: the counts of its log
COVISITS_FILE = "covisits.npz"  # of it


def strongest_entries(table: sparse.csr_matrix, count: int) -> sparse.csr_matrix:
    """`table` with the `count` largest entries of each row; ties are broken by the lower column."""
    table = table.tocsr().sorted_indices()
    keep = np.ones(table.nnz, bool)
    for row in np.flatnonzero(np.diff(table.indptr) > count):
        entries = slice(*table.indptr[row : row + 2])
        values = table.data[entries]
        least = np.partition(values, len(values) - count)[len(values) - count]
        keep[entries] = values > least
        alike = np.flatnonzero(values == least)
        missing = count - np.count_nonzero(keep[entries])
        keep[entries.start + alike[:missing]] = True
    ends = np.append(0, np.cumsum(keep))[table.indptr].astype(table.indptr.dtype)
    return sparse.csr_matrix((table.data[keep], table.indices[keep], ends), shape=table.shape)


def covisits_of(data: PreparedData) -> sparse.csr_matrix:
    """float32 [I, I]: co-visitation counts, as prepared, or counted now."""
    if data.counts is None:
        return count_covisits(data.histories, len(data.catalogue))
    return _prepared(data, "covisits")


def covisits_both_ways(
    data: PreparedData, counted: sparse.csr_matrix | None = None
) -> Iterator[sparse.csr_matrix]:
    """`covisits_of`, and then the counts from the items of columns to the item of a row.

    Args:
      counted: `count_covisits` of the training rows, where they are counted already.
    """
    if counted is None and data.counts is not None:
        yield covisits_of(data)
        yield _prepared(data, "reverse_covisits")
        return
    counted = covisits_of(data) if counted is None else counted
    yield counted
    yield counted.T.tocsr()


def _prepared(data: PreparedData, name: str) -> sparse.csr_matrix:
    item, other, weight = counts.read_counts(data.counts, name, ("item", "other", "weight"))
    return _matrix(item, other, weight, len(data.catalogue))


def count_covisits(
    histories: Histories, num_items: int, known: Int64[np.ndarray, " U"] | None = None
) -> sparse.csr_matrix:
    """float32 [I, I]: co-visitation counts of the training rows.

    Worked example: the counts of a log of 100 days are those of 99 days plus those with
    known = the training rows of the 99 days.

    Args:
      known: the number of each user's first training rows whose counts are left out, with those
        between two of them. They end with a session. None leaves out nothing.
    """
    with counts.training_table(histories, known) as (con, events):
        pairs = counts.covisits(events, None if known is None else events["known"])
        found = database.save(con, "covisits", pairs)
        dtypes = {"item": np.int32, "other": np.int32, "weight": np.int64}
        columns = database.columns(con, found, dtypes, database.count(con, found))
    return _matrix(columns["item"], columns["other"], columns["weight"], num_items)


def _matrix(
    item: np.ndarray, other: np.ndarray, weight: np.ndarray, num_items: int
) -> sparse.csr_matrix:
    values = (weight / COVISIT_UNIT).astype(np.float32)
    table = sparse.csr_matrix((values, (item, other)), shape=(num_items, num_items))
    table.sort_indices()
    return table


def count_once(workdir: Path, data: PreparedData, seed: int) -> sparse.csr_matrix:
    """`count_covisits` of WORKDIR/data, kept in WORKDIR/counts for the evaluation and a refresh.

    ValueError if that folder was made from other data.
    """
    write_counts(workdir, seed, lambda: count_covisits(data.histories, len(data.catalogue)))
    return sparse.load_npz(workdir / COUNTS / COVISITS_FILE)


def write_counts(workdir: Path, seed: int, count: Callable[[], sparse.csr_matrix]) -> None:
    """Writes WORKDIR/counts, unless it is there. ValueError if it was made from other data.

    Args:
      count: counts the covisits of WORKDIR/data.
    """
    recipe = Recipe({}, {"data": read_manifest(workdir, "data").fingerprint}, seed)

    def write(folder: Path) -> dict[str, int]:
        counted = count()
        sparse.save_npz(folder / COVISITS_FILE, counted, compressed=False)
        return {"pairs": int(counted.nnz)}

    if not is_current(workdir, COUNTS, recipe):
        write_artifact(workdir, COUNTS, recipe, write)


def kept_counts(workdir: Path) -> sparse.csr_matrix | None:
    """The counts of WORKDIR/data that `count_once` kept; None if there are none."""
    if not (workdir / COUNTS / COVISITS_FILE).exists():
        return None
    made = read_manifest(workdir, COUNTS).inputs["data"]
    is_same = made == read_manifest(workdir, "data").fingerprint
    return sparse.load_npz(workdir / COUNTS / COVISITS_FILE) if is_same else None


def damp_by_popularity(counts: sparse.csr_matrix, data: PreparedData) -> sparse.csr_matrix:
    """Each count, divided by sqrt(training interactions + 5) of the item of its column."""
    scale = 1 / np.sqrt(count_training_rows(data) + SMOOTHING)
    scaled = counts.copy()
    scaled.data *= scale.astype(np.float32)[counts.indices]
    return scaled
