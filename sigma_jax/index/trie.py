"""The trie of all SID prefixes of a catalogue, for beam search on the device.

trie_build.py builds it on the host.

Nodes are numbered level by level, in sorted order; node 0 is the root. Edges are numbered in the
same order, so edge e leads to node e + 1. The children of a node are one contiguous run of edges. A
step of the search gathers a run of fixed width, as in STATIC ("Sparse Transition Matrix-Accelerated
Trie Index for Constrained Decoding"). It needs no table of next states.

A leaf is a prefix of full depth. A node with one leaf below it is a tail. It has no edges: a beam
stays on it to the end, and `leaf_codes` holds the codes that follow. In a large catalogue with long
SIDs most nodes are tails. Without tails every item would have a node at every level.

Worked example, depth 3, SIDs of items 0..3 = (3,1,5) (0,2,4) (3,1,5) (3,0,6):

    level 1: nodes 1 = (0), a tail, and 2 = (3)
    level 2: nodes 3 = (3,0) and 4 = (3,1), both tails
    edge_code [0 3 | 0 1], edge_start [0 | 2 2 | 4 4], level_start [0 1 3 5 5]
    leaves in sorted order: 0 = (0,2,4), 1 = (3,0,6), 2 = (3,1,5)
    sorted_items [1 | 3 | 0 2], leaf_start [0 1 2 4], node_leaf [0 0 1 1 2]
    leaf_codes [2 4 | 0 6 | 1 5]: all codes but the first, since level 1 is the first with tails

Axes: E edges, P leaves, I items, C codes, W width of a level: the most children of a node, rounded
up.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, UInt16, UInt32

from sigma_jax.schema import read_npy

WORD_BITS = 32  # bits of a word of ActiveItems


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trie:
    """The trie as a pytree.

    Arrays are padded to few distinct sizes, so that similar catalogues share compiled programs. The
    axis `nodes` counts the nodes of all levels but the deepest, whose nodes have no edges.
    """

    edge_start: Int32[Array, " nodes+1"]  # edges of node v: edge_start[v]..edge_start[v + 1]
    edge_code: UInt16[Array, " E"]  # code of each edge; padding 0
    node_leaf: Int32[Array, " E+1"]  # first leaf below each node, for the nodes of all levels
    leaf_codes: UInt16[Array, "P n"]  # last codes of each leaf, from the first level with tails
    level_start: Int32[Array, " depth+2"]  # nodes before each level, then all nodes
    leaf_start: Int32[Array, " P+1"]  # items of leaf p: sorted_items[leaf_start[p]:leaf_start[p+1]]
    sorted_items: Int32[Array, " I"]  # by prefix, then by number; padding -1
    # Which codes follow each node, for levels without tails whose nodes have many children.
    dense: dict[str, Bool[Array, "nodes C"]]
    # The most children of a node at levels 0, 1, ..., rounded up to a power of two.
    widths: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    # Sizes of arrays with an entry for each node of levels 1, 2, ..., and at least one more.
    level_sizes: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @property
    def depth(self) -> int:
        """Number of SID levels the trie covers."""
        return len(self.widths)

    @property
    def first_tail_level(self) -> int:
        """The first level with tails; the depth if the trie has none."""
        return self.depth - self.leaf_codes.shape[1]

    @property
    def num_nodes(self) -> int:
        """Number of nodes of all levels (host only)."""
        return int(self.level_start[-1])

    @property
    def num_leaves(self) -> int:
        """Number of distinct prefixes (host only)."""
        return int(np.searchsorted(np.asarray(self.leaf_start), self.num_items))

    @property
    def num_items(self) -> int:
        """Number of items (host only)."""
        return int(self.leaf_start[-1])

    @property
    def largest_leaf(self) -> int:
        """Number of items of the largest prefix (host only)."""
        return int(np.diff(np.asarray(self.leaf_start)).max())

    def save(self, folder: Path) -> None:
        """Writes trie.json and an .npy file for each array into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in _ARRAYS:
            np.save(folder / f"trie_{name}.npy", np.asarray(getattr(self, name)))
        for level, table in self.dense.items():
            np.save(folder / f"trie_dense_{level}.npy", np.asarray(table))
        settings = {
            "widths": self.widths,
            "level_sizes": self.level_sizes,
            "dense": list(self.dense),
        }
        (folder / "trie.json").write_text(json.dumps(settings))

    @classmethod
    def load(cls, folder: Path) -> Trie:
        """The trie that `save` wrote, memory-mapped; `jax.device_put` brings it to the device.

        ValueError if a file is missing or damaged.
        """
        path = folder / "trie.json"
        try:
            settings = json.loads(path.read_text())
            static = (tuple(settings["widths"]), tuple(settings["level_sizes"]))
            levels = settings["dense"]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{path} is missing or damaged; build the trie again.") from error
        ndim = {"leaf_codes": 2}
        arrays: Any = (read_npy(folder / f"trie_{name}.npy", ndim.get(name, 1)) for name in _ARRAYS)
        dense = {level: read_npy(folder / f"trie_dense_{level}.npy", 2) for level in levels}
        widths, level_sizes = static
        return cls(*arrays, dense=dense, widths=widths, level_sizes=level_sizes)


_ARRAYS = tuple(field.name for field in dataclasses.fields(Trie))[:-3]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ActiveItems:
    """The items that may be recommended, such as those in stock, as bits.

    trie_build.mark_active makes it. Other active items of the same catalogue need no new trie and
    no new compilation. The lowest bit of a word stands first.
    """

    nodes: UInt32[Array, " words"]  # whether an active item lies below each node
    rows: UInt32[Array, " words"]  # whether sorted_items[row] is active
    dense: dict[str, Bool[Array, "nodes C"]]  # Trie.dense, of children with active items only

    def has_nodes(self, nodes: Int32[Array, "*N"]) -> Bool[Array, "*N"]:
        """Whether an active item lies below each node; any value for node -1."""
        return _bits(self.nodes, nodes)

    def has_rows(self, rows: Int32[Array, "*N"]) -> Bool[Array, "*N"]:
        """Whether each row of `sorted_items` holds an active item."""
        return _bits(self.rows, rows)


def _bits(words: UInt32[Array, " words"], places: Int32[Array, "*N"]) -> Bool[Array, "*N"]:
    """Whether the bit at each place is set; any value for place -1."""
    places = jnp.maximum(places, 0)
    word = jnp.asarray(words).at[places // WORD_BITS].get(mode="clip")
    return (word >> (places % WORD_BITS).astype(jnp.uint32)) & 1 == 1


def padded_size(size: int) -> int:
    """The next number of at most three significant bits, at least 8: 8, 10, 12, 14, 16, 20 ..."""
    size = max(size, 8)
    step = 1 << max(size.bit_length() - 3, 0)
    return -(-size // step) * step


def children(
    trie: Trie, level: int, nodes: Int32[Array, "*N"]
) -> tuple[Int32[Array, "*N W"], Int32[Array, "*N W"], Bool[Array, "*N W"]]:
    """(codes, children, is_valid) of `nodes`, which lie at `level`; the level of the root is 0.

    Entries that are not valid are -1. Node -1 stands for no beam and has no children. The one child
    of a tail is the tail itself.
    """
    assert 0 <= level < trie.depth, (level, trie.depth)
    edge_start, edge_code = jnp.asarray(trie.edge_start), jnp.asarray(trie.edge_code)
    is_node = nodes >= 0
    parents = jnp.where(is_node, nodes, 0)
    start, end = edge_start[parents], edge_start[parents + 1]
    slots = jnp.arange(trie.widths[level], dtype=jnp.int32)
    edges = start[..., None] + slots
    is_valid = is_node[..., None] & (edges < end[..., None])
    codes = edge_code.at[edges].get(mode="clip").astype(jnp.int32)
    child_nodes = edges + 1
    if level >= trie.first_tail_level:
        leaf = jnp.asarray(trie.node_leaf)[parents]
        tail_codes = jnp.asarray(trie.leaf_codes)[leaf, level - trie.first_tail_level].astype(
            jnp.int32
        )
        is_tail = (is_node & (start == end))[..., None] & (slots == 0)
        codes = jnp.where(is_tail, tail_codes[..., None], codes)
        child_nodes = jnp.where(is_tail, parents[..., None], child_nodes)
        is_valid |= is_tail
    return jnp.where(is_valid, codes, -1), jnp.where(is_valid, child_nodes, -1), is_valid


def child_of(
    trie: Trie, nodes: Int32[Array, "*N"], codes: Int32[Array, "*N"]
) -> Int32[Array, "*N"]:
    """The child of each node by its code, found by binary search.

    Each node must have the child, and must not be a tail.
    """
    edge_start, edge_code = jnp.asarray(trie.edge_start), jnp.asarray(trie.edge_code)
    low, high = edge_start[nodes], edge_start[nodes + 1]
    for _ in range(max(trie.widths).bit_length()):
        middle = (low + high) // 2
        is_right = (edge_code.at[middle].get(mode="clip") < codes) & (low < high)
        low, high = jnp.where(is_right, middle + 1, low), jnp.where(is_right, high, middle)
    return low + 1


def leaves_of(trie: Trie, nodes: Int32[Array, "*N"]) -> Int32[Array, "*N"]:
    """The leaf of each node at the end of beam search; -1 for node -1."""
    leaf = jnp.asarray(trie.node_leaf)[jnp.maximum(nodes, 0)]
    return jnp.where(nodes >= 0, leaf, -1)
