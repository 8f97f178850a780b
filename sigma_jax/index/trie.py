"""The trie of real SID prefixes, as the device walks it. trie_build.py makes it on the host.

Nodes are numbered level by level, in sorted order; node 0 is the root. The edge into the next node
is the next edge, so a node's children are one contiguous run of edges, edge e leads to node e + 1,
and a step gathers a burst of fixed width, as in STATIC ("Sparse Transition Matrix-Accelerated Trie
Index for Constrained Decoding"), without a table of next states.

A node with one prefix below it is a tail: it has no edges, a beam stays on it to the end, and the
codes that follow are read from the prefix itself. A large catalogue of long SIDs is mostly tails:
without them every item would have a node at every level.

Worked example, depth 3, SIDs of items 0..3 = (3,1,5) (0,2,4) (3,1,5) (3,0,6):
level 1 has nodes 1 = (0), a tail, and 2 = (3); level 2 has nodes 3 = (3,0) and 4 = (3,1), tails;
edge_code [0 3 | 0 1], edge_start [0 | 2 2 | 4 4], level_start [0 1 3 5 5];
leaves are the prefixes in order, 0 = (0,2,4) 1 = (3,0,6) 2 = (3,1,5), with sorted_items
[1 | 3 | 0 2], leaf_start [0 1 2 4], leaf_codes [2 4 | 0 6 | 1 5], node_leaf [0 0 1 1 2].
The first level with tails is 1, so leaf_codes hold all but the first.
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

WORD = 32  # bits of a word of a ActiveItems


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trie:
    """A pytree; arrays are padded to few distinct sizes: similar catalogues share one compile.

    `nodes` here are those of all levels but the deepest, which has no edges.
    """

    edge_start: Int32[Array, " nodes+1"]  # edges of node v: edge_start[v]..edge_start[v + 1]
    edge_code: UInt16[Array, " E"]  # padding 0
    node_leaf: Int32[Array, " E+1"]  # of each node of all levels, the first leaf below it
    leaf_codes: UInt16[Array, "P n"]  # of each leaf, the last codes: those that tails can have
    level_start: Int32[Array, " depth+2"]  # nodes before each level, then all nodes
    leaf_start: Int32[Array, " P+1"]  # items of leaf p: sorted_items[leaf_start[p]:leaf_start[p+1]]
    sorted_items: Int32[Array, " I"]  # by prefix, then by number; padding -1
    # Of levels without tails, with few nodes and many codes behind each: which codes they are.
    dense: dict[str, Bool[Array, "nodes C"]]
    widths: tuple[int, ...] = dataclasses.field(metadata={"static": True})  # powers of two
    # More than the nodes of levels 1, 2, ...: sizes of arrays by node of a level.
    level_sizes: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @property
    def depth(self) -> int:
        """Number of SID levels the trie covers."""
        return len(self.widths)

    @property
    def tails_from(self) -> int:
        """The first level whose nodes may be tails; the depth where none is."""
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
        """Items of the fullest prefix (host only)."""
        return int(np.diff(np.asarray(self.leaf_start)).max())

    def save(self, folder: Path) -> None:
        """Writes the arrays as .npy files into `folder`."""
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
        """The trie in `folder`, memory-mapped; `jax.device_put` brings it to the device."""
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
    """The items that may be recommended, such as those in stock: bits, the lowest of a word first.

    Made by trie_build.subset; another subset of the same catalogue needs no new trie and no new
    compilation.
    """

    nodes: UInt32[Array, " words"]  # whether a node has such an item below it
    rows: UInt32[Array, " words"]  # whether sorted_items[row] is one
    dense: dict[str, Bool[Array, "nodes C"]]  # as in the trie, of such children

    def has_nodes(self, nodes: Int32[Array, "*N"]) -> Bool[Array, "*N"]:
        """Whether each node leads to an item of the subset; nodes of -1 no matter what."""
        return _bits(self.nodes, nodes)

    def has_rows(self, rows: Int32[Array, "*N"]) -> Bool[Array, "*N"]:
        """Whether each row of sorted_items holds an item of the subset."""
        return _bits(self.rows, rows)


def _bits(words: UInt32[Array, " words"], places: Int32[Array, "*N"]) -> Bool[Array, "*N"]:
    places = jnp.maximum(places, 0)
    word = jnp.asarray(words).at[places // WORD].get(mode="clip")
    return (word >> (places % WORD).astype(jnp.uint32)) & 1 == 1


def padded_size(size: int) -> int:
    """The next number of at most three significant bits, at least 8: 8, 10, 12, 14, 16, 20 ..."""
    size = max(size, 8)
    step = 1 << max(size.bit_length() - 3, 0)
    return -(-size // step) * step


def children(
    trie: Trie, level: int, nodes: Int32[Array, "*N"]
) -> tuple[Int32[Array, "*N W"], Int32[Array, "*N W"], Bool[Array, "*N W"]]:
    """Codes and nodes that follow `nodes` at `level` (the root's is 0), and which are real.

    W is the level's width. A node of -1 (no beam) has no children. Unreal entries are -1. The one
    child of a tail is the tail itself.
    """
    assert 0 <= level < trie.depth, (level, trie.depth)
    edge_start, edge_code = jnp.asarray(trie.edge_start), jnp.asarray(trie.edge_code)
    is_node = nodes >= 0
    known = jnp.where(is_node, nodes, 0)
    start, end = edge_start[known], edge_start[known + 1]
    slots = jnp.arange(trie.widths[level], dtype=jnp.int32)
    edges = start[..., None] + slots
    is_valid = is_node[..., None] & (edges < end[..., None])
    codes = edge_code.at[edges].get(mode="clip").astype(jnp.int32)
    found = edges + 1
    if level >= trie.tails_from:
        leaf = jnp.asarray(trie.node_leaf)[known]
        own = jnp.asarray(trie.leaf_codes)[leaf, level - trie.tails_from].astype(jnp.int32)
        is_own = (is_node & (start == end))[..., None] & (slots == 0)
        codes = jnp.where(is_own, own[..., None], codes)
        found = jnp.where(is_own, known[..., None], found)
        is_valid |= is_own
    return jnp.where(is_valid, codes, -1), jnp.where(is_valid, found, -1), is_valid


def child_of(
    trie: Trie, nodes: Int32[Array, "*N"], codes: Int32[Array, "*N"]
) -> Int32[Array, "*N"]:
    """The child of each node with a code it has, by binary search; no tails."""
    edge_start, edge_code = jnp.asarray(trie.edge_start), jnp.asarray(trie.edge_code)
    low, high = edge_start[nodes], edge_start[nodes + 1]
    for _ in range(max(trie.widths).bit_length()):
        middle = (low + high) // 2
        is_right = (edge_code.at[middle].get(mode="clip") < codes) & (low < high)
        low, high = jnp.where(is_right, middle + 1, low), jnp.where(is_right, high, middle)
    return low + 1


def leaves_of(trie: Trie, nodes: Int32[Array, "*N"]) -> Int32[Array, "*N"]:
    """The leaf each node is at the end of a walk; -1 for a node of -1."""
    leaf = jnp.asarray(trie.node_leaf)[jnp.maximum(nodes, 0)]
    return jnp.where(nodes >= 0, leaf, -1)
