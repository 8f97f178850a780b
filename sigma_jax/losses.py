"""The losses of SIGMA as pure functions: Eq. 1-3 (grounding), Eq. 4 and 5 (fine-tuning).

Everything is float32 inside whatever comes in: at temperature 0.05 one bfloat16 rounding of a
cosine (2^-9) moves a logit by 0.08. Matrices of [rows, candidates] are made for `chunk_size` rows
at a time and made again in the backward pass, so the whole one never exists.

Rows are the global batch. Under `jax.jit` with rows sharded over devices the candidates are
gathered (they are narrow) and each device works on its own rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Stands for log 0 where -inf could meet another -inf and give NaN.
LOG_ZERO = -1e30


def unit(vectors: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    """`vectors` in float32 at length 1; zero vectors stay zero, with zero gradient."""
    vectors = vectors.astype(jnp.float32)
    squared = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return jnp.where(squared > 0, vectors * jax.lax.rsqrt(jnp.where(squared > 0, squared, 1)), 0)


def cosines(left: Float[Array, "R D"], right: Float[Array, "S D"]) -> Float[Array, "R S"]:
    """Products of unit rows. Highest precision: a TPU would otherwise round inputs to bfloat16."""
    return jnp.matmul(left, right.T, precision=jax.lax.Precision.HIGHEST)


def weighted_mean(values: Float[Array, "*n"], weights: Float[Array, "*n"]) -> Float[Array, ""]:
    """Mean of `values` by `weights`; 0 where all weights are 0."""
    total = weights.sum()
    return jnp.sum(values * weights) / jnp.where(total > 0, total, 1)


def map_row_chunks(function: Callable, rows: Any, chunk_size: int) -> Any:
    """`function(rows)` for arrays [R, ...] to arrays [R, ...], `chunk_size` rows at a time.

    A chunk takes every n-th row, because rows lie on devices in blocks: so each chunk has rows of
    each device. 6 rows in chunks of 3: rows 0 2 4, then 1 3 5. The backward pass computes
    each chunk again instead of keeping what it made.
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    if count <= chunk_size:
        return function(rows)
    chunks = -(-count // chunk_size)
    size = -(-count // chunks)

    def split(array):
        # Padding repeats the last row: a row of zeros could be outside the function's domain.
        array = jnp.pad(array, [(0, size * chunks - count)] + [(0, 0)] * (array.ndim - 1), "edge")
        return array.reshape(size, chunks, *array.shape[1:]).swapaxes(0, 1)

    def join(array):
        return array.swapaxes(0, 1).reshape(size * chunks, *array.shape[2:])[:count]

    outputs = jax.lax.map(jax.checkpoint(function), jax.tree.map(split, rows))
    return jax.tree.map(join, outputs)


def _partners(count: int) -> Int[Array, " count"]:
    """i' = (i + B) mod 2B of Eq. 2 for count = 2B rows."""
    if count % 2:
        raise ValueError(f"{count} vectors are no batch of pairs; give left rows, then right rows.")
    return (jnp.arange(count) + count // 2) % count


def _anchors(vectors, *others) -> tuple[Array, ...]:
    """What each anchor brings, as row arrays of their own, so that they stay on their devices."""
    return (jnp.arange(vectors.shape[0]), vectors, *others)


def _in_batch_rows(anchors, vectors, keys, temperature) -> Float[Array, "R 2B"]:
    """log P(i, j) of Eq. 1 for some rows i of `_anchors(vectors, keys, keys of partners)`, the
    anchor itself (j = i) and what the keys show to be relevant left out as -inf."""
    rows, own_vectors, *own_keys = anchors
    partners, half = _partners(vectors.shape[0]), vectors.shape[0] // 2
    column = jnp.arange(vectors.shape[0])[None]
    logits = cosines(own_vectors, vectors) / temperature
    is_left_out = column == rows[:, None]
    if keys is not None:
        anchor, positive = (key[:, None] for key in own_keys)
        is_relevant = (keys == anchor) | (keys == positive) | (jnp.roll(keys, half) == anchor)
        is_left_out |= is_relevant & (column != partners[rows][:, None])
    return jax.nn.log_softmax(jnp.where(is_left_out, -jnp.inf, logits), axis=-1)


def _key_rows(keys) -> tuple[Array, ...]:
    return () if keys is None else (keys, jnp.roll(keys, keys.shape[0] // 2))


def contrastive_loss(
    vectors: Float[Array, "2B D"],
    temperature: float,
    keys: Int[Array, " 2B"] | None = None,
    chunk_size: int = 4096,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Eq. 2 of SIGMA, with P(i, j) of Eq. 1 over the batch, and the share of anchors whose
    positive comes first in it.

    The B left sides come first, then the B right sides. `keys` number what a row stands for (an
    item or a text). With them, entries the batch itself shows to be relevant are no candidates,
    the positive always is one: j that is the anchor again, the positive again, or another thing
    paired with the anchor. Without keys it is the paper's letter.
    Worked example, pairs (q, a) (q, b) (c, a): anchor row 0 (q) with positive a leaves out row 1
    (q again), row 5 (a again) and row 4 (b, paired with q); row 2 (c) remains as a negative.
    """
    vectors = unit(vectors)
    partners = _partners(vectors.shape[0])

    def likelihood(rows):
        log_p = _in_batch_rows(rows, vectors, keys, temperature)
        positive = jnp.take_along_axis(log_p, partners[rows[0]][:, None], axis=1)[:, 0]
        return positive, positive >= log_p.max(axis=1)

    anchors = _anchors(vectors, *_key_rows(keys))
    positive, is_first = map_row_chunks(likelihood, anchors, chunk_size)
    return -positive.mean(), is_first.astype(jnp.float32).mean()


def distillation_loss(
    text_vectors: Float[Array, "2B D"],
    id_vectors: Float[Array, "2B E"],
    temperature: float,
    id_temperature: float,
    has_id: Bool[Array, " 2B"],
    keys: Int[Array, " 2B"] | None = None,
    chunk_size: int = 4096,
) -> Float[Array, ""]:
    """Eq. 3 of SIGMA as the +KL(P_ID || P_text) it stands for, averaged over anchors.

    P_ID is a constant: no gradient flows into `id_vectors`. Rows without an ID vector (texts, such
    as queries) are neither anchors nor candidates, in both distributions, and the mean is over the
    anchors that remain. With `keys`, the anchor's own item elsewhere in the batch is no candidate:
    its cosine of 1 would take the weight of all others.
    """
    text, ids = unit(text_vectors), jax.lax.stop_gradient(unit(id_vectors))

    def rows_divergence(anchors):
        rows, own_text, own_ids, *own_keys = anchors
        is_candidate = has_id[None] & (jnp.arange(text.shape[0])[None] != rows[:, None])
        if keys is not None:
            is_candidate &= keys[None] != own_keys[0][:, None]

        def log_p(own, vectors, scale):
            logits = cosines(own, vectors) / scale
            return jax.nn.log_softmax(jnp.where(is_candidate, logits, LOG_ZERO), axis=-1)

        log_p_id = log_p(own_ids, ids, id_temperature)
        log_p_text = log_p(own_text, text, temperature)
        terms = jnp.exp(log_p_id) * (log_p_id - log_p_text)
        return jnp.where(is_candidate, terms, 0).sum(axis=1), is_candidate.any(axis=1)

    anchors = _anchors(text, ids, *_key_rows(keys)[:1])
    divergence, has_candidate = map_row_chunks(rows_divergence, anchors, chunk_size)
    return weighted_mean(divergence, (has_id & has_candidate).astype(jnp.float32))


def next_token_loss(
    code_logits: Float[Array, "*targets y C"],
    codes: Int[Array, "*targets y"],
    weights: Float[Array, "*targets"],
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Eq. 4 of SIGMA: mean over the y codes of a target, weighted mean over targets.

    Returns the loss and the weighted accuracies `accuracy_1`..`accuracy_y` (by level) and
    `accuracy` (all y codes right). Where a weight is 0 the codes may be anything.
    """
    log_p = jax.nn.log_softmax(code_logits.astype(jnp.float32), axis=-1)
    weights = weights.astype(jnp.float32)
    target = jnp.clip(codes, 0, log_p.shape[-1] - 1)
    likelihood = jnp.take_along_axis(log_p, target[..., None], axis=-1)[..., 0]
    if label_smoothing:
        likelihood = (1 - label_smoothing) * likelihood + label_smoothing * log_p.mean(axis=-1)
    is_right = log_p.argmax(axis=-1) == codes
    figures = {
        f"accuracy_{level + 1}": weighted_mean(is_right[..., level], weights)
        for level in range(codes.shape[-1])
    }
    figures["accuracy"] = weighted_mean(is_right.all(axis=-1), weights)
    return weighted_mean(-likelihood.mean(axis=-1), weights), figures


def is_first_draw(items: Int[Array, " N"]) -> Bool[Array, " N"]:
    """False where an item was drawn before: [4, 7, 4] -> [True, True, False]."""
    items = jnp.asarray(items)
    order = jnp.argsort(items, stable=True)
    is_new = jnp.concatenate([jnp.ones(1, bool), jnp.diff(items[order]) != 0])
    return jnp.zeros(items.shape, bool).at[order].set(is_new)


def sampling_correction(expected: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """-log of how likely an item is to be in a set that it is drawn into `expected` times.

    Added to the logits of a softmax over a sampled set it makes up for items that are drawn more
    often than others (Bengio and Senecal 2008; for the items of a batch Yi et al. 2019). They take
    -log of the expected number; here a set holds an item once, however often it was drawn.
    """
    return -jnp.log(-jnp.expm1(-expected))


def prefix_infonce(
    queries: Float[Array, "Q D"],
    target_vectors: Float[Array, "Q D"],
    target_items: Int[Array, " Q"],
    target_prefix: Int[Array, " Q"],
    negative_vectors: Float[Array, "N D"],
    negative_items: Int[Array, " N"],
    negative_prefix: Int[Array, " N"],
    temperature: float | Float[Array, ""],
    weights: Float[Array, " Q"],
    use_prefix_condition: bool = True,
    chunk_size: int = 1024,
    corrections: tuple[Float[Array, " Q"], Float[Array, " N"]] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Eq. 5 of SIGMA with one set of negatives drawn for the batch; weighted mean over targets.

    Target q meets the negatives of its own SID prefix (`target_prefix`, any numbering of
    prefixes; all negatives with `use_prefix_condition=False`), never its own item. An item
    drawn several times counts once, so that the set is a set as in the paper; negative_items < 0
    are padding. A target without negatives has loss 0 and no gradient. `corrections` are added to
    the logits of targets and negatives, where some items are drawn more often than others
    (`sampling_correction`).
    Returns the loss with `accuracy` (the target comes first among its candidates; over targets
    that have a negative) and `negatives` (mean number per target).
    """
    queries, target_vectors = unit(queries), unit(target_vectors)
    negative_vectors = unit(negative_vectors)
    weights = weights.astype(jnp.float32)
    is_usable = is_first_draw(negative_items) & (negative_items >= 0)
    positives = jnp.sum(queries * target_vectors, axis=-1) / temperature
    of_negatives = jnp.zeros(len(negative_items))
    if corrections is not None:
        of_targets, of_negatives = corrections
        positives += of_targets

    def targets(rows):
        query, positive, item, prefix = rows
        logits = cosines(query, negative_vectors) / temperature + of_negatives
        is_negative = is_usable & (negative_items != item[:, None])
        if use_prefix_condition:
            is_negative &= negative_prefix == prefix[:, None]
        logits = jnp.where(is_negative, logits, LOG_ZERO)
        normaliser = jnp.logaddexp(positive, jax.nn.logsumexp(logits, axis=1))
        return positive - normaliser, positive >= logits.max(axis=1), is_negative.sum(axis=1)

    rows = (queries, positives, target_items, target_prefix)
    likelihood, is_first, count = map_row_chunks(targets, rows, chunk_size)
    figures = {
        "accuracy": weighted_mean(is_first, weights * (count > 0)),
        "negatives": weighted_mean(count, weights),
    }
    return weighted_mean(-likelihood, weights), figures


def constraint_loss(
    queries: Float[Array, "Q D"],
    target_vectors: Float[Array, "Q D"],
    target_items: Int[Array, " Q"],
    is_demanding: Bool[Array, " Q"],
    satisfies: Callable[[Int[Array, " n"]], Bool[Array, "n N"]],
    other_vectors: Float[Array, "N D"],
    other_items: Int[Array, " N"],
    temperature: float | Float[Array, ""],
    weights: Float[Array, " Q"],
    chunk_size: int = 64,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Each item that satisfies what a target's instruction demands, against all that do not.

    -log(e^s / (e^s + sum of e^s' of those that do not)) with s = cos / tau, mean over the items
    that do; 0 where nothing is demanded; weighted mean over all targets. The paper has none.
    `satisfies` tells of some targets, by their places in 0..Q-1, which others satisfy their
    demands; the target satisfies its own. An other item that repeats counts once, those with
    other_items < 0 do not. Also returned: the share of e^s of the items that satisfy, over the
    demanding targets.

    Few targets demand, and asking what satisfies costs more than the product of the vectors: these
    targets come first, and chunks without any are not computed.
    """
    queries, target_vectors = unit(queries), unit(target_vectors)
    other_vectors = unit(other_vectors)
    weights = jnp.asarray(weights, jnp.float32)
    is_usable = is_first_draw(other_items) & (other_items >= 0)
    positives = jnp.sum(queries * target_vectors, axis=-1) / temperature
    of_target = (queries, positives, jnp.asarray(target_items))

    def of_rows(rows: Int[Array, " n"], weight: Float[Array, " n"]) -> Float[Array, " 2"]:
        query, positive, item = (values[rows] for values in of_target)
        logits = cosines(query, other_vectors) / temperature
        is_other = is_usable & (other_items != item[:, None])
        does_satisfy = is_other & satisfies(rows)
        within = jax.nn.logsumexp(jnp.where(does_satisfy, logits, LOG_ZERO), axis=1)
        within = jnp.logaddexp(within, positive)
        outside = jnp.where(is_other & ~does_satisfy, logits, LOG_ZERO)
        against = jax.nn.logsumexp(outside, axis=1)
        terms = jnp.where(does_satisfy, jax.nn.softplus(against[:, None] - logits), 0).sum(axis=1)
        terms += jax.nn.softplus(against - positive)  # the target satisfies it too
        terms /= 1 + does_satisfy.sum(axis=1)
        share = jax.nn.sigmoid(within - against)
        return jnp.stack([(terms * weight).sum(), (share * weight).sum()])

    def of_chunk(chunk):
        rows, weight = chunk
        return jax.lax.cond((weight > 0).any(), of_rows, lambda *_: jnp.zeros(2), rows, weight)

    count = len(queries)
    chunks = -(-count // chunk_size)
    padding = (0, chunks * chunk_size - count)
    order = jnp.argsort(~jnp.asarray(is_demanding), stable=True)
    bound = jnp.where(is_demanding, weights, 0)
    parts = (jnp.pad(order, padding), jnp.pad(bound[order], padding))
    parts = jax.tree.map(lambda values: values.reshape(chunks, chunk_size), parts)
    terms, share = jax.lax.map(jax.checkpoint(of_chunk), parts).sum(axis=0)
    total, bound = weights.sum(), bound.sum()
    return terms / jnp.where(total > 0, total, 1), share / jnp.where(bound > 0, bound, 1)


def own_negatives_infonce(
    queries: Float[Array, "Q D"],
    target_vectors: Float[Array, "Q D"],
    negative_vectors: Float[Array, "Q R D"],
    is_negative: Bool[Array, "Q R"],
    num_others: Int[Array, " Q"],
    temperature: float | Float[Array, ""],
    weights: Float[Array, " Q"],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Eq. 5 of SIGMA with negatives of each target's own; weighted mean over targets.

    `num_others` counts the items a target's negatives were drawn from. The drawn ones stand for all
    of them: each counts num_others / number drawn times, so that e^(cos / tau) over the denominator
    estimates the P(id | prefix) of Eq. 11, and is exact where all were taken. Returns the loss
    and figures as `prefix_infonce` does.
    """
    queries, target_vectors = unit(queries), unit(target_vectors)
    weights = weights.astype(jnp.float32)
    positive = jnp.sum(queries * target_vectors, axis=-1) / temperature
    cosine = jnp.matmul(
        unit(negative_vectors), queries[:, :, None], precision=jax.lax.Precision.HIGHEST
    )[..., 0]
    count = is_negative.sum(axis=1)
    share = jnp.log(jnp.maximum(num_others, 1)) - jnp.log(jnp.maximum(count, 1))
    logits = jnp.where(is_negative, cosine / temperature, LOG_ZERO)
    others = jax.nn.logsumexp(logits, axis=1) + share
    likelihood = positive - jnp.logaddexp(positive, others)
    is_first = positive >= logits.max(axis=1)
    figures = {
        "accuracy": weighted_mean(is_first, weights * (count > 0)),
        "negatives": weighted_mean(count, weights),
    }
    return weighted_mean(-likelihood, weights), figures
