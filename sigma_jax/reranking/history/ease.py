"""EASE: a closed-form linear item-item model (Steck 2019).

Axes: I items.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.linalg
import scipy.sparse as sparse
from jaxtyping import Float32

from sigma_jax.data import counts
from sigma_jax.data.counts import MAX_EASE_ITEMS
from sigma_jax.histories import training_rows
from sigma_jax.schema import PreparedData

ROWS_A_STEP = 2_048  # rows of the item-item matrix that a thread reads at a time
MOST_THREADS = 4  # each needs memory for its rows


def fit_ease(data: PreparedData, count: int) -> sparse.csr_matrix:
    """float32 [I, I]: for each item the `count` items with the highest weight in EASE.

    EASE predicts each item of a user from the user's other items (Steck 2019, Eq. 8):

        B = -P / diag(P) with 0 in the diagonal,    P = (X^T X + lambda)^-1

    X tells which users have which items in training rows. lambda is the mean number of users of an
    item. With fewer users than items P is found by the smaller inverse (Woodbury):

        lambda P = 1 - X^T (X X^T + lambda)^-1 X
    """
    if data.counts is not None and (found := _prepared(data, count)) is not None:
        return found
    users = data.histories.num_users
    starts, ends = data.histories.offsets[:-1], data.histories.valid_start
    user = np.repeat(np.arange(users), np.maximum(ends - starts, 0))
    item = np.asarray(data.histories.item[training_rows(data.histories)])
    total = len(data.catalogue)
    has = sparse.csr_matrix((np.ones(len(item), np.float32), (user, item)), shape=(users, total))
    has.data[:] = 1  # repeats have been summed
    count_users = np.asarray(has.sum(axis=0)).reshape(-1)
    kept = np.flatnonzero(count_users)
    if len(kept) < 2:
        return sparse.csr_matrix((total, total), dtype=np.float32)
    kept = np.sort(kept[np.argsort(-count_users[kept], kind="stable")[:MAX_EASE_ITEMS]])
    has = has[:, kept]
    return _best(*_inverse(has, float(count_users[kept].mean())), kept, count, total)


def _prepared(data: PreparedData, count: int) -> sparse.csr_matrix | None:
    """The same from the prepared X^T X; None if there are fewer users than items."""
    left, right, users = counts.read_counts(data.counts, "gram", ("item", "other", "users"))
    is_diagonal = left == right
    kept = left[is_diagonal]  # ascending, as the rows are
    if data.histories.num_users < len(kept) or len(kept) < 2:
        return None
    matrix = np.zeros((len(kept), len(kept)), np.float32)
    left, right = np.searchsorted(kept, left), np.searchsorted(kept, right)
    matrix[left, right] = matrix[right, left] = users
    inverse = _inverted(matrix, float(users[is_diagonal].mean()))
    diagonal = np.diag(inverse).copy()
    return _best(inverse.__getitem__, diagonal, kept, count, len(data.catalogue))


def _best(
    rows_of_inverse: Callable[[slice], Float32[np.ndarray, "n I"]],
    scale: Float32[np.ndarray, " I"],
    kept: np.ndarray,
    count: int,
    total: int,
) -> sparse.csr_matrix:
    """The `count` highest positive weights of each row of B.

    Args:
      rows_of_inverse: P, some rows at a time.
      scale: the diagonal of P.
      kept: the items of P, of `total`.
    """
    count = min(count, len(kept) - 1)

    def best_of(first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        part = rows_of_inverse(slice(first, first + ROWS_A_STEP)) / -scale
        here = np.arange(len(part))
        part[here, first + here] = 0
        best = np.argpartition(part, -count, axis=1)[:, -count:]
        of_best = np.take_along_axis(part, best, axis=1).reshape(-1)
        return np.repeat(kept[first + here], count), kept[best].reshape(-1), of_best

    with ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS)) as threads:
        parts = list(threads.map(best_of, range(0, len(kept), ROWS_A_STEP)))
    rows, columns, values = (np.concatenate(each) for each in zip(*parts, strict=True))
    is_positive = values > 0
    entries = (values[is_positive], (rows[is_positive], columns[is_positive]))
    return sparse.csr_matrix(entries, shape=(total, total))


def _inverse(
    has: sparse.csr_matrix, ridge: float
) -> tuple[Callable[[slice], Float32[np.ndarray, "n I"]], Float32[np.ndarray, " I"]]:
    """P as (a function that gives some of its rows, its diagonal).

    Args:
      has: X, float32 [users, I].
      ridge: lambda.
    """
    users, items = has.shape
    if users < items:
        weighted = _inverted((has @ has.T).toarray(), ridge) @ has  # [users, I]
        transposed = has.T.tocsr()

        def rows(part: slice) -> Float32[np.ndarray, "n I"]:
            found = transposed[part] @ weighted
            found *= np.float32(-1 / ridge)
            here = np.arange(len(found))
            found[here, part.start + here] += np.float32(1 / ridge)
            return found

        explained = np.asarray(has.multiply(weighted).sum(axis=0)).reshape(-1)
        return rows, ((1 - explained) / ridge).astype(np.float32)
    inverse = _inverted((has.T @ has).toarray(), ridge)
    return inverse.__getitem__, np.diag(inverse).copy()


def _inverted(gram: Float32[np.ndarray, "n n"], ridge: float) -> Float32[np.ndarray, "n n"]:
    """(gram + ridge)^-1 of a symmetric matrix, whose memory it takes."""
    gram[np.diag_indices(len(gram))] += ridge
    return scipy.linalg.inv(gram, overwrite_a=True, check_finite=False)
