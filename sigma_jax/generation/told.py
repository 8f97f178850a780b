"""What an instruction says by itself, whoever says it. Two features of any item, TOLD.

Counts lift what a user likes, whatever he asks for. The model's answer to the bare instruction, for
a user of whom nothing is known, says what it asks for: with p of it, and H the entropy of p,

    told(i) = min(0, log p(i | instruction) + H + 1)

is 0 where an item is at most e times less likely than the typical one that is asked for (in n alike
and all others impossible, H is log n and log p -log n), and falls from there. Among what is asked
for it prefers nothing. And the instruction's words that stand in an item's text, with the weights w
and the trust of words.py, compared with the item that has most of them:

    words(i) = (sum of w of i's words / the largest such sum - 1) * the trust in the surest word

and 0 for all items where none has any.

Axes: B requests, I items (in the order of the index, or by number), n items or words of a request,
W words of an item.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from sigma_jax.generation.beam import Prompts
from sigma_jax.generation.retrieval import PrefixIndex
from sigma_jax.generation.words import WordTable
from sigma_jax.losses import cosines
from sigma_jax.models.qwen3 import causal_mask
from sigma_jax.models.recommender import Recommender, Tables

TOLD = ("told", "words")
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
    model: Recommender,
    tables: Tables,
    prompts: Prompts,
    index: PrefixIndex,
    temperature: float,
) -> Answer:
    """The answers of a model with an open query to `prompts`, which are instructions alone."""
    mask = causal_mask(prompts.is_token.astype(jnp.int32))
    hidden, _ = model(prompts.tokens, prompts.items, prompts.positions, mask, tables)
    last = hidden[jnp.arange(len(hidden)), prompts.lengths - 1][:, None]
    opened = model.open_query(last, prompts.items, prompts.is_token[:, None], tables)[:, 0]
    queries = opened / temperature
    logits = jnp.where(index.sorted_items >= 0, cosines(queries, index.vectors), -jnp.inf)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    entropy = -jnp.sum(jnp.exp(log_p) * jnp.where(jnp.isfinite(log_p), log_p, 0), axis=-1)
    return Answer(queries, entropy + ROOM - jax.nn.logsumexp(logits, axis=-1))


def told_of_all(
    told: Told, index: PrefixIndex, item_words: ItemWords | None
) -> Float32[Array, "B I 2"]:
    """TOLD of every item, by item number."""
    requests = len(jax.tree.leaves(told)[0])
    found = jnp.zeros((requests, index.sorted_items.shape[0], len(TOLD)))
    if told.answer is not None:
        found = found.at[..., 0].set(answer_of_all(told.answer, index))
    if told.words is not None:
        of_items = words_of_all(told.words, item_words)
        found = found.at[:, : of_items.shape[1], 1].set(of_items)  # the rest is padding
    return found


def answer_of_all(answer: Answer, index: PrefixIndex) -> Float32[Array, "B I"]:
    """The feature `told` of every item."""
    found = jnp.minimum(cosines(answer.queries, index.vectors) + answer.offsets[:, None], 0)
    # Padding stands last and goes beyond the end.
    place = jnp.where(index.sorted_items >= 0, index.sorted_items, found.shape[1])
    return jnp.zeros_like(found).at[:, place].set(found, mode="drop")


def words_of_all(words: Int32[Array, "B n"], item_words: ItemWords) -> Float32[Array, "B I"]:
    """The feature `words` of every item."""
    requests = jnp.arange(words.shape[0])[:, None]
    weights = jnp.zeros((item_words.weights.shape[0], words.shape[0]), jnp.float32)
    weights = weights.at[words, requests].set(item_words.weights[words])

    def add(total, of_items):  # one word of every item at a time: memory is that of the result
        return total + weights[of_items], None

    total = jnp.zeros((item_words.of_items.shape[1], words.shape[0]), jnp.float32)
    total, _ = jax.lax.scan(add, total, item_words.of_items)
    most, surest = total.max(axis=0), item_words.trust[words].max(axis=1)
    return jnp.where(most > 0, (total - most) / jnp.maximum(most, 1e-9) * surest, 0).T


def told_of(
    told: Told, index: PrefixIndex, item_words: ItemWords | None, items: Int32[Array, "B n"]
) -> Float[Array, "B n 2"]:
    """TOLD of some items of each request; of item -1 that of item 0."""
    every = told_of_all(told, index, item_words)
    return jnp.take_along_axis(every, jnp.maximum(items, 0)[..., None], axis=1)
