"""Nearest items inside prefixes on the host (Eq. 9 of SIGMA), for catalogues with large prefixes.

ScaNN searches a prefix with many items. Other prefixes compare a query with all their items.

Items are added and removed without a rebuild:

- ScaNN does not hold a new item. Queries are compared with all new items of the prefix.
- A removed item stays in the prefix. A search skips it.
- `compact` rebuilds ScaNN for a prefix with too many new or removed items.
- An item that moves to another prefix causes a rebuild of its former prefix.

Axes: n queries, each with the leaf that it searches; I items, D dimensions, k items found.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32

from sigma_jax.data.vectors import unit_rows
from sigma_jax.index.candidates import Candidates, SearchInputs, padded_width
from sigma_jax.index.prefix import (
    MISSING,
    ComparedRows,
    Prefix,
    best_of,
    compare_all,
    estimate_log_normaliser,
)
from sigma_jax.index.scann_searcher import HAS_SCANN, Searcher
from sigma_jax.index.trie import Trie

SCANN_ABOVE = 10_000  # items of a prefix from which ScaNN is faster than comparing all
MAX_STALE_SHARE = 0.1  # share of new and removed items in a prefix, beyond which it is rebuilt
MAX_REMOVED_SHARE = 0.5  # share of removed items in a prefix, beyond which comparing all is faster


class HostIndex:
    """Items by leaf, on the host.

    Methods that change it must not run while another thread searches it.
    """

    def __init__(
        self,
        leaf_of_item: Int32[np.ndarray, " I"],
        vectors: Float32[np.ndarray, "I D"],
        count: int = 50,
        scann_above: int = SCANN_ABOVE,
    ):
        """An index of all items with a leaf.

        Args:
          leaf_of_item: the leaf of each item. An item whose leaf is -1 belongs to no prefix.
          vectors: the vector of each item, unit length.
          count: items that a usual search retrieves from each prefix.
          scann_above: items of a prefix from which ScaNN searches it.
        """
        self._count, self._scann_above = count, scann_above
        self._leaf = np.array(leaf_of_item, np.int32)
        self._row = np.full(len(vectors), MISSING)  # of each item in its prefix
        self._is_removed = np.zeros(len(vectors), bool)
        self._prefixes: dict[int, Prefix] = {}
        for leaf, items in _group_by_leaf(self._leaf):
            self._build(leaf, items.astype(np.int32), vectors[items])

    def _build(self, leaf: int, items: np.ndarray, vectors: np.ndarray) -> None:
        """Builds the prefix of `items`. Its searcher holds the items that are not removed."""
        is_removed = self._is_removed[items]
        order = np.argsort(is_removed, kind="stable")
        items, vectors = items[order], np.ascontiguousarray(vectors[order], np.float32)
        num_indexed = len(items) - int(is_removed.sum())
        searcher = (
            Searcher.build(vectors[:num_indexed], self._count)
            if self._is_large(num_indexed)
            else None
        )
        self._prefixes[leaf] = Prefix(items, vectors, num_indexed, searcher)
        self._row[items] = np.arange(len(items))

    def _is_large(self, size: int) -> bool:
        return HAS_SCANN and size >= self._scann_above

    @property
    def recall(self) -> Mapping[int, float]:
        """The measured recall of each leaf that ScaNN searches.

        Other leaves are absent: their search is exact.
        """
        return {
            leaf: prefix.searcher.recall
            for leaf, prefix in self._prefixes.items()
            if prefix.searcher is not None
        }

    def restrict_to(self, is_allowed: Bool[np.ndarray, " I"]) -> HostIndex:
        """An index that skips items that are not allowed, as it skips removed ones.

        It shares all else with this index.
        """
        restricted = copy.copy(self)
        restricted._is_removed = self._is_removed | ~is_allowed
        return restricted

    def search(
        self,
        queries: Float32[np.ndarray, "n D"],
        leaves: Int32[np.ndarray, " n"],
        count: int,
        excluded: Sequence[np.ndarray] | None = None,
    ) -> tuple[Int32[np.ndarray, "n k"], Float32[np.ndarray, "n k"]]:
        """(items, products): the `count` items of each leaf with the largest product (Eq. 9).

        The best item stands first. Item -1 with product -inf fills up where the leaf has fewer
        items, or is -1.

        Args:
          queries: vectors of any length. Products are cosines where it is 1.
          leaves: the leaf that each query searches.
          excluded: for each query, the items that are not returned.
        """
        return self._search(queries, leaves, count, excluded)[:2]

    def _search(
        self,
        queries: np.ndarray,
        leaves: np.ndarray,
        count: int,
        excluded: Sequence[np.ndarray] | None,
        inverse_temperature: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`search`, and the log normaliser of each query, [n]: log denominator of Eq. 11.

        The normaliser counts removed and excluded items too. It is -inf where the leaf is empty or
        -1, and for all queries if `inverse_temperature` [n] is None.
        """
        items = np.full((len(queries), count), MISSING)
        products = np.full((len(queries), count), -np.inf, np.float32)
        normaliser = np.full(len(queries), -np.inf, np.float32)
        for leaf, rows in self._queries_by_leaf(leaves):
            prefix, here = self._prefixes[leaf], queries[rows]
            barred = []
            if excluded is not None:
                barred = [out[self._leaf[out] == leaf] for out in map(excluded.__getitem__, rows)]
            compared = self._compare(prefix, here, count + max(map(len, barred), default=0))
            items[rows], products[rows] = self._select_best(prefix, here, compared, count, barred)
            if inverse_temperature is not None:
                normaliser[rows] = estimate_log_normaliser(
                    prefix, here, compared, inverse_temperature[rows]
                )
        return items, products, normaliser

    def search_beams(self, inputs: SearchInputs, count: int) -> Candidates:
        """The `count` items of each prefix nearest to its query, and the extra candidates (Eq. 9).

        It returns the result of `device_index.search`, as NumPy arrays. The normaliser is an
        estimate where ScaNN searches a prefix. Extra candidates that the index does not have are
        ignored. `inputs.active` is not read; `restrict_to` takes its place.
        """
        queries, leaves = np.asarray(inputs.queries), np.asarray(inputs.leaves)
        leaves = np.where(np.asarray(inputs.is_valid), leaves, MISSING)
        batch, beams, width = queries.shape
        seen = None if inputs.excluded is None else np.asarray(inputs.excluded)
        excluded = None
        if seen is not None:
            excluded = [row[row >= 0] for row in seen for _ in range(beams)]
        factor = np.repeat(np.asarray(inputs.inverse_temperature), beams)
        items, products, normaliser = self._search(
            queries.reshape(-1, width), leaves.reshape(-1), count, excluded, factor
        )
        items, products = (part.reshape(batch, -1) for part in (items, products))
        of_beam = np.broadcast_to(np.repeat(np.arange(beams, dtype=np.int32), count), items.shape)
        columns: list[Any] = [items, of_beam, products]
        extra = self._extra_items(inputs, leaves, count)
        if extra is not None:
            has_root = inputs.root_log_normaliser is not None
            added = self._extra_candidates(queries, leaves, extra, seen, items, has_root)
            columns = [np.concatenate(pair, axis=1) for pair in zip(columns, added, strict=True)]
        normaliser = np.asarray(inputs.with_root(normaliser.reshape(batch, beams)))
        return Candidates(*columns, log_normaliser=normaliser, nearest=count)

    def _extra_items(
        self, inputs: SearchInputs, leaves: np.ndarray, count: int
    ) -> list[Int32[np.ndarray, " L"]] | None:
        """The distinct extra candidates of each request, ascending. None: it has none.

        They are the items in `inputs.extra` and the items nearest to `inputs.extra_queries`.
        """
        if inputs.extra is None and inputs.extra_queries is None:
            return None
        lists = [np.zeros(0, np.int32)] * len(leaves)
        if inputs.extra is not None:
            lists = list(np.asarray(inputs.extra))
        if inputs.extra_queries is not None:
            queries = np.repeat(
                unit_rows(np.asarray(inputs.extra_queries)), leaves.shape[1], axis=0
            )
            near = self.search(queries, leaves.reshape(-1), count)[0].reshape(len(leaves), -1)
            lists = [np.union1d(*pair) for pair in zip(lists, near, strict=True)]
        return [np.unique(row) for row in lists]

    def _queries_by_leaf(self, leaves: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(leaf, rows): each leaf that has items, and the queries that search it."""
        return ((leaf, rows) for leaf, rows in _group_by_leaf(leaves) if leaf in self._prefixes)

    def _compare(self, prefix: Prefix, queries: np.ndarray, count: int) -> ComparedRows:
        """Rows that hold about `count` nearest items beside the removed ones among them."""
        removed_share = 0.0
        if prefix.searcher is not None:
            removed_share = self._is_removed[prefix.items[: prefix.num_indexed]].mean()
        if prefix.searcher is None or removed_share > MAX_REMOVED_SHARE:
            return compare_all(prefix, queries)
        size = count / (1 - removed_share)
        # Three standard deviations more: mostly enough if removed items lie anywhere.
        size = min(math.ceil(size + 3 * math.sqrt(size * removed_share)), prefix.num_indexed)
        rows, products = prefix.searcher(queries, size)
        least = products[:, min(size, products.shape[1]) - 1]
        new = prefix.num_indexed + np.flatnonzero(
            ~self._is_removed[prefix.items[prefix.num_indexed :]]
        )
        new_products = queries @ prefix.vectors[new].T
        rows = np.concatenate([rows, np.tile(new, (len(queries), 1))], axis=1)
        return ComparedRows(rows, np.concatenate([products, new_products], axis=1), False, least)

    def _select_best(
        self,
        prefix: Prefix,
        queries: np.ndarray,
        compared: ComparedRows,
        count: int,
        excluded: list[np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
        """(items, products) of the best `count` compared rows that are not removed or excluded.

        If the nearest items are removed or excluded, the search may have missed some of the best.
        Then there are too few items, or a product lies below `compared.least`. Such queries are
        compared with all items.
        """
        if compared.is_all:
            items = np.broadcast_to(prefix.items, compared.rows.shape)
            is_out = np.tile(self._is_removed[prefix.items], (len(items), 1))
        else:
            items = np.where(compared.rows >= 0, prefix.items[compared.rows], MISSING)
            is_out = (items < 0) | self._is_removed[items]
        for row, out in enumerate(excluded):
            is_out[row, self._row[out] if compared.is_all else np.isin(items[row], out)] = True
        products = np.where(is_out, -np.inf, compared.products).astype(np.float32)
        items, products = best_of(items, products, count)
        short = np.flatnonzero((items[:, -1] < 0) | (products[:, -1] < compared.least))
        if len(short) and not compared.is_all:
            barred = [excluded[row] for row in short] if excluded else []
            all_rows = compare_all(prefix, queries[short])
            best = self._select_best(prefix, queries[short], all_rows, count, barred)
            items[short], products[short] = best
        return items, products

    def _extra_candidates(
        self,
        queries: np.ndarray,
        leaves: np.ndarray,
        extra: list[np.ndarray],
        seen: np.ndarray | None,
        nearest: np.ndarray,
        has_root: bool,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(items, beams, products) of the `extra` items that lie in the prefix of a beam.

        With a root the others belong to it. Items in `seen` or `nearest` are left out. The width is
        that of `padded_width`.
        """
        lists = []
        for row, added in enumerate(extra):
            added = added[(added >= 0) & (added < len(self._leaf))]
            added = added[~self._is_removed[added]]
            if seen is not None:
                added = added[~np.isin(added, seen[row])]
            added = added[~np.isin(added, nearest[row])]
            order = np.argsort(leaves[row], kind="stable")
            place = np.searchsorted(leaves[row], self._leaf[added], sorter=order)
            beam = order[np.minimum(place, len(order) - 1)]
            is_in_prefix = leaves[row, beam] == self._leaf[added]
            if has_root:
                beam = np.where(is_in_prefix, beam, leaves.shape[1] - 1)
            is_added = (is_in_prefix | has_root) & (self._leaf[added] >= 0)
            lists.append((added[is_added], beam[is_added]))
        width = padded_width(max((len(items) for items, _ in lists), default=0))
        items = np.full((len(leaves), width), MISSING)
        beams = np.zeros(items.shape, np.int32)
        products = np.full(items.shape, -np.inf, np.float32)
        for row, (added, beam) in enumerate(lists):
            items[row, : len(added)], beams[row, : len(added)] = added, beam
            for leaf in np.unique(self._leaf[added]):
                places = np.flatnonzero(self._leaf[added] == leaf)  # all of one beam
                vectors = self._prefixes[int(leaf)].vectors[self._row[added[places]]]
                products[row, places] = vectors @ queries[row, beam[places[0]]]
        return items, beams, products

    def add(
        self,
        items: Int32[np.ndarray, " J"],
        vectors: Float32[np.ndarray, "J D"],
        leaves: Int32[np.ndarray, " J"],
    ) -> None:
        """Adds new items, or moves known ones to another vector and leaf.

        The former prefix of a known item is rebuilt. ValueError for a negative item or leaf.

        Args:
          items: distinct numbers.
          vectors: the vector of each item, unit length.
          leaves: the leaf of each item.
        """
        if min(items.min(initial=0), leaves.min(initial=0)) < 0:
            raise ValueError(
                f"HostIndex.add: the smallest item is {items.min(initial=0)} and the smallest leaf "
                f"is {leaves.min(initial=0)}; a negative number cannot be added."
            )
        size = int(items.max(initial=-1)) + 1 - len(self._leaf)
        if size > 0:
            self._leaf = np.pad(self._leaf, (0, size), constant_values=-1)
            self._row = np.pad(self._row, (0, size), constant_values=-1)
            self._is_removed = np.pad(self._is_removed, (0, size))
        for leaf in np.unique(self._leaf[items]).tolist():  # before, removed or not
            if leaf >= 0:
                self._rebuild(leaf, items)
        self._leaf[items] = leaves
        self._is_removed[items] = False
        for leaf in np.unique(leaves).tolist():
            here = leaves == leaf
            prefix = self._prefixes.get(leaf)
            if prefix is None:
                self._build(leaf, items[here], vectors[here])
                continue
            self._row[items[here]] = len(prefix.items) + np.arange(here.sum())
            self._prefixes[leaf] = dataclasses.replace(
                prefix,
                items=np.concatenate([prefix.items, items[here]]),
                vectors=np.concatenate([prefix.vectors, vectors[here]]),
            )

    def remove(self, items: Int32[np.ndarray, " J"]) -> None:
        """Removes items: later searches skip them. ValueError for an item that is not known."""
        if len(items) and not 0 <= items.min() <= items.max() < len(self._leaf):
            raise ValueError(
                f"HostIndex.remove: items {items.min()}..{items.max()} lie outside "
                f"0..{len(self._leaf) - 1}; remove items of the index only."
            )
        self._is_removed[items] = True

    def compact(self) -> list[int]:
        """Rebuilds ScaNN where it is stale, and returns the leaves that were rebuilt.

        A prefix is rebuilt if too many of its items are new or removed (MAX_STALE_SHARE). It is
        also rebuilt if it has grown large enough for ScaNN.
        """
        rebuilt = []
        for leaf, prefix in list(self._prefixes.items()):
            is_kept = ~self._is_removed[prefix.items]
            stale = int(
                (~is_kept[: prefix.num_indexed]).sum() + is_kept[prefix.num_indexed :].sum()
            )
            is_stale = prefix.searcher is not None and stale > MAX_STALE_SHARE * prefix.num_indexed
            if is_stale or (prefix.searcher is None and self._is_large(int(is_kept.sum()))):
                self._build(leaf, prefix.items, prefix.vectors)
                rebuilt.append(leaf)
        return rebuilt

    def copy(self) -> HostIndex:
        """A copy. Changes to it leave this index as it is; vectors and searchers are shared."""
        other = copy.copy(self)
        for name in ("_leaf", "_row", "_is_removed", "_prefixes"):
            setattr(other, name, getattr(self, name).copy())
        return other

    def update_to(
        self,
        leaf_of_item: Int32[np.ndarray, " I"],
        vectors: Float32[np.ndarray, "I D"],
        is_active: Bool[np.ndarray, " I"],
    ) -> list[int]:
        """Makes this the index of a later catalogue version; returns the leaves that are rebuilt.

        Items may be new, removed or restored, and leaves may have other numbers. But items that
        shared a leaf still share one, and every item has a leaf.

        Args:
          leaf_of_item, vectors, is_active: of all items of the later version; unit length.
        """
        num_before = len(self._leaf)
        self._leaf = leaf_of_item[:num_before].astype(np.int32)
        self._prefixes = {int(self._leaf[p.items[0]]): p for p in self._prefixes.values()}
        new = np.arange(num_before, len(leaf_of_item), dtype=np.int32)
        self.add(new, vectors[new], leaf_of_item[new])
        self._is_removed = ~is_active
        return self.compact()

    def save(self, folder: Path) -> None:
        """Writes `folder`, without vectors, which the catalogue holds.

        Files of a searcher that was loaded are linked, not written again.
        """
        folder.mkdir()
        leaves = np.array(list(self._prefixes), np.int32)
        prefixes = self._prefixes.values()
        none = np.zeros(0, np.int32)
        np.savez(
            folder / "prefixes.npz",
            leaf=leaves,
            size=np.array([len(p.items) for p in prefixes], np.int64),
            built=np.array([p.num_indexed for p in prefixes], np.int64),
            items=np.concatenate([none, *(p.items for p in prefixes)]),
        )
        searchers = {}
        for leaf, prefix in self._prefixes.items():
            if prefix.searcher is not None:
                searchers[leaf] = prefix.searcher.save(folder / str(leaf))
        settings = {"count": self._count, "scann_above": self._scann_above, "searchers": searchers}
        (folder / "index.json").write_text(json.dumps(settings))

    @classmethod
    def load(
        cls,
        folder: Path,
        vectors: Float32[np.ndarray, "I D"],
        is_active: Bool[np.ndarray, " I"],
    ) -> HostIndex:
        """The index that `save` wrote. ValueError if it needs scann, which is not installed.

        Args:
          vectors, is_active: of the catalogue version that it was saved with.
        """
        settings = json.loads((folder / "index.json").read_text())
        no_leaf = np.full(len(vectors), MISSING)
        index = cls(no_leaf, vectors, settings["count"], settings["scann_above"])
        index._is_removed = ~is_active
        with np.load(folder / "prefixes.npz") as file:
            columns = (file[name].tolist() for name in ("leaf", "size", "built"))
            lists = np.split(file["items"], np.cumsum(file["size"])[:-1])
            for leaf, _, num_indexed, items in zip(*columns, lists, strict=True):
                measured = settings["searchers"].get(str(leaf))
                searcher = None
                if measured is not None:
                    searcher = Searcher.load(folder / str(leaf), measured)
                table = np.ascontiguousarray(vectors[items], np.float32)
                index._prefixes[leaf] = Prefix(items, table, num_indexed, searcher)
                index._leaf[items], index._row[items] = leaf, np.arange(len(items))
        return index

    def _rebuild(self, leaf: int, without: np.ndarray) -> None:
        """Rebuilds a prefix without the items `without`, which then have no leaf."""
        prefix = self._prefixes[leaf]
        is_kept = ~np.isin(prefix.items, without)
        self._leaf[prefix.items[~is_kept]] = MISSING
        if is_kept.any():
            self._build(leaf, prefix.items[is_kept], prefix.vectors[is_kept])
        else:
            self._prefixes.pop(leaf)


def _group_by_leaf(leaves: Int[np.ndarray, " n"]) -> Iterator[tuple[int, np.ndarray]]:
    """(leaf, rows): each leaf but -1, and the rows of `leaves` that have it, ascending."""
    order = np.argsort(leaves, kind="stable")
    order = order[leaves[order] >= 0]
    distinct, starts = np.unique(leaves[order], return_index=True)
    for number, leaf in enumerate(distinct.tolist()):
        end = starts[number + 1] if number + 1 < len(starts) else len(order)
        yield leaf, order[starts[number] : end]


def leaves_of_items(trie: Trie) -> Int32[np.ndarray, " I"]:
    """The leaf of each item of a trie; HostIndex takes them."""
    sizes = np.diff(np.asarray(trie.leaf_start))
    leaves = np.full(trie.num_items, MISSING)
    leaves[np.asarray(trie.sorted_items)[: trie.num_items]] = np.repeat(
        np.arange(len(sizes)), sizes
    )
    return leaves
