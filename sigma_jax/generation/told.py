"""What an instruction says by itself: the model's answer to it for a user of whom nothing is known.

Counts lift what a user likes, whatever he asks for. The answer to the bare instruction says what it
asks for, whoever asks: with p of it, and H the entropy of p,

    told(i) = min(0, log p(i | instruction) + H + 1)

is 0 where an item is at most e times less likely than the typical one that is asked for (in n alike
and all others impossible, H is log n and log p -log n), and falls from there. Among what is asked
for it prefers nothing.

Axes: B requests, I items in the order of the index, n items of a request.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from sigma_jax.generation.beam import Prompts
from sigma_jax.generation.retrieval import PrefixIndex
from sigma_jax.losses import cosines
from sigma_jax.models.qwen3 import causal_mask
from sigma_jax.models.recommender import Recommender, Tables

ROOM = 1.0  # how much less likely an item may be, in log p


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Told:
    """The answer to each instruction, as much of it as gives `told` of any item."""

    queries: Float32[Array, "B D"]  # over the temperature: times an item's unit vector, its logit
    offsets: Float32[Array, " B"]  # what makes log p + H + 1 of a logit


def read_told(
    model: Recommender,
    tables: Tables,
    prompts: Prompts,
    index: PrefixIndex,
    temperature: float,
) -> Told:
    """The answers of a model with an open query to `prompts`, which are instructions alone."""
    mask = causal_mask(prompts.is_token.astype(jnp.int32))
    hidden, _ = model(prompts.tokens, prompts.items, prompts.positions, mask, tables)
    last = hidden[jnp.arange(len(hidden)), prompts.lengths - 1][:, None]
    opened = model.open_query(last, prompts.items, prompts.is_token[:, None], tables)[:, 0]
    queries = opened / temperature
    logits = jnp.where(index.sorted_items >= 0, cosines(queries, index.vectors), -jnp.inf)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    entropy = -jnp.sum(jnp.exp(log_p) * jnp.where(jnp.isfinite(log_p), log_p, 0), axis=-1)
    return Told(queries, entropy + ROOM - jax.nn.logsumexp(logits, axis=-1))


def told_of_all(told: Told, index: PrefixIndex) -> Float32[Array, "B I"]:
    """`told` of every item, by item number."""
    found = jnp.minimum(cosines(told.queries, index.vectors) + told.offsets[:, None], 0)
    # Padding stands last and goes beyond the end.
    place = jnp.where(index.sorted_items >= 0, index.sorted_items, found.shape[1])
    return jnp.zeros_like(found).at[:, place].set(found, mode="drop")


def told_of(told: Told, index: PrefixIndex, items: Int32[Array, "B n"]) -> Float[Array, "B n"]:
    """`told` of some items of each request; of item -1 that of item 0."""
    return jnp.take_along_axis(told_of_all(told, index), jnp.maximum(items, 0), axis=1)
