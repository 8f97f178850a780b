"""Nearest items inside prefixes (Eq. 9 of SIGMA) on the host, for catalogues whose prefixes are
large: ScaNN where a prefix holds many items, a plain product elsewhere.

Items come and go without a rebuild: new ones lie beside what ScaNN knows of their prefix and are
compared one by one, removed ones are passed over; where too many are either, it is built anew
(`compact`), and so it is where an item is put into another place.

Axes: n queries, each with the leaf it looks into; I items, D dimensions, k items found.
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
from sigma_jax.index.prefix import NONE, Compared, Prefix, best_of, everything, log_mass
from sigma_jax.index.scann_searcher import HAS_SCANN, Searcher
from sigma_jax.index.trie import Trie

SCANN_ABOVE = 10_000  # items of a prefix from which ScaNN is faster than a product
STALE = 0.1  # share of a prefix, new or removed, above which `compact` builds it anew
GONE = 0.5  # share of a prefix, not wanted, above which a product is faster than passing them over


class HostIndex:
    """Items by leaf, on the host. It is not to be changed while another thread searches it."""

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
        self._row = np.full(len(vectors), NONE)  # of the item in its prefix
        self._is_removed = np.zeros(len(vectors), bool)
        self._prefixes: dict[int, Prefix] = {}
        for leaf, items in _groups(self._leaf):
            self._build(leaf, items.astype(np.int32), vectors[items])

    def _build(self, leaf: int, items: np.ndarray, vectors: np.ndarray) -> None:
        """The prefix of these items; its searcher knows those that are not removed."""
        is_removed = self._is_removed[items]
        order = np.argsort(is_removed, kind="stable")
        items, vectors = items[order], np.ascontiguousarray(vectors[order], np.float32)
        built = len(items) - int(is_removed.sum())
        searcher = Searcher.build(vectors[:built], self._count) if self._is_large(built) else None
        self._prefixes[leaf] = Prefix(items, vectors, built, searcher)
        self._row[items] = np.arange(len(items))

    def _is_large(self, size: int) -> bool:
        return HAS_SCANN and size >= self._scann_above

    @property
    def recall(self) -> Mapping[int, float]:
        """The measured recall of each leaf that ScaNN searches; a product finds all."""
        return {
            leaf: prefix.searcher.recall
            for leaf, prefix in self._prefixes.items()
            if prefix.searcher is not None
        }

    def only(self, is_allowed: Bool[np.ndarray, " I"]) -> HostIndex:
        """The same, but items that are not allowed are passed over as removed ones are."""
        shown = copy.copy(self)
        shown._is_removed = self._is_removed | ~is_allowed
        return shown

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
        return self._search(queries, leaves, count, excluded)[:2]

    def _search(
        self,
        queries: np.ndarray,
        leaves: np.ndarray,
        count: int,
        excluded: Sequence[np.ndarray] | None,
        inverse_temperature: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`search` and, where `inverse_temperature` of each query is given,
        logsumexp(inverse_temperature * product)
        over each leaf (-inf where it is empty or -1), of wanted items and others."""
        items = np.full((len(queries), count), NONE)
        products = np.full((len(queries), count), -np.inf, np.float32)
        totals = np.full(len(queries), -np.inf, np.float32)
        for leaf, rows in self._by_leaf(leaves):
            prefix, asked = self._prefixes[leaf], queries[rows]
            unwanted = []
            if excluded is not None:
                unwanted = [own[self._leaf[own] == leaf] for own in map(excluded.__getitem__, rows)]
            compared = self._compare(prefix, asked, count + max(map(len, unwanted), default=0))
            items[rows], products[rows] = self._wanted(prefix, asked, compared, count, unwanted)
            if inverse_temperature is not None:
                totals[rows] = log_mass(prefix, asked, compared, inverse_temperature[rows])
        return items, products, totals

    def search_beams(self, inputs: SearchInputs, count: int) -> Candidates:
        """The `count` items of each prefix nearest to its query, and the extra candidates (Eq. 9).

        It answers as `device_index.search` does, on NumPy arrays. The normaliser is an estimate
        where ScaNN searches a prefix. Ids of extra candidates that the index does not know are
        ignored. `inputs.active` is not read: see `only`.
        """
        queries, leaves = np.asarray(inputs.queries), np.asarray(inputs.leaves)
        leaves = np.where(np.asarray(inputs.is_valid), leaves, NONE)
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
        extra = self._extra_of(inputs, leaves, count)
        if extra is not None:
            added = self._listed(queries, leaves, extra, seen, items)
            columns = [np.concatenate(pair, axis=1) for pair in zip(columns, added, strict=True)]
        normaliser = normaliser.reshape(batch, beams)
        return Candidates(*columns, log_normaliser=normaliser, nearest=count)

    def _extra_of(
        self, inputs: SearchInputs, leaves: np.ndarray, count: int
    ) -> list[Int32[np.ndarray, " L"]] | None:
        """The extra candidates of each request: those given, and those nearest to its
        `extra_queries`."""
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

    def _by_leaf(self, leaves: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Each leaf that has items, and the queries that look into it."""
        return ((leaf, rows) for leaf, rows in _groups(leaves) if leaf in self._prefixes)

    def _compare(self, prefix: Prefix, queries: np.ndarray, count: int) -> Compared:
        """About the `count` nearest that are not removed, with the removed ones among them."""
        gone = 0.0
        if prefix.searcher is not None:
            gone = self._is_removed[prefix.items[: prefix.built]].mean()
        if prefix.searcher is None or gone > GONE:
            return everything(prefix, queries)
        wanted = count / (1 - gone)
        # As many more as mostly suffice where those that are gone lie anywhere.
        wanted = min(math.ceil(wanted + 3 * math.sqrt(wanted * gone)), prefix.built)
        rows, products = prefix.searcher(queries, wanted)
        least = products[:, min(wanted, products.shape[1]) - 1]
        new = prefix.built + np.flatnonzero(~self._is_removed[prefix.items[prefix.built :]])
        beside = queries @ prefix.vectors[new].T
        rows = np.concatenate([rows, np.tile(new, (len(queries), 1))], axis=1)
        return Compared(rows, np.concatenate([products, beside], axis=1), False, least)

    def _wanted(
        self,
        prefix: Prefix,
        queries: np.ndarray,
        compared: Compared,
        count: int,
        unwanted: list[np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best `count` of what was compared and may come; of all, where these are too few, or
        lie further than was searched for, since those that may not come are the nearest."""
        if compared.is_all:
            items = np.broadcast_to(prefix.items, compared.rows.shape)
            is_out = np.tile(self._is_removed[prefix.items], (len(items), 1))
        else:
            items = np.where(compared.rows >= 0, prefix.items[compared.rows], NONE)
            is_out = (items < 0) | self._is_removed[items]
        for row, own in enumerate(unwanted):
            is_out[row, self._row[own] if compared.is_all else np.isin(items[row], own)] = True
        products = np.where(is_out, -np.inf, compared.products).astype(np.float32)
        items, products = best_of(items, products, count)
        short = np.flatnonzero((items[:, -1] < 0) | (products[:, -1] < compared.least))
        if len(short) and not compared.is_all:
            own = [unwanted[row] for row in short] if unwanted else []
            every = everything(prefix, queries[short])
            more = self._wanted(prefix, queries[short], every, count, own)
            items[short], products[short] = more
        return items, products

    def _listed(
        self,
        queries: np.ndarray,
        leaves: np.ndarray,
        extra: list[np.ndarray],
        seen: np.ndarray | None,
        found: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Items, beams and products of the `extra` items in a beam's prefix that were not found.

        The width is EXTRA_WIDTH times a power of four: few widths, few compilations.
        """
        lists = []
        for row, wanted in enumerate(extra):
            wanted = wanted[(wanted >= 0) & (wanted < len(self._leaf))]
            wanted = wanted[~self._is_removed[wanted]]
            if seen is not None:
                wanted = wanted[~np.isin(wanted, seen[row])]
            wanted = wanted[~np.isin(wanted, found[row])]
            order = np.argsort(leaves[row], kind="stable")
            place = np.searchsorted(leaves[row], self._leaf[wanted], sorter=order)
            beam = order[np.minimum(place, len(order) - 1)]
            is_in_prefix = (leaves[row, beam] == self._leaf[wanted]) & (self._leaf[wanted] >= 0)
            lists.append((wanted[is_in_prefix], beam[is_in_prefix]))
        width = padded_width(max((len(items) for items, _ in lists), default=0))
        items = np.full((len(leaves), width), NONE)
        beams = np.zeros(items.shape, np.int32)
        products = np.full(items.shape, -np.inf, np.float32)
        for row, (wanted, beam) in enumerate(lists):
            items[row, : len(wanted)], beams[row, : len(wanted)] = wanted, beam
            for number in np.unique(beam):
                places = np.flatnonzero(beam == number)
                prefix = self._prefixes[int(leaves[row, number])]
                vectors = prefix.vectors[self._row[wanted[places]]]
                products[row, places] = vectors @ queries[row, number]
        return items, beams, products

    def add(
        self,
        items: Int32[np.ndarray, " J"],
        vectors: Float32[np.ndarray, "J D"],
        leaves: Int32[np.ndarray, " J"],
    ) -> None:
        """Adds items, none of them twice, or puts them in place of what they were: prefixes they
        were in are built anew. `vectors` have unit length. ValueError for a negative number.
        """
        if min(items.min(initial=0), leaves.min(initial=0)) < 0:
            raise ValueError("an item or a leaf to be added has a negative number.")
        size = int(items.max(initial=-1)) + 1 - len(self._leaf)
        if size > 0:
            self._leaf = np.pad(self._leaf, (0, size), constant_values=-1)
            self._row = np.pad(self._row, (0, size), constant_values=-1)
            self._is_removed = np.pad(self._is_removed, (0, size))
        for leaf in np.unique(self._leaf[items]).tolist():  # where they were before, removed or not
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
        """Removes items; they are passed over from now on. ValueError for an unknown one."""
        if len(items) and not 0 <= items.min() <= items.max() < len(self._leaf):
            raise ValueError(f"items to be removed lie outside 0..{len(self._leaf) - 1}.")
        self._is_removed[items] = True

    def compact(self) -> list[int]:
        """Builds anew what ScaNN knows of prefixes of which too many items are new or removed, and
        of those that have become large; their leaves."""
        found = []
        for leaf, prefix in list(self._prefixes.items()):
            is_shown = ~self._is_removed[prefix.items]
            stale = int((~is_shown[: prefix.built]).sum() + is_shown[prefix.built :].sum())
            is_stale = prefix.searcher is not None and stale > STALE * prefix.built
            if is_stale or (prefix.searcher is None and self._is_large(int(is_shown.sum()))):
                self._build(leaf, prefix.items, prefix.vectors)
                found.append(leaf)
        return found

    def copy(self) -> HostIndex:
        """One that can be changed while this one stays; what is large they share."""
        other = copy.copy(self)
        for name in ("_leaf", "_row", "_is_removed", "_prefixes"):
            setattr(other, name, getattr(self, name).copy())
        return other

    def follow(
        self,
        leaf_of_item: Int32[np.ndarray, " I"],
        vectors: Float32[np.ndarray, "I D"],
        is_active: Bool[np.ndarray, " I"],
    ) -> list[int]:
        """Becomes the index of a later version of its catalogue: items may be new, removed or back
        again, and leaves have other numbers, but whoever was in one leaf still is, and all items
        are in one. The leaves that are built anew."""
        known = len(self._leaf)
        self._leaf = leaf_of_item[:known].astype(np.int32)
        self._prefixes = {int(self._leaf[p.items[0]]): p for p in self._prefixes.values()}
        new = np.arange(known, len(leaf_of_item), dtype=np.int32)
        self.add(new, vectors[new], leaf_of_item[new])
        self._is_removed = ~is_active
        return self.compact()

    def save(self, folder: Path) -> None:
        """Writes `folder`, without vectors: those of the catalogue are beside it. What a searcher
        was loaded from is taken over."""
        folder.mkdir()
        leaves = np.array(list(self._prefixes), np.int32)
        prefixes = self._prefixes.values()
        none = np.zeros(0, np.int32)
        np.savez(
            folder / "prefixes.npz",
            leaf=leaves,
            size=np.array([len(p.items) for p in prefixes], np.int64),
            built=np.array([p.built for p in prefixes], np.int64),
            items=np.concatenate([none, *(p.items for p in prefixes)]),
        )
        searchers = {}
        for leaf, prefix in self._prefixes.items():
            if prefix.searcher is not None:
                searchers[leaf] = prefix.searcher.save(folder / str(leaf))
        said = {"count": self._count, "scann_above": self._scann_above, "searchers": searchers}
        (folder / "index.json").write_text(json.dumps(said))

    @classmethod
    def load(
        cls,
        folder: Path,
        vectors: Float32[np.ndarray, "I D"],
        is_active: Bool[np.ndarray, " I"],
    ) -> HostIndex:
        """What `save` wrote, over the catalogue it was saved with. ValueError without scann."""
        said = json.loads((folder / "index.json").read_text())
        none = np.full(len(vectors), NONE)
        index = cls(none, vectors, said["count"], said["scann_above"])
        index._is_removed = ~is_active
        with np.load(folder / "prefixes.npz") as file:
            columns = (file[name].tolist() for name in ("leaf", "size", "built"))
            items = np.split(file["items"], np.cumsum(file["size"])[:-1])
            for leaf, _, built, own in zip(*columns, items, strict=True):
                settings = said["searchers"].get(str(leaf))
                searcher = None
                if settings is not None:
                    searcher = Searcher.load(folder / str(leaf), settings)
                table = np.ascontiguousarray(vectors[own], np.float32)
                index._prefixes[leaf] = Prefix(own, table, built, searcher)
                index._leaf[own], index._row[own] = leaf, np.arange(len(own))
        return index

    def _rebuild(self, leaf: int, without: np.ndarray) -> None:
        prefix = self._prefixes[leaf]
        kept = ~np.isin(prefix.items, without)
        self._leaf[prefix.items[~kept]] = NONE
        if kept.any():
            self._build(leaf, prefix.items[kept], prefix.vectors[kept])
        else:
            self._prefixes.pop(leaf)


def _groups(leaves: Int[np.ndarray, " n"]) -> Iterator[tuple[int, np.ndarray]]:
    """Each leaf but -1, and the places that have it, ascending."""
    order = np.argsort(leaves, kind="stable")
    order = order[leaves[order] >= 0]
    known, starts = np.unique(leaves[order], return_index=True)
    for number, leaf in enumerate(known.tolist()):
        end = starts[number + 1] if number + 1 < len(starts) else len(order)
        yield leaf, order[starts[number] : end]


def leaves_of_items(trie: Trie) -> Int32[np.ndarray, " I"]:
    """The leaf of each item of a trie, as `HostIndex` takes them."""
    sizes = np.diff(np.asarray(trie.leaf_start))
    found = np.full(trie.num_items, NONE)
    found[np.asarray(trie.sorted_items)[: trie.num_items]] = np.repeat(np.arange(len(sizes)), sizes)
    return found
