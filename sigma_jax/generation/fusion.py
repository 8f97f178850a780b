"""Adaptive probabilistic fusion (APF): beam scores and cosines to one ranking (Eq. 10-11 of SIGMA).

Safeguards beyond the paper's letter: deviation over valid beams only (a beam of score -inf would
make it NaN), a floor under it (one beam, or equal scores, would make every item equally likely),
and either normaliser of Eq. 11: over all of V_k ("exact") or over the retrieved ("retrieved").

Axes: M beams, R items retrieved for a beam, n items recommended; `*B` any requests.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from sigma_jax.index.candidates import Candidates


def beam_deviation(
    beam_scores: Float32[Array, "*B M"], is_valid: Bool[Array, "*B M"], floor: float
) -> Float32[Array, "*B"]:
    """Population standard deviation of the valid beams' scores, at least `floor` (Eq. 11)."""
    # float32, and around the mean, not E[x^2] - E[x]^2, which cancels for scores such as -40.
    scores = jnp.where(is_valid, beam_scores.astype(jnp.float32), 0.0)
    count = jnp.maximum(is_valid.sum(-1), 1)
    mean = scores.sum(-1) / count
    squares = jnp.where(is_valid, jnp.square(scores - mean[..., None]), 0.0)
    return jnp.maximum(jnp.sqrt(squares.sum(-1) / count), floor)


def inverse_temperature(
    beam_scores: Float32[Array, "*B M"],
    is_valid: Bool[Array, "*B M"],
    temperature: float,
    sigma: str | float,
    floor: float,
) -> Float32[Array, "*B"]:
    """The factor sigma / tau of the cosines in Eq. 11.

    `sigma` is "deviation" (the paper) or a number that stands for it in every request (COBRA).
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be above 0; the paper uses 0.05.")
    if isinstance(sigma, str):
        if sigma != "deviation":
            raise ValueError(f'sigma={sigma!r} is unknown; use "deviation" or a number.')
        return beam_deviation(beam_scores, is_valid, floor) / temperature
    return jnp.full(beam_scores.shape[:-1], sigma / temperature, jnp.float32)


def retrieved_log_normaliser(
    cosines: Float32[Array, "*B M R"],
    is_valid_item: Bool[Array, "*B M R"],
    inverse_temperature: Float32[Array, "*B"],
) -> Float32[Array, "*B M"]:
    """Log denominator of Eq. 11 over the retrieved items only; the exact one comes from `search`.

    -inf for a beam without items.
    """
    logits = jnp.where(is_valid_item, cosines, 0.0) * inverse_temperature[..., None, None]
    return jax.nn.logsumexp(logits, axis=-1, where=is_valid_item)


def fuse(
    beam_scores: Float32[Array, "*B M"],
    is_valid_beam: Bool[Array, "*B M"],
    cosines: Float32[Array, "*B M R"],
    is_valid_item: Bool[Array, "*B M R"],
    log_normaliser: Float32[Array, "*B M"],
    inverse_temperature: Float32[Array, "*B"],
) -> Float32[Array, "*B M R"]:
    """Log-probability of every retrieved item (Eq. 10-11); -inf where there is none."""
    is_valid = is_valid_beam[..., None] & is_valid_item
    # Zeros stand in for invalid entries before the sums: -inf - -inf and -inf * 0 are NaN.
    prefix = jnp.where(is_valid_beam, beam_scores, 0.0)
    prefix = prefix - jnp.where(is_valid_beam, log_normaliser, 0.0)
    logits = jnp.where(is_valid, cosines, 0.0) * inverse_temperature[..., None, None]
    log_prob = prefix[..., None] + logits
    return jnp.where(is_valid, log_prob, -jnp.inf)


def fuse_candidates(
    candidates: Candidates,
    beam_scores: Float32[Array, "B M"],
    is_valid_beam: Bool[Array, "B M"],
    inverse_temperature: Float32[Array, " B"],
    normaliser: str,
    fusion: str,
) -> Float32[Array, "B N"]:
    """Log-probability of every candidate (Eq. 10-11); -inf where there is none.

    Args:
      normaliser: "exact" or "retrieved" (GenerationConfig).
      fusion: "adaptive", or "first_prefix" for the items of the best beam only.
    """
    log_normaliser = candidates.log_normaliser
    if normaliser == "retrieved":
        nearest = candidates.nearest_of_beams(candidates.cosines)
        is_item = candidates.nearest_of_beams(candidates.items) >= 0
        log_normaliser = retrieved_log_normaliser(nearest, is_item, inverse_temperature)

    def of_beam(values: Array) -> Array:
        return jnp.take_along_axis(values, candidates.beams, axis=-1)

    log_prob = fuse(
        of_beam(beam_scores),
        of_beam(is_valid_beam),
        candidates.cosines[..., None],
        (candidates.items >= 0)[..., None],
        of_beam(log_normaliser),
        inverse_temperature,
    )[..., 0]
    if fusion == "first_prefix":
        return keep_first_prefix(log_prob, candidates.beams, beam_scores, is_valid_beam)
    return log_prob


def keep_first_prefix(
    log_prob: Float32[Array, "*B N"],
    beams: Int32[Array, "*B N"],
    beam_scores: Float32[Array, "*B M"],
    is_valid_beam: Bool[Array, "*B M"],
) -> Float32[Array, "*B N"]:
    """The items of the best beam only: the row "- APF (Top-K 1st Prefix)" of Table 1."""
    best = jnp.argmax(jnp.where(is_valid_beam, beam_scores, -jnp.inf), axis=-1)
    return jnp.where(beams == best[..., None], log_prob, -jnp.inf)


def merge(
    items: Int32[Array, "*B MR"],
    log_prob: Float32[Array, "*B MR"],
    count: int,
) -> tuple[Int32[Array, "*B n"], Float32[Array, "*B n"], Int32[Array, "*B n"]]:
    """The best `count` items, best first: (items, log_prob, their index among the candidates).

    An item given twice keeps its best entry; equal probabilities go to the lower item. Where fewer
    than `count` remain the rest is item -1, log_prob -inf, index -1.

    Worked example: items [4, 7, 4], probabilities [.1, .2, .3], count 3
    -> items [4, 7, -1], probabilities [.3, .2, 0], index [2, 1, -1].
    """
    index = jnp.broadcast_to(jnp.arange(items.shape[-1], dtype=jnp.int32), items.shape)
    # A valid entry has a finite probability; NaN would otherwise float to the top of top_k.
    log_prob = jnp.where((items >= 0) & (log_prob > -jnp.inf), log_prob, -jnp.inf)
    cost = -log_prob
    items, cost, index = jax.lax.sort((items, cost, index), dimension=-1, num_keys=2)
    is_repeat = jnp.pad(items[..., 1:] == items[..., :-1], [(0, 0)] * (items.ndim - 1) + [(1, 0)])
    # jax's top_k takes the lower index on ties, and the entries now stand by item.
    is_kept = ~is_repeat & jnp.isfinite(cost)
    score = jnp.where(is_kept, -cost, -jnp.inf)
    missing = count - score.shape[-1]
    best, rows = jax.lax.top_k(score, min(count, score.shape[-1]))
    is_found = best > -jnp.inf
    found = (jnp.take_along_axis(array, rows, axis=-1) for array in (items, index))
    found_items, found_index = (jnp.where(is_found, array, -1) for array in found)
    if missing > 0:
        padding = [(0, 0)] * (items.ndim - 1) + [(0, missing)]
        best = jnp.pad(best, padding, constant_values=-jnp.inf)
        found_items = jnp.pad(found_items, padding, constant_values=-1)
        found_index = jnp.pad(found_index, padding, constant_values=-1)
    return found_items, best, found_index
