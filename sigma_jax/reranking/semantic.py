"""Semantic match: how near the text of an item is to the instruction.

A pre-trained sentence encoder gives both a vector. It knows words that no training instruction has:
"my cat is hungry" is near to cat food. An item's group says what kind of thing it is. A group has
many texts, so its mean vector is a steadier sign of what is asked for than a single text.

    semantic_match(i) = cosine(instruction, text of i)
    semantic_group_match(i) = cosine(instruction, mean text of i's group)

The groups are the categories of the catalogue, or else the items of one first code.

Axes: B requests, N candidates, I items, G groups, E dimensions of the encoder.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

from sigma_jax.index.device_index import exact_einsum
from sigma_jax.losses import unit

SEMANTIC_FEATURES = ("semantic_match", "semantic_group_match")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SemanticArrays:
    """Text vectors of items and groups, on the device."""

    items: Float[Array, "I E"]
    lengths: Float32[Array, " I"]  # of the items' vectors
    groups: Float32[Array, "G E"]  # unit length
    group: Int32[Array, " I"]  # of each item

    @classmethod
    def make(cls, vectors: Float[Array, "I E"], group: Int[np.ndarray, " I"]) -> SemanticArrays:
        """The arrays for the text vectors of all items.

        Args:
          group: the number of each item's group; -1: none, which counts as one group.
        """
        group = jnp.asarray(np.asarray(group) + 1, jnp.int32)
        count = int(group.max(initial=0)) + 1
        sums = jax.ops.segment_sum(unit(vectors), group, count)
        lengths = jnp.maximum(jnp.linalg.norm(vectors, axis=-1), 1e-9)
        return cls(vectors, lengths, unit(sums), group)

    def scores(
        self, queries: Float[Array, "B E"], items: Int32[Array, "B N"]
    ) -> Float32[Array, "B N 2"]:
        """SEMANTIC_FEATURES of each candidate. Item -1 gets the scores of item 0.

        Args:
          queries: vectors of the instructions, unit length.
        """
        items = jnp.maximum(items, 0)
        if items.shape[1] * 2 > len(self.items):  # one product is cheaper than gathering vectors
            of_all = exact_einsum("BE,IE->BI", queries, self.items)
            products = jnp.take_along_axis(of_all, items, axis=1)
        else:
            products = exact_einsum("BE,BNE->BN", queries, self.items[items])
        match = products / self.lengths[items]
        of_groups = exact_einsum("BE,GE->BG", queries, self.groups)
        of_group = jnp.take_along_axis(of_groups, self.group[items], axis=1)
        return jnp.stack([match, of_group], axis=-1)
