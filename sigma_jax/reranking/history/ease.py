"""EASE: a closed-form linear item-item model (Steck 2019).

Axes: I items.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.sparse as sparse

from sigma_jax.histories import training_rows
from sigma_jax.schema import PreparedData

ROWS_A_STEP = 4_096  # rows of the item-item matrix read at a time


MAX_EASE_ITEMS = 16_384  # the most popular items; memory holds three square matrices of them


def fit_ease(data: PreparedData, count: int) -> sparse.csr_matrix:
    """float32 [I, I]: for each item the `count` items with the highest weight in EASE.

    EASE predicts each item of a user from the user's other items (Steck 2019, Eq. 8):

        B = -P / diag(P) with 0 in the diagonal,    P = (X^T X + lambda)^-1

    X tells which users have which items in training rows. lambda is the mean number of users of an
    item.
    """
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
    inverse = (has.T @ has).toarray()
    inverse[np.diag_indices(len(kept))] += count_users[kept].mean()
    inverse = scipy.linalg.inv(inverse, overwrite_a=True, check_finite=False)
    scale = np.diag(inverse).copy()
    count = min(count, len(kept) - 1)
    rows, columns, values = [], [], []
    for first in range(0, len(kept), ROWS_A_STEP):
        part = -inverse[first : first + ROWS_A_STEP] / scale
        here = np.arange(len(part))
        part[here, first + here] = 0
        best = np.argpartition(-part, count - 1, axis=1)[:, :count]
        rows.append(np.repeat(kept[first + here], count))
        columns.append(kept[best].reshape(-1))
        values.append(np.take_along_axis(part, best, axis=1).reshape(-1))
    rows, columns, values = (np.concatenate(parts) for parts in (rows, columns, values))
    is_positive = values > 0
    entries = (values[is_positive], (rows[is_positive], columns[is_positive]))
    return sparse.csr_matrix(entries, shape=(total, total))
