"""The trie of trie.py and its subsets, made on the host in NumPy."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64, UInt16

from sigma_jax.index.trie import WORD, ActiveItems, Trie, padded_size
from sigma_jax.shapes import power_of_two

MAX_LEVELS = 16
MAX_CODEBOOK_SIZE = 65_536
KEY_BITS = 64
DENSE_CELLS = 2**24  # of a level's table of nodes and codes, at most
DENSE_SHARE = 8  # nodes of the level have one of so many codes at least


def build_trie(
    codes: Int[np.ndarray, "I L"], depth: int, codebook_size: int, before: Trie | None = None
) -> Trie:
    """The trie over the first `depth` codes of every item; order and repeats do not matter.

    Depth 0 is one leaf with all items. `before`: of an older version of the catalogue, whose
    structure is kept (see `with_room`). ValueError where codes and settings do not fit.
    """
    codes = np.asarray(codes)
    check_codes(codes, depth, codebook_size)
    narrow = codes[:, :depth].astype(np.uint16)
    order = sort_order(narrow, codebook_size)
    rows = narrow[order]
    shared = shared_codes(rows)
    leaf_start = np.flatnonzero(shared < depth) if depth else np.array([0])
    rows = rows[leaf_start]
    # Codes that leaf p shares with the leaf before it; one more leaf at the end shares none.
    shared = np.append(shared[leaf_start], np.int8(0))
    # The level at which each leaf has a node to itself, where its nodes end.
    last = np.minimum(np.maximum(shared[:-1], shared[1:]) + 1, depth)
    tails_from = int(last.min(initial=depth))
    if before is not None:
        tails_from = min(tails_from, before.tails_from)
    level_leaves = [np.array([0])]  # the first leaf below each node, level by level
    edge_code, edge_start, widths, dense = [], [], [], {}
    edges = 0
    for level in range(1, depth + 1):
        # Leaf p is the first below a new node where it differs from p - 1, unless it ended before.
        leaves = np.flatnonzero((shared[:-1] < level) & (last >= level))
        start = np.searchsorted(leaves, level_leaves[-1])
        degrees = np.diff(start, append=len(leaves))
        edge_start.append(edges + start)
        edge_code.append(rows[leaves, level - 1])
        widths.append(power_of_two(degrees.max(initial=0)))
        if before is not None:
            is_dense = str(level - 1) in before.dense
        else:
            cells = len(degrees) * codebook_size
            is_dense = cells <= DENSE_CELLS and len(leaves) * DENSE_SHARE >= cells
        if is_dense and level <= tails_from:  # its parents are no tails
            table = np.zeros((padded_size(len(degrees)), codebook_size), bool)
            table[np.repeat(np.arange(len(degrees)), degrees), edge_code[-1]] = True
            dense[str(level - 1)] = table
        level_leaves.append(leaves)
        edges += len(leaves)
    counts = [len(leaves) for leaves in level_leaves]
    return Trie(
        edge_start=_pad(np.concatenate([*edge_start, [edges]]), edges, np.int32),
        edge_code=_pad(np.concatenate([*edge_code, []]), 0, np.uint16),
        node_leaf=_pad(np.concatenate(level_leaves), 0, np.int32),
        leaf_codes=_pad(rows[:, tails_from:], 0, np.uint16),
        level_start=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        leaf_start=_pad(np.append(leaf_start, len(codes)), len(codes), np.int32),
        sorted_items=_pad(order, -1, np.int32),
        dense=dense,
        widths=tuple(widths),
        level_sizes=tuple(padded_size(count + 1) for count in counts[1:]),
    )


def with_room(trie: Trie, before: Trie | None = None) -> Trie:
    """The same in larger arrays, so that a catalogue that grows a little keeps their shapes.

    Those of `before` where they suffice: the trie of an older version, whose shapes are compiled.
    """
    counts = {
        "edge_start": int(trie.level_start[trie.depth]) + 1,
        "edge_code": trie.num_nodes - 1,
        "node_leaf": trie.num_nodes,
        "leaf_codes": trie.num_leaves,
        "leaf_start": trie.num_leaves + 1,
        "sorted_items": trie.num_items,
    }
    arrays = {}
    for name, count in counts.items():
        array = np.asarray(getattr(trie, name))
        size = room_for(count, len(getattr(before, name)) if before is not None else 0)
        fill = {"sorted_items": -1, "edge_start": array[-1], "leaf_start": array[-1]}.get(name, 0)
        arrays[name] = np.full((size, *array.shape[1:]), fill, array.dtype)
        arrays[name][:count] = array[:count]
    dense = {}
    for level, table in trie.dense.items():
        known = len(before.dense.get(level, ())) if before is not None else 0
        size = max(room_for(len(table), known), len(table))
        dense[level] = np.pad(table, ((0, size - len(table)), (0, 0)))
    level_start, edge_start = np.asarray(trie.level_start), np.asarray(trie.edge_start)
    widths, sizes = [], []
    for level in range(trie.depth):
        nodes = slice(level_start[level], level_start[level + 1] + 1)
        most = int(np.diff(edge_start[nodes]).max(initial=1))
        known = before.widths[level] if before is not None else 0
        widths.append(known if most <= known else power_of_two(most + most // 8))
        count = int(level_start[level + 2] - level_start[level + 1]) + 1
        sizes.append(room_for(count, before.level_sizes[level] if before is not None else 0))
    return dataclasses.replace(
        trie, dense=dense, widths=tuple(widths), level_sizes=tuple(sizes), **arrays
    )


def room_for(count: int, before: int = 0) -> int:
    """Size of an array for `count` rows now and some more later; `before` where that suffices."""
    return before if count <= before else padded_size(count + count // 8)


def mark_active(trie: Trie, is_active: Bool[np.ndarray, " I"]) -> ActiveItems:
    """The subset of the active items of `trie`. ValueError where there is none."""
    if is_active.shape != (trie.num_items,):
        raise ValueError(
            f"{len(is_active)} items are active or not, the trie has {trie.num_items}; "
            "say so of each item."
        )
    if not is_active.any():
        raise ValueError("No item is active; a subset needs at least one.")
    leaf_start = np.asarray(trie.leaf_start)[: trie.num_leaves]
    level_start = np.asarray(trie.level_start)
    rows = is_active[np.asarray(trie.sorted_items)[: trie.num_items]]
    leaves = np.logical_or.reduceat(rows, leaf_start)
    nodes = leaves[np.asarray(trie.node_leaf)[: trie.num_nodes]]  # right of tails and of the last
    edge_start = np.asarray(trie.edge_start)
    for level in range(trie.depth - 1, -1, -1):
        here = np.arange(level_start[level], level_start[level + 1])
        start = edge_start[here]
        inner = here[edge_start[here + 1] > start]
        if len(inner):
            below = nodes[level_start[level + 1] : level_start[level + 2]]
            first = edge_start[inner] - edge_start[level_start[level]]
            nodes[inner] = np.logical_or.reduceat(below, first)
    dense = {}
    for level, table in trie.dense.items():
        above = np.arange(level_start[int(level)], level_start[int(level) + 1])
        parents = np.repeat(np.arange(len(above)), np.diff(edge_start[above[0] : above[-1] + 2]))
        edges = np.arange(edge_start[above[0]], edge_start[above[-1] + 1])
        dense[level] = np.zeros_like(table)
        dense[level][parents, np.asarray(trie.edge_code)[edges]] = nodes[edges + 1]
    sizes = (len(trie.node_leaf), len(trie.sorted_items))
    words: Any = (_words(bits, size) for bits, size in zip((nodes, rows), sizes, strict=True))
    return ActiveItems(*words, dense=dense)


def active_items(trie: Trie, active: ActiveItems) -> Bool[np.ndarray, " I"]:
    """What `subset` was made of."""
    items = np.asarray(trie.sorted_items)[: trie.num_items]
    bits = np.unpackbits(np.asarray(active.rows).view(np.uint8), bitorder="little")
    found = np.zeros(trie.num_items, bool)
    found[items] = bits[: trie.num_items]
    return found


def nodes_of_leaves(trie: Trie) -> Int64[np.ndarray, "depth P"]:
    """The node above each leaf at levels 1, 2, ...: numbered within the level, -1 below a tail."""
    level_start, edge_start = np.asarray(trie.level_start), np.asarray(trie.edge_start)
    leaves = np.arange(trie.num_leaves)
    found = np.empty((trie.depth, len(leaves)), np.int64)
    is_below_tail = np.zeros(len(leaves), bool)
    for level in range(1, trie.depth + 1):
        nodes = np.arange(level_start[level], level_start[level + 1])
        first = np.asarray(trie.node_leaf)[nodes]
        above = np.searchsorted(first, leaves, side="right") - 1
        found[level - 1] = np.where(is_below_tail, -1, above)
        if level < trie.depth:
            is_below_tail[first[edge_start[nodes] == edge_start[nodes + 1]]] = True
    return found


def sort_order(codes: UInt16[np.ndarray, "I L"], codebook_size: int) -> Int[np.ndarray, " I"]:
    """Rows in order of their codes, then of their number.

    Integers of (group, some codes, place) are sorted by value, several times faster than an
    indirect sort. Rows that are alike so far are a group and go into the next pass with the codes
    that follow.
    """
    bits = max(int(codebook_size - 1).bit_length(), 1)
    order = np.arange(len(codes), dtype=np.int32)
    places, groups = order.copy(), None  # rows of `order` that are not settled, and their groups
    level = 0
    while level < codes.shape[1] and len(places) > 1:
        place_bits = int(len(places) - 1).bit_length()
        group_bits = int(groups[-1]).bit_length() if groups is not None else 0
        count = min((KEY_BITS - place_bits - group_bits) // bits, codes.shape[1] - level)
        rows = order[places]
        if count < 1:  # of more rows than 64 bits can hold beside one code
            parts = codes[rows, level:].T[::-1]
            keys = parts if groups is None else [*parts, groups]
            order[places] = rows[np.lexsort(keys)]
            break
        key = np.zeros(len(places), np.uint64) if groups is None else groups.astype(np.uint64)
        for column in range(level, level + count):
            key <<= np.uint64(bits)
            key |= codes[rows, column]
        key <<= np.uint64(place_bits)
        key |= np.arange(len(places), dtype=np.uint64)
        key.sort()
        order[places] = rows[(key & np.uint64((1 << place_bits) - 1)).astype(np.int64)]
        key >>= np.uint64(place_bits)
        is_same = np.concatenate([[False], key[1:] == key[:-1], [False]])
        is_alike = is_same[1:] | is_same[:-1]
        groups = np.cumsum(~is_same[:-1][is_alike]) - 1
        places = places[is_alike]
        level += count
    return order


def shared_codes(rows: UInt16[np.ndarray, "I L"]) -> Int[np.ndarray, " I"]:
    """How many first codes each row shares with the row before it; 0 for the first."""
    shared = np.zeros(len(rows), np.int8)
    is_same = np.ones(len(rows) - 1, bool)
    for column in rows.T:
        is_same &= column[1:] == column[:-1]
        shared[1:] += is_same
    return shared


def check_codes(codes: np.ndarray, depth: int, codebook_size: int) -> None:
    """ValueError where these are no SIDs a trie can be made of."""
    if codes.ndim != 2 or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(
            f"SIDs of shape {codes.shape}, type {codes.dtype}: expected integers [items, levels]."
        )
    items, levels = codes.shape
    if items == 0:
        raise ValueError("There are no items; the trie needs at least one.")
    if not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"SIDs have {levels} levels; use 1 to {MAX_LEVELS}.")
    if not 0 <= depth <= levels:
        raise ValueError(f"depth={depth} does not fit SIDs of {levels} levels; use 0 to {levels}.")
    if not 1 <= codebook_size <= MAX_CODEBOOK_SIZE:
        raise ValueError(f"codebook_size={codebook_size}; use 1 to {MAX_CODEBOOK_SIZE}.")
    if codes.min() < 0 or codes.max() >= codebook_size:
        raise ValueError(
            f"SID codes lie in {codes.min()}..{codes.max()}; with codebook_size={codebook_size} "
            f"they must lie in 0..{codebook_size - 1}."
        )


def _words(bits: Bool[np.ndarray, " n"], size: int) -> Int32[np.ndarray, " words"]:
    padded = np.zeros(-(-size // WORD) * WORD, bool)
    padded[: len(bits)] = bits
    return np.packbits(padded, bitorder="little").view(np.uint32)


def _pad(array: np.ndarray, value: int, dtype: type) -> np.ndarray:
    padded = np.full((padded_size(len(array)), *array.shape[1:]), value, dtype)
    padded[: len(array)] = array
    return padded
