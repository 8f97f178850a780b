"""Exact nearest items inside each prefix (Eq. 9 of SIGMA) with the normaliser of Eq. 11.

Items lie sorted by prefix, so V_k is one contiguous range of rows. A search reads the ranges of all
beams side by side, a chunk of rows at a time. It keeps the best items so far and the running
log-sum-exp. Its memory is [beams, chunk, D] for a prefix of any size. It ends when the longest of
the ranges ends.

Axes: B requests, M beams, R items retrieved for a beam, L extra candidates, N candidates of a
request, P leaves, I items, D dimensions.
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
from sigma_jax.index.leaf_blocks import LeafBlocks
from sigma_jax.index.trie import Trie
from sigma_jax.losses import unit

CHUNK = 128  # rows of a range scored at a time
ONE_PREFIX_CHUNK = 4_096  # where one prefix holds all items: all requests read the same rows
ROWS_A_STEP = 2**18  # rows scaled to unit length at a time
ALL_CANDIDATES = 16_384  # items of a catalogue up to which every item is a candidate

# Highest precision: a TPU would round the factors to bfloat16.
exact_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeviceIndex:
    """Item vectors by prefix; leaves are the deepest nodes of the `Trie`."""

    vectors: Float[Array, "I D"]  # unit length, in the order of sorted_items; padding 0
    sorted_items: Int32[Array, " I"]  # padding -1
    row_of_item: Int32[Array, " I"]  # row of each item in sorted_items
    leaf_start: Int32[Array, " P+1"]  # first row of each leaf, then the number of items
    chunk: int = dataclasses.field(metadata={"static": True})  # rows of a range scored at a time
    has_one_prefix: bool = dataclasses.field(metadata={"static": True})  # the trie has depth 0
    # Devices that hold equal parts of the rows. None: one device holds all.
    mesh: Mesh | None = dataclasses.field(default=None, metadata={"static": True})
    # For all_candidates. None: a large catalogue, one prefix, or several devices.
    blocks: LeafBlocks | None = None

    def products(
        self, queries: Float[Array, "B D"], items: Int32[Array, "B N"]
    ) -> Float[Array, "B N"]:
        """Products of each query and the unit vectors of its items. Item -1 stands for item 0."""
        vectors = self.vectors[self.row_of_item[jnp.maximum(items, 0)]]
        return exact_einsum("BD,BND->BN", queries, vectors)

    def all_products(self, queries: Float[Array, "B D"]) -> Float[Array, "B I"]:
        """Products of each query and the unit vectors of all rows; 0 for padding."""
        return exact_einsum("BD,ID->BI", queries, self.vectors)


def build_device_index(
    trie: Trie,
    vectors: Float32[np.ndarray, "I D"],
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> DeviceIndex:
    """Index of `vectors` over the leaves of `trie`.

    ValueError if the numbers of items and vectors differ.

    Args:
      vectors: row i is item i, of any length but 0.
      chunk: rows of a range scored at a time. None: a size for the depth of `trie`.
      mesh: devices that hold equal parts of the rows, each of which searches its own part. No
        device ever holds all rows. None: one device holds all.
    """
    if len(vectors) != trie.num_items:
        raise ValueError(
            f"build_device_index: {len(vectors)} item vectors for {trie.num_items} items with "
            "SIDs; make both from the same catalogue."
        )
    items = np.asarray(trie.sorted_items)
    row_of_item = np.zeros_like(items)
    row_of_item[items[items >= 0]] = np.flatnonzero(items >= 0)
    chunk = chunk or (CHUNK if trie.depth else ONE_PREFIX_CHUNK)
    blocks = None
    if mesh is None:  # uncommitted arrays: JAX moves them to the device of the queries
        host_rows, replicate, parts = _unit_rows(vectors, items), jnp.asarray, 1
        rows, shard = jnp.asarray(host_rows), replicate
        if trie.depth and len(items) <= ALL_CANDIDATES:
            blocks = LeafBlocks.make(host_rows, np.asarray(trie.leaf_start))
    else:
        parts = mesh.size
        items = np.pad(items, (0, -len(items) % parts), constant_values=-1)
        by_row = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        shard = functools.partial(jax.device_put, device=by_row)
        replicate = functools.partial(jax.device_put, device=NamedSharding(mesh, PartitionSpec()))
        rows = jax.make_array_from_callback(
            (len(items), vectors.shape[1]), by_row, lambda part: _unit_rows(vectors, items[part[0]])
        )
    return DeviceIndex(
        vectors=rows,
        sorted_items=shard(items),
        row_of_item=replicate(row_of_item),
        leaf_start=replicate(np.asarray(trie.leaf_start)),
        chunk=min(chunk, len(items) // parts),
        has_one_prefix=trie.depth == 0,
        mesh=mesh,
        blocks=blocks,
    )


def _unit_rows(
    vectors: Float32[np.ndarray, "I D"], items: Int32[np.ndarray, " n"]
) -> Float32[np.ndarray, "n D"]:
    """The vectors of `items`, unit length; 0 for item -1."""
    unit_vectors = np.zeros((len(items), vectors.shape[1]), np.float32)
    for start in range(0, len(items), ROWS_A_STEP):
        part = items[start : start + ROWS_A_STEP]
        rows = np.asarray(unit(jnp.asarray(vectors[np.maximum(part, 0)])))
        unit_vectors[start : start + ROWS_A_STEP] = np.where(part[:, None] >= 0, rows, 0)
    return unit_vectors


def search(index: DeviceIndex, inputs: SearchInputs, count: int) -> Candidates:
    """The `count` items of each prefix nearest to its query, and the extra candidates (Eq. 9).

    The nearest items stand best first; ties are broken by the lower item. Item -1 with cosine -inf
    fills up where the prefix has fewer items or the beam is not valid. The normaliser is exact. It
    counts excluded and inactive items too, since the model gives them probability.

    If several devices hold the index, each searches its own rows, and the best are merged.
    """
    nearest = _nearest(index, inputs, count)
    batch, beams, _ = nearest.items.shape
    items = nearest.items.reshape(batch, -1)
    columns = [
        items,
        jnp.repeat(jnp.arange(beams), count)[None],
        nearest.cosines.reshape(batch, -1),
    ]
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
    log_normaliser = inputs.with_root(nearest.log_normaliser)
    return Candidates(*columns, log_normaliser=log_normaliser, nearest=count)


def all_candidates(index: DeviceIndex, inputs: SearchInputs) -> Candidates:
    """Every item that may be returned, for an index on one device, of one prefix or with a root.

    For a small catalogue this costs less than finding the nearest items and joining the extra
    candidates, and no item can be missed. The normaliser is that of `search`.
    """
    num_beams = inputs.queries.shape[1]
    rows = jnp.arange(len(index.sorted_items))
    is_item = index.sorted_items >= 0
    num_leaves = len(index.leaf_start) - 1
    leaf = jnp.searchsorted(index.leaf_start, rows, side="right").astype(jnp.int32) - 1
    leaf = jnp.where(is_item, jnp.clip(leaf, 0, num_leaves - 1), num_leaves)
    is_beam = inputs.is_valid & (inputs.leaves >= 0)
    requests = jnp.arange(len(is_beam))[:, None]
    of_leaf = jnp.full((len(is_beam), num_leaves + 1), num_beams - 1, jnp.int32)
    places = jnp.where(is_beam, inputs.leaves, num_leaves + 1)  # no leaf: dropped
    of_leaf = of_leaf.at[requests, places].set(jnp.arange(num_beams)[None], mode="drop")
    beams = of_leaf[:, leaf]
    if index.blocks is not None:
        cosines = index.blocks.products(inputs.queries, of_leaf)
    else:
        cosines = _products_of_beams(index, inputs.queries, beams)
    logits = (cosines * inputs.inverse_temperature[:, None]).T
    segments = (leaf, num_leaves + 1)
    top = jax.ops.segment_max(logits, *segments)
    mass = jax.ops.segment_sum(jnp.exp(logits - top[leaf]), *segments)
    of_leaves = (top + jnp.log(mass)).T
    log_normaliser = jnp.take_along_axis(of_leaves, jnp.maximum(inputs.leaves, 0), axis=1)
    log_normaliser = inputs.with_root(jnp.where(is_beam, log_normaliser, -jnp.inf))
    is_item = jnp.broadcast_to(is_item, cosines.shape)
    is_candidate = is_item & inputs.is_valid[:, -1:]
    if inputs.excluded is not None:
        excluded = index.row_of_item[jnp.maximum(inputs.excluded, 0)]
        excluded = jnp.where(inputs.excluded >= 0, excluded, len(rows))  # no row: dropped
        is_candidate = is_candidate.at[requests, excluded].set(False, mode="drop")
    if inputs.active is not None:
        is_candidate &= inputs.active.has_rows(rows)
    return Candidates(
        items=jnp.where(is_candidate, index.sorted_items, -1),
        beams=beams,
        cosines=jnp.where(is_candidate, cosines, -jnp.inf),
        log_normaliser=log_normaliser,
        nearest=0,
        is_catalogue=True,
    )


def _products_of_beams(
    index: DeviceIndex, queries: Float[Array, "B M D"], beams: Int32[Array, "B I"]
) -> Float[Array, "B I"]:
    """The product of each row and the query of its beam, from the products with all queries."""

    def read(products: Array, beam: Array) -> tuple[Array, None]:
        return jnp.where(beams == beam, index.all_products(queries[:, beam]), products), None

    return jax.lax.scan(read, jnp.zeros(beams.shape), jnp.arange(queries.shape[1]))[0]


def _extra_candidates(
    index: DeviceIndex,
    inputs: SearchInputs,
    nearest: Int32[Array, "B N"],
    extra: Int32[Array, "B L"],
) -> tuple[Int32[Array, "B L"], Int32[Array, "B L"], Float32[Array, "B L"]]:
    """(items, beams, cosines) of the `extra` items that lie in the prefix of a beam.

    With a root the others belong to it. Items in `nearest`, excluded items and inactive items
    become -1 with cosine -inf.
    """
    extra = jnp.sort(extra, axis=1)
    is_repeat = jnp.pad(extra[:, 1:] == extra[:, :-1], ((0, 0), (1, 0)))
    rows = index.row_of_item[jnp.maximum(extra, 0)]
    is_item = (extra >= 0) & (index.sorted_items[rows] == extra)
    is_added = is_item & ~is_repeat & ~find_sorted(extra, jnp.sort(nearest, axis=1))[1]
    if inputs.excluded is not None:
        is_added &= ~find_sorted(extra, jnp.sort(inputs.excluded, axis=1))[1]
    if inputs.active is not None:
        is_added &= inputs.active.has_rows(rows)
    leaves = jnp.searchsorted(index.leaf_start, rows, side="right").astype(jnp.int32) - 1
    beam_leaves = jnp.where(inputs.is_valid, inputs.leaves, -1)[:, None]
    is_in_prefix = leaves[..., None] == beam_leaves  # [B, L, M]; leaves are never negative
    beams = jnp.argmax(is_in_prefix, axis=-1).astype(jnp.int32)
    if inputs.root_log_normaliser is None:
        is_added &= is_in_prefix.any(axis=-1)
    else:
        beams = jnp.where(is_in_prefix.any(axis=-1), beams, inputs.leaves.shape[1] - 1)
    queries = jnp.take_along_axis(inputs.queries, beams[..., None], axis=1)
    cosines = exact_einsum("BLD,BLD->BL", queries, index.vectors[rows])
    cosines = jnp.where(is_added, cosines, -jnp.inf)
    return jnp.where(is_added, extra, -1), beams, cosines


def _nearest(index: DeviceIndex, inputs: SearchInputs, count: int) -> Nearest:
    """The nearest items of each beam; item -1 and cosine -inf where there are fewer."""
    if index.mesh is None:
        nearest = _search_rows(index, inputs, count, 0)
    else:
        axes = index.mesh.axis_names
        replicated, by_row = PartitionSpec(), PartitionSpec(axes)
        specs = dataclasses.replace(
            index,
            vectors=by_row,
            sorted_items=by_row,
            row_of_item=replicated,
            leaf_start=replicated,
        )

        def search_shard(index: DeviceIndex, inputs: SearchInputs) -> Nearest:
            first = jax.lax.axis_index(axes) * index.sorted_items.shape[0]
            local = _search_rows(index, inputs, count, first)
            gather = functools.partial(jax.lax.all_gather, axis_name=axes)
            side_by_side = functools.partial(gather, axis=local.cosines.ndim - 1, tiled=True)
            log_normaliser = jax.nn.logsumexp(gather(local.log_normaliser), axis=0)
            ranked = map(side_by_side, (local.cosines, local.items))
            return _best_of(Nearest(*ranked, log_normaliser=log_normaliser), count)

        # All devices gather equal values, but the check of shard_map cannot see that.
        shard_map = functools.partial(jax.shard_map, mesh=index.mesh, check_vma=False)
        nearest = shard_map(search_shard, in_specs=(specs, replicated), out_specs=replicated)(
            index, inputs
        )
    return dataclasses.replace(
        nearest, items=jnp.where(nearest.cosines > -jnp.inf, nearest.items, -1)
    )


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
    """The nearest items in a shard of the index, whose first row is `first_row` of the index."""
    is_valid = inputs.is_valid & (inputs.leaves >= 0)
    leaf = jnp.where(is_valid, inputs.leaves, 0)
    bounds = jnp.stack([index.leaf_start[leaf], index.leaf_start[leaf + 1]])
    start, end = jnp.clip(bounds - first_row, 0, index.sorted_items.shape[0])
    size = jnp.where(is_valid, end - start, 0)
    inverse_temperature = inputs.inverse_temperature[..., None, None]
    excluded = inputs.excluded if inputs.excluded is None else jnp.sort(inputs.excluded, axis=-1)
    longest = size.max()

    def score_chunk(state: tuple[Array, Nearest]) -> tuple[Array, Nearest]:
        first, nearest = state
        offsets = first + jnp.arange(index.chunk, dtype=jnp.int32)
        rows = start[..., None] + offsets
        is_item = offsets < size[..., None]
        if index.has_one_prefix:
            vectors = index.vectors.at[offsets].get(mode="clip")
            cosines = exact_einsum("...D,RD->...R", inputs.queries, vectors)
        else:
            vectors = index.vectors.at[rows].get(mode="clip")
            cosines = exact_einsum("...D,...RD->...R", inputs.queries, vectors)
        part = jax.nn.logsumexp(cosines * inverse_temperature, axis=-1, where=is_item)
        if excluded is not None:
            items = index.sorted_items.at[rows].get(mode="clip")
            is_excluded = find_sorted(items.reshape(len(items), -1), excluded)[1]
            is_item &= ~is_excluded.reshape(items.shape)
        if inputs.active is not None:
            is_item &= inputs.active.has_rows(first_row + rows)
        log_normaliser = jnp.logaddexp(nearest.log_normaliser, part)
        # Earlier rows stand first and hold lower items, so that top_k breaks ties as promised.
        more = (jnp.where(is_item, cosines, -jnp.inf), rows)
        pairs = zip((nearest.cosines, nearest.items), more, strict=True)
        pool = (jnp.concatenate(pair, axis=-1) for pair in pairs)
        return first + index.chunk, _best_of(Nearest(*pool, log_normaliser=log_normaliser), count)

    shape = (*inputs.leaves.shape, count)
    no_cosines = jnp.full(shape, -jnp.inf, jnp.float32)
    # During the loop `items` holds rows of the shard. They become items at the end.
    empty = Nearest(no_cosines, jnp.zeros(shape, jnp.int32), no_cosines[..., 0])
    state = (jnp.int32(0), empty)
    nearest = jax.lax.while_loop(lambda state: state[0] < longest, score_chunk, state)[1]
    return dataclasses.replace(nearest, items=index.sorted_items[nearest.items])


def _best_of(pool: Nearest, count: int) -> Nearest:
    """The `count` best items of each beam; ties are broken by the first."""
    best, chosen = jax.lax.top_k(pool.cosines, count)
    items = jnp.take_along_axis(pool.items, chosen, axis=-1)
    return Nearest(best, items, pool.log_normaliser)
