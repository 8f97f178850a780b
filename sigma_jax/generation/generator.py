"""Three-step item generation (section 2.4 of SIGMA): prefixes, items inside them, fusion."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from sigma_jax.data.vectors import unit_rows
from sigma_jax.generation.beam import Beams, Prompts, beam_search
from sigma_jax.generation.config import GenerationConfig
from sigma_jax.generation.prefix_scores import ItemEvidence, make_evidence
from sigma_jax.generation.rank import Given, Recommendations, rank, rank_found, sharpness_of
from sigma_jax.index.device_index import PrefixIndex, build_index
from sigma_jax.index.host_index import HostIndex, leaves_of_items
from sigma_jax.index.trie import Subset, Trie
from sigma_jax.index.trie_build import active_items, build_trie, subset
from sigma_jax.models.network import RecommenderNetwork, Tables
from sigma_jax.reranking.extra_candidates import Lifts
from sigma_jax.reranking.features import ItemFeatures
from sigma_jax.reranking.instruction import Answer, ItemWords, Said, Told, read_answer
from sigma_jax.reranking.lexical import WordTable
from sigma_jax.runtime import sharding
from sigma_jax.runtime.config import MeshConfig
from sigma_jax.runtime.sharding import make_mesh
from sigma_jax.schema import SemanticIds
from sigma_jax.shapes import power_of_two

FEW = 64  # beams, and items of a prefix, up to which it does not matter that there are fewer


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to rank what the beams have found."""

    seen: Int[np.ndarray, "N S"] | None = None  # items to leave out, padded with -1
    features: ItemFeatures | None = None  # of N requests, NumPy arrays
    weights: Float[np.ndarray, "tasks F+G+2"] | None = None  # of these features, by Beams.tasks
    config: GenerationConfig | None = None  # other than the generator's; its beams stay
    table: Float[np.ndarray, "T I G"] | None = None  # features of all items, by `features.row`
    told: Told | None = None  # of N requests, of all items, weighed by the last two `weights`


class Generator:
    """A trained model with the trie and the index of its catalogue.

    Compiles once for each shape of prompts; a batch that is not full is padded. Fewer requests than
    a batch are one of the next power of two.
    """

    def __init__(
        self,
        model: RecommenderNetwork,
        tables: Tables,
        trie: Trie,
        config: GenerationConfig,
        item_query: str,
        words: WordTable | None = None,
        vectors: Float[np.ndarray, "I D"] | None = None,
        mesh: Mesh | None = None,
        host: HostIndex | None = None,
    ):
        """`vectors`: of all items, unit length, where they are known; else the model makes them.

        `mesh`: whose devices share the search inside prefixes, each in a part of the items; None:
        one device has them all. `host`: the index of these items where the host searches them;
        None: it is built.
        """
        self.config, self._longest = config, len(trie.sorted_items)  # prefix, in items
        if trie.depth:
            sizes = np.diff(np.asarray(trie.leaf_start))
            # Powers of two, and not few: similar catalogues share what is compiled.
            self._longest = max(power_of_two(sizes.max()), FEW)
            most = max(power_of_two((sizes > 0).sum()), FEW)
            self.config = dataclasses.replace(config, num_beams=min(config.num_beams, most))
        self.item_query = item_query
        self.words = words
        self.item_words = ItemWords.of(words) if words is not None else None
        self.tables = {name: jnp.asarray(table) for name, table in tables.items()}
        self.trie = jax.tree.map(jnp.asarray, trie)
        self._on_host = jax.tree.map(np.asarray, trie)  # for subsets
        self.graphdef, self.state = nnx.split(model)
        self.has_task_head = model.config.has_task_head
        if vectors is None:
            vectors = all_item_vectors(model, self.tables, trie.num_items)
        self.index = build_index(trie, np.asarray(vectors), mesh=mesh)
        arrays = (self.state, self.tables, self.index.vectors)
        devices = set().union(*(array.devices() for array in jax.tree.leaves(arrays)))
        self._place = None
        if len(devices) == 1:
            self._place = make_mesh(MeshConfig(1, 1, 1), list(devices))
        self.host = host if config.retrieval == "scann" else None
        self._host_of: tuple[Subset, HostIndex] | None = None  # the last subset's
        if config.retrieval == "scann":
            self.lifts = Lifts(words)
            if host is None:
                usual = self._per_prefix(config, 1).num_retrieved
                self.host = HostIndex(leaves_of_items(trie), np.asarray(vectors), usual)
        self.evidence = None
        if model.config.has_item_head:
            self.evidence = make_evidence(trie, self.index.vectors, config.temperature)

    @classmethod
    def create(
        cls,
        model: RecommenderNetwork,
        tables: Tables,
        semantic_ids: SemanticIds,
        depth: int,
        config: GenerationConfig,
        item_query: str = "token",
        words: WordTable | None = None,
        mesh: Mesh | None = None,
    ) -> Generator:
        """Over all items of `semantic_ids`; prefixes are `depth` codes long.

        `words`: of the items, where instructions are to be read word by word. Where `item_query` is
        "none" all items of a prefix are equally likely. Where codes and queries add nothing to the
        item head (its gains are 0, generation/head_weights.py), all items are ranked by one
        softmax at once: the
        same order without the beams.
        """
        if config.ranking == "fused" and not model.beam_search_helps:
            depth = 0
        trie = build_trie(semantic_ids.codes, depth, semantic_ids.codebook_size)
        return cls(model, tables, trie, config, item_query, words, mesh=mesh)

    def at_load(self, share: float) -> Generator:
        """The same with beams for `share` of the work (GenerationConfig.under_load); it shares all
        arrays and compiled programs."""
        other = copy.copy(self)
        other.config = self.config.under_load(share)
        return other

    def subset(self, is_active: Bool[np.ndarray, " I"]) -> Subset:
        """The active items, as `variants` takes them. ValueError where there is none."""
        return jax.device_put(subset(self._on_host, is_active))

    def __call__(
        self,
        prompts: Mapping[str, np.ndarray],
        count: int,
        seen: Int[np.ndarray, "N S"] | None = None,
    ) -> Recommendations:
        """The best `count` items for each prompt, NumPy arrays; items in `seen` are left out.

        `prompts` has the fields of `Prompts`. `seen` is padded with -1; None keeps all items.
        """
        return self.variants(prompts, count, [Choice(seen)])[0]

    def variants(
        self,
        prompts: Mapping[str, np.ndarray],
        count: int,
        choices: Sequence[Choice],
        active: Subset | None = None,
    ) -> list[Recommendations]:
        """One result for each of `choices`; the model reads the prompts only once for all.

        `active`: the items that may be recommended, now, to anyone; None: all of the catalogue.
        """
        # Choices mostly share a table; on the device it is large.
        held = {id(c.table): jnp.asarray(c.table) for c in choices if c.table is not None}

        def answer(rows: np.ndarray) -> list[Recommendations]:
            batch = Prompts(**take_rows(dict(prompts), rows))
            beams = search_beams(
                self.graphdef,
                self.state,
                self.tables,
                self.trie,
                self.evidence,
                batch,
                self.config,
                self.item_query,
                active,
                self._place,
            )
            found = []
            for choice in choices:
                given = Given(
                    take_rows(choice.seen, rows),
                    take_rows(choice.features, rows),
                    held.get(id(choice.table)),
                    take_rows(choice.told, rows),
                    self.item_words,
                    choice.weights,
                )
                config = self._per_prefix(choice.config or self.config, count)
                if self.host is None:
                    found.append(rank(self.index, beams, active, given, config, count))
                else:
                    lifted = self._lifted(choice, rows)
                    found.append(self._rank_on_host(beams, given, lifted, config, count, active))
            return found

        return self._by_batch(len(prompts["lengths"]), answer)

    def _rank_on_host(
        self,
        beams: Beams,
        given: Given,
        lifted: list[np.ndarray] | None,
        config: GenerationConfig,
        count: int,
        active: Subset | None,
    ) -> Recommendations:
        """`rank` with the items that the host finds in the prefixes, and those of `lifted` there,
        for each request."""
        index, retrieved = self._host_index(active), config.num_retrieved
        sharpness = np.asarray(sharpness_of(beams, config))
        queries, leaves = np.asarray(beams.queries), np.asarray(beams.leaves)
        seen = np.asarray(given.seen) if given.seen is not None else None
        if lifted is not None and given.told is not None and given.told.answer is not None:
            answers = unit_rows(np.asarray(given.told.answer.queries))
            answers = np.repeat(answers, leaves.shape[1], axis=0)
            near = index.search(answers, leaves.reshape(-1), retrieved)[0].reshape(len(leaves), -1)
            lifted = [np.union1d(*both) for both in zip(lifted, near, strict=True)]
        found = index.of_beams(queries, leaves, retrieved, sharpness, seen, lifted)
        return rank_found(self.index, beams, *map(jnp.asarray, found), given, config, count)

    def _lifted(self, choice: Choice, rows: np.ndarray) -> list[np.ndarray] | None:
        """Items of each request that more than the query speaks for; None where nothing does."""
        if choice.features is None:
            return None
        parts = [choice.features.items[rows]]
        if choice.told is not None and choice.told.words is not None:
            parts.append(self.lifts.of_words(choice.told.words[rows]))
        if choice.table is not None:
            parts.append(self.lifts.of_trends(choice.table, choice.features.row[rows]))
        return [np.unique(np.concatenate(row)) for row in zip(*parts, strict=True)]

    def _host_index(self, active: Subset | None) -> HostIndex:
        """The host's index of the active items."""
        if active is None:
            return self.host
        last = self._host_of
        if last is None or last[0] is not active:
            last = (active, self.host.only(active_items(self._on_host, active)))
            self._host_of = last
        return last[1]

    def told(
        self, instructions: Sequence[str], prompts: Mapping[str, np.ndarray] | None = None
    ) -> Told:
        """What `instructions` say by themselves, NumPy arrays.

        `prompts` hold the instructions and nothing else: the model, which has an item head,
        answers them. None: the words of the instructions are all that is read.
        """

        def read(rows: np.ndarray) -> Answer:
            batch = Prompts(**take_rows(dict(prompts), rows))
            return _answer(
                self.graphdef,
                self.state,
                self.tables,
                batch,
                self.index,
                self.config.temperature,
                self._place,
            )

        assert prompts is not None or self.words is not None, "nothing can be told"
        answer = self._by_batch(len(instructions), read) if prompts is not None else None
        return Told(answer, self.words.of(instructions) if self.words is not None else None)

    def told_at(self, told: Told, items: Int[np.ndarray, "N n"]) -> Float[np.ndarray, "N n 2"]:
        """INSTRUCTION_FEATURES of some items of each request."""

        def read(rows: np.ndarray) -> Array:
            return _told_at(take_rows(told, rows), self.index, self.item_words, items[rows])

        return self._by_batch(len(items), read)

    def _by_batch(self, total: int, function: Callable[[np.ndarray], Any]) -> Any:
        """What `function` gives for the rows of each batch, put together as NumPy arrays."""
        # A few requests make a small batch, of few sizes. The last batch of many is filled by the
        # first rows: one shape, one compilation.
        size = min(self.config.batch_size, power_of_two(total))
        parts = [
            jax.device_get(function(np.arange(start, start + size) % total))
            for start in range(0, total, size)
        ]
        return jax.tree.map(lambda *values: np.concatenate(values)[:total], *parts)

    def for_lists(self, choice: Choice, count: int) -> Choice:
        """`choice`, with as many items of a prefix as lists of `count` can need: all may be of
        one."""
        if not self.trie.depth:
            return choice  # `variants` sees to it
        config = choice.config or self.config
        config = dataclasses.replace(config, num_retrieved=max(config.num_retrieved, count))
        return dataclasses.replace(choice, config=config)

    def _per_prefix(self, config: GenerationConfig, count: int) -> GenerationConfig:
        return per_prefix(config, self.trie.depth, self._longest, count)


def per_prefix(config: GenerationConfig, depth: int, longest: int, count: int) -> GenerationConfig:
    """`config`, with no more items of a prefix than there are; where no code is generated, the one
    prefix gives the items of all beams, and `count` at least."""
    wanted = config.num_retrieved
    if not depth:
        wanted = max(config.num_beams * wanted, count)
    return dataclasses.replace(config, num_retrieved=min(wanted, longest))


def take_rows(tree, rows: np.ndarray):
    """The rows of every array of `tree`, on the device; None stays None."""
    return jax.tree.map(lambda table: jnp.asarray(table[rows]), tree)


@functools.partial(jax.jit, static_argnums=(0, 6, 7, 9))
def search_beams(
    graphdef,
    state,
    tables: Tables,
    trie: Trie,
    evidence: ItemEvidence | None,
    prompts: Prompts,
    config: GenerationConfig,
    item_query: str,
    active: Subset | None,
    place: Mesh | None,
) -> Beams:
    """`beam_search` by a model in two parts, with the widths and the margin of `config`.

    `place`: of the one device where all lies, on which kernels may run.
    """
    model = nnx.merge(graphdef, state)
    widths, margin = config.widths(trie.depth), config.beam_margin or math.inf
    with _on(place):
        return beam_search(
            model, tables, prompts, trie, widths, item_query, evidence, active, margin
        )


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _answer(
    graphdef,
    state,
    tables: Tables,
    prompts: Prompts,
    index: PrefixIndex,
    temperature: float,
    place: Mesh | None,
) -> Answer:
    model, is_item = nnx.merge(graphdef, state), index.sorted_items >= 0
    with _on(place):
        return read_answer(model, tables, prompts, index.vectors, is_item, temperature)


def _on(place: Mesh | None) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext() if place is None else sharding.on_mesh(place)


@jax.jit
def _told_at(
    told: Told, index: PrefixIndex, item_words: ItemWords | None, items: Int[Array, "B n"]
) -> Float[Array, "B n 2"]:
    return Said.of(told, item_words).at(items, index.vectors_of(items))


def all_item_vectors(
    model: RecommenderNetwork, tables: Tables, num_items: int, chunk: int = 8192, first: int = 0
) -> Float[np.ndarray, "n D"]:
    """Fused vectors of the catalogue from item `first` on, unit length, a chunk at a time."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def encode(state, tables, items):
        return nnx.merge(graphdef, state).item_vectors(items, tables)

    chunk = min(chunk, num_items - first)
    parts = []
    for start in range(first, num_items, chunk):
        items = np.minimum(np.arange(start, start + chunk), num_items - 1)
        parts.append(np.asarray(encode(state, tables, items)))
    return np.concatenate(parts)[: num_items - first]
