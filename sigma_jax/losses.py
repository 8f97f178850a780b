"""The losses of SIGMA as pure functions: Eq. 1-3 (grounding), Eq. 4 and 5 (fine-tuning).

They compute in float32 for inputs of any type: at temperature 0.05 one bfloat16 rounding of a
cosine (2^-9) moves a logit by 0.08. Matrices of [rows, columns] are computed for `chunk_size` rows
at a time and recomputed in the backward pass, so the full matrix never exists.

Rows are the global batch. Under `jax.jit` with rows sharded over devices, every device gathers the
columns (they are narrow) and computes its own rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# log 0 where -inf would give NaN: (-inf) - (-inf).
LOG_ZERO = -1e30


def unit(vectors: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    """`vectors` in float32 at length 1. Zero vectors stay zero and have zero gradient."""
    vectors = vectors.astype(jnp.float32)
    squared = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return jnp.where(squared > 0, vectors * jax.lax.rsqrt(jnp.where(squared > 0, squared, 1)), 0)


def cosines(left: Float[Array, "R D"], right: Float[Array, "S D"]) -> Float[Array, "R S"]:
    """Cosines of unit vectors.

    Highest precision, because a TPU would otherwise round the inputs to bfloat16.
    """
    return jnp.matmul(left, right.T, precision=jax.lax.Precision.HIGHEST)


def weighted_mean(values: Float[Array, "*n"], weights: Float[Array, "*n"]) -> Float[Array, ""]:
    """Mean of `values` weighted by `weights`; 0 if all weights are 0."""
    total = weights.sum()
    return jnp.sum(values * weights) / jnp.where(total > 0, total, 1)


def map_row_chunks(function: Callable, rows: Any, chunk_size: int) -> Any:
    """`function(rows)`, computed for at most `chunk_size` rows at a time.

    `function` maps a tree of arrays [R, ...] to a tree of arrays [R, ...]. The backward pass
    recomputes each chunk instead of keeping its intermediates. A chunk takes every n-th row: rows
    lie on devices in blocks, so each chunk has rows of each device.

    Worked example, 6 rows in chunks of 3: rows 0 2 4, then rows 1 3 5.
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    if count <= chunk_size:
        return function(rows)
    chunks = -(-count // chunk_size)
    size = -(-count // chunks)

    def split(array):
        # Repeat the last row: a row of zeros could be outside the function's domain.
        array = jnp.pad(array, [(0, size * chunks - count)] + [(0, 0)] * (array.ndim - 1), "edge")
        return array.reshape(size, chunks, *array.shape[1:]).swapaxes(0, 1)

    def join(array):
        return array.swapaxes(0, 1).reshape(size * chunks, *array.shape[2:])[:count]

    outputs = jax.lax.map(jax.checkpoint(function), jax.tree.map(split, rows))
    return jax.tree.map(join, outputs)


def _partners(count: int) -> Int[Array, " count"]:
    """i' = (i + B) mod 2B of Eq. 2 for count = 2B rows."""
    if count % 2:
        raise ValueError(
            f"{count} vectors are no batch of pairs; give B left rows, then B right rows."
        )
    return (jnp.arange(count) + count // 2) % count


def _anchors(vectors, *others) -> tuple[Array, ...]:
    """Row numbers, vectors and other values of the anchors, as arrays that chunks can split."""
    return (jnp.arange(vectors.shape[0]), vectors, *others)


def _in_batch_rows(anchors, vectors, keys, temperature) -> Float[Array, "R 2B"]:
    """log P(i, j) of Eq. 1 for the rows i of `anchors` and all j, -inf for the masked columns.

    `anchors` is `_anchors(vectors, keys, keys of partners)`, or some rows of it.
    """
    rows, anchor_vectors, *anchor_keys = anchors
    partners, half = _partners(vectors.shape[0]), vectors.shape[0] // 2
    column = jnp.arange(vectors.shape[0])[None]
    logits = cosines(anchor_vectors, vectors) / temperature
    is_masked = column == rows[:, None]
    if keys is not None:
        anchor, positive = (key[:, None] for key in anchor_keys)
        is_relevant = (keys == anchor) | (keys == positive) | (jnp.roll(keys, half) == anchor)
        is_masked |= is_relevant & (column != partners[rows][:, None])
    return jax.nn.log_softmax(jnp.where(is_masked, -jnp.inf, logits), axis=-1)


def _key_rows(keys) -> tuple[Array, ...]:
    """The anchors' keys and their partners' keys; nothing without keys."""
    return () if keys is None else (keys, jnp.roll(keys, keys.shape[0] // 2))


def contrastive_loss(
    vectors: Float[Array, "2B D"],
    temperature: float,
    keys: Int[Array, " 2B"] | None = None,
    chunk_size: int = 4096,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Eq. 2 of SIGMA with P(i, j) of Eq. 1 over the batch, and the in-batch accuracy.

    The accuracy is the share of anchors whose positive has the highest P(i, j). The B left sides
    come first, then the B right sides.

    `keys` number the item or text of each row. With keys, false negatives are masked, that is the
    columns j which this batch shows to be relevant to anchor i:
      - j is the anchor's item or text again;
      - j is the positive's item or text again;
      - j's partner is the anchor's item or text: the pair (anchor, j) is in this batch, and its own
        term pulls j towards the anchor, so as a negative j would undo that term.
    The positive itself is never masked. Without keys only j = i is, as in the paper.

    Worked example, pairs (q, a) (q, b) (c, a): anchor row 0 (q) with positive a masks row 1
    (q again), row 5 (a again) and row 4 (b, paired with q); row 2 (c) remains as a negative.

    Raises:
      ValueError: the number of rows is odd.
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
    """Eq. 3 of SIGMA, with the sign of a divergence: the mean over anchors of KL(P_ID || P_text).

    P_ID is a constant: no gradient flows into `id_vectors`. A row without an ID vector, such as a
    query, is neither anchor nor column in both distributions; the mean is over the other anchors.
    With `keys`, another row with the anchor's key is no column: its cosine of 1 would take the
    weight of all others.
    """
    text, ids = unit(text_vectors), jax.lax.stop_gradient(unit(id_vectors))

    def rows_divergence(anchors):
        rows, anchor_text, anchor_ids, *anchor_keys = anchors
        is_column = has_id[None] & (jnp.arange(text.shape[0])[None] != rows[:, None])
        if keys is not None:
            is_column &= keys[None] != anchor_keys[0][:, None]

        def log_p(anchor_vectors, vectors, scale):
            logits = cosines(anchor_vectors, vectors) / scale
            return jax.nn.log_softmax(jnp.where(is_column, logits, LOG_ZERO), axis=-1)

        log_p_id = log_p(anchor_ids, ids, id_temperature)
        log_p_text = log_p(anchor_text, text, temperature)
        terms = jnp.exp(log_p_id) * (log_p_id - log_p_text)
        return jnp.where(is_column, terms, 0).sum(axis=1), is_column.any(axis=1)

    anchors = _anchors(text, ids, *_key_rows(keys)[:1])
    divergence, has_column = map_row_chunks(rows_divergence, anchors, chunk_size)
    return weighted_mean(divergence, (has_id & has_column).astype(jnp.float32))


def next_token_loss(
    code_logits: Float[Array, "*targets y C"],
    codes: Int[Array, "*targets y"],
    weights: Float[Array, "*targets"],
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Eq. 4 of SIGMA, mean over the y codes of a target and weighted mean over targets.

    Returns the loss and a dict of weighted accuracies: `accuracy_1`..`accuracy_y` by level, and
    `accuracy` of all y codes together. The codes of targets with weight 0 are ignored.
    """
    log_p = jax.nn.log_softmax(code_logits.astype(jnp.float32), axis=-1)
    weights = weights.astype(jnp.float32)
    target = jnp.clip(codes, 0, log_p.shape[-1] - 1)
    likelihood = jnp.take_along_axis(log_p, target[..., None], axis=-1)[..., 0]
    if label_smoothing:
        likelihood = (1 - label_smoothing) * likelihood + label_smoothing * log_p.mean(axis=-1)
    is_right = log_p.argmax(axis=-1) == codes
    metrics = {
        f"accuracy_{level + 1}": weighted_mean(is_right[..., level], weights)
        for level in range(codes.shape[-1])
    }
    metrics["accuracy"] = weighted_mean(is_right.all(axis=-1), weights)
    return weighted_mean(-likelihood.mean(axis=-1), weights), metrics


def is_first_draw(items: Int[Array, " N"]) -> Bool[Array, " N"]:
    """False for an item that stands earlier in `items`: [4, 7, 4] -> [True, True, False]."""
    items = jnp.asarray(items)
    order = jnp.argsort(items, stable=True)
    is_new = jnp.concatenate([jnp.ones(1, bool), jnp.diff(items[order]) != 0])
    return jnp.zeros(items.shape, bool).at[order].set(is_new)


def sampling_correction(expected: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """-log P(item is in the sampled set), for items drawn `expected` times on average.

    Added to the logits of a softmax over the set, it corrects for items that are drawn more often
    than others (Bengio and Senecal 2008; Yi et al. 2019 for the items of a batch). Those papers use
    -log of `expected`; here a set holds an item once, however often it was drawn.
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
    """Eq. 5 of SIGMA with one set of negatives for the batch, weighted mean over targets.

    The negatives of target q are those of its own SID prefix, never its own item. An item drawn
    several times counts once, as in a set. A target without negatives has loss 0 and no gradient.

    Args:
      target_prefix, negative_prefix: numbers of SID prefixes, in any numbering.
      negative_items: numbers of the items of `negative_vectors`; < 0 is padding.
      use_prefix_condition: False: all negatives are used, whatever their prefix.
      corrections: added to the logits of targets and of negatives, where some items are drawn more
        often than others (`sampling_correction`).

    Returns the loss and a dict: `accuracy`, the share of targets ahead of all their negatives, over
    targets that have any; `negatives`, the mean number of negatives of a target.
    """
    queries, target_vectors = unit(queries), unit(target_vectors)
    negative_vectors = unit(negative_vectors)
    weights = weights.astype(jnp.float32)
    is_usable = is_first_draw(negative_items) & (negative_items >= 0)
    positives = jnp.sum(queries * target_vectors, axis=-1) / temperature
    negative_correction = jnp.zeros(len(negative_items))
    if corrections is not None:
        target_correction, negative_correction = corrections
        positives += target_correction

    def targets(rows):
        query, positive, item, prefix = rows
        logits = cosines(query, negative_vectors) / temperature + negative_correction
        is_negative = is_usable & (negative_items != item[:, None])
        if use_prefix_condition:
            is_negative &= negative_prefix == prefix[:, None]
        logits = jnp.where(is_negative, logits, LOG_ZERO)
        normaliser = jnp.logaddexp(positive, jax.nn.logsumexp(logits, axis=1))
        return positive - normaliser, positive >= logits.max(axis=1), is_negative.sum(axis=1)

    rows = (queries, positives, target_items, target_prefix)
    likelihood, is_first, count = map_row_chunks(targets, rows, chunk_size)
    metrics = {
        "accuracy": weighted_mean(is_first, weights * (count > 0)),
        "negatives": weighted_mean(count, weights),
    }
    return weighted_mean(-likelihood, weights), metrics


def constraint_loss(
    queries: Float[Array, "Q D"],
    target_vectors: Float[Array, "Q D"],
    target_items: Int[Array, " Q"],
    has_constraint: Bool[Array, " Q"],
    satisfies: Callable[[Int[Array, " n"]], Bool[Array, "n N"]],
    other_vectors: Float[Array, "N D"],
    other_items: Int[Array, " N"],
    temperature: float | Float[Array, ""],
    weights: Float[Array, " Q"],
    chunk_size: int = 64,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Loss that ranks items that satisfy a target's constraint above others; not in the paper.

    The loss of a target is the mean, over the items that satisfy its constraint, of
    -log(e^s / (e^s + sum of e^s' of the items that do not)) with s = cos / tau. It is 0 for a
    target without constraint. The result is the weighted mean over all targets.

    Args:
      has_constraint: which targets have a constraint.
      satisfies: a function of target numbers in 0..Q-1. It returns whether each other item
        satisfies their constraints. The target's own item always does.
      other_items: numbers of the items of `other_vectors`. Repeats count once; < 0 is padding.

    Returns the loss and, over the targets with a constraint, the mean share of e^s that falls on
    items which satisfy it.

    Few targets have a constraint, and `satisfies` costs more than the product of the vectors. So
    these targets are put first, and chunks without any are skipped.
    """
    queries, target_vectors = unit(queries), unit(target_vectors)
    other_vectors = unit(other_vectors)
    weights = jnp.asarray(weights, jnp.float32)
    is_usable = is_first_draw(other_items) & (other_items >= 0)
    positives = jnp.sum(queries * target_vectors, axis=-1) / temperature
    target_values = (queries, positives, jnp.asarray(target_items))

    def row_sums(rows: Int[Array, " n"], weight: Float[Array, " n"]) -> Float[Array, " 2"]:
        query, positive, item = (values[rows] for values in target_values)
        logits = cosines(query, other_vectors) / temperature
        is_other = is_usable & (other_items != item[:, None])
        terms, share = _constraint_terms(logits, positive, is_other, is_other & satisfies(rows))
        return jnp.stack([(terms * weight).sum(), (share * weight).sum()])

    def chunk_sums(chunk):
        rows, weight = chunk
        return jax.lax.cond((weight > 0).any(), row_sums, lambda *_: jnp.zeros(2), rows, weight)

    count = len(queries)
    chunks = -(-count // chunk_size)
    padding = (0, chunks * chunk_size - count)
    order = jnp.argsort(~jnp.asarray(has_constraint), stable=True)
    constrained = jnp.where(has_constraint, weights, 0)
    parts = (jnp.pad(order, padding), jnp.pad(constrained[order], padding))
    parts = jax.tree.map(lambda values: values.reshape(chunks, chunk_size), parts)
    terms, share = jax.lax.map(jax.checkpoint(chunk_sums), parts).sum(axis=0)
    total, constrained = weights.sum(), constrained.sum()
    return terms / jnp.where(total > 0, total, 1), share / jnp.where(
        constrained > 0, constrained, 1
    )


def _constraint_terms(
    logits: Float[Array, "n N"],
    positive: Float[Array, " n"],
    is_other: Bool[Array, "n N"],
    does_satisfy: Bool[Array, "n N"],
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """The loss of each target of `constraint_loss`, and its share of e^s that satisfies."""
    satisfying = jax.nn.logsumexp(jnp.where(does_satisfy, logits, LOG_ZERO), axis=1)
    satisfying = jnp.logaddexp(satisfying, positive)
    violating = jnp.where(is_other & ~does_satisfy, logits, LOG_ZERO)
    violating = jax.nn.logsumexp(violating, axis=1)
    terms = jnp.where(does_satisfy, jax.nn.softplus(violating[:, None] - logits), 0).sum(axis=1)
    terms += jax.nn.softplus(violating - positive)  # the target satisfies its constraint
    terms /= 1 + does_satisfy.sum(axis=1)
    return terms, jax.nn.sigmoid(satisfying - violating)


def per_target_infonce(
    queries: Float[Array, "Q D"],
    target_vectors: Float[Array, "Q D"],
    negative_vectors: Float[Array, "Q R D"],
    is_negative: Bool[Array, "Q R"],
    num_negatives: Int[Array, " Q"],
    temperature: float | Float[Array, ""],
    weights: Float[Array, " Q"],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Eq. 5 of SIGMA with R negatives drawn for each target, weighted mean over targets.

    `num_negatives` is the number of items that a target's negatives were drawn from. Each drawn one
    counts num_negatives / number drawn times. So e^(cos / tau) over the denominator estimates the
    P(id | prefix) of Eq. 11, and equals it if all items were drawn.

    Returns the loss and the dict of `prefix_infonce`.
    """
    queries, target_vectors = unit(queries), unit(target_vectors)
    weights = weights.astype(jnp.float32)
    positive = jnp.sum(queries * target_vectors, axis=-1) / temperature
    cosine = jnp.matmul(
        unit(negative_vectors), queries[:, :, None], precision=jax.lax.Precision.HIGHEST
    )[..., 0]
    count = is_negative.sum(axis=1)
    log_scale = jnp.log(jnp.maximum(num_negatives, 1)) - jnp.log(jnp.maximum(count, 1))
    logits = jnp.where(is_negative, cosine / temperature, LOG_ZERO)
    others = jax.nn.logsumexp(logits, axis=1) + log_scale
    likelihood = positive - jnp.logaddexp(positive, others)
    is_first = positive >= logits.max(axis=1)
    metrics = {
        "accuracy": weighted_mean(is_first, weights * (count > 0)),
        "negatives": weighted_mean(count, weights),
    }
    return weighted_mean(-likelihood, weights), metrics
