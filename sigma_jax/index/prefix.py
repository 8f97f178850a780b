"""The items of one prefix on the host, and what is known of their products with some queries.

Axes: n queries; I items of the prefix, D dimensions, r rows compared, k items found.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from jaxtyping import Float32, Int, Int32

from sigma_jax.index.scann_searcher import Searcher, top_rows

SAMPLE_OF_ALL = 1_024  # items of a prefix that stand for all in the denominator of Eq. 11
NONE = np.int32(-1)


@dataclasses.dataclass(frozen=True)
class Prefix:
    """The items of one leaf, those that were removed too: the model still gives them probability.
    The first `built` are those its searcher knows."""

    items: Int32[np.ndarray, " I"]
    vectors: Float32[np.ndarray, "I D"]
    built: int
    searcher: Searcher | None  # None: compared one by one

    @functools.cached_property
    def sample(self) -> tuple[Int32[np.ndarray, " s"], Int32[np.ndarray, " I"]]:
        """Rows that stand for all, and where each row stands among them; -1: it is none of them."""
        total = len(self.items)
        size = min(SAMPLE_OF_ALL, total)
        rows = np.random.default_rng(0).choice(total, size, replace=False).astype(np.int32)
        place = np.full(len(self.items), NONE)
        place[rows] = np.arange(size)
        return rows, place


@dataclasses.dataclass(frozen=True)
class Compared:
    """Rows of a prefix whose products with each query are known, wanted or not; -1: none."""

    rows: Int[np.ndarray, "n r"]
    products: Float32[np.ndarray, "n r"]
    is_all: bool  # row r of the prefix is column r
    # The least product that was searched for: of those below, others may be missing.
    least: Float32[np.ndarray, " n"]


def everything(prefix: Prefix, queries: np.ndarray) -> Compared:
    """All rows of the prefix."""
    rows = np.broadcast_to(np.arange(len(prefix.items)), (len(queries), len(prefix.items)))
    return Compared(rows, queries @ prefix.vectors.T, True, np.full(len(queries), -np.inf))


def log_mass(
    prefix: Prefix, queries: np.ndarray, compared: Compared, inverse_temperature: np.ndarray
) -> np.ndarray:
    """logsumexp(inverse_temperature * product) over the prefix, of what was compared and, for
    what was not,
    of a sample."""
    logits = np.where(compared.rows >= 0, compared.products, -np.inf) * inverse_temperature[:, None]
    if not compared.is_all:
        sample, place = prefix.sample
        found = np.where(compared.rows >= 0, place[compared.rows], NONE)
        row, column = np.nonzero(found >= 0)
        is_known = np.zeros((len(queries), len(sample)), bool)
        is_known[row, found[row, column]] = True
        others = len(prefix.items) - (compared.rows >= 0).sum(axis=1)
        drawn = np.maximum((~is_known).sum(axis=1), 1)
        more = (queries @ prefix.vectors[sample].T) * inverse_temperature[:, None]
        more = np.where(is_known, -np.inf, more + np.log(np.maximum(others, 1) / drawn)[:, None])
        logits = np.concatenate([logits, more], axis=1)
    top = logits.max(axis=1, keepdims=True)
    return np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]


def best_of(
    items: Int32[np.ndarray, "n I"], products: Float32[np.ndarray, "n I"], count: int
) -> tuple[Int32[np.ndarray, "n k"], Float32[np.ndarray, "n k"]]:
    """The best `count`, padded."""
    columns, values = top_rows(products, min(count, products.shape[1]))
    found = np.where(np.isfinite(values), np.take_along_axis(items, columns, axis=1), NONE)
    room = ((0, 0), (0, count - found.shape[1]))
    return (
        np.pad(found, room, constant_values=-1),
        np.pad(values, room, constant_values=-np.inf),
    )
