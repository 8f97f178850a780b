"""The trie of real SID prefixes: built once on the host in NumPy, walked on the device in JAX.

Nodes are numbered within their level, in sorted order: 0 at level 0 is the root, and node p at the
deepest level is prefix (leaf) p. Counted over all levels, the edge into the next node is the next
edge, so a node's children are one contiguous run of edges, and a step gathers a burst of fixed
width, as in STATIC ("Sparse Transition Matrix-Accelerated Trie Index for Constrained Decoding"),
without a table of next states.

Worked example, depth 2, SIDs of items 0..3 = (3,1) (0,2) (3,1) (3,0):
level 1 has nodes 0 = (0) 1 = (3); level 2 has leaves 0 = (0,2) 1 = (3,0) 2 = (3,1);
edge_code [0 3 | 2 0 1], edge_start [0 | 2 3 | 5], level_start [0 1 3 6];
leaves hold sorted_items [1 | 3 | 0 2], leaf_start [0 1 2 4].
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32

from sigma_jax.schema import read_npy

MAX_LEVELS = 16
MAX_CODEBOOK_SIZE = 65_536


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trie:
    """A pytree; arrays are padded to few distinct sizes: similar catalogues share one compile."""

    edge_start: Int32[Array, " inner+1"]  # edges of the v-th node: edge_start[v]..edge_start[v + 1]
    edge_code: Int[Array, " E"]  # uint16; padding 0
    level_start: Int32[Array, " depth+2"]  # nodes before each level, then all nodes
    first_nodes: Int32[Array, " C"]  # level-1 node of each code, -1 where absent
    leaf_start: Int32[Array, " P+1"]  # items of leaf p: sorted_items[leaf_start[p]:leaf_start[p+1]]
    sorted_items: Int32[Array, " I"]  # by prefix, then by number; padding -1
    widths: tuple[int, ...] = dataclasses.field(metadata={"static": True})  # powers of two

    @property
    def depth(self) -> int:
        """Number of SID levels the trie covers."""
        return len(self.widths)

    @property
    def num_leaves(self) -> int:
        """Number of distinct prefixes (host only)."""
        return int(self.level_start[-1] - self.level_start[-2])

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
        (folder / "trie.json").write_text(json.dumps({"widths": self.widths}))

    @classmethod
    def load(cls, folder: Path) -> Trie:
        """The trie in `folder`, memory-mapped; `jax.device_put` brings it to the device."""
        path = folder / "trie.json"
        try:
            widths = tuple(json.loads(path.read_text())["widths"])
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{path} is missing or damaged; build the trie again.") from error
        return cls(*(read_npy(folder / f"trie_{name}.npy", 1) for name in _ARRAYS), widths)


_ARRAYS = tuple(field.name for field in dataclasses.fields(Trie))[:-1]


def padded_size(size: int) -> int:
    """The next number of at most three significant bits, at least 8: 8, 10, 12, 14, 16, 20 ..."""
    size = max(size, 8)
    step = 1 << max(size.bit_length() - 3, 0)
    return -(-size // step) * step


def power_of_two(count: int) -> int:
    """The least that is not under `count`, at least 1: 1, 2, 4, 8 ..."""
    return 1 << max(int(count) - 1, 0).bit_length()


def build_trie(codes: Int32[np.ndarray, "I L"], depth: int, codebook_size: int) -> Trie:
    """The trie over the first `depth` codes of every item; order and repeats do not matter.

    Depth 0 is one leaf with all items.
    """
    codes = np.asarray(codes)
    _check(codes, depth, codebook_size)
    order = _sort_order(codes[:, :depth], codebook_size)
    prefixes = codes[order, :depth]
    # Row i opens a new node at level t where any of its first t codes differs from row i - 1's.
    is_new = np.zeros(len(codes), bool)
    is_new[0] = True
    node_rows, parents, level_codes = [], [], []
    parent = np.zeros(len(codes), np.int64)  # node of each row at the level above, within the level
    for level in range(depth):
        column = prefixes[:, level]
        is_new[1:] |= column[1:] != column[:-1]
        rows = np.flatnonzero(is_new)
        node_rows.append(rows)
        parents.append(parent[rows])
        level_codes.append(column[rows])
        parent = np.cumsum(is_new) - 1
    counts = np.array([1] + [len(rows) for rows in node_rows])
    level_start = np.concatenate([[0], np.cumsum(counts)])
    degrees = [np.bincount(p, minlength=n) for p, n in zip(parents, counts, strict=False)]
    edge_start = np.concatenate([[0], np.cumsum(np.concatenate([*degrees, []]))])
    first_nodes = np.full(codebook_size, -1, np.int32)
    if depth:
        first_nodes[level_codes[0]] = np.arange(counts[1])
    leaf_start = np.concatenate([node_rows[-1] if depth else [0], [len(codes)]])
    return Trie(
        edge_start=_pad(edge_start, edge_start[-1], np.int32),
        edge_code=_pad(np.concatenate([*level_codes, []]), 0, np.uint16),
        level_start=level_start.astype(np.int32),
        first_nodes=first_nodes,
        leaf_start=_pad(leaf_start, len(codes), np.int32),
        sorted_items=_pad(order, -1, np.int32),
        widths=tuple(power_of_two(degree.max()) for degree in degrees),
    )


def children(
    trie: Trie, level: int, nodes: Int32[Array, "*N"]
) -> tuple[Int32[Array, "*N W"], Int32[Array, "*N W"], Bool[Array, "*N W"]]:
    """Codes and nodes that follow `nodes` of `level` (the root is level 0), and which are real.

    W is the level's width. A node of -1 (no beam) has no children. Unreal entries are -1. Children
    of level depth - 1 are the leaves, numbered as in `leaf_start`.
    """
    assert 0 <= level < trie.depth, (level, trie.depth)
    edge_start, edge_code = jnp.asarray(trie.edge_start), jnp.asarray(trie.edge_code)
    level_start = jnp.asarray(trie.level_start)
    is_node = nodes >= 0
    rows = level_start[level] + jnp.where(is_node, nodes, 0)
    start, end = edge_start[rows], edge_start[rows + 1]
    edges = start[..., None] + jnp.arange(trie.widths[level], dtype=jnp.int32)
    is_valid = is_node[..., None] & (edges < end[..., None])
    codes = edge_code.at[edges].get(mode="clip").astype(jnp.int32)
    # Edge e leads to the (e + 1)-th node counted over all levels: the root has no edge to it.
    next_nodes = edges + 1 - level_start[level + 1]
    return jnp.where(is_valid, codes, -1), jnp.where(is_valid, next_nodes, -1), is_valid


def _check(codes: np.ndarray, depth: int, codebook_size: int) -> None:
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


def _sort_order(codes: np.ndarray, codebook_size: int) -> Int[np.ndarray, " I"]:
    """Rows in order of their codes, then of their number."""
    bits = max(int(codebook_size - 1).bit_length(), 1)
    if not codes.shape[1]:
        return np.arange(len(codes))
    if bits * codes.shape[1] > 63:
        return np.lexsort(codes.T[::-1])  # stable
    key = np.zeros(len(codes), np.int64)  # one integer a row sorts several times faster
    for column in codes.T:
        key = (key << bits) | column
    return np.argsort(key, kind="stable")


def _pad(array: np.ndarray, value: int, dtype: type) -> np.ndarray:
    padded = np.full(padded_size(len(array)), value, dtype)
    padded[: len(array)] = array
    return padded
