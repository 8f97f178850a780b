"""Instruction features: how well an item fits the instruction alone, without the user.

Habits raise the items that the user likes, and the instruction may ask for others. Four features
correct that.

For the first, the network reads the instruction of a user without history or profile. With the
probability p of its answer and the entropy H of p,

    instruction_score(i) = min(0, log p(i | instruction) + H + 1)

It is 0 for an item that is at most e times less likely than a typical answer, and lower for other
items. So it prefers none of the items that fit. (If n items are equally likely and no other item is
possible, H is log n and log p is -log n.)

The second compares the item's text with the words of the instruction. The weights w and the trust
are those of lexical.py:

    lexical_match(i) = (sum of w of i's words / the largest such sum - 1) * trust in the surest word

It is 0 for all items if no item has any of the words. Two more compare the item with the meaning of
the instruction (semantic.py). All features are computed for candidates only.

Axes: B requests, I items, N candidates, n words of a request, W words of an item, V words, D
dimensions, E dimensions of the sentence encoder, H features.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Float32, Int32

from sigma_jax.generation.beam import Prompts
from sigma_jax.generation.generator import on_one_device
from sigma_jax.generation.prefix_scores import SCORES_A_STEP
from sigma_jax.index.device_index import DeviceIndex
from sigma_jax.losses import cosines, map_row_chunks
from sigma_jax.models.network import RecommenderNetwork, Tables
from sigma_jax.models.qwen3 import causal_mask
from sigma_jax.reranking.lexical import LexicalArrays
from sigma_jax.reranking.semantic import SEMANTIC_FEATURES, SemanticArrays

INSTRUCTION_FEATURES = ("instruction_score", "lexical_match", *SEMANTIC_FEATURES)
TOLERANCE = 1.0  # log p by which an item may be less likely than a typical answer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InstructionAnswer:
    """The item head's answer to each instruction alone, reduced to what scores any item."""

    queries: Float32[Array, "B D"]  # divided by the temperature; times an item vector: its logit
    offsets: Float32[Array, " B"]  # turns a logit into log p + H + 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InstructionInputs:
    """The instructions alone: read by the network, by words, by meaning. None: the feature is 0."""

    answer: InstructionAnswer | None
    words: Int32[Array, "B n"] | None  # LexicalTable.word_numbers
    vectors: Float32[Array, "B E"] | None = None  # of the sentence encoder


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def answer_instructions(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    tables: Tables,
    prompts: Prompts,
    index: DeviceIndex,
    temperature: float,
    one_device: Mesh | None,
) -> InstructionAnswer:
    """`read_answer` over the items of `index`.

    Args:
      graphdef, state: the network, split by nnx.
      one_device: see generation/generator.py.
    """
    network = nnx.merge(graphdef, state)
    is_item = index.sorted_items >= 0
    with on_one_device(one_device):
        return read_answer(network, tables, prompts, index.vectors, is_item, temperature)


def read_answer(
    network: RecommenderNetwork,
    tables: Tables,
    prompts: Prompts,
    vectors: Float[Array, "I D"],
    is_item: Bool[Array, " I"],
    temperature: float,
) -> InstructionAnswer:
    """The answers of a network with an item head to `prompts` that hold an instruction alone.

    Args:
      vectors: vectors of all items, unit length, in any order.
      is_item: False for rows of padding.
      temperature: tau.
    """
    mask = causal_mask(prompts.is_token.astype(jnp.int32))
    tables = prompts.with_instructions(tables)
    hidden, _ = network(prompts.tokens, prompts.items, prompts.positions, mask, tables)
    last = hidden[jnp.arange(len(hidden)), prompts.lengths - 1][:, None]
    query = network.item_head_vector(last, prompts.items, prompts.is_token[:, None], tables)[:, 0]
    queries = query / temperature

    def offsets(queries: Float[Array, "b D"]) -> Float32[Array, " b"]:
        logits = jnp.where(is_item, cosines(queries, vectors), -jnp.inf)
        log_p = jax.nn.log_softmax(logits, axis=-1)
        entropy = -jnp.sum(jnp.exp(log_p) * jnp.where(is_item, log_p, 0), axis=-1)
        return entropy + TOLERANCE - jax.nn.logsumexp(logits, axis=-1)

    rows = max(SCORES_A_STEP // len(vectors), 1)
    return InstructionAnswer(queries, map_row_chunks(offsets, queries, rows))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InstructionScorer:
    """Scores any candidates by INSTRUCTION_FEATURES, for the instructions of a batch."""

    answer: InstructionAnswer | None
    lexical: LexicalArrays | None
    # Weights of the words of each instruction; 0 for other words.
    weights: Float32[Array, "V B"] | None
    best: Float32[Array, " B"] | None  # largest summed weight of any item
    trust: Float32[Array, " B"] | None  # in the surest word of the instruction
    semantic: SemanticArrays | None = None
    vectors: Float32[Array, "B E"] | None = None

    @classmethod
    def make(
        cls,
        inputs: InstructionInputs,
        lexical: LexicalArrays | None,
        semantic: SemanticArrays | None = None,
    ) -> InstructionScorer:
        """The scorer of a batch.

        Args:
          lexical: needed where `inputs` has words.
          semantic: needed where `inputs` has vectors.
        """
        meaning = (semantic, inputs.vectors)
        if inputs.words is None:
            return cls(inputs.answer, None, None, None, None, *meaning)
        requests = jnp.arange(inputs.words.shape[0])[:, None]
        weights = jnp.zeros((lexical.weights.shape[0], inputs.words.shape[0]), jnp.float32)
        weights = weights.at[inputs.words, requests].set(lexical.weights[inputs.words])
        trust = lexical.trust[inputs.words].max(axis=1)
        best = _best_sum(weights, lexical.of_items)
        return cls(inputs.answer, lexical, weights, best, trust, *meaning)

    def scores(
        self, items: Int32[Array, "B N"], products: Float[Array, "B N"] | None
    ) -> Float32[Array, "B N H"]:
        """INSTRUCTION_FEATURES of each candidate. Item -1 gets the words of item 0.

        Args:
          products: of the answer's query and the items' unit vectors; None without an answer.
        """
        score = match = jnp.zeros(items.shape, jnp.float32)
        if self.answer is not None:
            score = jnp.minimum(products + self.answer.offsets[:, None], 0)
        if self.lexical is not None:
            total, best = self._summed_weights(jnp.maximum(items, 0)), self.best[:, None]
            match = (total - best) / jnp.maximum(best, 1e-9) * self.trust[:, None]
            match = jnp.where(best > 0, match, 0)
        meaning = jnp.zeros((*items.shape, len(SEMANTIC_FEATURES)), jnp.float32)
        if self.vectors is not None:
            meaning = self.semantic.scores(self.vectors, items)
        return jnp.concatenate([jnp.stack([score, match], axis=-1), meaning], axis=-1)

    def _summed_weights(self, items: Int32[Array, "B N"]) -> Float32[Array, "B N"]:
        """The summed weights of the instruction's words in each item's text."""
        requests = jnp.arange(len(items))[:, None]

        def add(total, of_items):  # one word of every item at a time, for memory
            return total + self.weights[of_items[items], requests], None

        return jax.lax.scan(add, jnp.zeros(items.shape), self.lexical.of_items)[0]


@jax.jit
def instruction_scores(
    inputs: InstructionInputs,
    index: DeviceIndex,
    lexical: LexicalArrays | None,
    semantic: SemanticArrays | None,
    items: Int32[Array, "B N"],
) -> Float32[Array, "B N H"]:
    """INSTRUCTION_FEATURES of some items of each request."""
    scorer = InstructionScorer.make(inputs, lexical, semantic)
    has_answer = inputs.answer is not None
    return scorer.scores(
        items, index.products(inputs.answer.queries, items) if has_answer else None
    )


def _best_sum(
    weights: Float32[Array, "V B"], of_items: Int32[Array, "W I"]
) -> Float32[Array, " B"]:
    """The largest summed weight of any item, for each request."""
    size = min(max(SCORES_A_STEP // weights.shape[1], 1), of_items.shape[1])

    def read(best, first):  # dynamic_slice moves the last part forward, to end with the last item
        part = jax.lax.dynamic_slice_in_dim(of_items, first, size, axis=1)
        return jnp.maximum(best, _sums(weights, part).max(axis=0)), None

    starts = jnp.arange(0, of_items.shape[1], size)
    return jax.lax.scan(read, jnp.zeros(weights.shape[1]), starts)[0]


def _sums(weights: Float32[Array, "V B"], of_items: Int32[Array, "W n"]) -> Float32[Array, "n B"]:
    """The summed weights of the words of each item."""

    def add(total, words):  # one word of every item at a time, for memory
        return total + weights[words], None

    total = jnp.zeros((of_items.shape[1], weights.shape[1]), jnp.float32)
    return jax.lax.scan(add, total, of_items)[0]
