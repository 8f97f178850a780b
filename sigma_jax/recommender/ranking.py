"""From prompts to recommendations: beams, candidates, fusion (Eq. 6-11 of SIGMA), reranking.

Axes: B requests, M beams, N candidates of a request, n items recommended.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from sigma_jax.generation import fusion
from sigma_jax.generation.beam import Beams, Prompts
from sigma_jax.generation.config import GenerationConfig
from sigma_jax.generation.contexts import ContextCache
from sigma_jax.generation.generator import Generator, inverse_temperature_of, take_rows
from sigma_jax.index.candidates import Candidates
from sigma_jax.index.device_index import DeviceIndex
from sigma_jax.index.trie import ActiveItems
from sigma_jax.recommender.explanations import Explanations, explain
from sigma_jax.reranking import calibration
from sigma_jax.reranking.extra_candidates import ExtraCandidates
from sigma_jax.reranking.features import RankingInputs, add_scores
from sigma_jax.reranking.history.relations import PADDING
from sigma_jax.reranking.instruction import (
    InstructionAnswer,
    InstructionInputs,
    answer_instructions,
    instruction_scores,
)
from sigma_jax.reranking.interactions import DEPTH
from sigma_jax.reranking.lexical import LexicalTable
from sigma_jax.reranking.semantic import SemanticArrays
from sigma_jax.shapes import power_of_two


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Recommendations:
    """The items recommended for each request, best first; -1 where fewer exist."""

    items: Int[Array, "B n"]
    log_probs: Float[Array, "B n"]  # Eq. 10 and the reranker; -inf where there is no item
    beam_scores: Float[Array, "B n"]  # phi of the item's prefix (Eq. 7)
    beams: Int[Array, "B n"]  # rank of the item's prefix among the beams; -1: in none of them
    cosines: Float[Array, "B n"]  # of query and item (Eq. 9)
    sigma: Float[Array, " B"]  # of Eq. 11, as used
    deviation: Float[Array, " B"]  # of the beam scores: sigma of Eq. 11 without a floor
    # Probability that the instruction is of each task, 0 for a novel one; one column of 1 without a
    # task head.
    tasks: Float[Array, "B tasks"]
    explanations: Explanations | None = None  # where they are asked for


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def rank(
    index: DeviceIndex,
    beams: Beams,
    candidates: Candidates,
    inputs: RankingInputs,
    config: GenerationConfig,
    count: int,
    explains: bool = False,
) -> Recommendations:
    """The best `count` candidates of each request by Eq. 10-11, and by `inputs` if it has features.

    Args:
      index: holds the vectors of the items.
      inputs: of the requests of this batch.
      explains: whether to return the steps to each probability.
    """
    inverse_temperature = inverse_temperature_of(beams, config)
    deviation = fusion.beam_deviation(beams.scores, beams.is_valid, 0.0)
    num_beams = beams.scores.shape[1]
    beams, _ = beams.with_root(inverse_temperature, config.temperature)
    log_probs = network = fusion.fuse_candidates(
        candidates,
        beams.scores,
        beams.is_valid,
        inverse_temperature,
        config.normaliser,
        config.fusion,
    )
    shares = inputs.shares(beams.tasks)
    if inputs.features is not None:
        products = _products(index, candidates, inputs)
        scores = inputs.scores(candidates.items, products, shares)
        log_probs = add_scores(log_probs, jnp.where(candidates.items >= 0, scores, 0.0))
    merge = fusion.best_of_sorted if candidates.is_catalogue else fusion.merge
    # More items than are returned: the interactions rank them anew, the calibration reads them.
    anew = DEPTH if inputs.interactions is not None else 0
    length = max(count, anew, calibration.DEPTH if inputs.calibration is not None else 0)
    items, summed, place = merge(candidates.items, log_probs, length)
    of_all, network = network, jnp.take_along_axis(network, jnp.maximum(place, 0), axis=1)
    ranked = summed
    if inputs.interactions is not None:
        ranked = inputs.with_interactions(items, summed, network, shares)
        order = jnp.argsort(-ranked, axis=1)
        items, place, network, summed, ranked = (
            jnp.take_along_axis(part, order, axis=1)
            for part in (items, place, network, summed, ranked)
        )
    log_probs = ranked
    if inputs.calibration is not None:
        log_probs = calibration.calibrated(ranked, shares @ inputs.calibration)
    items, place, network, summed, ranked, log_probs = (
        part[:, :count] for part in (items, place, network, summed, ranked, log_probs)
    )
    is_found = items >= 0
    place = jnp.maximum(place, 0)
    beam = jnp.take_along_axis(candidates.beams, place, axis=1)
    lengths = jnp.maximum(jnp.linalg.norm(beams.queries, axis=-1), 1e-9)
    sigma = inverse_temperature * config.temperature

    def at(values: Array, columns: Array) -> Array:
        return jnp.where(is_found, jnp.take_along_axis(values, columns, axis=1), -jnp.inf)

    explanations = None
    if explains:
        known, steps = (candidates.items, of_all), (network, summed, ranked)
        explanations = explain(index, beams, known, sigma, inputs, shares, items, beam, steps)
    return Recommendations(
        items=items,
        log_probs=log_probs,
        beam_scores=at(beams.scores, beam),
        beams=jnp.where(is_found & (beam < num_beams), beam, -1),
        cosines=at(candidates.cosines, place) / jnp.take_along_axis(lengths, beam, axis=1),
        sigma=sigma,
        deviation=deviation,
        tasks=shares[:, : beams.tasks.shape[1]],
        explanations=explanations,
    )


def _products(
    index: DeviceIndex, candidates: Candidates, inputs: RankingInputs
) -> Float[Array, "B N"] | None:
    """Products of the instruction's query and the candidates' vectors; None without a query."""
    if inputs.instruction is None or inputs.instruction.answer is None:
        return None
    queries = inputs.instruction.answer.queries
    if candidates.is_catalogue:
        return index.all_products(queries)
    return index.products(queries, candidates.items)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to rank the candidates of some requests."""

    count: int  # items of a list
    config: GenerationConfig  # the beams and the batch size of the generator stay
    inputs: RankingInputs = RankingInputs()  # of N requests, NumPy arrays
    explains: bool = False  # whether the steps to each probability are returned


class Ranker:
    """A generator with the items' words and texts: ranks items for prompts, a batch at a time."""

    def __init__(
        self,
        generator: Generator,
        lexical: LexicalTable | None = None,
        semantic: SemanticArrays | None = None,
        contexts: ContextCache | None = None,
    ):
        """Args:
        contexts: where keys and values of users' prompts are kept. None: nothing is kept.
        """
        self.generator, self.lexical, self._semantic = generator, lexical, semantic
        self._contexts = contexts
        self._lexical_arrays = lexical.arrays() if lexical is not None else None
        self._extra = ExtraCandidates(lexical)

    def with_generator(self, generator: Generator) -> Ranker:
        """The ranker with another generator and without kept contexts; it shares all else."""
        other = copy.copy(self)
        other.generator, other._contexts = generator, None
        return other

    def rank(
        self,
        prompts: Prompts,
        variants: Sequence[Variant],
        active: ActiveItems | None = None,
        users: Sequence[str] = (),
    ) -> list[Recommendations]:
        """The lists of each variant for N prompts. The network reads each prompt only once.

        Args:
          users: the user of each prompt, "" for an unknown one, whose context may be kept.
        """
        variants = self._complete(variants)

        def answer(rows: np.ndarray) -> list[Recommendations]:
            beams = self._beams(prompts, rows, active, users)
            return [self._rank_batch(beams, variant, rows, active) for variant in variants]

        return self._by_batch(len(prompts.lengths), answer)

    def _beams(
        self, prompts: Prompts, rows: np.ndarray, active: ActiveItems | None, users: Sequence[str]
    ) -> Beams:
        """The beams of some prompts."""
        if self._contexts is None or not users:
            return self.generator.beams(take_rows(prompts, rows), active)
        batch = jax.tree.map(lambda table: np.asarray(table)[rows], prompts)
        return self._contexts.beams(self.generator, batch, [users[row] for row in rows], active)

    def _rank_batch(
        self, beams: Beams, variant: Variant, rows: np.ndarray, active: ActiveItems | None
    ) -> Recommendations:
        inputs = variant.inputs.of_rows(rows)
        answer = inputs.instruction.answer if inputs.instruction is not None else None
        candidates = self.generator.candidates(
            beams,
            variant.config,
            variant.count,
            inputs.seen,
            inputs.extra,
            None if answer is None else answer.queries,
            active,
        )
        index = self.generator.index
        return rank(
            index, beams, candidates, inputs, variant.config, variant.count, variant.explains
        )

    def _complete(self, variants: Sequence[Variant]) -> list[Variant]:
        """`variants` with the extra candidates of their features, and the items' words.

        Variants with the same features share these arrays, which are large on the device. Where
        all items are candidates there is no need of extra ones.
        """
        shared: dict[tuple[int, bool], dict[str, Any]] = {}
        completed = []
        for variant in variants:
            inputs = variant.inputs
            if inputs.features is not None:
                is_all = self.generator.ranks_all_items(variant.config)
                key = id(inputs.features), is_all
                if key not in shared:
                    shared[key] = self._shared_fields(inputs, is_all)
                inputs = dataclasses.replace(inputs, **shared[key])
            completed.append(dataclasses.replace(variant, inputs=inputs))
        return completed

    def _shared_fields(self, inputs: RankingInputs, is_all: bool) -> dict[str, Any]:
        """Fields of RankingInputs that follow from the features of `inputs`."""
        fields = {
            "trending": None if inputs.trending is None else jnp.asarray(inputs.trending),
            "lexical": self._lexical_arrays,
            "semantic": self._semantic,
        }
        if is_all:
            return fields
        lists = [[row[row < PADDING] for row in inputs.features.items]]
        if inputs.trending is not None:
            lists.append(self._extra.of_trending(inputs.trending, inputs.features.row))
        if inputs.instruction is not None and inputs.instruction.words is not None:
            lists.append(self._extra.of_words(inputs.instruction.words))
        return fields | {"extra": self._extra.join(*lists)}

    def read_instructions(
        self,
        texts: Sequence[str],
        prompts: Prompts | None,
        vectors: Float32[np.ndarray, "N E"] | None = None,
    ) -> InstructionInputs:
        """The network's answer to each instruction alone, its words and its vector, NumPy arrays.

        Args:
          prompts: the instructions without profile and history, which the network answers. None:
            the network is not asked.
          vectors: of the sentence encoder. None: meaning is not compared.
        """
        answer = None
        if prompts is not None:
            generator = self.generator

            def read(rows: np.ndarray) -> InstructionAnswer:
                return answer_instructions(
                    generator.graphdef,
                    generator.state,
                    generator.tables,
                    take_rows(prompts, rows),
                    generator.index,
                    generator.config.temperature,
                    generator.one_device,
                )

            answer = self._by_batch(len(texts), read)
        words = self.lexical.word_numbers(texts) if self.lexical is not None else None
        return InstructionInputs(answer, words, None if self._semantic is None else vectors)

    def instruction_scores(
        self, instruction: InstructionInputs, items: Int[np.ndarray, "N n"]
    ) -> Float[np.ndarray, "N n H"]:
        """INSTRUCTION_FEATURES of some items of each request."""

        def read(rows: np.ndarray) -> Array:
            return instruction_scores(
                take_rows(instruction, rows),
                self.generator.index,
                self._lexical_arrays,
                self._semantic,
                items[rows],
            )

        return self._by_batch(len(items), read)

    def _by_batch(self, total: int, function: Callable[[np.ndarray], Any]) -> Any:
        """The results of `function` for the rows of each batch, joined as NumPy arrays.

        A batch of few requests has a power of two as its size. A last batch is filled up with the
        first rows, so that all batches have one shape and one compilation.
        """
        size = min(self.generator.config.batch_size, power_of_two(total))
        parts = [
            jax.device_get(function(np.arange(start, start + size) % total))
            for start in range(0, total, size)
        ]
        return jax.tree.map(lambda *values: np.concatenate(values)[:total], *parts)
