"""SASRec (Kang and McAuley, 2018): a causal transformer over the items of a history.

It differs from the paper in its loss: cross-entropy over all items, which is much stronger than one
sampled negative. Settings make other models of it: gSASRec (Petrov and Macdonald, 2023) by the loss
"gbce" of teacher/task.py, eSASRec (arXiv 2508.06450) by the block "ligr" with sampled negatives,
HSTU (Zhai et al., 2024) by the block "hstu".

The item table is tied: it embeds the items of the history and scores all items. Its rows are the
collaborative ID vectors of section 2.1 of SIGMA.

A history is right-aligned in a window of T positions, with padding (-1) before it. So position T-1
is always the latest interaction. Axis letters are those of models/qwen3.py.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int32
from safetensors import SafetensorError, safe_open

from sigma_jax.histories import history_ranges
from sigma_jax.models.weights import load_weights, save_weights
from sigma_jax.schema import Histories, Requests
from sigma_jax.tasks.constraints import AllowedItems

SCORES_AT_ONCE = 2**23  # entries of [requests, items] that are held in memory
ITEMS_AT_ONCE = 2**16  # items that are scored together
BLOCKS = ("plain", "ligr", "hstu")


@dataclasses.dataclass(frozen=True)
class SasrecConfig:
    """The shape of a SASRec."""

    width: int  # D, of the ID vectors too
    layers: int  # transformer blocks
    heads: int  # N, a divisor of the width
    history: int  # T, interactions of a window
    dropout: float  # share of the outputs that training drops
    # "plain"; "ligr": the gated layers of LiGR (Borisyuk et al., 2025) that eSASRec takes; "hstu".
    block: str

    def __post_init__(self):
        if self.block not in BLOCKS:
            raise ValueError(f"model.block={self.block!r} is unknown; use {' or '.join(BLOCKS)}.")


def near_identity(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """An initialiser: the identity plus noise of 0.02, so that values pass through at the start."""
    return jnp.eye(*shape, dtype=dtype) + 0.02 * jax.random.normal(key, shape, dtype)


class Block(nnx.Module):
    """A transformer block: attention and feed-forward, each after a layer norm.

    Norms before the layers train without warmup.
    """

    def __init__(self, config: SasrecConfig, rngs: nnx.Rngs):
        width = config.width
        dense = functools.partial(nnx.Linear, rngs=rngs, use_bias=True)
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.query_key = dense(width, 2 * width)
        self.value = dense(width, width, kernel_init=near_identity)
        self.attention_out = dense(width, width, kernel_init=near_identity)
        self.feed_norm = nnx.LayerNorm(width, rngs=rngs)
        self.feed_in = dense(width, 4 * width)
        self.feed_out = dense(4 * width, width)
        self.heads = config.heads
        self.is_gated = config.block == "ligr"
        if self.is_gated:
            self.attention_gate = dense(width, width)
            self.feed_gate = dense(width, width)
            self.feed_scale = dense(width, 4 * width)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T T"],
        drop: Callable[[Array], Array],
    ) -> Float[Array, "B T D"]:
        """The output at each position.

        Args:
          x: the input at each position.
          mask: True where a query position (T) may see a key position (T).
          drop: dropout, or the identity.
        """
        normed = self.attention_norm(x)
        parts = (*jnp.split(self.query_key(normed), 2, axis=-1), self.value(normed))
        query, key, value = (part.reshape(x.shape[:2] + (self.heads, -1)) for part in parts)
        logits = jnp.einsum("BTNH,BSNH->BNTS", query, key) * query.shape[-1] ** -0.5
        # float32 for the softmax. A large finite number masks: a padded position sees nothing, and
        # -inf would make NaN of that.
        logits = jnp.where(mask[:, None], logits.astype(jnp.float32), -1e30)
        weights = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("BNTS,BSNH->BTNH", weights, value).reshape(x.shape)
        if self.is_gated:
            return self.gated_feed(x, self.attention_out(mixed), drop)
        x = x + drop(self.attention_out(mixed))
        return x + drop(self.feed_out(jax.nn.gelu(self.feed_in(self.feed_norm(x)))))

    def gated_feed(
        self,
        x: Float[Array, "B T D"],
        mixed: Float[Array, "B T D"],
        drop: Callable[[Array], Array],
    ) -> Float[Array, "B T D"]:
        """The rest of a gated block: sigmoid gates scale both outputs; SwiGLU feeds forward.

        Args:
          x: the input of the block.
          mixed: the output of its attention.
        """
        x = x + drop(mixed * jax.nn.sigmoid(self.attention_gate(x)))
        normed = self.feed_norm(x)
        fed = self.feed_out(jax.nn.silu(self.feed_in(normed)) * self.feed_scale(normed))
        return x + drop(fed * jax.nn.sigmoid(self.feed_gate(x)))


class HstuBlock(nnx.Module):
    """A block of HSTU (Zhai et al., 2024, eq. 2 to 4), without its bias by time.

    Attention has no softmax: weights are SiLU(q k + b), over the number of visible positions. The
    bias b belongs to the distance. The mixed values are normed and gated, and take the place of a
    feed-forward layer.
    """

    def __init__(self, config: SasrecConfig, rngs: nnx.Rngs):
        width = config.width
        dense = functools.partial(nnx.Linear, rngs=rngs, use_bias=True)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.parts = dense(width, 4 * width)
        self.mixed_norm = nnx.LayerNorm(width, rngs=rngs)
        self.out = dense(width, width)
        self.distance = nnx.Param(jnp.zeros((config.heads, config.history)))
        self.heads = config.heads

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B T T"],
        drop: Callable[[Array], Array],
    ) -> Float[Array, "B T D"]:
        """The output at each position; `Block` has the arguments."""
        gate, *parts = jnp.split(jax.nn.silu(self.parts(self.norm(x))), 4, axis=-1)
        query, key, value = (part.reshape(x.shape[:2] + (self.heads, -1)) for part in parts)
        place = jnp.arange(x.shape[1])
        distance = jnp.maximum(place[:, None] - place, 0)
        logits = jnp.einsum("BTNH,BSNH->BNTS", query, key) * query.shape[-1] ** -0.5
        weights = jax.nn.silu(logits + self.distance[...][:, distance]) * mask[:, None]
        weights /= jnp.maximum(mask.sum(-1), 1)[:, None, :, None]
        mixed = jnp.einsum("BNTS,BSNH->BTNH", weights.astype(x.dtype), value).reshape(x.shape)
        return x + drop(self.out(self.mixed_norm(mixed) * gate))


class Sasrec(nnx.Module):
    """A vector for each position of a history.

    The score of an item is the product of the vector with its row of `table`, plus its `bias`.
    """

    def __init__(self, config: SasrecConfig, num_items: int, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(0.02)
        self.bias = nnx.Param(jnp.zeros(num_items))
        self.table = nnx.Param(normal(rngs.params(), (num_items, config.width)))
        self.position = nnx.Param(normal(rngs.params(), (config.history, config.width)))
        kind = HstuBlock if config.block == "hstu" else Block
        self.blocks = nnx.List([kind(config, rngs) for _ in range(config.layers)])
        self.norm = nnx.LayerNorm(config.width, rngs=rngs)
        self.config = config

    def __call__(self, item: Int[Array, "B T"], key: Array | None = None) -> Float[Array, "B T D"]:
        """The vectors of all positions; those of padded positions have no meaning.

        Args:
          item: right-aligned items; -1 is padding.
          key: of the dropout; None turns dropout off.
        """
        is_real = item >= 0
        position = jnp.arange(item.shape[1])
        mask = (position[:, None] >= position[None, :]) & is_real[:, None, :]
        x = self.table[...][jnp.maximum(item, 0)] * self.config.width**0.5
        x = jnp.where(is_real[..., None], x + self.position[...], 0)
        keys = [key]

        def drop(values: Array) -> Array:
            if keys[0] is None or self.config.dropout == 0:
                return values
            keys[0], drop_key = jax.random.split(keys[0])
            kept = jax.random.bernoulli(drop_key, 1 - self.config.dropout, values.shape)
            return jnp.where(kept, values / (1 - self.config.dropout), 0)

        x = drop(x)
        for block in self.blocks:
            x = block(x, mask, drop)
        return self.norm(x)


def history_window(
    histories: Histories, start: int, stop: int, length: int, rng: np.random.Generator | None
) -> tuple[Int32[np.ndarray, " T"], Int32[np.ndarray, " T"]]:
    """The items and the sessions of the last `length` rows of start..stop, right-aligned.

    Padding is -1. The interactions of a session have no order:
      - in training `rng` shuffles them;
      - with None a fixed hash of the item sorts them, so that recommendations do not depend on the
        order of the source.
    """
    item = np.full(length, -1, np.int32)
    session = np.full(length, -1, np.int32)
    first = max(start, stop - length)
    if first > start:  # take all of the oldest session, so that the order above chooses inside it
        sessions = histories.session[start:stop]
        first = start + int(np.searchsorted(sessions, sessions[first - start]))
    items, sessions = histories.item[first:stop], histories.session[first:stop]
    if rng is None:
        order = (items.astype(np.uint64) * np.uint64(2654435761)) % np.uint64(2**32)
    else:
        order = rng.random(len(items))
    keep = np.lexsort((order, sessions))[-length:]
    if len(keep):
        item[-len(keep) :], session[-len(keep) :] = items[keep], sessions[keep]
    return item, session


def history_windows(
    histories: Histories, requests: Requests, length: int
) -> Int32[np.ndarray, "N T"]:
    """The last `length` items of each request's history, right-aligned; -1 is padding."""
    starts, ends = history_ranges(histories, requests)
    rows = [
        history_window(histories, start, end, length, None)[0]
        for start, end in zip(starts, ends, strict=True)
    ]
    return np.stack(rows) if rows else np.zeros((0, length), np.int32)


def rank_items(
    model: Sasrec,
    histories: Histories,
    requests: Requests,
    k: int,
    exclude_seen: bool,
    allowed: AllowedItems | None,
) -> Int32[np.ndarray, "N k"]:
    """The k items of highest score for each request, best first.

    -1 fills the row of a user without history, and the rest of a row when no item is left.

    Args:
      model: a trained SASRec.
      histories: of all users.
      requests: N requests.
      k: length of a row.
      exclude_seen: True leaves out the items of the history.
      allowed: the items that each request may get; None: all items.
    """
    num_items = model.table.shape[0]
    chunk = int(np.clip(SCORES_AT_ONCE // min(num_items, ITEMS_AT_ONCE), 1, 512))
    graph, state = nnx.split(model)
    starts, ends = history_ranges(histories, requests)
    rankings = np.full((len(requests), k), -1, np.int32)
    for first in range(0, len(requests), chunk):
        rows = np.arange(first, min(first + chunk, len(requests)))
        item = np.full((chunk, model.config.history), -1, np.int32)  # one shape, one compilation
        item[: len(rows)] = history_windows(histories, requests.take(rows), model.config.history)
        vector = _last_vectors(graph, state, item)
        best_score = np.full((chunk, k), -np.inf, np.float32)
        best_item = np.full((chunk, k), -1, np.int32)
        for low in range(0, num_items, ITEMS_AT_ONCE):
            block = slice(low, low + ITEMS_AT_ONCE)
            table, bias = state["table"][...][block], state["bias"][...][block]
            scores = np.array(_scores(vector, table, bias))
            for index, row in enumerate(rows):
                seen = histories.item[starts[row] : ends[row]] if exclude_seen else None
                _mask(scores[index], low, seen, allowed.of(row) if allowed else None)
            best_score, best_item = _merge(best_score, best_item, scores, low)
        best_item[~np.isfinite(best_score) | (item[:, -1:] < 0)] = -1
        rankings[rows] = best_item[: len(rows)]
    return rankings


@functools.partial(jax.jit, static_argnums=0)
def _last_vectors(graph, state, item: Int32[Array, "B T"]) -> Float[Array, "B D"]:
    """The vector at the latest interaction of each history."""
    return nnx.merge(graph, state)(item)[:, -1]


@jax.jit
def _scores(
    vector: Float[Array, "B D"], table: Float[Array, "I D"], bias: Float[Array, " I"]
) -> Float[Array, "B I"]:
    """The score of each item of a block, in float32."""
    return jnp.einsum("BD,ID->BI", vector, table, preferred_element_type=jnp.float32) + bias


def _mask(
    scores: np.ndarray, low: int, seen: np.ndarray | None, allowed: np.ndarray | None
) -> None:
    """Sets scores to -inf, in place, for items that are seen or not allowed.

    scores[0] belongs to item `low`; None of `seen` or `allowed` sets no limit.
    """
    if allowed is not None:
        is_allowed = np.zeros(len(scores), bool)
        inside = (allowed >= low) & (allowed < low + len(scores))
        is_allowed[allowed[inside] - low] = True
        scores[~is_allowed] = -np.inf
    if seen is not None:
        inside = (seen >= low) & (seen < low + len(scores))
        scores[seen[inside] - low] = -np.inf


def _merge(
    best_score: np.ndarray, best_item: np.ndarray, scores: np.ndarray, low: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best scores and items so far, merged with a block of scores; best first."""
    k = best_score.shape[1]
    if scores.shape[1] > k:
        columns = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    else:
        columns = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    all_scores = np.concatenate([best_score, np.take_along_axis(scores, columns, 1)], 1)
    all_items = np.concatenate([best_item, (columns + low).astype(np.int32)], 1)
    order = np.argsort(-all_scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(all_scores, order, 1), np.take_along_axis(all_items, order, 1)


def save_sasrec(model: Sasrec, folder: Path) -> None:
    """Writes FOLDER/weights.safetensors; its metadata holds the shape of the model."""
    shape = json.dumps(dataclasses.asdict(model.config))
    save_weights(model, folder / "weights.safetensors", metadata={"config": shape})


def load_sasrec(folder: Path) -> Sasrec:
    """The model that `save_sasrec` wrote. ValueError if the file is missing or damaged."""
    path = folder / "weights.safetensors"
    if not path.exists():
        raise ValueError(f"{path} is missing; run the stage `teacher` first.")
    try:
        with safe_open(path, "numpy") as file:
            config = SasrecConfig(**json.loads(file.metadata()["config"]))
            num_items = file.get_slice("table").get_shape()[0]
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete its folder and run the stage `teacher` again."
        ) from error
    model = Sasrec(config, num_items, nnx.Rngs(0))
    load_weights(model, path)
    return model
