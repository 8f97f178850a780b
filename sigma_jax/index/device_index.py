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
from jaxtyping import Array, Bool, Float, Float32, Int32

from sigma_jax.index.trie import Subset, Trie
from sigma_jax.losses import unit
from sigma_jax.reranking.features import ItemBias, find

CHUNK = 128
PLACED = 2**18  # rows of an index that are placed at a time
WHOLE_CHUNK = 4_096  # where one prefix holds all items: these are scored for all requests at once


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PrefixIndex:
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


def build_index(
    trie: Trie,
    vectors: Float32[np.ndarray, "I D"],
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> PrefixIndex:
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
    return PrefixIndex(
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


def search(
    index: PrefixIndex,
    queries: Float[Array, "*B M D"],
    leaves: Int32[Array, "*B M"],
    is_valid: Bool[Array, "*B M"],
    count: int,
    sharpness: Float32[Array, "*B"],
    excluded: Int32[Array, "*B S"] | None = None,
    bias: ItemBias | None = None,
    subset: Subset | None = None,
) -> tuple[Int32[Array, "*B M R"], Float32[Array, "*B M R"], Float32[Array, "*B M"]]:
    """The `count` items of each prefix nearest to its query: (items, cosines, log_normaliser).

    Cosines are of queries of unit length; others are as sharp as they are long. Best first by
    cos * sharpness + bias, the lower item on ties; item -1 and cosine -inf where the prefix has
    fewer, or the beam is not valid. `log_normaliser` is logsumexp(cos * sharpness) over all of V_k,
    the exact denominator of Eq. 11 (-inf for beams that are not valid). Items in `excluded` (padded
    with -1), or not in `subset`, are not returned but count in the denominator, since the model
    gives them probability.

    Where the index lies on several devices, each searches its own rows, and the best of all are put
    together.
    """
    asked = Asked(queries, leaves, is_valid, sharpness, excluded, bias, subset)
    if index.mesh is None:
        found = _search_rows(index, asked, count, 0)
    else:
        axes = index.mesh.axis_names
        whole, rows = PartitionSpec(), PartitionSpec(axes)
        specs = dataclasses.replace(
            index, vectors=rows, sorted_items=rows, row_of_item=whole, leaf_start=whole
        )

        def search_own(index: PrefixIndex, asked: Asked) -> Found:
            first = jax.lax.axis_index(axes) * index.sorted_items.shape[0]
            own = _search_rows(index, asked, count, first)
            gather = functools.partial(jax.lax.all_gather, axis_name=axes)
            side_by_side = functools.partial(gather, axis=own.best.ndim - 1, tiled=True)
            log_normaliser = jax.nn.logsumexp(gather(own.log_normaliser), axis=0)
            ranked = map(side_by_side, (own.best, own.cosines, own.items))
            return _best_of(Found(*ranked, log_normaliser), count)

        # What is gathered from all is the same on all, which the check cannot see.
        place = functools.partial(jax.shard_map, mesh=index.mesh, check_vma=False)
        found = place(search_own, in_specs=(specs, whole), out_specs=whole)(index, asked)
    is_found = found.best > -jnp.inf
    items = jnp.where(is_found, found.items, -1)
    return items, jnp.where(is_found, found.cosines, -jnp.inf), found.log_normaliser


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Asked:
    """The arguments of `search`."""

    queries: Float[Array, "*B M D"]
    leaves: Int32[Array, "*B M"]
    is_valid: Bool[Array, "*B M"]
    sharpness: Float32[Array, "*B"]
    excluded: Int32[Array, "*B S"] | None
    bias: ItemBias | None
    subset: Subset | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Found:
    """The best items of each beam so far; `best` is -inf where there are fewer."""

    best: Float32[Array, "*B M R"]  # what they are ordered by
    cosines: Float32[Array, "*B M R"]
    items: Int32[Array, "*B M R"]
    log_normaliser: Float32[Array, "*B M"]


def _search_rows(
    index: PrefixIndex, asked: Asked, count: int, first_row: Int32[Array, ""] | int
) -> Found:
    """`search` in the rows of `index`, which are those from `first_row` on of the whole one's."""
    is_valid = asked.is_valid & (asked.leaves >= 0)
    leaf = jnp.where(is_valid, asked.leaves, 0)
    bounds = jnp.stack([index.leaf_start[leaf], index.leaf_start[leaf + 1]])
    start, end = jnp.clip(bounds - first_row, 0, index.sorted_items.shape[0])
    size = jnp.where(is_valid, end - start, 0)
    sharpness = asked.sharpness[..., None, None]
    excluded = asked.excluded if asked.excluded is None else jnp.sort(asked.excluded, axis=-1)
    # Highest precision: a TPU would round the factors to bfloat16.
    exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    longest = size.max()

    def score_chunk(state: tuple[Array, Found]) -> tuple[Array, Found]:
        first, found = state
        offsets = first + jnp.arange(index.chunk, dtype=jnp.int32)
        rows = start[..., None] + offsets
        is_item = offsets < size[..., None]
        if index.is_whole:
            vectors = index.vectors.at[offsets].get(mode="clip")
            cosines = exact("...D,RD->...R", asked.queries, vectors)
        else:
            vectors = index.vectors.at[rows].get(mode="clip")
            cosines = exact("...D,...RD->...R", asked.queries, vectors)
        part = jax.nn.logsumexp(cosines * sharpness, axis=-1, where=is_item)
        scores = cosines
        if excluded is not None or asked.bias is not None:
            items = index.sorted_items.at[rows].get(mode="clip")
        if excluded is not None:
            is_item &= ~find(items, excluded)[1]
        if asked.subset is not None:
            is_item &= asked.subset.has_rows(first_row + rows)
        if asked.bias is not None:
            scores = cosines * sharpness + asked.bias.of(items, vectors)
        log_normaliser = jnp.logaddexp(found.log_normaliser, part)
        # Earlier rows stand first and are lower items: top_k then resolves ties as promised.
        more = (jnp.where(is_item, scores, -jnp.inf), cosines, rows)
        pairs = zip((found.best, found.cosines, found.items), more, strict=True)
        pool = (jnp.concatenate(pair, axis=-1) for pair in pairs)
        return first + index.chunk, _best_of(Found(*pool, log_normaliser), count)

    shape = (*asked.leaves.shape, count)
    nothing = jnp.full(shape, -jnp.inf, jnp.float32)
    # Its items are rows until all are searched.
    none = Found(nothing, nothing, jnp.zeros(shape, jnp.int32), nothing[..., 0])
    state = (jnp.int32(0), none)
    found = jax.lax.while_loop(lambda state: state[0] < longest, score_chunk, state)[1]
    return dataclasses.replace(found, items=index.sorted_items[found.items])


def _best_of(found: Found, count: int) -> Found:
    """The `count` best of each beam, the first on ties."""
    best, chosen = jax.lax.top_k(found.best, count)
    cosines, items = (
        jnp.take_along_axis(values, chosen, axis=-1) for values in (found.cosines, found.items)
    )
    return Found(best, cosines, items, found.log_normaliser)
