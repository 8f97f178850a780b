"""Exact nearest items inside each prefix (Eq. 9 of SIGMA) with the normaliser of Eq. 11.

Items lie sorted by prefix, so V_k is one contiguous range. A search walks all ranges of a batch in
step, a chunk of rows at a time, keeping the best so far and the running log-sum-exp: memory is
[beams, chunk, D] however large a prefix is, and the walk ends with the longest range asked for.

Axes: B requests, M beams, R items retrieved for a beam, S items left out.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int32

from sigma_jax.index.candidates import Candidates, SearchInputs, find_sorted
from sigma_jax.index.trie import Trie
from sigma_jax.losses import unit

CHUNK = 128
PLACED = 2**18  # rows of an index that are placed at a time
WHOLE_CHUNK = 4_096  # where one prefix holds all items: these are scored for all requests at once


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeviceIndex:
    """Item vectors by prefix; leaves are the deepest nodes of the `Trie`."""

    vectors: Float[Array, "I D"]  # unit length, in the order of sorted_items; padding 0
    sorted_items: Int32[Array, " I"]  # padding -1
    row_of_item: Int32[Array, " I"]  # where each stands in them
    leaf_start: Int32[Array, " P+1"]
    chunk: int = dataclasses.field(metadata={"static": True})  # rows of a range scored at a time
    is_whole: bool = dataclasses.field(metadata={"static": True})  # the trie has depth 0: one leaf
    # Where rows are cut up over its devices; None: they lie on one.
    mesh: Mesh | None = dataclasses.field(default=None, metadata={"static": True})

    def vectors_of(self, items: Int32[Array, "*n"]) -> Float[Array, "*n D"]:
        """The vector of each item; of item -1 that of item 0."""
        return self.vectors[self.row_of_item[jnp.maximum(items, 0)]]


def build_device_index(
    trie: Trie,
    vectors: Float32[np.ndarray, "I D"],
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> DeviceIndex:
    """Index of `vectors` (row i = item i, any length but 0) over the leaves of `trie`.

    `mesh`: whose devices have the rows in equal parts, and search their own; no device ever holds
    all of them.
    """
    if len(vectors) != trie.num_items:
        raise ValueError(
            f"{len(vectors)} item vectors for {trie.num_items} items with SIDs; make both "
            "from the same catalogue."
        )
    items = np.asarray(trie.sorted_items)
    row_of_item = np.zeros_like(items)
    row_of_item[items[items >= 0]] = np.flatnonzero(items >= 0)
    chunk = chunk or (CHUNK if trie.depth else WHOLE_CHUNK)
    if mesh is None:  # they go where what they are compared with is
        own, whole, parts = jnp.asarray(_unit_rows(vectors, items)), jnp.asarray, 1
        cut = whole
    else:
        parts = mesh.size
        items = np.pad(items, (0, -len(items) % parts), constant_values=-1)
        by_row = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        cut = functools.partial(jax.device_put, device=by_row)
        whole = functools.partial(jax.device_put, device=NamedSharding(mesh, PartitionSpec()))
        own = jax.make_array_from_callback(
            (len(items), vectors.shape[1]), by_row, lambda part: _unit_rows(vectors, items[part[0]])
        )
    return DeviceIndex(
        vectors=own,
        sorted_items=cut(items),
        row_of_item=whole(row_of_item),
        leaf_start=whole(np.asarray(trie.leaf_start)),
        chunk=min(chunk, len(items) // parts),
        is_whole=trie.depth == 0,
        mesh=mesh,
    )


def _unit_rows(
    vectors: Float32[np.ndarray, "I D"], items: Int32[np.ndarray, " n"]
) -> Float32[np.ndarray, "n D"]:
    """Rows of unit length; 0 for item -1."""
    found = np.zeros((len(items), vectors.shape[1]), np.float32)
    for start in range(0, len(items), PLACED):
        part = items[start : start + PLACED]
        rows = np.asarray(unit(jnp.asarray(vectors[np.maximum(part, 0)])))
        found[start : start + PLACED] = np.where(part[:, None] >= 0, rows, 0)
    return found


def search(index: DeviceIndex, inputs: SearchInputs, count: int) -> Candidates:
    """The `count` items of each prefix nearest to its query, and the extra candidates (Eq. 9).

    The nearest items stand best first, the lower item first on ties. Item -1 with cosine -inf fills
    up where the prefix has fewer items or the beam is not valid. The normaliser is exact. It counts
    excluded and inactive items too, since the model gives them probability.

    An index on several devices searches the rows of each device there and merges the best.
    """
    found = _nearest(index, inputs, count)
    batch, beams, _ = found.items.shape
    items = found.items.reshape(batch, -1)
    columns = [items, jnp.repeat(jnp.arange(beams), count)[None], found.cosines.reshape(batch, -1)]
    columns[1] = jnp.broadcast_to(columns[1], items.shape)
    extra = inputs.extra
    if inputs.extra_queries is not None:
        queries = jnp.broadcast_to(inputs.extra_queries[:, None], inputs.queries.shape)
        more = _nearest(index, dataclasses.replace(inputs, queries=queries), count).items
        more = more.reshape(batch, -1)
        extra = more if extra is None else jnp.concatenate([extra, more], axis=1)
    if extra is not None:
        added = _extra_candidates(index, inputs, items, extra)
        columns = [jnp.concatenate(pair, axis=1) for pair in zip(columns, added, strict=True)]
    return Candidates(*columns, log_normaliser=found.log_normaliser, nearest=count)


def _extra_candidates(
    index: DeviceIndex, inputs: SearchInputs, found: Int32[Array, "B N"], extra: Int32[Array, "B L"]
) -> tuple[Int32[Array, "B L"], Int32[Array, "B L"], Float32[Array, "B L"]]:
    """Items, beams and cosines of the `extra` items that lie in a prefix and are not in `found`."""
    extra = jnp.sort(extra, axis=1)
    is_repeat = jnp.pad(extra[:, 1:] == extra[:, :-1], ((0, 0), (1, 0)))
    rows = index.row_of_item[jnp.maximum(extra, 0)]
    is_known = (extra >= 0) & (index.sorted_items[rows] == extra)
    is_wanted = is_known & ~is_repeat & ~find_sorted(extra, jnp.sort(found, axis=1))[1]
    if inputs.excluded is not None:
        is_wanted &= ~find_sorted(extra, jnp.sort(inputs.excluded, axis=1))[1]
    if inputs.active is not None:
        is_wanted &= inputs.active.has_rows(rows)
    leaves = jnp.searchsorted(index.leaf_start, rows, side="right").astype(jnp.int32) - 1
    of_beam = jnp.where(inputs.is_valid, inputs.leaves, -1)[:, None]
    is_in_prefix = leaves[..., None] == of_beam  # [B, L, M]; leaves are never negative
    beams = jnp.argmax(is_in_prefix, axis=-1).astype(jnp.int32)
    is_wanted &= is_in_prefix.any(axis=-1)
    queries = jnp.take_along_axis(inputs.queries, beams[..., None], axis=1)
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    cosines = product("BLD,BLD->BL", queries, index.vectors[rows])
    cosines = jnp.where(is_wanted, cosines, -jnp.inf)
    return jnp.where(is_wanted, extra, -1), beams, cosines


def _nearest(index: DeviceIndex, inputs: SearchInputs, count: int) -> Nearest:
    """The nearest items of each beam; item -1 and cosine -inf where there are fewer."""
    if index.mesh is None:
        found = _search_rows(index, inputs, count, 0)
    else:
        axes = index.mesh.axis_names
        whole, rows = PartitionSpec(), PartitionSpec(axes)
        specs = dataclasses.replace(
            index, vectors=rows, sorted_items=rows, row_of_item=whole, leaf_start=whole
        )

        def search_own(index: DeviceIndex, inputs: SearchInputs) -> Nearest:
            first = jax.lax.axis_index(axes) * index.sorted_items.shape[0]
            own = _search_rows(index, inputs, count, first)
            gather = functools.partial(jax.lax.all_gather, axis_name=axes)
            side_by_side = functools.partial(gather, axis=own.cosines.ndim - 1, tiled=True)
            log_normaliser = jax.nn.logsumexp(gather(own.log_normaliser), axis=0)
            ranked = map(side_by_side, (own.cosines, own.items))
            return _best_of(Nearest(*ranked, log_normaliser=log_normaliser), count)

        # The gathered values are equal on all devices, which the check cannot see.
        place = functools.partial(jax.shard_map, mesh=index.mesh, check_vma=False)
        found = place(search_own, in_specs=(specs, whole), out_specs=whole)(index, inputs)
    return dataclasses.replace(found, items=jnp.where(found.cosines > -jnp.inf, found.items, -1))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Nearest:
    """The best items of each beam so far; the cosine is -inf where there are fewer."""

    cosines: Float32[Array, "B M R"]  # of the items with the query; -inf where there is no item
    items: Int32[Array, "B M R"]
    log_normaliser: Float32[Array, "B M"]


def _search_rows(
    index: DeviceIndex, inputs: SearchInputs, count: int, first_row: Int32[Array, ""] | int
) -> Nearest:
    """`search` in the rows of `index`, which are those from `first_row` on of the whole one's."""
    is_valid = inputs.is_valid & (inputs.leaves >= 0)
    leaf = jnp.where(is_valid, inputs.leaves, 0)
    bounds = jnp.stack([index.leaf_start[leaf], index.leaf_start[leaf + 1]])
    start, end = jnp.clip(bounds - first_row, 0, index.sorted_items.shape[0])
    size = jnp.where(is_valid, end - start, 0)
    inverse_temperature = inputs.inverse_temperature[..., None, None]
    excluded = inputs.excluded if inputs.excluded is None else jnp.sort(inputs.excluded, axis=-1)
    # Highest precision: a TPU would round the factors to bfloat16.
    exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    longest = size.max()

    def score_chunk(state: tuple[Array, Nearest]) -> tuple[Array, Nearest]:
        first, found = state
        offsets = first + jnp.arange(index.chunk, dtype=jnp.int32)
        rows = start[..., None] + offsets
        is_item = offsets < size[..., None]
        if index.is_whole:
            vectors = index.vectors.at[offsets].get(mode="clip")
            cosines = exact("...D,RD->...R", inputs.queries, vectors)
        else:
            vectors = index.vectors.at[rows].get(mode="clip")
            cosines = exact("...D,...RD->...R", inputs.queries, vectors)
        part = jax.nn.logsumexp(cosines * inverse_temperature, axis=-1, where=is_item)
        if excluded is not None:
            items = index.sorted_items.at[rows].get(mode="clip")
            is_excluded = find_sorted(items.reshape(len(items), -1), excluded)[1]
            is_item &= ~is_excluded.reshape(items.shape)
        if inputs.active is not None:
            is_item &= inputs.active.has_rows(first_row + rows)
        log_normaliser = jnp.logaddexp(found.log_normaliser, part)
        # Earlier rows stand first and are lower items: top_k then resolves ties as promised.
        more = (jnp.where(is_item, cosines, -jnp.inf), rows)
        pairs = zip((found.cosines, found.items), more, strict=True)
        pool = (jnp.concatenate(pair, axis=-1) for pair in pairs)
        return first + index.chunk, _best_of(Nearest(*pool, log_normaliser=log_normaliser), count)

    shape = (*inputs.leaves.shape, count)
    nothing = jnp.full(shape, -jnp.inf, jnp.float32)
    # Its items are rows until all are searched.
    none = Nearest(nothing, jnp.zeros(shape, jnp.int32), nothing[..., 0])
    state = (jnp.int32(0), none)
    found = jax.lax.while_loop(lambda state: state[0] < longest, score_chunk, state)[1]
    return dataclasses.replace(found, items=index.sorted_items[found.items])


def _best_of(found: Nearest, count: int) -> Nearest:
    """The `count` best of each beam, the first on ties."""
    best, chosen = jax.lax.top_k(found.cosines, count)
    items = jnp.take_along_axis(found.items, chosen, axis=-1)
    return Nearest(best, items, found.log_normaliser)
