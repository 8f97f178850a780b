"""What the scores of items say about prefixes: the first factor of Eq. 10 of SIGMA from the same
distribution over items as the second.

A model with an open query scores every item before any code is chosen. A prefix is worth the sum of
its items' exponentials; to its logarithm the log-probabilities of the codes are added, as far as
validation trusts them (sft/gains.py). On a CPU this is one matrix product a request over the
catalogue; the paper's letter does without it.

Axes: B requests, I items in the order of the trie's leaves, n nodes of a level.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from sigma_jax.generation.trie import Trie, padded_size
from sigma_jax.losses import LOG_ZERO, cosines


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ItemEvidence:
    """Item vectors by leaf, and the node each item lies under at each level."""

    vectors: Float[Array, "I D"]  # unit length; padding 0
    nodes: Int32[Array, "depth I"]  # within the level; padding is the number of nodes there
    temperature: float = dataclasses.field(metadata={"static": True})
    sizes: tuple[int, ...] = dataclasses.field(metadata={"static": True})  # nodes, rounded up

    def node_scores(self, queries: Float[Array, "B D"]) -> list[Float[Array, "B n"]]:
        """For levels 1, 2, ... the log of the summed exponentials of the items below each node."""
        scores = cosines(self.vectors, queries) / self.temperature
        top = scores.max(axis=0)
        mass = jnp.exp(scores - top)
        found = []
        for nodes, size in zip(self.nodes, self.sizes, strict=True):
            # Padding lies beyond the last node and is dropped.
            below = jax.ops.segment_sum(mass, nodes, size, indices_are_sorted=True)
            log_below = jnp.log(jnp.maximum(below, jnp.finfo(jnp.float32).tiny)) + top
            found.append(jnp.where(below > 0, log_below, LOG_ZERO).T)
        return found


def make_evidence(trie: Trie, vectors: Float[Array, "I D"], temperature: float) -> ItemEvidence:
    """Evidence over the leaves of `trie`; `vectors` in their order (PrefixIndex.vectors)."""
    level_start, edge_start = np.asarray(trie.level_start), np.asarray(trie.edge_start)
    starts = np.asarray(trie.leaf_start)[: trie.num_leaves + 1]
    node = np.repeat(np.arange(trie.num_leaves), np.diff(starts))
    levels, sizes = [], []
    for level in range(trie.depth, 0, -1):
        count = int(level_start[level + 1] - level_start[level])
        size = padded_size(count + 1)
        levels.append(np.full(vectors.shape[0], size, np.int32))
        levels[-1][: len(node)] = node
        sizes.append(size)
        # Edge e leads to the (e + 1)-th node counted over all levels (see `Trie`).
        edge = node + level_start[level] - 1
        node = np.searchsorted(edge_start, edge, side="right") - 1 - level_start[level - 1]
    nodes = np.stack(levels[::-1]) if levels else np.zeros((0, vectors.shape[0]), np.int32)
    return ItemEvidence(vectors, jnp.asarray(nodes), float(temperature), tuple(sizes[::-1]))
