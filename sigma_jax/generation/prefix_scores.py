"""Prefix scores: the first factor of Eq. 10 of SIGMA from the item head's scores.

A network with an item head scores every item before any code is chosen. The score of a prefix is
the log-sum-exp of the scores of its items. Beam search adds the log-probabilities of the code head
to it, with a fitted weight (head_weights.py). The cost is one matrix product over the catalogue for
each request. The paper has no prefix scores.

Axes: B requests, I items in the order of the trie's leaves, n nodes of a level, D dimensions.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from sigma_jax.index.trie import Trie
from sigma_jax.index.trie_build import nodes_of_leaves
from sigma_jax.losses import LOG_ZERO, cosines, map_row_chunks

SCORES_A_STEP = 2**26  # entries of [requests, items] that exist at once: 256 MB of float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PrefixScorer:
    """Item vectors in the order of leaves, and the node above each item at each level."""

    vectors: Float[Array, "I D"]  # unit length; padding 0
    nodes: Int32[Array, "depth I"]  # number within the level; beyond the last for no node
    temperature: float = dataclasses.field(metadata={"static": True})
    sizes: tuple[int, ...] = dataclasses.field(metadata={"static": True})  # Trie.level_sizes

    def node_scores(self, queries: Float[Array, "B D"]) -> list[Float[Array, "B n"]]:
        """Prefix scores of the nodes of levels 1, 2, ...

        Args:
          queries: item_head_vector of each request, unit length.
        """
        at_once = max(SCORES_A_STEP // len(self.vectors), 1)
        return map_row_chunks(self._node_scores, queries, at_once)

    def _node_scores(self, queries: Float[Array, "b D"]) -> list[Float[Array, "b n"]]:
        scores = cosines(self.vectors, queries) / self.temperature
        top = scores.max(axis=0)
        mass = jnp.exp(scores - top)
        by_level = []
        for level, (nodes, size) in enumerate(zip(self.nodes, self.sizes, strict=True)):
            # Padding and items below a tail have a number beyond the last node, so their rows are
            # dropped. The numbers ascend at the first level only: it lies below no tail.
            mass_below = jax.ops.segment_sum(mass, nodes, size, indices_are_sorted=level == 0)
            log_below = jnp.log(jnp.maximum(mass_below, jnp.finfo(jnp.float32).tiny)) + top
            by_level.append(jnp.where(mass_below > 0, log_below, LOG_ZERO).T)
        return by_level


def make_prefix_scorer(
    trie: Trie, vectors: Float[Array, "I D"], temperature: float
) -> PrefixScorer:
    """The prefix scorer of a trie.

    Args:
      vectors: in the order of the leaves, unit length (DeviceIndex.vectors).
      temperature: tau of Eq. 11, by which cosines are divided.
    """
    items_of_leaf = np.diff(np.asarray(trie.leaf_start)[: trie.num_leaves + 1])
    sizes = trie.level_sizes
    nodes = np.tile(np.array(sizes, np.int32)[:, None], vectors.shape[0])
    for size, row, above in zip(sizes, nodes, nodes_of_leaves(trie), strict=True):
        row[: trie.num_items] = np.repeat(np.where(above < 0, size, above), items_of_leaf)
    return PrefixScorer(vectors, jnp.asarray(nodes), float(temperature), sizes)
