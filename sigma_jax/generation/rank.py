"""Eq. 9-11 of SIGMA once the beams are found: items of each prefix, fused into one ranking.

The items are retrieved here on the device (`rank`), or were on the host (`rank_found`).

Axes: B requests, M beams, R items retrieved for a beam, n items recommended.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sigma_jax.generation import fusion
from sigma_jax.generation.beam import Beams
from sigma_jax.generation.config import GenerationConfig
from sigma_jax.index.device_index import PrefixIndex, search
from sigma_jax.index.trie import Subset
from sigma_jax.reranking.features import ItemBias, ItemFeatures
from sigma_jax.reranking.instruction import ItemWords, Said, Told


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Recommendations:
    """Items for each prompt, best first; -1 where fewer exist. N prompts, n items."""

    items: Int[Array, "N n"]
    log_probs: Float[Array, "N n"]  # Eq. 10, and the bias; -inf where there is no item
    beam_scores: Float[Array, "N n"]  # phi of the item's prefix (Eq. 7)
    beams: Int[Array, "N n"]  # rank of the item's prefix among the beams
    cosines: Float[Array, "N n"]  # of query and item (Eq. 9)
    sigma: Float[Array, " N"]  # of Eq. 11, as used
    deviation: Float[Array, " N"]  # of the beam scores: sigma as Eq. 11 has it, without a floor


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Given:
    """What is known of a batch of requests beside the beams; None where nothing is."""

    seen: Int[Array, "B S"] | None  # items to leave out, padded with -1
    features: ItemFeatures | None
    table: Float[Array, "T I G"] | None  # features of all items, by `features.row`
    told: Told | None
    item_words: ItemWords | None
    weights: Float[Array, "tasks F+G+2"] | None  # of these features, by Beams.tasks

    def bias(self, beams: Beams) -> ItemBias | None:
        """What the features say, weighed."""
        if self.features is None:
            return None
        said = Said.of(self.told, self.item_words) if self.told is not None else None
        return self.features.weighed(beams.tasks @ self.weights, self.table, said)


@functools.partial(jax.jit, static_argnums=1)
def sharpness_of(beams: Beams, config: GenerationConfig) -> Float[Array, " B"]:
    """The factor of the cosines in Eq. 11."""
    return fusion.sharpness(
        beams.scores, beams.is_valid, config.temperature, config.sigma, config.sigma_floor
    )


@functools.partial(jax.jit, static_argnums=(4, 5))
def rank(
    index: PrefixIndex,
    beams: Beams,
    active: Subset | None,
    given: Given,
    config: GenerationConfig,
    count: int,
) -> Recommendations:
    """The best `count` items, retrieved exactly, what is given taken into account."""
    bias, sharpness = given.bias(beams), sharpness_of(beams, config)
    items, cosines, log_normaliser = search(
        index,
        beams.queries,
        beams.leaves,
        beams.is_valid,
        config.num_retrieved,
        sharpness,
        given.seen,
        bias,
        active,
    )
    return _fused(index, beams, items, cosines, log_normaliser, sharpness, bias, config, count)


@functools.partial(jax.jit, static_argnums=(6, 7))
def rank_found(
    index: PrefixIndex,
    beams: Beams,
    items: Int[Array, "B M R"],
    cosines: Float[Array, "B M R"],
    log_normaliser: Float[Array, "B M"],
    given: Given,
    config: GenerationConfig,
    count: int,
) -> Recommendations:
    """The same of items that were found in the prefixes elsewhere; -1 where there is none."""
    bias, sharpness = given.bias(beams), sharpness_of(beams, config)
    return _fused(index, beams, items, cosines, log_normaliser, sharpness, bias, config, count)


def _fused(
    index: PrefixIndex,
    beams: Beams,
    items: Int[Array, "B M R"],
    cosines: Float[Array, "B M R"],
    log_normaliser: Float[Array, "B M"],
    sharpness: Float[Array, " B"],
    bias: ItemBias | None,
    config: GenerationConfig,
    count: int,
) -> Recommendations:
    if config.normaliser == "retrieved":
        log_normaliser = fusion.retrieved_log_normaliser(cosines, items >= 0, sharpness)
    log_probs = fusion.fuse(
        beams.scores, beams.is_valid, cosines, items >= 0, log_normaliser, sharpness
    )
    if bias is not None:
        of_items = bias.of(items, index.vectors_of(items))
        log_probs = fusion.add_bias(log_probs, jnp.where(items >= 0, of_items, 0.0))
    if config.ranking == "first_prefix":
        log_probs = fusion.keep_first_prefix(log_probs, beams.scores, beams.is_valid)
    batch, _, retrieved = items.shape
    # What was seen has been left out already.
    found, best, place = fusion.merge(items.reshape(batch, -1), log_probs.reshape(batch, -1), count)
    beam = jnp.maximum(place, 0) // retrieved
    is_found = found >= 0
    lengths = jnp.maximum(jnp.linalg.norm(beams.queries, axis=-1, keepdims=True), 1e-9)

    def at(values: Array, rows: Array, missing: float) -> Array:
        values = jnp.take_along_axis(values.reshape(batch, -1), rows, axis=1)
        return jnp.where(is_found, values, missing)

    return Recommendations(
        items=found,
        log_probs=best,
        beam_scores=at(beams.scores, beam, -jnp.inf),
        beams=jnp.where(is_found, beam, -1),
        cosines=at(cosines / lengths, jnp.maximum(place, 0), -jnp.inf),
        sigma=sharpness * config.temperature,
        deviation=fusion.beam_deviation(beams.scores, beams.is_valid, 0.0),
    )
