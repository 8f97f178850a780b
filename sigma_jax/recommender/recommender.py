"""The recommender: the one way from requests to recommendations.

Reports while training, evaluation, the commands and the service all call `Recommender.recommend`.
A request goes through prompts, beam search, the index, fusion and the reranker.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from sigma_jax.data.vectors import unit_rows
from sigma_jax.generation.beam import Prompts
from sigma_jax.generation.config import GenerationConfig
from sigma_jax.generation.contexts import ContextCache
from sigma_jax.generation.generator import Generator, prefix_depth
from sigma_jax.histories import request_times, seen_items
from sigma_jax.index.host_index import HostIndex
from sigma_jax.index.trie import Trie
from sigma_jax.index.trie_build import build_trie
from sigma_jax.prompts.inference import make_prompts
from sigma_jax.recommender.parts import RecommenderParts
from sigma_jax.recommender.ranking import Ranker, Recommendations, Variant
from sigma_jax.recommender.requests import DEFAULT_INSTRUCTION
from sigma_jax.recommender.wish_lists import recommend_wishes
from sigma_jax.reranking.features import RankingInputs
from sigma_jax.reranking.instruction import (
    InstructionInputs,
)
from sigma_jax.reranking.reranker import Reranker
from sigma_jax.reranking.semantic import SemanticArrays
from sigma_jax.schema import Histories, RequestBatch, Requests


@dataclasses.dataclass(frozen=True)
class RecommendOptions:
    """How to answer some requests."""

    count: int = 10  # items a request
    exclude_seen: bool = False  # leave out the items of the user's history
    reranks: bool = True  # multiply the reranker's factor to Eq. 10, where there is a reranker
    # Settings for these requests; beams and batch size stay those of the recommender. None: the
    # recommender's settings, with enough items of each prefix for a list of `count`.
    generation: GenerationConfig | None = None
    explains: bool = False  # return the steps to each probability (explanations.py)
    # Share of the beams (GenerationConfig.under_load); less than 1 under high load.
    beam_share: float = 1.0


class Recommender:
    """A trained recommender over one catalogue, ready to answer."""

    def __init__(
        self,
        parts: RecommenderParts,
        generation: GenerationConfig,
        trie: Trie | None = None,
        vectors: Float[np.ndarray, "I D"] | None = None,
        is_active: Bool[np.ndarray, " I"] | None = None,
        host_index: HostIndex | None = None,
        mesh: Mesh | None = None,
        contexts: ContextCache | None = None,
        window_step: int = 1,
    ):
        """A recommender of `parts`.

        Args:
          trie: over the semantic IDs of the items. None: it is built.
          vectors: the network's item vectors, unit length. None: the network makes them.
          is_active: False for items that are never recommended. None: all may be.
          host_index: for `retrieval="scann"`. None: it is built.
          mesh: devices that hold equal parts of the item vectors. None: one device holds all.
          contexts: keeps keys and values of users' prompts, so that a user's next request computes
            new behaviour only. None: each request is computed from the beginning.
          window_step: of prompts (prompts/inference.py); more than 1 for `contexts`.
        """
        self._window_step, self.contexts = window_step, contexts
        self.parts, self.spec = parts, parts.spec
        if trie is None:
            ids = parts.semantic_ids
            depth = prefix_depth(parts.network, parts.spec.depth, generation)
            trie = build_trie(ids.codes, depth, ids.codebook_size)
        self.generator = Generator(
            parts.network,
            parts.tables,
            trie,
            generation,
            parts.spec.layout.item_query,
            vectors,
            mesh,
            host_index,
        )
        self._is_active = is_active
        self._active = None if is_active is None else self.generator.mark_active(is_active)
        self._ranker = Ranker(self.generator, parts.lexical, self._semantic_arrays(), contexts)
        self._tables_of_users = (parts.users, parts.prompt_tables)  # of the last batch

    def _semantic_arrays(self) -> SemanticArrays | None:
        """The text vectors of the items, where instructions are compared with them."""
        texts = self.generator.tables.get("text")
        if self.parts.encoder is None or texts is None:
            return None
        return SemanticArrays.make(texts, self.parts.group, self.parts.knowledge)

    def at_load(self, share: float) -> Recommender:
        """The recommender with beams for `share` of the work; it shares all arrays.

        It computes prompts from the beginning. With kept contexts prompts have so many shapes that
        their programs could not all be compiled before a high load.
        """
        other = copy.copy(self)
        other.contexts, other.generator = None, self.generator.at_load(share)
        other._ranker = self._ranker.with_generator(other.generator)
        return other

    def with_reranker(self, reranker: Reranker) -> Recommender:
        """The recommender with another reranker; it shares all else."""
        other = copy.copy(self)
        other.parts = dataclasses.replace(self.parts, reranker=reranker)
        return other

    def recommend(
        self,
        batch: RequestBatch,
        options: RecommendOptions = RecommendOptions(),
        is_allowed: Bool[np.ndarray, " I"] | None = None,
    ) -> Recommendations:
        """The best items for each request, NumPy arrays; inactive items never.

        A list ends with items -1 if fewer than `options.count` are found. Instructions that
        exclude something, or name several things or a price, are taken apart (wishes.py).

        Args:
          is_allowed: False for further items to leave out, such as those out of stock. ValueError
            if no active item is left.
        """
        if options.beam_share < 1:
            whole = dataclasses.replace(options, beam_share=1.0)
            return self.at_load(options.beam_share).recommend(batch, whole, is_allowed)

        def recommend(part: RequestBatch, count: int) -> Recommendations:
            changed = dataclasses.replace(options, count=count)
            return self._recommend_as_read(part, changed, is_allowed)

        if self.parts.wishes is None:
            return recommend(batch, options.count)
        items = len(self.parts.semantic_ids.codes)
        return recommend_wishes(batch, self.parts.wishes, recommend, options.count, items)

    def _recommend_as_read(
        self,
        batch: RequestBatch,
        options: RecommendOptions,
        is_allowed: Bool[np.ndarray, " I"] | None,
    ) -> Recommendations:
        """`recommend` for instructions that are read as they stand."""
        if self.parts.reranker is None or not options.reranks:
            return self.recommend_variants(batch, [options], is_allowed)[0]
        # Requests of many days are answered in parts, each with its own trending table.
        times = request_times(batch.histories, batch.requests)
        parts = self.parts.reranker.tables.trends.together(times)
        if len(parts) == 1:
            return self.recommend_variants(batch, [options], is_allowed)[0]
        answers = [
            self.recommend_variants(batch.take(rows), [options], is_allowed)[0] for rows in parts
        ]
        order = np.argsort(np.concatenate(parts))
        return jax.tree.map(lambda *values: np.concatenate(values)[order], *answers)

    def recommend_variants(
        self,
        batch: RequestBatch,
        variants: Sequence[RecommendOptions],
        is_allowed: Bool[np.ndarray, " I"] | None = None,
    ) -> list[Recommendations]:
        """One answer for each of `variants`. The network reads each prompt only once.

        Only where an instruction is novel, variants that rerank have prompts of their own.
        """
        active = self._active
        if is_allowed is not None:
            known = True if self._is_active is None else self._is_active
            active = self.generator.mark_active(known & is_allowed)
        users = names_of(batch) if self.contexts is not None else []
        shared = self._shared_inputs(batch, variants)
        each = [self._variant(batch, options, shared) for options in variants]
        if shared is None or shared.is_novel is None or not shared.is_novel.any():
            return self._ranker.rank(self.prompts(batch), each, active, users)
        answers: dict[int, Recommendations] = {}
        general = with_general_instructions(batch, shared.is_novel)
        for read, reranks in ((general, True), (batch, False)):
            places = [n for n, options in enumerate(variants) if options.reranks == reranks]
            if places:
                some = [each[n] for n in places]
                ranked = self._ranker.rank(self.prompts(read), some, active, users)
                answers |= dict(zip(places, ranked, strict=True))
        return [answers[number] for number in range(len(variants))]

    def prompts(self, batch: RequestBatch) -> Prompts:
        """The prompts of `batch`, NumPy arrays."""
        users, tables = self._tables_of_users  # read once: other threads may replace it
        if users is not batch.users:
            tables = self.parts.prompt_tables.with_users(batch.users)
            self._tables_of_users = (batch.users, tables)
        return Prompts(
            **make_prompts(
                batch.requests,
                batch.histories,
                tables,
                self.parts.instruction_vectors,
                self._window_step,
            )
        )

    def sigma(self, options: RecommendOptions) -> str | float:
        """sigma of Eq. 11 under `options`: as configured, or as it was fitted with the reranker."""
        config = options.generation or self.generator.config
        is_fitted = options.reranks and self.parts.reranker is not None
        if is_fitted and config.sigma == "deviation":
            return self.parts.reranker.weights.sigma
        return config.sigma

    def _variant(
        self, batch: RequestBatch, options: RecommendOptions, shared: RankingInputs | None
    ) -> Variant:
        """How the candidates of `batch` are ranked under `options`."""
        config = options.generation
        if config is None:
            config = self.generator.config
            if self.generator.trie.depth:  # all items of a list may be of one prefix
                retrieved = max(config.num_retrieved, options.count)
                config = dataclasses.replace(config, num_retrieved=retrieved)
        inputs = RankingInputs()
        if options.reranks and shared is not None:
            inputs = shared
            config = dataclasses.replace(config, sigma=self.sigma(options))
        if options.exclude_seen:
            seen = seen_items(batch.histories, batch.requests)
            inputs = dataclasses.replace(inputs, seen=seen)
        return Variant(options.count, config, inputs, options.explains)

    def _shared_inputs(
        self, batch: RequestBatch, variants: Sequence[RecommendOptions]
    ) -> RankingInputs | None:
        """The features of the requests; None where no variant reranks."""
        reranker = self.parts.reranker
        if reranker is None or not any(options.reranks for options in variants):
            return None
        features, trending = reranker.tables.features(batch.requests, batch.histories)
        instruction = self.read_instructions(batch.requests.instruction)
        task_scores, is_novel = self._compared(batch.requests.instruction, instruction)
        return RankingInputs(
            features=features,
            instruction=instruction,
            trending=trending,
            weights=reranker.weights.by_task,
            interactions=reranker.interactions,
            calibration=np.array(reranker.weights.calibration, np.float32),
            task_scores=task_scores,
            is_novel=is_novel,
        )

    def _compared(
        self, texts: Sequence[str], read: InstructionInputs | None
    ) -> tuple[Float[np.ndarray, "N tasks"] | None, Bool[np.ndarray, " N"] | None]:
        """Task scores of the instructions, and whether each is novel (novelty.py).

        Both are None without weights for novel instructions.
        """
        novelty = self.parts.reranker.novelty
        if novelty is None:
            return None, None
        if read is None or read.vectors is None:
            return None, np.zeros(len(texts), bool)
        distinct, first, place = np.unique(
            np.array(texts, object), return_index=True, return_inverse=True
        )
        task_scores, is_novel = novelty.compare(list(distinct), read.vectors[first])
        return task_scores[place.reshape(-1)], is_novel[place.reshape(-1)]

    def read_instructions(self, texts: Sequence[str]) -> InstructionInputs | None:
        """The network's answer to each instruction alone, and its words; None without both.

        The answer is missing if the network was not trained on instructions without a history.
        """
        can_answer = self.spec.answers_instructions_alone
        if not can_answer and self.parts.lexical is None and self.parts.encoder is None:
            return None
        distinct, place = np.unique(np.array(texts, object), return_inverse=True)
        distinct = list(distinct)
        prompts = self._instruction_prompts(distinct) if can_answer else None
        vectors = None if self.parts.encoder is None else unit_rows(self.parts.encoder(distinct))
        inputs = self._ranker.read_instructions(distinct, prompts, vectors)
        return jax.tree.map(lambda table: table[place.reshape(-1)], inputs)

    def _instruction_prompts(self, texts: list[str]) -> Prompts:
        """Prompts that hold an instruction and nothing else."""
        nobody = np.full(len(texts), -1, np.int32)
        requests = Requests(nobody, np.zeros(len(texts), np.int64), nobody, nobody, nobody, texts)
        tables = self.parts.prompt_tables
        return Prompts(
            **make_prompts(requests, Histories.empty(), tables, self.parts.instruction_vectors)
        )

    def instruction_scores(
        self, instruction: InstructionInputs, items: Int[np.ndarray, "N n"]
    ) -> Float[np.ndarray, "N n H"]:
        """INSTRUCTION_FEATURES of some items of each request."""
        return self._ranker.instruction_scores(instruction, items)


def names_of(batch: RequestBatch) -> list[str]:
    """The id of the user of each request; "" for an unknown one."""
    ids = batch.users.table["user_id"]
    return [ids[user].as_py() if user >= 0 else "" for user in batch.requests.user.tolist()]


def with_general_instructions(
    batch: RequestBatch, is_novel: Bool[np.ndarray, " N"]
) -> RequestBatch:
    """The batch with DEFAULT_INSTRUCTION in place of the novel instructions."""
    texts = [
        DEFAULT_INSTRUCTION if novel else text
        for text, novel in zip(batch.requests.instruction, is_novel, strict=True)
    ]
    return dataclasses.replace(
        batch, requests=dataclasses.replace(batch.requests, instruction=texts)
    )
