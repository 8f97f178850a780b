"""Co-visitation counts: which items users take together, and in which order.

Two interactions of one user at distance d <= 20 count 1/d from the earlier item to the later one,
and half of that backwards. Interactions of one session have no order, so sessions define the
distance:

- interactions of one session lie at distance 1. Either may be the earlier one, so they count
  (1 + 1/2) / 2 each way;
- interactions of different sessions lie at 1 + the number of interactions in the sessions between.

With one interaction a session this is the definition over interactions:

    sessions [a][b c][d]: a-b 1, a-c 1, b-c 1, b-d 1, c-d 1, a-d 3 (two interactions between)

Axes: U users, I items.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Int64

from sigma_jax.histories import count_training_rows, items_of_sessions, training_sessions
from sigma_jax.schema import Histories, PreparedData

WINDOW = 20  # the largest distance that counts
BACKWARD = 0.5  # share of a count that goes from the later item to the earlier one
SESSIONS = 5  # last sessions of a history that a request reads
DECAY = 0.7  # weight of a session relative to the next one
SMOOTHING = 5.0  # interactions added to the popularity of each item
SESSIONS_A_STEP = 200_000  # bounds the memory of one sparse product
REQUESTS_A_STEP = 512

SessionPairs = tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"], Int64[np.ndarray, " p"]]


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
    user, begin, end = training_sessions(histories)
    is_new = np.ones(len(user), bool)
    sessions = np.arange(len(user))
    if known is not None:
        is_new = begin >= (np.asarray(histories.offsets[:-1]) + known)[user]
        sessions = np.flatnonzero(np.isin(user, user[is_new]))
    total = sparse.csr_matrix((num_items, num_items), dtype=np.float32)
    for first in range(0, len(sessions), SESSIONS_A_STEP):
        here = sessions[first : first + SESSIONS_A_STEP]
        earlier, later, distance = near_sessions(user, begin, end, here)
        kept = is_new[later]
        pairs = earlier[kept], later[kept], distance[kept]
        here = here[is_new[here]]
        total = total + covisits_of(histories, num_items, begin, end, here, pairs)
    return total


def damp_by_popularity(counts: sparse.csr_matrix, data: PreparedData) -> sparse.csr_matrix:
    """Each count, divided by sqrt(training interactions + 5) of the item of its column."""
    scale = 1 / np.sqrt(count_training_rows(data) + SMOOTHING)
    scaled = counts.copy()
    scaled.data *= scale.astype(np.float32)[counts.indices]
    return scaled


def covisits_of(
    histories: Histories,
    num_items: int,
    begin: Int64[np.ndarray, " S"],
    end: Int64[np.ndarray, " S"],
    here: Int64[np.ndarray, " n"],
    pairs: SessionPairs,
) -> sparse.csr_matrix:
    """float32 [I, I]: counts inside the sessions `here`, and both ways between pairs of sessions.

    Args:
      begin, end: rows of all sessions (histories.training_sessions).
      pairs: from `near_sessions`.
    """
    earlier, later, distance = pairs
    ones = np.ones(len(here))
    inside = items_of_sessions(histories, num_items, begin[here], end[here], ones)
    itself = np.asarray(inside.sum(0)).reshape(-1)  # an interaction is not counted with itself
    total = (inside.T @ inside - sparse.diags(itself)) * np.float32((1 + BACKWARD) / 2)
    left = items_of_sessions(histories, num_items, begin[earlier], end[earlier], 1 / distance)
    right = items_of_sessions(histories, num_items, begin[later], end[later], np.ones(len(later)))
    forward = (left.T @ right).tocsr()
    del left, right, inside
    total = (total + forward).tocsr()
    forward.data *= np.float32(BACKWARD)
    total = (total + forward.T.tocsr()).tocsr()
    total.eliminate_zeros()
    return total


def near_sessions(
    user: Int64[np.ndarray, " S"],
    begin: Int64[np.ndarray, " S"],
    end: Int64[np.ndarray, " S"],
    here: Int64[np.ndarray, " n"],
) -> SessionPairs:
    """(earlier, later, distance) of the pairs of sessions of one user within the window.

    The earlier session of each pair is one of `here`.
    """
    pairs = []
    for step in range(1, WINDOW + 1):
        earlier = here[here + step < len(user)]
        later = earlier + step
        distance = 1 + begin[later] - end[earlier]
        near = (user[earlier] == user[later]) & (distance <= WINDOW)
        pairs.append((earlier[near], later[near], distance[near]))
    earlier, later, distance = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return earlier, later, distance
