"""Adaptive probabilistic fusion (APF) of beam scores and cosines (Eq. 10-11 of SIGMA).

It differs from the letter of the paper in three ways:

- The deviation is that of valid beams. A beam of score -inf would make it NaN.
- The deviation has a floor. A deviation of 0, as of one beam, makes all items equally likely.
- The denominator of Eq. 11 is a sum over all of V_k ("exact") or over the retrieved items
  ("retrieved").

Axes: M beams, R items retrieved for a beam, N candidates of a request, n items recommended; `*B`
any axes of requests.
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
    # float32, and not E[x^2] - E[x]^2: the difference cancels for scores such as -40.
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
    """sigma / tau of Eq. 11, by which cosines are multiplied.

    ValueError if `temperature` is not above 0 or `sigma` is unknown.

    Args:
      temperature: tau.
      sigma: "deviation", as in the paper, or a number for all requests, as in COBRA.
      floor: the least deviation.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}; use a number above 0 (the paper: 0.05).")
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
    """Log denominator of Eq. 11 over the retrieved items; -inf for a beam without items.

    The exact denominator comes from the search (Candidates.log_normaliser).
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
    # Invalid entries are 0 before the sums, since -inf - -inf and -inf * 0 are NaN.
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
      normaliser: "exact" or "retrieved" (GenerationConfig.normaliser).
      fusion: "adaptive", or "first_prefix" to keep the items of the best beam only.
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
    """`log_prob` with -inf for items outside the best beam.

    This is the row "- APF (Top-K 1st Prefix)" of Table 1 of SIGMA.
    """
    best = jnp.argmax(jnp.where(is_valid_beam, beam_scores, -jnp.inf), axis=-1)
    return jnp.where(beams == best[..., None], log_prob, -jnp.inf)


def best_of_sorted(
    items: Int32[Array, "*B N"], log_prob: Float32[Array, "*B N"], count: int
) -> tuple[Int32[Array, "*B n"], Float32[Array, "*B n"], Int32[Array, "*B n"]]:
    """`merge` for distinct items, with -1 between them. The first of equal ones wins."""
    # NaN becomes -inf: top_k would put it first.
    score = jnp.where((items >= 0) & (log_prob > -jnp.inf), log_prob, -jnp.inf)
    return _top(items, score, jnp.broadcast_to(jnp.arange(items.shape[-1]), items.shape), count)


def merge(
    items: Int32[Array, "*B MR"],
    log_prob: Float32[Array, "*B MR"],
    count: int,
) -> tuple[Int32[Array, "*B n"], Float32[Array, "*B n"], Int32[Array, "*B n"]]:
    """(items, log_prob, index) of the best `count` items, best first.

    `index` is the place of each among the candidates. An item that is given twice keeps its best
    entry. Ties are broken by the lower item. Item -1, log_prob -inf and index -1 fill up where
    fewer items exist.

    Worked example: items [4, 7, 4], probabilities [.1, .2, .3], count 3
    -> items [4, 7, -1], probabilities [.3, .2, 0], index [2, 1, -1].
    """
    index = jnp.broadcast_to(jnp.arange(items.shape[-1], dtype=jnp.int32), items.shape)
    # NaN becomes -inf: top_k would put it first.
    log_prob = jnp.where((items >= 0) & (log_prob > -jnp.inf), log_prob, -jnp.inf)
    cost = -log_prob
    items, cost, index = jax.lax.sort((items, cost, index), dimension=-1, num_keys=2)
    is_repeat = jnp.pad(items[..., 1:] == items[..., :-1], [(0, 0)] * (items.ndim - 1) + [(1, 0)])
    # Entries now stand in the order of items, and top_k prefers the lower index on ties.
    is_kept = ~is_repeat & jnp.isfinite(cost)
    return _top(items, jnp.where(is_kept, -cost, -jnp.inf), index, count)


def _top(
    items: Int32[Array, "*B N"],
    score: Float32[Array, "*B N"],
    index: Int32[Array, "*B N"],
    count: int,
) -> tuple[Int32[Array, "*B n"], Float32[Array, "*B n"], Int32[Array, "*B n"]]:
    """(items, score, index) of the `count` highest scores; the first of equal ones wins."""
    missing = count - score.shape[-1]
    best, rows = jax.lax.top_k(score, min(count, score.shape[-1]))
    is_found = best > -jnp.inf
    best_rows = (jnp.take_along_axis(array, rows, axis=-1) for array in (items, index))
    best_items, best_index = (jnp.where(is_found, array, -1) for array in best_rows)
    if missing > 0:
        padding = [(0, 0)] * (items.ndim - 1) + [(0, missing)]
        best = jnp.pad(best, padding, constant_values=-jnp.inf)
        best_items = jnp.pad(best_items, padding, constant_values=-1)
        best_index = jnp.pad(best_index, padding, constant_values=-1)
    return best_items, best, best_index
