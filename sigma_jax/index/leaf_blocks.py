"""Blocks of items with the same prefix: each item is multiplied with the query of its prefix only.

A list of all items needs one product an item: with the query of the beam that the item's prefix
has, or with the root's. A plain product of all items and all M queries computes M products an item
and drops M - 1 of them. So the items of each leaf lie in blocks of BLOCK_SIZES rows, the last block
of a leaf padded, and each block is multiplied with one query a request.

Worked example, leaves of 3, 1 and 2 items, blocks of 2 rows ("-" is padding):

    rows    0 1 | 2 - | 3 - | 4 5
    leaf     0     0     1     2

Axes: B requests, I items, M beams, P leaves, N blocks, R rows of a block, D dimensions.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from sigma_jax.shapes import power_of_two

BLOCK_SIZES = (8, 16, 32, 64, 128)  # rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LeafBlocks:
    """The item vectors of an index, in blocks of one leaf each."""

    vectors: Float[Array, "N R D"]  # 0 for padding
    leaf: Int32[Array, " N"]
    place: Int32[Array, " I"]  # of each row of the index, among all rows of all blocks

    @classmethod
    def make(
        cls, vectors: Float32[np.ndarray, "I D"], leaf_start: Int32[np.ndarray, " P+1"]
    ) -> LeafBlocks:
        """The blocks of `vectors`, with the block size that needs the least memory.

        The number of blocks is a power of two, so that similar catalogues share programs.

        Args:
          vectors: in the order of leaves; rows behind the last leaf are padding.
          leaf_start: first row of each leaf, then the number of items.
        """
        sizes = np.diff(leaf_start)

        def blocks(rows: int) -> int:
            return power_of_two(int((-(-sizes // rows)).sum()))

        rows = min(BLOCK_SIZES, key=lambda rows: rows * blocks(rows))
        of_leaf = -(-sizes // rows)
        first = np.cumsum(of_leaf) - of_leaf  # block of each leaf
        count, items = blocks(rows), int(leaf_start[-1])
        leaf_of_row = np.repeat(np.arange(len(sizes)), sizes)
        place = np.zeros(len(vectors), np.int32)
        place[:items] = first[leaf_of_row] * rows + np.arange(items) - leaf_start[leaf_of_row]
        table = np.zeros((count * rows, vectors.shape[1]), np.float32)
        table[place[:items]] = vectors[:items]
        leaf = np.zeros(count, np.int32)
        leaf[: of_leaf.sum()] = np.repeat(np.arange(len(sizes)), of_leaf)
        in_blocks = table.reshape(count, rows, -1)
        return cls(jnp.asarray(in_blocks), jnp.asarray(leaf), jnp.asarray(place))

    def products(
        self, queries: Float[Array, "B M D"], beams: Int32[Array, "B P"]
    ) -> Float[Array, "B I"]:
        """The product of each row of the index and the query of its leaf; any for padding.

        Args:
          beams: the number of the query for each leaf.
        """
        chosen = jnp.take_along_axis(queries, beams[:, self.leaf][..., None], axis=1)
        # Highest precision: a TPU would round the factors to bfloat16.
        precision = jax.lax.Precision.HIGHEST
        found = jnp.einsum("BND,NRD->BNR", chosen, self.vectors, precision=precision)
        return found.reshape(len(queries), -1)[:, self.place]
