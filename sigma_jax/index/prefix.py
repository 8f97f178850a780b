"""The items of one prefix on the host, and their products with some queries.

Axes: n queries; I items of the prefix, D dimensions, r rows compared, k items found.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from jaxtyping import Float32, Int, Int32

from sigma_jax.index.scann_searcher import Searcher, top_rows

NORMALISER_SAMPLE = 1_024  # items that represent a prefix in the denominator of Eq. 11
MISSING = np.int32(-1)  # instead of an item, a leaf or a row


@dataclasses.dataclass(frozen=True)
class Prefix:
    """The items of one leaf.

    Removed items stay in it, because the model still gives them probability.
    """

    items: Int32[np.ndarray, " I"]
    vectors: Float32[np.ndarray, "I D"]
    num_indexed: int  # items that the searcher holds: the first ones
    searcher: Searcher | None  # None: every query is compared with all items

    @functools.cached_property
    def sample(self) -> tuple[Int32[np.ndarray, " s"], Int32[np.ndarray, " I"]]:
        """(rows, place): a random sample of rows, and the place of each row in it, or -1."""
        total = len(self.items)
        size = min(NORMALISER_SAMPLE, total)
        rows = np.random.default_rng(0).choice(total, size, replace=False).astype(np.int32)
        place = np.full(len(self.items), MISSING)
        place[rows] = np.arange(size)
        return rows, place


@dataclasses.dataclass(frozen=True)
class ComparedRows:
    """Rows of a prefix whose products with each query are known; -1 pads.

    They include removed and excluded items.
    """

    rows: Int[np.ndarray, "n r"]
    products: Float32[np.ndarray, "n r"]
    is_all: bool  # row r of the prefix is column r
    # The search is complete down to this product. Items with a lower product may be missing.
    least: Float32[np.ndarray, " n"]


def compare_all(prefix: Prefix, queries: np.ndarray) -> ComparedRows:
    """All rows of the prefix, with their products with `queries` [n, D]."""
    rows = np.broadcast_to(np.arange(len(prefix.items)), (len(queries), len(prefix.items)))
    return ComparedRows(rows, queries @ prefix.vectors.T, True, np.full(len(queries), -np.inf))


def estimate_log_normaliser(
    prefix: Prefix, queries: np.ndarray, compared: ComparedRows, inverse_temperature: np.ndarray
) -> np.ndarray:
    """Log denominator of Eq. 11: logsumexp(inverse_temperature * product) over the prefix, [n].

    Compared rows enter with their products. A random sample stands for the other rows.

    Args:
      queries: [n, D].
      inverse_temperature: [n].
    """
    logits = np.where(compared.rows >= 0, compared.products, -np.inf) * inverse_temperature[:, None]
    if not compared.is_all:
        sample, place = prefix.sample
        sampled = np.where(compared.rows >= 0, place[compared.rows], MISSING)
        row, column = np.nonzero(sampled >= 0)
        is_compared = np.zeros((len(queries), len(sample)), bool)
        is_compared[row, sampled[row, column]] = True
        others = len(prefix.items) - (compared.rows >= 0).sum(axis=1)
        drawn = np.maximum((~is_compared).sum(axis=1), 1)
        more = (queries @ prefix.vectors[sample].T) * inverse_temperature[:, None]
        more = np.where(is_compared, -np.inf, more + np.log(np.maximum(others, 1) / drawn)[:, None])
        logits = np.concatenate([logits, more], axis=1)
    top = logits.max(axis=1, keepdims=True)
    return np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]


def best_of(
    items: Int32[np.ndarray, "n I"], products: Float32[np.ndarray, "n I"], count: int
) -> tuple[Int32[np.ndarray, "n k"], Float32[np.ndarray, "n k"]]:
    """(items, products) of the `count` largest products of each query, best first.

    Item -1 with product -inf pads the rows of queries that have fewer.
    """
    columns, values = top_rows(products, min(count, products.shape[1]))
    best = np.where(np.isfinite(values), np.take_along_axis(items, columns, axis=1), MISSING)
    padding = ((0, 0), (0, count - best.shape[1]))
    return (
        np.pad(best, padding, constant_values=-1),
        np.pad(values, padding, constant_values=-np.inf),
    )
