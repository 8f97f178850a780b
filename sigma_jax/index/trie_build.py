"""Builds the trie of trie.py and its active items on the host, in NumPy.

Axes: I items, L SID levels, P leaves.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64, UInt16

from sigma_jax.index.trie import WORD_BITS, ActiveItems, Trie, padded_size
from sigma_jax.shapes import power_of_two

MAX_LEVELS = 16
MAX_CODEBOOK_SIZE = 65_536
KEY_BITS = 64  # of the integers that `sort_order` sorts
# A level has a dense table of nodes and codes if the table has at most MAX_DENSE_CELLS cells, and
# if at least one cell in CELLS_PER_EDGE is an edge.
MAX_DENSE_CELLS = 2**24
CELLS_PER_EDGE = 8


def build_trie(
    codes: Int[np.ndarray, "I L"], depth: int, codebook_size: int, before: Trie | None = None
) -> Trie:
    """The trie over the first `depth` codes of every item; depth 0 is one leaf with all items.

    Several items may share a SID. ValueError if the arguments do not fit together (check_codes).

    Args:
      before: the trie of an older catalogue version. Its structure is kept (with_spare_capacity).
    """
    codes = np.asarray(codes)
    check_codes(codes, depth, codebook_size)
    narrow = codes[:, :depth].astype(np.uint16)
    order = sort_order(narrow, codebook_size)
    rows = narrow[order]
    shared = shared_codes(rows)
    leaf_start = np.flatnonzero(shared < depth) if depth else np.array([0])
    rows = rows[leaf_start]
    # The number of codes that leaf p shares with leaf p - 1. An extra last leaf shares none.
    shared = np.append(shared[leaf_start], np.int8(0))
    # The level at which each leaf is alone below its node. Its nodes end there.
    last = np.minimum(np.maximum(shared[:-1], shared[1:]) + 1, depth)
    first_tail_level = int(last.min(initial=depth))
    if before is not None:
        first_tail_level = min(first_tail_level, before.first_tail_level)
    level_leaves = [np.array([0])]  # the first leaf below each node, level by level
    edge_code, edge_start, widths, dense = [], [], [], {}
    edges = 0
    for level in range(1, depth + 1):
        # A node begins at each leaf that differs from the leaf before it and has not ended.
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
            is_dense = cells <= MAX_DENSE_CELLS and len(leaves) * CELLS_PER_EDGE >= cells
        if is_dense and level <= first_tail_level:  # the parents are not tails
            dense[str(level - 1)] = _dense_table(degrees, edge_code[-1], codebook_size)
        level_leaves.append(leaves)
        edges += len(leaves)
    counts = [len(leaves) for leaves in level_leaves]
    return Trie(
        edge_start=_pad(np.concatenate([*edge_start, [edges]]), edges, np.int32),
        edge_code=_pad(np.concatenate([*edge_code, []]), 0, np.uint16),
        node_leaf=_pad(np.concatenate(level_leaves), 0, np.int32),
        leaf_codes=_pad(rows[:, first_tail_level:], 0, np.uint16),
        level_start=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        leaf_start=_pad(np.append(leaf_start, len(codes)), len(codes), np.int32),
        sorted_items=_pad(order, -1, np.int32),
        dense=dense,
        widths=tuple(widths),
        level_sizes=tuple(padded_size(count + 1) for count in counts[1:]),
    )


def with_spare_capacity(trie: Trie, before: Trie | None = None) -> Trie:
    """`trie` in larger arrays, so that a catalogue that grows a little keeps its compiled programs.

    Args:
      before: the trie of an older version. Its array sizes are kept where they suffice.
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
        size = capacity_for(count, len(getattr(before, name)) if before is not None else 0)
        fill = {"sorted_items": -1, "edge_start": array[-1], "leaf_start": array[-1]}.get(name, 0)
        arrays[name] = np.full((size, *array.shape[1:]), fill, array.dtype)
        arrays[name][:count] = array[:count]
    dense = {}
    for level, table in trie.dense.items():
        size_before = len(before.dense.get(level, ())) if before is not None else 0
        size = max(capacity_for(len(table), size_before), len(table))
        dense[level] = np.pad(table, ((0, size - len(table)), (0, 0)))
    level_start, edge_start = np.asarray(trie.level_start), np.asarray(trie.edge_start)
    widths, sizes = [], []
    for level in range(trie.depth):
        nodes = slice(level_start[level], level_start[level + 1] + 1)
        most = int(np.diff(edge_start[nodes]).max(initial=1))
        width_before = before.widths[level] if before is not None else 0
        widths.append(width_before if most <= width_before else power_of_two(most + most // 8))
        count = int(level_start[level + 2] - level_start[level + 1]) + 1
        sizes.append(capacity_for(count, before.level_sizes[level] if before is not None else 0))
    return dataclasses.replace(
        trie, dense=dense, widths=tuple(widths), level_sizes=tuple(sizes), **arrays
    )


def capacity_for(count: int, before: int = 0) -> int:
    """Size of an array for `count` rows and an eighth more; `before` if it holds `count`."""
    return before if count <= before else padded_size(count + count // 8)


def mark_active(trie: Trie, is_active: Bool[np.ndarray, " I"]) -> ActiveItems:
    """The active items, as bits for the items and nodes of `trie`.

    ValueError if no item is active, or if there is not one flag for each item.
    """
    if is_active.shape != (trie.num_items,):
        raise ValueError(
            f"is_active has {len(is_active)} entries, but the trie has {trie.num_items} items; "
            "pass one flag for each item."
        )
    if not is_active.any():
        raise ValueError("is_active is False for all items; at least one item must be active.")
    leaf_start = np.asarray(trie.leaf_start)[: trie.num_leaves]
    level_start = np.asarray(trie.level_start)
    rows = is_active[np.asarray(trie.sorted_items)[: trie.num_items]]
    leaves = np.logical_or.reduceat(rows, leaf_start)
    nodes = leaves[np.asarray(trie.node_leaf)[: trie.num_nodes]]  # right for nodes without edges
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
    """Whether each item is active: the `is_active` that mark_active took."""
    items = np.asarray(trie.sorted_items)[: trie.num_items]
    bits = np.unpackbits(np.asarray(active.rows).view(np.uint8), bitorder="little")
    is_active = np.zeros(trie.num_items, bool)
    is_active[items] = bits[: trie.num_items]
    return is_active


def nodes_of_leaves(trie: Trie) -> Int64[np.ndarray, "depth P"]:
    """The node above each leaf at levels 1, 2, ..., numbered within its level; -1 below a tail."""
    level_start, edge_start = np.asarray(trie.level_start), np.asarray(trie.edge_start)
    leaves = np.arange(trie.num_leaves)
    above = np.empty((trie.depth, len(leaves)), np.int64)
    is_below_tail = np.zeros(len(leaves), bool)
    for level in range(1, trie.depth + 1):
        nodes = np.arange(level_start[level], level_start[level + 1])
        first = np.asarray(trie.node_leaf)[nodes]
        node = np.searchsorted(first, leaves, side="right") - 1
        above[level - 1] = np.where(is_below_tail, -1, node)
        if level < trie.depth:
            is_below_tail[first[edge_start[nodes] == edge_start[nodes + 1]]] = True
    return above


def sort_order(codes: UInt16[np.ndarray, "I L"], codebook_size: int) -> Int[np.ndarray, " I"]:
    """The rows of `codes` in the order of their codes; equal rows stay in their order.

    Each pass sorts integers that hold (group, some codes, place). This is several times faster than
    an indirect sort. Rows that are still equal form a group. They go into the next pass with the
    codes that follow.
    """
    bits = max(int(codebook_size - 1).bit_length(), 1)
    order = np.arange(len(codes), dtype=np.int32)
    places, groups = order.copy(), None  # of `order` that are not sorted yet
    level = 0
    while level < codes.shape[1] and len(places) > 1:
        place_bits = int(len(places) - 1).bit_length()
        group_bits = int(groups[-1]).bit_length() if groups is not None else 0
        count = min((KEY_BITS - place_bits - group_bits) // bits, codes.shape[1] - level)
        rows = order[places]
        if count < 1:  # KEY_BITS cannot hold the place, the group and one code
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
    """The number of first codes that each row shares with the row before it; 0 for the first."""
    shared = np.zeros(len(rows), np.int8)
    is_same = np.ones(len(rows) - 1, bool)
    for column in rows.T:
        is_same &= column[1:] == column[:-1]
        shared[1:] += is_same
    return shared


def check_codes(codes: np.ndarray, depth: int, codebook_size: int) -> None:
    """ValueError if `codes` [I, L] cannot be the SIDs of a trie with `depth` levels."""
    if codes.ndim != 2 or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(
            f"SIDs have shape {codes.shape} and type {codes.dtype}; pass integers [items, levels]."
        )
    items, levels = codes.shape
    if items == 0:
        raise ValueError("There are no items; a trie needs at least one.")
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


def _dense_table(
    degrees: Int[np.ndarray, " nodes"], codes: UInt16[np.ndarray, " edges"], codebook_size: int
) -> Bool[np.ndarray, "padded C"]:
    """Whether each node has an edge with each code.

    Args:
      degrees: the number of edges of each node.
      codes: the codes of these edges, node after node.
    """
    table = np.zeros((padded_size(len(degrees)), codebook_size), bool)
    table[np.repeat(np.arange(len(degrees)), degrees), codes] = True
    return table


def _words(bits: Bool[np.ndarray, " n"], size: int) -> Int32[np.ndarray, " words"]:
    """`bits` packed into words that hold `size` bits; bits beyond the last are 0."""
    padded = np.zeros(-(-size // WORD_BITS) * WORD_BITS, bool)
    padded[: len(bits)] = bits
    return np.packbits(padded, bitorder="little").view(np.uint32)


def _pad(array: np.ndarray, value: int, dtype: type) -> np.ndarray:
    """`array` in the next padded size, filled up with `value`."""
    padded = np.full((padded_size(len(array)), *array.shape[1:]), value, dtype)
    padded[: len(array)] = array
    return padded
