"""What items have beside the model's probability: what counts and the words of a request say.

Axes: B requests, M beams, n items of a beam, S items a request has values of, F, G and H features,
T rows of the table with G of them.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float16, Float32, Int32

from sigma_jax.reranking.instruction import INSTRUCTION_FEATURES, Said


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ItemBias:
    """What items of each request have beside their probability, added to its logarithm.

    Some items have values of their own request; all have those of a table that requests share, and
    what the request says of them.
    """

    items: Int32[Array, "*B S"]  # ascending, none twice; padded with the largest int32
    values: Float32[Array, "*B S"]
    table: Float16[Array, "T I G"] | None = None
    row: Int32[Array, "*B"] | None = None  # of the table
    weights: Float32[Array, "*B G"] | None = None  # of its features
    said: Said | None = None
    said_weights: Float32[Array, "B H"] | None = None  # of its features

    def of(
        self, items: Int32[Array, "*B M n"], vectors: Float[Array, "*B M n D"]
    ) -> Float32[Array, "*B M n"]:
        """The bias of each item; item -1 has any. `vectors`: theirs, or [n, D] where all requests
        have the same n items."""
        places, is_listed = find(items, self.items)
        values = self.values.reshape(-1, self.values.shape[-1])
        found = jnp.take_along_axis(values, places.reshape(values.shape[0], -1), axis=1)
        found = jnp.where(is_listed, found.reshape(items.shape), 0.0)
        if self.table is not None:
            known = jnp.maximum(items, 0)
            row = jnp.broadcast_to(self.row[..., None, None], items.shape)
            shared = self.table.at[row, known].get(mode="clip").astype(jnp.float32)
            found += jnp.einsum("...MnG,...G->...Mn", shared, self.weights)
        if self.said is not None:
            if vectors.ndim == 2:
                own = items.reshape(-1, items.shape[-1])[:1], vectors[None]
                said = self.said.at(*own)[:, None]
            else:
                flat = vectors.reshape(values.shape[0], -1, vectors.shape[-1])
                said = self.said.at(items.reshape(flat.shape[:2]), flat)
                said = said.reshape(*items.shape, -1)
            found += jnp.einsum("bMnH,bH->bMn", said, self.said_weights)
        return found


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ItemFeatures:
    """What counts say of items at each request, not weighed yet; F features of a request's own
    items, G of all items in a table that requests share."""

    items: Int32[Array, "*B S"]  # as in ItemBias
    values: Float16[Array, "*B S F"]
    row: Int32[Array, "*B"] | None = None  # of the table

    def weighed(
        self,
        weights: Float32[Array, "*B F+G+H"],
        table: Float16[Array, "T I G"] | None = None,
        said: Said | None = None,
    ) -> ItemBias:
        """The bias these features make, each request with weights of its own.

        `said`: H more features, of all items; their weights are the last.
        """
        own = self.values.shape[-1]
        values = jnp.einsum("...SF,...F->...S", self.values.astype(jnp.float32), weights[..., :own])
        of_said = weights[..., -len(INSTRUCTION_FEATURES) :] if said is not None else None
        if table is None:
            return ItemBias(self.items, values, said=said, said_weights=of_said)
        shared = weights[..., own : own + table.shape[-1]]
        return ItemBias(self.items, values, table, self.row, shared, said, of_said)


def find(
    items: Int32[Array, "*B M n"], sorted_rows: Int32[Array, "*B S"]
) -> tuple[Int32[Array, "*B M n"], Bool[Array, "*B M n"]]:
    """Where each item stands in its request's ascending row, and whether it does: binary search.

    Comparing all with all would cost S comparisons an item, and a history has thousands.
    """
    rows = sorted_rows.reshape(-1, sorted_rows.shape[-1])
    flat = items.reshape(rows.shape[0], -1)
    places = jnp.minimum(jax.vmap(jnp.searchsorted)(rows, flat), rows.shape[1] - 1)
    found = jnp.take_along_axis(rows, places, axis=1)
    return places.reshape(items.shape), (found == flat).reshape(items.shape)
