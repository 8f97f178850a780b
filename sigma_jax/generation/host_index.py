"""Nearest items inside prefixes (Eq. 9 of SIGMA) on the host, for catalogues whose prefixes are
large: ScaNN where a prefix holds many items, a plain product elsewhere.

How far ScaNN looks is not configured but measured when a prefix is built: it looks into more of its
partitions until it finds RECALL of what a product finds. The queries for that are given, or items
of the prefix with as much noise: a model's queries lie near many items and at none.

Items come and go without a rebuild: new ones lie beside their prefix and are compared one by one,
removed ones are passed over; a prefix of which too many are either is built anew (`compact`).

Axes: n queries, each with the leaf it looks into; I items, D dimensions, k items found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, Int32

from sigma_jax.data.vectors import unit_rows

RECALL = 0.98
SAMPLE = 256  # queries that recall is measured with
SCANN_ABOVE = 20_000  # items of a prefix from which ScaNN is faster than a product
STALE = 0.1  # share of a prefix, new or removed, above which `compact` builds it anew
TRAINING_ROWS = 100_000
NONE = np.int32(-1)


@dataclasses.dataclass(frozen=True)
class Searcher:
    """ScaNN over the rows of one prefix, and how far it has to look."""

    scann: Any
    partitions: int  # of them all, those it looks into
    candidates: int  # that are scored exactly
    recall: float  # measured

    @classmethod
    def build(
        cls,
        vectors: Float32[np.ndarray, "I D"],
        count: int,
        queries: Float32[np.ndarray, "n D"] | None = None,
    ) -> Searcher:
        """Over `vectors`, for searches of about `count` items by such `queries`."""
        import scann

        size, count = len(vectors), min(count, len(vectors))
        total = max(int(np.sqrt(size)), 1)
        builder = scann.scann_ops_pybind.builder(vectors, count, "dot_product")
        builder = builder.tree(
            num_leaves=total,
            num_leaves_to_search=max(total // 50, 1),
            training_sample_size=min(size, TRAINING_ROWS),
        )
        builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2)
        searcher = builder.reorder(4 * count).build()
        rng = np.random.default_rng(0)
        if queries is None:
            noise = rng.normal(size=(SAMPLE, vectors.shape[1]))
            drawn = vectors[rng.integers(0, size, SAMPLE)]
            queries = unit_rows(drawn + noise / np.linalg.norm(noise, axis=1, keepdims=True))
        queries = np.ascontiguousarray(queries[rng.permutation(len(queries))[:SAMPLE]], np.float32)
        exact = top_rows(queries @ vectors.T, count)[0]
        looked, candidates = max(total // 50, 1), 4 * count
        while True:
            found, _ = searcher.search_batched(queries, count, candidates, looked)
            recall = np.mean(
                [np.isin(a, b).mean() for a, b in zip(exact, np.asarray(found), strict=True)]
            )
            if recall >= RECALL or (looked >= total and candidates >= size):
                return cls(searcher, looked, candidates, float(recall))
            if looked < total:
                looked = min(looked + max(looked // 2, 1), total)
            else:
                candidates = min(2 * candidates, size)

    def __call__(
        self, queries: Float32[np.ndarray, "n D"], count: int
    ) -> tuple[Int[np.ndarray, "n k"], Float32[np.ndarray, "n k"]]:
        """Rows and products, best first; -1 where ScaNN gives none."""
        candidates = max(self.candidates, count)
        rows, products = self.scann.search_batched_parallel(
            queries, count, candidates, self.partitions
        )
        rows, products = np.asarray(rows, np.int64), np.asarray(products, np.float32)
        is_found = np.isfinite(products)
        return np.where(is_found, rows, -1), np.where(is_found, products, -np.inf)


@dataclasses.dataclass
class Prefix:
    """The items of one leaf: those its searcher knows, and those that came later."""

    items: Int32[np.ndarray, " I"]
    vectors: Float32[np.ndarray, "I D"]
    searcher: Searcher | None
    new_items: Int32[np.ndarray, " J"]
    new_vectors: Float32[np.ndarray, "J D"]


class HostIndex:
    """Items by leaf, on the host."""

    def __init__(
        self,
        leaf_of_item: Int32[np.ndarray, " I"],
        vectors: Float32[np.ndarray, "I D"],
        count: int = 50,
        scann_above: int = SCANN_ABOVE,
    ):
        """Row i of `vectors`, unit length, is item i; items of leaf -1 are in no prefix.

        `count`: items of a prefix that are usually asked for.
        """
        self._count, self._scann_above = count, scann_above
        self._leaf = np.array(leaf_of_item, np.int32)
        self._is_removed = np.zeros(len(vectors), bool)
        self._prefixes: dict[int, Prefix] = {}
        order = np.argsort(self._leaf, kind="stable").astype(np.int32)
        order = order[self._leaf[order] >= 0]
        leaves, starts = np.unique(self._leaf[order], return_index=True)
        for leaf, items in zip(leaves.tolist(), np.split(order, starts[1:]), strict=True):
            self._prefixes[leaf] = self._built(items, np.ascontiguousarray(vectors[items]))

    def _built(self, items: np.ndarray, vectors: np.ndarray) -> Prefix:
        is_large = len(items) >= self._scann_above
        searcher = Searcher.build(vectors, self._count) if is_large else None
        return Prefix(items, vectors, searcher, items[:0], vectors[:0])

    @property
    def recall(self) -> Mapping[int, float]:
        """The measured recall of each leaf that ScaNN searches; a product finds all."""
        return {
            leaf: prefix.searcher.recall
            for leaf, prefix in self._prefixes.items()
            if prefix.searcher is not None
        }

    def search(
        self,
        queries: Float32[np.ndarray, "n D"],
        leaves: Int32[np.ndarray, " n"],
        count: int,
        excluded: Sequence[np.ndarray] | None = None,
    ) -> tuple[Int32[np.ndarray, "n k"], Float32[np.ndarray, "n k"]]:
        """(items, products): the `count` of each leaf with the largest product with the query.

        Best first; item -1 and product -inf where the leaf has fewer, or is -1. `excluded`: items
        that are not wanted, of each query.
        """
        items = np.full((len(queries), count), NONE)
        products = np.full((len(queries), count), -np.inf, np.float32)
        order = np.argsort(leaves, kind="stable")
        order = order[leaves[order] >= 0]
        known, starts = np.unique(leaves[order], return_index=True)
        for leaf, rows in zip(known.tolist(), np.split(order, starts[1:]), strict=True):
            if leaf not in self._prefixes:
                continue
            unwanted = [excluded[row] for row in rows] if excluded is not None else None
            found = self._in_leaf(leaf, queries[rows], count, unwanted)
            items[rows], products[rows] = found
        return items, products

    def _in_leaf(
        self,
        leaf: int,
        queries: np.ndarray,
        count: int,
        excluded: list[np.ndarray] | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        prefix = self._prefixes[leaf]
        of_leaf = None
        if excluded is not None:
            of_leaf = [row[self._leaf[row] == leaf] for row in excluded]
        if prefix.searcher is None:
            items = np.broadcast_to(prefix.items, (len(queries), len(prefix.items)))
            products = queries @ prefix.vectors.T
        else:
            # As many more as may have to be passed over.
            gone = int(self._is_removed[prefix.items].sum())
            most = max(map(len, of_leaf), default=0) if of_leaf is not None else 0
            wanted = min(count + gone + most, len(prefix.items))
            rows, products = prefix.searcher(queries, wanted)
            items = np.where(rows >= 0, prefix.items[rows], NONE)
        if len(prefix.new_items):
            new = np.broadcast_to(prefix.new_items, (len(queries), len(prefix.new_items)))
            items = np.concatenate([items, new], axis=1)
            products = np.concatenate([products, queries @ prefix.new_vectors.T], axis=1)
        is_out = (items < 0) | self._is_removed[items]
        if of_leaf is not None:
            for row, unwanted in enumerate(of_leaf):
                if len(unwanted):
                    is_out[row] |= np.isin(items[row], unwanted)
        products = np.where(is_out, -np.inf, products).astype(np.float32)
        return _best(items, products, count)

    def add(
        self,
        items: Int32[np.ndarray, " J"],
        vectors: Float32[np.ndarray, "J D"],
        leaves: Int32[np.ndarray, " J"],
    ) -> None:
        """Adds items, or puts them in place of what they were. `vectors` have unit length."""
        size = int(items.max(initial=-1)) + 1 - len(self._leaf)
        if size > 0:
            self._leaf = np.concatenate([self._leaf, np.full(size, NONE)])
            self._is_removed = np.concatenate([self._is_removed, np.zeros(size, bool)])
        known = items[(self._leaf[items] >= 0) & ~self._is_removed[items]]
        for leaf in np.unique(self._leaf[known]).tolist():
            self._rebuild(leaf, known)
        self._leaf[items] = leaves
        self._is_removed[items] = False
        for leaf in np.unique(leaves).tolist():
            here = leaves == leaf
            prefix = self._prefixes.get(leaf)
            if prefix is None:
                self._prefixes[leaf] = self._built(items[here], vectors[here])
                continue
            if np.isin(items[here], prefix.items).any():  # removed once, and back
                self._rebuild(leaf, items[here])
                prefix = self._prefixes[leaf]
            prefix.new_items = np.concatenate([prefix.new_items, items[here]])
            prefix.new_vectors = np.concatenate([prefix.new_vectors, vectors[here]])

    def remove(self, items: Int32[np.ndarray, " J"]) -> None:
        """Removes items; they are passed over from now on."""
        self._is_removed[items] = True

    def compact(self) -> list[int]:
        """Builds anew the prefixes of which too many items are new or removed; their leaves."""
        found = []
        for leaf, prefix in list(self._prefixes.items()):
            stale = len(prefix.new_items) + int(self._is_removed[prefix.items].sum())
            if stale > STALE * max(len(prefix.items), 1):
                self._rebuild(leaf, np.flatnonzero(self._is_removed))
                found.append(leaf)
        return found

    def _rebuild(self, leaf: int, without: np.ndarray) -> None:
        prefix = self._prefixes[leaf]
        items = np.concatenate([prefix.items, prefix.new_items])
        vectors = np.concatenate([prefix.vectors, prefix.new_vectors])
        kept = ~np.isin(items, without)
        if kept.any():
            self._prefixes[leaf] = self._built(items[kept], np.ascontiguousarray(vectors[kept]))
        else:
            del self._prefixes[leaf]


def top_rows(
    products: Float32[np.ndarray, "n I"], count: int
) -> tuple[Int[np.ndarray, "n k"], Float32[np.ndarray, "n k"]]:
    """Columns and values of the `count` largest of each row, best first."""
    if count < products.shape[1]:
        rows = np.argpartition(-products, count - 1, axis=1)[:, :count]
    else:
        rows = np.broadcast_to(np.arange(products.shape[1]), products.shape)
    values = np.take_along_axis(products, rows, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(values, order, axis=1)


def _best(
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


def leaves_of_items(
    leaf_start: Int[np.ndarray, " P+1"], sorted_items: Int[np.ndarray, " I"]
) -> Int32[np.ndarray, " I"]:
    """The leaf of each item of a trie, as `HostIndex` takes them."""
    count = int(leaf_start[-1])
    sizes = np.diff(leaf_start)
    found = np.full(count, NONE)
    found[sorted_items[:count]] = np.repeat(np.arange(len(sizes)), sizes)
    return found
