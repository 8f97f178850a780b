"""The steps from a prefix to an item's probability, as they were computed for a request.

    log p(i)  = beam score + cosine * sigma / temperature - log normaliser       Eq. 10-11
    summed(i) = log p(i) + sum of weight * value of the features - a constant    features.py
    ranked(i) = summed(i) + addition of the interactions - a constant            interactions.py

The printed probability is the calibrated one of `ranked`. The constants are those of all items of a
request, so that probabilities sum to one.

Axes: B requests, M beams, y codes of a prefix, n items recommended, F features (reranker.FEATURES).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from sigma_jax.generation.beam import Beams
from sigma_jax.index.device_index import DeviceIndex
from sigma_jax.reranking.features import RankingInputs
from sigma_jax.reranking.instruction import INSTRUCTION_FEATURES


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ItemSteps:
    """The steps to the probability of each recommended item; any value where there is no item."""

    codes: Int[Array, "B n y"]  # of the item's prefix; -1 for an item in no beam
    sigma: Float[Array, "B n"]  # of Eq. 11, as used
    network: Float[Array, "B n"]  # log p of Eq. 10
    values: Float[Array, "B n F"]  # of the features; 0 without a reranker
    weights: Float[Array, "B n F"]
    # The mean of weight * value over all candidates of the request, by their log p of Eq. 10: what
    # an item of the network's choice has. Features matter where an item differs from it.
    typical: Float[Array, "B n F"]
    summed: Float[Array, "B n"]  # log p with the weighted sum of the features
    # By how much each feature changes what the interactions add to log p; 0 without interactions.
    interactions: Float[Array, "B n F"]
    ranked: Float[Array, "B n"]  # log p with the interactions, before the calibration


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Explanations:
    """How the recommendations of some requests came about."""

    of_items: ItemSteps
    codes: Int[Array, "B M y"]  # of all beams, best first; -1 where there is none
    scores: Float[Array, "B M"]  # phi of Eq. 7 of all beams; -inf where there is none


def explain(
    index: DeviceIndex,
    beams: Beams,
    candidates: tuple[Int[Array, "B N"], Float32[Array, "B N"]],
    sigma: Float32[Array, " B"],
    inputs: RankingInputs,
    shares: Float32[Array, "B tasks"],
    items: Int[Array, "B n"],
    beam: Int[Array, "B n"],
    steps: tuple[Float32[Array, "B n"], Float32[Array, "B n"], Float32[Array, "B n"]],
) -> Explanations:
    """The explanations of the recommended items.

    Args:
      beams: with the root as a last one, where there is a root.
      candidates: all candidates, and log p of each by the network.
      items: -1 where there is none.
      beam: the beam that holds each item, or the root.
      steps: log p by the network, with the weighted sum, and with the interactions.
    """
    network, summed, ranked = steps
    of_beam = jnp.take_along_axis(beams.codes, beam[..., None], axis=1)
    values = _values(index, inputs, items)
    weights = typical = interactions = jnp.zeros_like(values)
    if inputs.features is not None:
        weights = jnp.broadcast_to((shares @ inputs.weights)[:, None], values.shape)
        others, log_probs = candidates
        share = jax.nn.softmax(jnp.where(others >= 0, log_probs, -jnp.inf), axis=-1)
        mean = jnp.einsum("BN,BNF->BF", share, _values(index, inputs, others))
        typical = mean[:, None] * weights
    if inputs.interactions is not None:
        of_user = values[..., : -len(INSTRUCTION_FEATURES)]
        columns = jnp.concatenate([network[..., None], of_user], axis=-1)
        parts = inputs.interactions.parts(columns, shares)[..., 1:]
        interactions = interactions.at[..., : parts.shape[-1]].set(parts)
    of_items = ItemSteps(
        codes=of_beam,
        sigma=jnp.broadcast_to(sigma[:, None], items.shape),
        network=network,
        values=values,
        weights=weights,
        typical=typical,
        summed=summed,
        interactions=interactions,
        ranked=ranked,
    )
    is_beam = beams.leaves >= 0  # the root has no leaf
    codes = jnp.where(is_beam[..., None], beams.codes, -1)
    return Explanations(of_items, codes, jnp.where(is_beam, beams.scores, -jnp.inf))


def _values(
    index: DeviceIndex, inputs: RankingInputs, items: Int[Array, "B n"]
) -> Float32[Array, "B n F"]:
    """The features of some items; none without features."""
    if inputs.features is None:
        return jnp.zeros((*items.shape, 0), jnp.float32)
    products = None
    if inputs.instruction is not None and inputs.instruction.answer is not None:
        products = index.products(inputs.instruction.answer.queries, items)
    of_user = inputs.user_values(items)
    return jnp.concatenate([of_user, inputs.instruction_values(items, products)], axis=-1)
