"""What an instruction says by itself, whoever says it. Two features of any item,
INSTRUCTION_FEATURES.

Counts lift what a user likes, whatever he asks for. The model's answer to the bare instruction, for
a user of whom nothing is known, says what it asks for: with p of it, and H the entropy of p,

    told(i) = min(0, log p(i | instruction) + H + 1)

is 0 where an item is at most e times less likely than the typical one that is asked for (in n alike
and all others impossible, H is log n and log p -log n), and falls from there. Among what is asked
for it prefers nothing. And the instruction's words that stand in an item's text, with the weights w
and the trust of words.py, compared with the item that has most of them:

    words(i) = (sum of w of i's words / the largest such sum - 1) * the trust in the surest word

and 0 for all items where none has any.

Neither is ever made for all items of a catalogue at once, but for those that are being scored.

Axes: B requests, I items, n items or words of a request, W words of an item, V words.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from sigma_jax.generation.beam import Prompts
from sigma_jax.generation.prefix_scores import ENTRIES
from sigma_jax.losses import cosines, map_row_chunks
from sigma_jax.models.network import RecommenderNetwork, Tables
from sigma_jax.models.qwen3 import causal_mask
from sigma_jax.reranking.lexical import WordTable

INSTRUCTION_FEATURES = ("instruction_score", "lexical_match")
ROOM = 1.0  # how much less likely an item may be, in log p


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Answer:
    """The model's answer to each instruction, as much of it as gives `told` of any item."""

    queries: Float32[Array, "B D"]  # over the temperature: times an item's unit vector, its logit
    offsets: Float32[Array, " B"]  # what makes log p + H + 1 of a logit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Told:
    """What each instruction says by itself; a part that is None has a feature of 0."""

    answer: Answer | None
    words: Int32[Array, "B n"] | None  # WordTable.of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ItemWords:
    """The arrays of a WordTable, on the device."""

    trust: Float32[Array, " V"]
    weights: Float32[Array, " V"]
    of_items: Int32[Array, "W I"]

    @classmethod
    def of(cls, table: WordTable) -> ItemWords:
        return cls(*map(jnp.asarray, (table.trust, table.weights, table.of_items)))


def read_answer(
    model: RecommenderNetwork,
    tables: Tables,
    prompts: Prompts,
    vectors: Float[Array, "I D"],
    is_item: Bool[Array, " I"],
    temperature: float,
) -> Answer:
    """The answers of a model with an item head to `prompts`, which are instructions alone.

    `vectors`: of all items, unit length, in any order; False of `is_item`: padding.
    """
    mask = causal_mask(prompts.is_token.astype(jnp.int32))
    hidden, _ = model(prompts.tokens, prompts.items, prompts.positions, mask, tables)
    last = hidden[jnp.arange(len(hidden)), prompts.lengths - 1][:, None]
    opened = model.item_head_vector(last, prompts.items, prompts.is_token[:, None], tables)[:, 0]
    queries = opened / temperature

    def offsets(queries: Float[Array, "b D"]) -> Float32[Array, " b"]:
        logits = jnp.where(is_item, cosines(queries, vectors), -jnp.inf)
        log_p = jax.nn.log_softmax(logits, axis=-1)
        entropy = -jnp.sum(jnp.exp(log_p) * jnp.where(is_item, log_p, 0), axis=-1)
        return entropy + ROOM - jax.nn.logsumexp(logits, axis=-1)

    return Answer(queries, map_row_chunks(offsets, queries, max(ENTRIES // len(vectors), 1)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Said:
    """`Told` of a batch, ready to be asked about any items."""

    answer: Answer | None
    words: ItemWords | None
    weights: Float32[Array, "V B"] | None  # of the words that were said; the others weigh nothing
    most: Float32[Array, " B"] | None  # weight of them that any item has
    surest: Float32[Array, " B"] | None  # trust in any of them

    @classmethod
    def of(cls, told: Told, words: ItemWords | None) -> Said:
        """`words`: of the items, where `told` has words."""
        if told.words is None:
            return cls(told.answer, None, None, None, None)
        requests = jnp.arange(told.words.shape[0])[:, None]
        weights = jnp.zeros((words.weights.shape[0], told.words.shape[0]), jnp.float32)
        weights = weights.at[told.words, requests].set(words.weights[told.words])
        surest = words.trust[told.words].max(axis=1)
        return cls(told.answer, words, weights, _most_of(weights, words.of_items), surest)

    def at(
        self, items: Int32[Array, "b n"], vectors: Float[Array, "b n D"]
    ) -> Float32[Array, "B n 2"]:
        """INSTRUCTION_FEATURES of some items of each request, whose vectors are `vectors`; b is
        B, or 1 where all
        requests ask about the same. Of item -1 that of item 0."""
        answer = words = jnp.zeros((), jnp.float32)
        if self.answer is not None:
            queries = self.answer.queries
            if len(items) == 1:
                logits = cosines(queries, vectors[0])
            else:
                product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
                logits = product("bD,bnD->bn", queries, vectors)
            answer = jnp.minimum(logits + self.answer.offsets[:, None], 0)
        if self.words is not None:
            total, most = self._weight_of(jnp.maximum(items, 0)), self.most[:, None]
            words = (total - most) / jnp.maximum(most, 1e-9) * self.surest[:, None]
            words = jnp.where(most > 0, words, 0)
        return jnp.stack(jnp.broadcast_arrays(answer, words), axis=-1)

    def _weight_of(self, items: Int32[Array, "b n"]) -> Float32[Array, "B n"]:
        """What each item has of the words that were said."""
        if len(items) == 1:
            return _weight_of_all(self.weights, self.words.of_items[:, items[0]]).T
        requests = jnp.arange(len(items))[:, None]

        def add(total, of_items):
            return total + self.weights[of_items[items], requests], None

        return jax.lax.scan(add, jnp.zeros(items.shape), self.words.of_items)[0]


def _weight_of_all(
    weights: Float32[Array, "V B"], of_items: Int32[Array, "W n"]
) -> Float32[Array, "n B"]:
    """The summed weights of the words of each item."""

    def add(total, words):  # one word of every item at a time: memory is that of the result
        return total + weights[words], None

    total = jnp.zeros((of_items.shape[1], weights.shape[1]), jnp.float32)
    return jax.lax.scan(add, total, of_items)[0]


def _most_of(weights: Float32[Array, "V B"], of_items: Int32[Array, "W I"]) -> Float32[Array, " B"]:
    """The largest of these sums over all items."""
    size = min(max(ENTRIES // weights.shape[1], 1), of_items.shape[1])

    def read(most, first):  # the last part begins earlier where the end is near
        part = jax.lax.dynamic_slice_in_dim(of_items, first, size, axis=1)
        return jnp.maximum(most, _weight_of_all(weights, part).max(axis=0)), None

    starts = jnp.arange(0, of_items.shape[1], size)
    return jax.lax.scan(read, jnp.zeros(weights.shape[1]), starts)[0]
