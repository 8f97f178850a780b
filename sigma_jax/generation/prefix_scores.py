"""Prefix scores: the first factor of Eq. 10 of SIGMA from the item head's scores.

A network with an item head scores every item before any code is chosen. The score of a prefix is
the log-sum-exp of the scores of its items. Beam search adds the log-probabilities of the code head
to it, with a fitted weight (head_weights.py). The paper has no prefix scores.

Up to EXACT_ITEMS items the scores are exact, at the cost of one matrix product over the catalogue.
In a larger catalogue each prefix is taken for a normal distribution of item vectors, so that

    log sum of exp(h . v_i / tau) ~ log n + h . mean / tau + h^2 . variance / (2 tau^2)

and the cost is two products over the prefixes.

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

EXACT_ITEMS = 2**20
ROWS_A_STEP = 2**18  # rows whose sums are taken at a time
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SummaryScorer:
    """The number, the mean and the variance of the item vectors below each node, by level."""

    counts: list[Float[Array, " n"]]
    means: list[Float[Array, "n D"]]
    variances: list[Float[Array, "n D"]]
    temperature: float = dataclasses.field(metadata={"static": True})

    @classmethod
    def make(cls, exact: PrefixScorer) -> SummaryScorer:
        """The summaries of the prefixes of an exact scorer."""
        counts, means, variances = [], [], []
        for nodes, size in zip(exact.nodes, exact.sizes, strict=True):
            count, total, squares = 0.0, 0.0, 0.0
            for start in range(0, len(exact.vectors), ROWS_A_STEP):
                rows = exact.vectors[start : start + ROWS_A_STEP].astype(jnp.float32)
                of_rows = nodes[start : start + ROWS_A_STEP]
                count += jax.ops.segment_sum(jnp.ones(len(rows)), of_rows, size)
                total += jax.ops.segment_sum(rows, of_rows, size)
                squares += jax.ops.segment_sum(jnp.square(rows), of_rows, size)
            mean = total / jnp.maximum(count, 1)[:, None]
            counts.append(count)
            means.append(mean)
            variance = squares / jnp.maximum(count, 1)[:, None] - jnp.square(mean)
            variances.append(jnp.maximum(variance, 0))
        return cls(counts, means, variances, exact.temperature)

    def node_scores(self, queries: Float[Array, "B D"]) -> list[Float[Array, "B n"]]:
        """Prefix scores of the nodes of levels 1, 2, ...

        Args:
          queries: item_head_vector of each request, unit length.
        """
        scaled, by_level = queries.astype(jnp.float32) / self.temperature, []
        for count, mean, variance in zip(self.counts, self.means, self.variances, strict=True):
            scores = cosines(scaled, mean) + cosines(jnp.square(scaled), variance) / 2
            scores += jnp.log(jnp.maximum(count, 1))
            by_level.append(jnp.where(count > 0, scores, LOG_ZERO))
        return by_level


Scorer = PrefixScorer | SummaryScorer


def make_prefix_scorer(trie: Trie, vectors: Float[Array, "I D"], temperature: float) -> Scorer:
    """The prefix scorer of a trie: exact for at most EXACT_ITEMS items.

    Args:
      vectors: in the order of the leaves, unit length (DeviceIndex.vectors).
      temperature: tau of Eq. 11, by which cosines are divided.
    """
    items_of_leaf = np.diff(np.asarray(trie.leaf_start)[: trie.num_leaves + 1])
    sizes = trie.level_sizes
    nodes = np.tile(np.array(sizes, np.int32)[:, None], vectors.shape[0])
    for size, row, above in zip(sizes, nodes, nodes_of_leaves(trie), strict=True):
        row[: trie.num_items] = np.repeat(np.where(above < 0, size, above), items_of_leaf)
    exact = PrefixScorer(vectors, jnp.asarray(nodes), float(temperature), sizes)
    return exact if trie.num_items <= EXACT_ITEMS else SummaryScorer.make(exact)
