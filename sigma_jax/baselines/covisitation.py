"""Item co-visitation, a simple method that is hard to beat.

Two lines of one user at distance d <= 20 tie their items with weight 1/d from the earlier item to
the later and half of that backwards. A request adds up the ties of its last five sessions,
decayed by 0.7 a session, and divides by sqrt(popularity + 5); equal scores in random order.

Sessions instead of lines, because the lines of one session have no order:
- lines of one session lie at distance 1, in either direction with equal right, so a tie weighs
  (1 + 1/2) / 2 each way;
- lines of different sessions lie at 1 + the number of lines in the sessions between them.
With one line a session this is exactly the definition over lines:

    sessions [a][b c][d]: a-b 1, a-c 1, b-c 1, b-d 1, c-d 1, a-d 3 (two lines between)
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Int32

from sigma_jax.baselines.candidates import Allowed, best, history_ranges, ragged, without
from sigma_jax.baselines.popularity import Popularity, count_training_rows
from sigma_jax.schema import Histories, PreparedData, Requests

WINDOW = 20
BACKWARD = 0.5
SESSIONS = 5
DECAY = 0.7
SMOOTHING = 5.0
SESSIONS_A_STEP = 200_000  # bounds the memory of one sparse product
REQUESTS_A_STEP = 512


@dataclasses.dataclass(frozen=True)
class CoVisitation:
    """Ties between items, already divided by sqrt(popularity + 5) of the recommended one."""

    ties: sparse.csr_matrix  # float32 [I, I]; row: item of the history, column: recommended item
    tie_order: Int32[np.ndarray, " I"]  # random
    popularity: Popularity

    @classmethod
    def fit(cls, data: PreparedData, seed: int) -> CoVisitation:
        ties = damped(count_ties(data.histories, len(data.catalogue)), data)
        order = np.random.default_rng([seed, 1]).permutation(len(data.catalogue))
        return cls(ties, order.astype(np.int32), Popularity.fit(data, seed))

    def recommend(
        self,
        data: PreparedData,
        requests: Requests,
        k: int,
        keep_seen: bool,
        allowed: Allowed | None,
    ) -> Int32[np.ndarray, "N k"]:
        """Items without any tie to the history come last, most popular first."""
        rankings = np.full((len(requests), k), -1, np.int32)
        starts, ends = history_ranges(data.histories, requests)
        for first in range(0, len(requests), REQUESTS_A_STEP):
            rows = np.arange(first, min(first + REQUESTS_A_STEP, len(requests)))
            recent = recent_items(data.histories, starts[rows], ends[rows], self.ties.shape[0])
            scores = (recent @ self.ties).tocsr()
            for row in rows:
                entries = slice(*scores.indptr[row - first : row - first + 2])
                items, values = scores.indices[entries], scores.data[entries]
                seen = None if keep_seen else data.histories.item[starts[row] : ends[row]]
                keep = without(items, seen, allowed.of(row) if allowed else None)
                chosen = best(items[keep], values[keep], self.tie_order, k)
                rankings[row, : len(chosen)] = chosen
        return self.popularity.complete(rankings, data, requests, keep_seen, allowed)


def recent_items(
    histories: Histories,
    starts,
    ends,
    num_items: int,
    decay: float = DECAY,
    sessions: int | None = SESSIONS,
) -> sparse.csr_matrix:
    """float32 [N, I]: the items of each history's last `sessions` (None: all of them).

    A line weighs 1 in the last session, then `decay`, its square ...; lines of one item add up.
    """
    counts = np.maximum(ends - starts, 0)
    lines = ragged(starts, ends)
    request = np.repeat(np.arange(len(starts)), counts)
    last = np.zeros(len(starts), np.int64)
    has_history = counts > 0
    last[has_history] = histories.session[ends[has_history] - 1]
    age = last[request] - histories.session[lines]
    if sessions is not None:
        keep = age < sessions
        age, request, lines = age[keep], request[keep], lines[keep]
    weights = (decay ** age.astype(np.float64)).astype(np.float32)
    shape = (len(starts), num_items)
    return sparse.csr_matrix((weights, (request, histories.item[lines])), shape=shape)


def strongest(table: sparse.csr_matrix, count: int) -> sparse.csr_matrix:
    """The `count` largest entries of each row, the lower column on ties; columns ascend."""
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


def count_ties(histories: Histories, num_items: int) -> sparse.csr_matrix:
    """float32 [I, I]: ties of the training rows before division by popularity."""
    user, begin, end = _training_sessions(histories)
    total = sparse.csr_matrix((num_items, num_items), dtype=np.float32)
    for first in range(0, len(user), SESSIONS_A_STEP):
        here = np.arange(first, min(first + SESSIONS_A_STEP, len(user)))
        total = total + _ties_from(histories, num_items, user, begin, end, here)
    return total


def damped(ties: sparse.csr_matrix, data: PreparedData) -> sparse.csr_matrix:
    """`ties` divided by sqrt(popularity + 5) of the column's item."""
    scale = 1 / np.sqrt(count_training_rows(data) + SMOOTHING)
    scaled = ties.copy()
    scaled.data *= scale.astype(np.float32)[ties.indices]
    return scaled


def _training_sessions(histories: Histories):
    """User, first row and row after the last, of each session in training rows."""
    starts, ends = histories.offsets[:-1], histories.valid_start
    rows = ragged(starts, ends)
    user = np.repeat(np.arange(len(starts)), np.maximum(ends - starts, 0))
    session = histories.session[rows]
    is_first = np.ones(len(rows), bool)
    is_first[1:] = (user[1:] != user[:-1]) | (session[1:] != session[:-1])
    first = np.flatnonzero(is_first)
    sizes = np.diff(np.append(first, len(rows)))
    begin = rows[first]
    return user[first], begin, begin + sizes


def _incidence(histories: Histories, num_items: int, begin, end, weights) -> sparse.csr_matrix:
    """[sessions, I]: each session's lines by item, times the session's weight."""
    rows = ragged(begin, end)
    session = np.repeat(np.arange(len(begin)), end - begin)
    entries = (weights[session].astype(np.float32), (session, histories.item[rows]))
    return sparse.csr_matrix(entries, shape=(len(begin), num_items))


def _ties_from(histories, num_items, user, begin, end, here) -> sparse.csr_matrix:
    """Ties inside the sessions `here` and from them to later ones of the same user."""
    ones = np.ones(len(here))
    inside = _incidence(histories, num_items, begin[here], end[here], ones)
    lines = np.asarray(inside.sum(0)).reshape(-1)  # a line is not tied to itself
    total = (inside.T @ inside - sparse.diags(lines)) * np.float32((1 + BACKWARD) / 2)
    earlier, later, distance = _near_sessions(user, begin, end, here)
    left = _incidence(histories, num_items, begin[earlier], end[earlier], 1 / distance)
    right = _incidence(histories, num_items, begin[later], end[later], np.ones(len(later)))
    forward = (left.T @ right).tocsr()
    total = (total + forward + (forward * np.float32(BACKWARD)).T).tocsr()
    total.eliminate_zeros()
    return total


def _near_sessions(user, begin, end, here):
    """Pairs of sessions of one user, the earlier in `here`, within the window; their distance."""
    pairs = []
    for step in range(1, WINDOW + 1):
        earlier = here[here + step < len(user)]
        later = earlier + step
        distance = 1 + begin[later] - end[earlier]
        near = (user[earlier] == user[later]) & (distance <= WINDOW)
        pairs.append((earlier[near], later[near], distance[near]))
    return (np.concatenate(parts) for parts in zip(*pairs, strict=True))
