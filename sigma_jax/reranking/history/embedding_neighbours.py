"""The nearest items of each item by the vectors of the network.

Axes: I items, D dimensions, n items of a step, k neighbours.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sparse
from jaxtyping import Array, Float, Float32, Int32

COSINES_A_STEP = 2**24  # entries of [items, I] that exist at once


def nearest_items(
    vectors: Float[np.ndarray, "I D"], count: int, start: int = 0
) -> sparse.csr_matrix:
    """float32 [I, I]: for the items from `start` on, the `count` nearest items.

    An entry is the cosine minus the cosine of the neighbour that follows these. The search is
    exact: it compares every pair, some rows at a time.

    Args:
      vectors: unit length.
    """
    total = len(vectors)
    count = min(count, total - 2)
    if count < 1:
        return sparse.csr_matrix((total, total), dtype=np.float32)
    table = jnp.asarray(vectors)
    size = int(np.clip(COSINES_A_STEP // total, 1, total - start))
    items, values = [], []
    for first in range(start, total, size):
        rows = np.minimum(np.arange(first, first + size), total - 1)  # one shape, one compilation
        near, item = jax.device_get(_nearest(table, jnp.asarray(rows), count + 1))
        items.append(item[:, :count])
        values.append(near[:, :count] - near[:, count:])
    items, values = (np.concatenate(parts)[: total - start] for parts in (items, values))
    ends = np.maximum(np.arange(total + 1) - start, 0) * count
    neighbours = sparse.csr_matrix((values.ravel(), items.ravel(), ends), shape=(total, total))
    neighbours.eliminate_zeros()
    neighbours.sort_indices()
    return neighbours


@functools.partial(jax.jit, static_argnums=2)
def _nearest(
    vectors: Float[Array, "I D"], rows: Int32[Array, " n"], count: int
) -> tuple[Float32[Array, "n k"], Int32[Array, "n k"]]:
    cosines = jnp.einsum("nD,ID->nI", vectors[rows], vectors, precision=jax.lax.Precision.HIGHEST)
    is_self = rows[:, None] == jnp.arange(vectors.shape[0])
    return jax.lax.top_k(jnp.where(is_self, -jnp.inf, cosines), count)
