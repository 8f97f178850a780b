"""Three-step item generation (section 2.4 of SIGMA): prefixes, items inside them, fusion.

A `Generator` runs the first two steps for a batch of prompts: `beams` searches the prefixes
(Eq. 6-8), `candidates` searches the items inside them (Eq. 9). The functions of fusion.py give the
items their probability (Eq. 10-11).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from sigma_jax.generation import fusion
from sigma_jax.generation.beam import Beams, Past, Prompts, search_and_keep
from sigma_jax.generation.config import GenerationConfig
from sigma_jax.generation.prefix_scores import Scorer, make_prefix_scorer
from sigma_jax.index.candidates import Candidates, SearchInputs
from sigma_jax.index.device_index import (
    ALL_CANDIDATES,
    DeviceIndex,
    all_candidates,
    build_device_index,
    search,
)
from sigma_jax.index.host_index import HostIndex, leaves_of_items
from sigma_jax.index.trie import ActiveItems, Trie
from sigma_jax.index.trie_build import active_items, build_trie, mark_active
from sigma_jax.models.network import RecommenderNetwork, Tables
from sigma_jax.runtime import sharding
from sigma_jax.runtime.config import MeshConfig
from sigma_jax.runtime.sharding import make_mesh
from sigma_jax.schema import SemanticIds
from sigma_jax.shapes import power_of_two

LEAST_LIMIT = 64  # least limit of beams and of items of a prefix: smaller limits save nothing


class Generator:
    """A trained network with the trie and the index of its catalogue.

    It compiles once for each shape of prompts. All methods take arrays of one batch.

    Axes: B requests, M beams, S seen items, L extra candidates, I items, D dimensions.
    """

    def __init__(
        self,
        network: RecommenderNetwork,
        tables: Tables,
        trie: Trie,
        config: GenerationConfig,
        item_query: str,
        vectors: Float[np.ndarray, "I D"] | None = None,
        mesh: Mesh | None = None,
        host_index: HostIndex | None = None,
    ):
        """A generator over the items of `trie`.

        Args:
          tables: the network's frozen tables of items.
          config: its `num_beams` is limited to about the number of prefixes in the trie.
          item_query: the token that asks for the item (PromptLayout.item_query).
          vectors: vectors of all items, unit length. None: the network makes them.
          mesh: devices that hold equal parts of the item vectors. None: one device holds all.
          host_index: an index of these items for `retrieval="scann"`. None: it is built.
        """
        self.config, self._largest_prefix = config, len(trie.sorted_items)
        if trie.depth:
            sizes = np.diff(np.asarray(trie.leaf_start))
            # Powers of two, so that similar catalogues share compiled programs.
            self._largest_prefix = max(power_of_two(sizes.max()), LEAST_LIMIT)
            max_beams = max(power_of_two((sizes > 0).sum()), LEAST_LIMIT)
            self.config = dataclasses.replace(config, num_beams=min(config.num_beams, max_beams))
        self.item_query = item_query
        self.tables = {name: jnp.asarray(table) for name, table in tables.items()}
        self.trie = jax.tree.map(jnp.asarray, trie)
        self._host_trie = jax.tree.map(np.asarray, trie)
        self.graphdef, self.state = nnx.split(network)
        self.has_task_head = network.config.has_task_head
        self.has_item_head = network.config.has_item_head
        if vectors is None:
            vectors = all_item_vectors(network, self.tables, trie.num_items)
        self.index = build_device_index(trie, np.asarray(vectors), mesh=mesh)
        arrays = (self.state, self.tables, self.index.vectors)
        devices = set().union(*(array.devices() for array in jax.tree.leaves(arrays)))
        self.one_device = None
        if len(devices) == 1:
            self.one_device = make_mesh(MeshConfig(1, 1, 1), list(devices))
        self.host_index = None
        # The last active items, and the host index restricted to them.
        self._last_restricted: tuple[ActiveItems, HostIndex] | None = None
        if config.retrieval == "scann":
            retrieved = self._limit_retrieved(config, 1).num_retrieved
            self.host_index = host_index or HostIndex(
                leaves_of_items(trie), np.asarray(vectors), retrieved
            )
        self.prefix_scorer = None
        if self.has_item_head:
            self.prefix_scorer = make_prefix_scorer(trie, self.index.vectors, config.temperature)

    @classmethod
    def create(
        cls,
        network: RecommenderNetwork,
        tables: Tables,
        semantic_ids: SemanticIds,
        depth: int,
        config: GenerationConfig,
        item_query: str = "token",
        mesh: Mesh | None = None,
    ) -> Generator:
        """A generator over all items of `semantic_ids`, with prefixes of `depth` codes.

        With `item_query` "none", all items of a prefix are equally likely. ValueError if the
        exhaustive ranker meets a network without an item head.
        """
        depth = prefix_depth(network, depth, config)
        trie = build_trie(semantic_ids.codes, depth, semantic_ids.codebook_size)
        return cls(network, tables, trie, config, item_query, mesh=mesh)

    def at_load(self, share: float) -> Generator:
        """The generator with beams for `share` of the work (GenerationConfig.under_load).

        It shares all arrays and compiled programs with this one.
        """
        other = copy.copy(self)
        other.config = self.config.under_load(share)
        return other

    def mark_active(self, is_active: Bool[np.ndarray, " I"]) -> ActiveItems:
        """The items that may be recommended, on the device.

        ValueError if there is none, or not one flag for each item.
        """
        return jax.device_put(mark_active(self._host_trie, is_active))

    def beams(self, prompts: Prompts, active: ActiveItems | None = None) -> Beams:
        """The likeliest prefixes of active items after each prompt (Eq. 6-8), on the device."""
        return search_beams(*self._search_arguments(prompts, active))

    def beams_and_keys(
        self, prompts: Prompts, active: ActiveItems | None = None
    ) -> tuple[Beams, Past]:
        """`beams`, and the keys and values of the columns that are not in the prompts' past."""
        return search_and_keep_keys(*self._search_arguments(prompts, active))

    def _search_arguments(self, prompts: Prompts, active: ActiveItems | None) -> tuple[Any, ...]:
        """The arguments of `search_and_keep_keys`."""
        return (
            self.graphdef,
            self.state,
            self.tables,
            self.trie,
            self.prefix_scorer,
            prompts,
            self.config.widths(self.trie.depth),
            self.config.margin,
            self.item_query,
            active,
            self.one_device,
        )

    def candidates(
        self,
        beams: Beams,
        config: GenerationConfig,
        count: int,
        seen: Int[Array, "B S"] | None = None,
        extra: Int[Array, "B L"] | None = None,
        extra_queries: Float[Array, "B D"] | None = None,
        active: ActiveItems | None = None,
    ) -> Candidates:
        """The items of each beam's prefix that are nearest to its query (Eq. 9), and extra ones.

        Args:
          config: sigma and the number of items to retrieve; the beams stay as they are.
          count: length of the list that is to be made of the candidates.
          seen: items that are left out, padded with -1.
          extra: extra candidates, padded with -1. They join if they lie in the prefix of a beam, or
            anywhere if the beams have a root.
          extra_queries: in every prefix, the items nearest to these vectors join as well.
          active: the items that may be recommended. None: all.
        """
        config = self._limit_retrieved(config, count)
        inverse_temperature = inverse_temperature_of(beams, config)
        beams, root = beams.with_root(inverse_temperature, config.temperature)
        inputs = SearchInputs(
            beams.queries,
            beams.leaves,
            beams.is_valid,
            inverse_temperature,
            seen,
            extra,
            extra_queries,
            active,
            root,
        )
        if self.ranks_all_items(config):
            return _all_candidates(self.index, inputs)
        if self.host_index is None:
            return _search(self.index, inputs, config.num_retrieved)
        candidates = self._active_host_index(active).search_beams(inputs, config.num_retrieved)
        return jax.tree.map(jnp.asarray, candidates)

    def ranks_all_items(self, config: GenerationConfig) -> bool:
        """Whether every item is a candidate under `config` (`ranks_all_items` of this module)."""
        return self.host_index is None and ranks_all_items(self.index, config, self.has_item_head)

    def _active_host_index(self, active: ActiveItems | None) -> HostIndex:
        """The host index restricted to the active items; the last restriction is kept."""
        if active is None:
            return self.host_index
        last = self._last_restricted
        if last is None or last[0] is not active:
            last = (active, self.host_index.restrict_to(active_items(self._host_trie, active)))
            self._last_restricted = last
        return last[1]

    def _limit_retrieved(self, config: GenerationConfig, count: int) -> GenerationConfig:
        return limit_retrieved(config, self.trie.depth, self._largest_prefix, count)


def prefix_depth(network: RecommenderNetwork, depth: int, config: GenerationConfig) -> int:
    """The number of codes that `config.ranker` generates: `depth`, or 0 for "exhaustive".

    ValueError if the exhaustive ranker meets a network without an item head.
    """
    if config.ranker == "three_step":
        return depth
    if depth and not network.config.has_item_head:
        raise ValueError(
            'generation.ranker="exhaustive" scores all items by the item head, but '
            'model.has_item_head=False; set generation.ranker="three_step".'
        )
    return 0


def ranks_all_items(index: DeviceIndex, config: GenerationConfig, has_root: bool) -> bool:
    """Whether every item is a candidate: in a small catalogue, on one device.

    Args:
      has_root: whether beams have a root (beam.Root), which an item head gives.
    """
    is_whole = (index.has_one_prefix or has_root) and index.mesh is None
    is_small = len(index.sorted_items) <= ALL_CANDIDATES
    is_exact = config.normaliser == "exact" and config.fusion == "adaptive"
    return is_whole and is_small and is_exact


def limit_retrieved(
    config: GenerationConfig, depth: int, largest_prefix: int, count: int
) -> GenerationConfig:
    """`config` with at most `largest_prefix` items retrieved from a prefix.

    Without codes there is one prefix. It gives as many items as all beams would, and at least
    `count`.
    """
    retrieved = config.num_retrieved
    if not depth:
        retrieved = max(config.num_beams * retrieved, count)
    return dataclasses.replace(config, num_retrieved=min(retrieved, largest_prefix))


@functools.partial(jax.jit, static_argnums=1)
def inverse_temperature_of(beams: Beams, config: GenerationConfig) -> Float[Array, " B"]:
    """sigma / tau of Eq. 11, by which cosines are multiplied."""
    return fusion.inverse_temperature(
        beams.scores, beams.is_valid, config.temperature, config.sigma, config.sigma_floor
    )


_search = jax.jit(search, static_argnums=2)
_all_candidates = jax.jit(all_candidates)


def _search_and_keep_keys(
    graphdef,
    state,
    tables: Tables,
    trie: Trie,
    prefix_scorer: Scorer | None,
    prompts: Prompts,
    widths: tuple[int, ...],
    margin: float,
    item_query: str,
    active: ActiveItems | None,
    one_device: Mesh | None,
) -> tuple[Beams, Past]:
    """`search_and_keep` with a network that is split.

    Args:
      graphdef, state: the network, split by nnx.
      one_device: the device that holds all arrays, so that kernels may run there. None: several
        devices hold them.
    """
    network = nnx.merge(graphdef, state)
    with on_one_device(one_device):
        return search_and_keep(
            network, tables, prompts, trie, widths, item_query, prefix_scorer, active, margin
        )


_STATIC = (0, 6, 7, 8, 10)  # of the arguments of _search_and_keep_keys
search_and_keep_keys = jax.jit(_search_and_keep_keys, static_argnums=_STATIC)


@functools.partial(jax.jit, static_argnums=_STATIC)
def search_beams(*arguments: Any) -> Beams:
    """The beams of `_search_and_keep_keys`, compiled without the keys."""
    return _search_and_keep_keys(*arguments)[0]


def on_one_device(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """The context in which kernels run on the device of `mesh`. None: it changes nothing."""
    return contextlib.nullcontext() if mesh is None else sharding.on_mesh(mesh)


def all_item_vectors(
    network: RecommenderNetwork, tables: Tables, num_items: int, chunk: int = 8192, first: int = 0
) -> Float[np.ndarray, "n D"]:
    """Fused vectors of the items from `first` on, unit length, made `chunk` items at a time."""
    graphdef, state = nnx.split(network)
    chunk = min(chunk, num_items - first)
    parts = []
    for start in range(first, num_items, chunk):
        items = np.minimum(np.arange(start, start + chunk), num_items - 1)
        parts.append(np.asarray(_item_vectors(graphdef, state, tables, items)))
    return np.concatenate(parts)[: num_items - first]


@functools.partial(jax.jit, static_argnums=0)
def _item_vectors(graphdef, state, tables: Tables, items: Int[Array, " n"]) -> Float[Array, "n D"]:
    return nnx.merge(graphdef, state).item_vectors(items, tables)


def take_rows(tree: Any, rows: np.ndarray) -> Any:
    """The `rows` of every array of `tree`, on the device; None stays None."""
    return jax.tree.map(lambda table: jnp.asarray(table[rows]), tree)
