"""The loss of stage 3 over all targets of a batch: Eq. 4, Eq. 5 of SIGMA and the item head's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sigma_jax.losses import (
    constraint_loss,
    next_token_loss,
    per_target_infonce,
    prefix_infonce,
    sampling_correction,
    weighted_mean,
)
from sigma_jax.models.network import RecommenderNetwork
from sigma_jax.models.qwen3 import branch_mask
from sigma_jax.prompts.layout import HISTORY_TASK
from sigma_jax.sft.config import SftConfig
from sigma_jax.tasks.constraints import NEW_CATEGORY, NO_CONSTRAINT


def recommender_loss(
    config: SftConfig,
    model: RecommenderNetwork,
    tables: Mapping[str, Array],
    batch: Mapping[str, Array],
    key,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Eq. 4 + Eq. 5 of SIGMA over all targets of the batch, and the item head's loss.

    Figures: the losses, how often each is right, `targets`, and what was dropped in packing.
    """
    # A head that is not there takes no key: the others draw what they draw without it.
    dropout_key, negative_key, *item_head_keys = jax.random.split(
        key, 2 + config.model.has_item_head
    )
    hidden = hidden_states(model, tables, batch, dropout_key)
    loss, figures = jnp.zeros(()), {}
    if config.prompt.layout.sid_generated:
        ntp, more = code_loss(config, model, tables, batch, hidden)
        loss += config.ntp_weight * ntp
        figures |= {"ntp_loss": ntp} | {f"code_{name}": value for name, value in more.items()}
    if config.prompt.layout.sid_generated and config.prompt.layout.generates_item:
        infonce, more = item_loss(config, model, tables, batch, hidden, negative_key)
        loss += config.infonce_weight * infonce
        figures |= {"infonce_loss": infonce} | {f"item_{key}": more[key] for key in more}
    if config.model.has_item_head:
        opened, more = item_head_loss(config, model, tables, batch, hidden, *item_head_keys)
        loss += opened + config.constraint_weight * more.get("constraint_loss", 0.0)
        shown = ("accuracy", "constraint_loss", "satisfied")
        figures |= {"item_head_loss": opened} | {
            f"item_head_{k}": more[k] for k in shown if k in more
        }
    if config.model.has_task_head:
        reading, accuracy = task_loss(model, batch, hidden)
        loss += reading
        figures |= {"task_loss": reading, "task_accuracy": accuracy}
    figures |= {
        "targets": (batch["target_weight"] > 0).sum(),
        "dropped_items": batch["dropped"][:, 0].sum(),
        "dropped_targets": batch["dropped"][:, 1].sum(),
    }
    return loss, figures


def candidate_items(config: SftConfig, num_items: int, key) -> Int[Array, " N"]:
    """All items, or `num_negatives` of them drawn for the batch."""
    if config.num_negatives >= num_items:
        return jnp.arange(num_items)
    return jax.random.randint(key, (config.num_negatives,), 0, num_items)


def code_loss(
    config: SftConfig, model: RecommenderNetwork, tables, batch, hidden: Float[Array, "B T D"]
):
    """Eq. 4: next-token loss over the y codes of each target."""
    levels = config.prompt.layout.sid_generated
    at_codes = _rows_at(hidden, batch["code_position"])
    logits = model.code_logits(at_codes)
    codes = jnp.take(tables["codes"], batch["target_item"], axis=0)[..., :levels]
    weights = batch["target_weight"]
    loss, figures = next_token_loss(
        logits, model.code_labels(codes), weights, config.label_smoothing
    )
    # The same by kind of target: history supervision is not what users ask for.
    is_instructed = batch["target_task"] != HISTORY_TASK
    is_right = (logits.argmax(axis=-1) == model.code_labels(codes)).all(axis=-1)
    figures["accuracy_instructed"] = weighted_mean(is_right, weights * is_instructed)
    return loss, figures


def item_loss(config: SftConfig, model: RecommenderNetwork, tables, batch, hidden, key):
    """Eq. 5: InfoNCE against items of the target's prefix."""
    targets = batch["target_item"].reshape(-1)
    weights = batch["target_weight"].reshape(-1)
    queries = queries_at(model.query_head_vector, batch["query_position"], tables, batch, hidden)
    if config.negatives_per_target and config.uses_prefix_condition:
        return own_negatives_loss(config, model, tables, queries, targets, weights, key)
    shared = shared_negatives(config, model, tables, targets, key)
    return shared_negatives_loss(
        config, tables, queries, targets, weights, shared, config.uses_prefix_condition
    )


def item_head_loss(config: SftConfig, model: RecommenderNetwork, tables, batch, hidden, key):
    """InfoNCE of the item head, before any code is chosen: against items of all prefixes.

    With `constraints` among the tables its figures hold the loss of these too.
    """
    targets = batch["target_item"].reshape(-1)
    weights = batch["target_weight"].reshape(-1)
    queries = queries_at(model.item_head_vector, batch["start_position"], tables, batch, hidden)
    shared = shared_negatives(config, model, tables, targets, key)
    more, corrections = with_targets(config, tables, shared, targets, weights)
    loss, figures = shared_negatives_loss(
        config, tables, queries, targets, weights, more, False, corrections
    )
    if "constraints" in tables:
        figures["constraint_loss"], figures["satisfied"] = constraint_loss(
            queries,
            shared.of_targets,
            targets,
            batch["target_constraint"].reshape(-1) != NO_CONSTRAINT,
            functools.partial(satisfies, tables, batch, shared.items),
            shared.vectors,
            shared.known,
            config.temperature,
            weights,
        )
    return loss, figures


def satisfies(
    tables, batch, items: Int[Array, " N"], targets: Int[Array, " n"]
) -> Bool[Array, "n N"]:
    """Which of `items` satisfy what is demanded of some targets, by their places in the batch.

    What is in a new category depends on who asks: one that no item visible to the target has.
    """
    demanded = batch["target_constraint"]
    row, place = jnp.divmod(targets, demanded.shape[1])
    demanded = demanded[row, place]
    listed = jnp.take(tables["constraints"], items, axis=0)
    is_listed = (listed == demanded[:, None, None]).any(axis=-1)
    visible = seen_from(batch, batch["start_position"])[row, place] & (batch["item"][row] >= 0)
    # The last column stands for what is not visible, and for no category (-1).
    categories = len(tables["category_sizes"])
    had = jnp.where(visible, jnp.take(tables["category"], batch["item"][row]), categories)
    is_had = jnp.zeros((len(targets), categories + 1), bool)
    is_had = is_had.at[jnp.arange(len(targets))[:, None], had].set(True)
    category = jnp.take(tables["category"], items)
    is_new = (category >= 0) & ~is_had[:, category]
    return jnp.where(demanded[:, None] == NEW_CATEGORY, is_new, is_listed)


def task_loss(model: RecommenderNetwork, batch, hidden: Float[Array, "B T D"]):
    """Cross-entropy of the task at the end of each instruction, and how often it is right.

    It trains the head alone: hidden states made to tell tasks apart learn wordings by heart. Of
    queries in wordings never trained on, 58 % of the items shown fitted so, 80 % without.
    """
    task = batch["target_task"]
    weights = batch["target_weight"] * (task != HISTORY_TASK)
    at_end = jax.lax.stop_gradient(_rows_at(hidden, batch["start_position"]))
    logits = model.task_logits(at_end)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    # History supervision has no column: clipped, and without weight.
    right = jnp.take_along_axis(log_p, task[..., None], axis=-1, mode="clip")[..., 0]
    return weighted_mean(-right, weights), weighted_mean(logits.argmax(-1) == task, weights)


def queries_at(
    query: Callable[..., Array], positions: Int[Array, "B N"], tables, batch, hidden
) -> Float[Array, "Q D"]:
    """What `query` (of the model) looks for at `positions`, of all rows in one."""
    seen = seen_from(batch, positions)
    found = query(_rows_at(hidden, positions), batch["item"], seen, tables)
    return found.reshape(-1, found.shape[-1])


def seen_from(batch: Mapping[str, Array], positions: Int[Array, "B N"]) -> Bool[Array, "B N T"]:
    """Which positions of its row each of `positions` sees."""
    return jnp.take_along_axis(mask_of(batch), positions[..., None], axis=1)


class SharedNegatives(NamedTuple):
    """One set of items for all targets of the batch, N of them, and the Q targets' vectors."""

    items: Int[Array, " N"]
    known: Int[Array, " N"]  # the same, -1 where an item is no negative (negative_tables)
    vectors: Float[Array, "N D"]
    of_targets: Float[Array, "Q D"]


def shared_negatives(
    config: SftConfig, model: RecommenderNetwork, tables, targets: Int[Array, " Q"], key
) -> SharedNegatives:
    """The set drawn for this batch, or the whole catalogue."""
    num_items = tables["codes"].shape[0]
    items = candidate_items(config, num_items, key)
    vectors = model.item_vectors(items, tables)
    of_targets = (
        jnp.take(vectors, targets, axis=0)
        if len(items) == num_items
        else model.item_vectors(targets, tables)
    )
    known = jnp.where(jnp.take(tables["is_cold"], items), -1, items)
    return SharedNegatives(items, known, vectors, of_targets)


def with_targets(
    config: SftConfig, tables, shared: SharedNegatives, targets: Int[Array, " Q"], weights
) -> tuple[SharedNegatives, tuple[Float[Array, " Q"], Float[Array, " M"]] | None]:
    """`shared` and `batch_negatives` of the targets, whose vectors are there anyway; what makes up
    for popular items being drawn more often, for targets and negatives (as if targets were drawn by
    popularity).

    As it was, and None, where none are wanted or all items are there.
    """
    num_items, total = tables["codes"].shape[0], len(targets)
    count = min(config.batch_negatives, total)
    if not count or len(shared.items) == num_items:
        return shared, None
    is_usable = (weights > 0) & ~jnp.take(tables["is_cold"], targets)
    usable = is_usable.sum()
    # Of every part of the batch, each slot once; slots without a target stand last.
    places = jnp.arange(count) * jnp.maximum(usable, count) // count
    rows = jnp.argsort(~is_usable, stable=True)[places]
    items, is_negative = targets[rows], is_usable[rows]
    more = SharedNegatives(
        jnp.concatenate([shared.items, items]),
        jnp.concatenate([shared.known, jnp.where(is_negative, items, -1)]),
        jnp.concatenate([shared.vectors, shared.of_targets[rows]]),
        shared.of_targets,
    )
    expected = len(shared.items) / num_items + is_negative.sum() * tables["popularity"]
    correction = sampling_correction(expected)
    return more, (correction[targets], correction[more.items])


def shared_negatives_loss(
    config: SftConfig,
    tables,
    queries,
    targets,
    weights,
    shared: SharedNegatives,
    has_condition: bool,
    corrections=None,
):
    """InfoNCE against one set of items for the batch, with or without the prefix condition."""
    return prefix_infonce(
        queries,
        shared.of_targets,
        targets,
        jnp.take(tables["prefix"], targets),
        shared.vectors,
        shared.known,
        jnp.take(tables["prefix"], shared.items),
        config.temperature,
        weights,
        has_condition,
        corrections=corrections,
    )


def own_negatives_loss(
    config: SftConfig, model: RecommenderNetwork, tables, queries, targets, weights, key
):
    """Eq. 5 with negatives drawn for each target from its own prefix.

    What is drawn for the whole batch mostly has other prefixes and is masked: of 4,096 items
    16 remain where a prefix holds 52 of 13,343. These all count, at less cost.
    """
    prefix = jnp.take(tables["prefix"], targets)
    start = jnp.take(tables["prefix_start"], prefix)
    size = jnp.take(tables["prefix_start"], prefix + 1) - start
    places, is_item = draw_places(key, size, config.negatives_per_target)
    negatives = jnp.take(tables["by_prefix"], start[:, None] + places, mode="clip")
    num_items = tables["codes"].shape[0]
    if num_items <= negatives.size:  # each item once is cheaper than each drawing
        vectors = model.item_vectors(jnp.arange(num_items), tables)
        of_targets, of_negatives = (jnp.take(vectors, i, axis=0) for i in (targets, negatives))
    else:
        of_targets, of_negatives = (model.item_vectors(i, tables) for i in (targets, negatives))
    is_negative = is_item & (negatives != targets[:, None])
    return per_target_infonce(
        queries,
        of_targets,
        of_negatives,
        is_negative,
        size - ~jnp.take(tables["is_cold"], targets),
        config.temperature,
        weights,
    )


def hidden_states(model: RecommenderNetwork, tables, batch, key=None) -> Float[Array, "B T D"]:
    """Of contexts and branches, each branch seeing its context and itself."""
    hidden, _ = model(
        batch["token"], batch["item"], batch["position"], mask_of(batch), tables, key=key
    )
    return hidden


def mask_of(batch: Mapping[str, Array]) -> Bool[Array, "B T T"]:
    """Which positions of its row each position sees."""
    return branch_mask(batch["segment"], batch["branch"], batch["attach"])


def draw_places(
    key: jax.Array, size: Int[Array, " Q"], count: int
) -> tuple[Int[Array, "Q R"], Bool[Array, "Q R"]]:
    """`count` different places of 0..size-1 for each row, and which of them are real.

    All of them where they fit; otherwise one at random from each of `count` equal stretches.
    """
    size = size[:, None]

    def stretch_start(number):
        return number * (size // count) + number * (size % count) // count

    low, high = (stretch_start(jnp.arange(count) + end) for end in (0, 1))
    share = jax.random.uniform(key, low.shape)
    drawn = low + jnp.minimum((share * (high - low)).astype(jnp.int32), high - low - 1)
    fits, steps = size <= count, jnp.broadcast_to(jnp.arange(count), low.shape)
    return jnp.where(fits, jnp.minimum(steps, size - 1), drawn), ~fits | (steps < size)


def _rows_at(hidden: Float[Array, "B T D"], positions: Array) -> Float[Array, "B ... D"]:
    """Hidden states at `positions` [B, ...] of each row."""
    flat = positions.reshape(positions.shape[0], -1, 1)
    picked = jnp.take_along_axis(hidden, flat, axis=1)
    return picked.reshape(*positions.shape, hidden.shape[-1])
