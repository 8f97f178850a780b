"""The inputs of a search, and the candidates that an index returns (Eq. 9 of SIGMA).

The device index and the host index take the same `SearchInputs` and return the same `Candidates`.
Each returns the items nearest to the query of every beam, and the extra candidates that lie in the
prefix of a beam, or anywhere if there is a root. The reranker scores all candidates once, after the
search.

Axes: B requests, M beams, R items retrieved for a beam, L extra items of a request, S excluded
items of a request, D dimensions, N = M * R + extras candidates of a request.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from sigma_jax.index.trie import ActiveItems

EXTRA_WIDTH = 64  # least width of the arrays of extra candidates
MAX_QUADRUPLED = 1_024  # wider arrays double


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SearchInputs:
    """A batch of searches: for every beam, the items of its prefix nearest to its query.

    Cosines are exact for queries of unit length. A longer query gives proportionally larger values.
    """

    queries: Float[Array, "B M D"]
    leaves: Int32[Array, "B M"]  # the prefix of each beam, as numbered by the trie; -1 for none
    is_valid: Bool[Array, "B M"]
    inverse_temperature: Float32[Array, " B"]  # factor of the cosines in Eq. 11
    excluded: Int32[Array, "B S"] | None = None  # items that are not returned, padded with -1
    extra: Int32[Array, "B L"] | None = None  # extra candidates, padded with -1
    # The R items of every beam nearest to these queries become extra candidates as well.
    extra_queries: Float[Array, "B D"] | None = None
    active: ActiveItems | None = None  # the items that may be returned; None: all
    # The normaliser of the root (beam.Root), if the last beam is the root. All items lie in it, and
    # extra candidates outside of the other beams belong to it.
    root_log_normaliser: Float32[Array, " B"] | None = None

    def with_root(self, log_normaliser: Float32[Array, "B M"]) -> Float32[Array, "B M"]:
        """The normalisers of all beams; the search does not know that of the root."""
        if self.root_log_normaliser is None:
            return log_normaliser
        return jnp.asarray(log_normaliser).at[:, -1].set(self.root_log_normaliser)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Candidates:
    """The items that are to be ranked for each request; item -1 stands for no candidate.

    The first M * nearest candidates are the nearest items, beam by beam, best first. The extra
    candidates follow. No item occurs twice in a request: its prefix belongs to one beam.

    With `is_catalogue` every item of the catalogue is a candidate, in the order of the index's
    rows.
    """

    items: Int32[Array, "B N"]
    beams: Int32[Array, "B N"]  # number of the beam whose prefix holds the item, or of the root
    cosines: Float32[Array, "B N"]  # of the item and that beam's query; -inf where there is no item
    # Log of the sum of exp(cosine * inverse_temperature) over all items of the prefix: the
    # denominator of Eq. 11. -inf for a beam that is not valid.
    log_normaliser: Float32[Array, "B M"]
    nearest: int = dataclasses.field(metadata={"static": True})  # R
    is_catalogue: bool = dataclasses.field(default=False, metadata={"static": True})

    def nearest_of_beams(self, values: Array) -> Array:
        """`values` [B, N] of the nearest items as [B, M, R], without the extra candidates."""
        beams = self.log_normaliser.shape[-1]
        first = values[..., : beams * self.nearest]
        return first.reshape(*values.shape[:-1], beams, self.nearest)


def find_sorted(
    items: Int32[Array, "B N"], sorted_rows: Int32[Array, "B S"]
) -> tuple[Int32[Array, "B N"], Bool[Array, "B N"]]:
    """(places, is_found): the place of each item in its request's ascending row.

    This is a binary search. Comparing all with all would cost S comparisons an item, and a history
    has thousands of items.
    """
    places = jnp.minimum(jax.vmap(jnp.searchsorted)(sorted_rows, items), sorted_rows.shape[1] - 1)
    return places, jnp.take_along_axis(sorted_rows, places, axis=1) == items


def padded_width(size: int) -> int:
    """A width that holds `size` items: 64, 256, 1,024, 2,048, 4,096, ...

    Few widths cause few compilations. Wide arrays cost time, so they are at most half empty.
    """
    width = EXTRA_WIDTH
    while width < size:
        width *= 4 if width < MAX_QUADRUPLED else 2
    return width
