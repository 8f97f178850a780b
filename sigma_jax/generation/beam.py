"""Step one of generation: SID prefixes by beam search over the trie (Eq. 6-8 of SIGMA).

The prompt is read once; its keys and values are stored once a user and shared by all beams. The
beams' own tokens stand behind it in the same cache, and a mask says which of them are a beam's
ancestors. So a beam that changes its parent moves no keys or values, only a row of the mask.

Worked example, two beams, two codes: cache rows [prompt | a b | ...]. If both survivors descend
from b, both may look at row b and neither at row a; nothing is copied.
"""

from __future__ import annotations

import dataclasses
import math
import operator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sigma_jax.generation.prefix_scores import PrefixScorer
from sigma_jax.index.trie import ActiveItems, Trie, child_of, children, leaves_of
from sigma_jax.losses import LOG_ZERO
from sigma_jax.models.attention import KVCache
from sigma_jax.models.network import RecommenderNetwork, Tables
from sigma_jax.models.qwen3 import causal_mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts in ordinary order, padded on the right."""

    tokens: Int[Array, "B T"]
    items: Int[Array, "B T"]  # item at its slot, else -1
    positions: Int[Array, "B T"]
    is_token: Bool[Array, "B T"]  # False where padding
    lengths: Int[Array, " B"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Beams:
    """The best SID prefixes, best first; invalid ones (fewer paths than beams) come last."""

    codes: Int[Array, "B M y"]
    scores: Float[Array, "B M"]  # phi of Eq. 7; -inf where invalid
    is_valid: Bool[Array, "B M"]
    leaves: Int[Array, "B M"]  # the prefix's number in the trie, -1 where invalid
    queries: Float[
        Array, "B M D"
    ]  # h of Eq. 8 in the space of fused items (RecommenderNetwork.query)
    tasks: Float[Array, "B tasks"]  # how likely each was asked for; where none is read, one: 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BeamState:
    """Beams between two steps."""

    scores: Float[Array, "B M"]
    nodes: Int[Array, "B M"]  # -1 where invalid
    codes: Int[Array, "B M t"]  # codes chosen so far
    ancestors: Bool[Array, "B M R"]  # which of the R rows that beams read a beam descends from


def beam_search(
    model: RecommenderNetwork,
    tables: Tables,
    prompts: Prompts,
    trie: Trie,
    widths: tuple[int, ...],
    item_query: str = "token",
    prefix_scorer: PrefixScorer | None = None,
    active: ActiveItems | None = None,
    margin: float = math.inf,
) -> Beams:
    """The likeliest prefixes of real items, and their queries (Eq. 6-8 of SIGMA).

    Scores are exact log-probabilities: each path scored on its own gives the same. Every prefix
    is a path of the trie, so it belongs to at least one item. A trie of depth 0 gives one beam, the
    root. The function is traced under `jax.jit`.

    Args:
      widths: beams after each level of the trie.
      item_query: the token that asks for the item (PromptLayout); with "none" queries are 0.
      prefix_scorer: scores prefixes by the item head; None for a network without one.
      active: the items that may be recommended; None: all.
      margin: beams less likely than the best by more than this, in log P, are dropped.
    """
    depth = trie.depth
    assert len(widths) == depth, (widths, depth)
    batch, length = prompts.tokens.shape
    tokens_of = _tokens_of_levels(depth, item_query)
    own_rows = sum(map(operator.mul, widths, tokens_of))
    cache = KVCache.empty(model.backbone.config, batch, length + own_rows)
    hidden, cache = _read_prompt(model, tables, prompts, cache)
    state, hidden = first_state(batch), hidden[:, None]
    tasks = jnp.ones((batch, 1), jnp.float32)
    if model.config.has_task_head:
        tasks = jax.nn.softmax(model.task_logits(hidden[:, 0]), axis=-1)
    looked_at = (prompts.items, prompts.is_token[:, None], tables)
    opened, below = None, [None] * depth
    if prefix_scorer is not None:
        opened = model.item_head_vector(hidden, *looked_at)
        below = prefix_scorer.node_scores(opened[:, 0])
    for level in range(depth):
        log_probs = model.code_log_probs(hidden, level)
        if prefix_scorer is not None:
            log_probs *= model.code_head_weight[...]
        state = select(
            state, log_probs, trie, level, widths[level], None, below[level], active, margin
        )
        if level == depth - 1 and item_query == "none":
            break
        tokens = _tokens_after(model, state, level, tokens_of[level])
        hidden, state, cache = _extend(model, tables, prompts, state, tokens, level, cache)
    queries = _queries(model, state, hidden, opened, looked_at, item_query)
    return Beams(
        codes=state.codes,
        scores=state.scores,
        is_valid=jnp.isfinite(state.scores),
        leaves=leaves_of(trie, state.nodes),
        queries=queries,
        tasks=tasks,
    )


def _tokens_of_levels(depth: int, item_query: str) -> list[int]:
    """Tokens that a beam reads after each level: the query token goes with the last code."""
    last = {"token": 2, "code": 1, "none": 0}[item_query]
    return [1] * (depth - 1) + [last] * (depth > 0)


def _tokens_after(model, state: BeamState, level: int, count: int) -> Int[Array, "B M n"]:
    """The tokens that each beam reads after `level`: its last code and, as the second, the query
    token."""
    last = state.codes[:, :, -1]
    tokens = jnp.where(jnp.isfinite(state.scores), model.space.code(level, last), 0)[..., None]
    if count < 2:
        return tokens
    query = jnp.full_like(tokens, model.space.query)
    return jnp.concatenate([tokens, query], axis=-1)


def _queries(
    model, state: BeamState, hidden, opened: Array | None, looked_at: tuple, item_query: str
) -> Float[Array, "B M D"]:
    """The query of each beam (Eq. 8), with that of the item head added where there is one.

    Args:
      hidden: of the token that asks for the item.
      opened: the item head's query; None for a network without an item head.
    """
    if item_query == "none":
        return jnp.zeros((*state.scores.shape, model.config.item_encoder.fused_width))
    if not state.codes.shape[-1]:
        return opened
    queries = model.query_head_vector(hidden, *looked_at)
    return queries if opened is None else opened + model.query_head_weight[...] * queries


def _read_prompt(model, tables, prompts: Prompts, cache: KVCache):
    """Fills the cache; the hidden state [B, D] of each prompt's last token."""
    mask = causal_mask(prompts.is_token.astype(jnp.int32))
    hidden, cache = model(
        prompts.tokens, prompts.items, prompts.positions, mask, tables, cache=cache
    )
    return hidden[jnp.arange(len(hidden)), prompts.lengths - 1], cache


def first_state(batch: int) -> BeamState:
    """One beam a prompt, at the root; it has read nothing of its own."""
    return BeamState(
        scores=jnp.zeros((batch, 1), jnp.float32),
        nodes=jnp.zeros((batch, 1), jnp.int32),
        codes=jnp.zeros((batch, 1, 0), jnp.int32),
        ancestors=jnp.zeros((batch, 1, 0), bool),
    )


def select(
    state: BeamState,
    log_probs: Float[Array, "B M C"],
    trie: Trie,
    level: int,
    num_beams: int,
    log_normaliser: Float[Array, "B M"] | None = None,
    below: Float[Array, "B n"] | None = None,
    active: ActiveItems | None = None,
    margin: float = math.inf,
) -> BeamState:
    """The best `num_beams` children of all beams; score -inf and node -1 where there are fewer.

    Args:
      log_normaliser: of `log_probs` that do not sum to one yet.
      below: the prefix score of each node of the next level; children alone share probability.
      active: the items that may be recommended.
      margin: children less likely than the best by more are dropped.
    """
    tables = trie.dense if active is None else active.dense
    if below is None and str(level) in tables:
        table = tables[str(level)]
        return _select_dense(
            state, log_probs, trie, level, table, num_beams, log_normaliser, margin
        )
    codes, nodes, is_child = children(trie, level, state.nodes)
    step = jnp.take_along_axis(log_probs, jnp.where(is_child, codes, 0), axis=-1)
    if log_normaliser is not None:
        step -= log_normaliser[..., None]
    if below is not None:
        place = nodes - jnp.asarray(trie.level_start)[level + 1]  # below 0: a tail, an only child
        flat = jnp.maximum(place, 0).reshape(len(nodes), -1)
        scores_below = jnp.take_along_axis(below, flat, axis=1).reshape(nodes.shape)
        step += jnp.where(place >= 0, scores_below, 0.0)
        step = jax.nn.log_softmax(jnp.where(is_child, step, LOG_ZERO), axis=-1)
    if active is not None:  # its items keep the probability they have among all
        is_child &= active.has_nodes(nodes)
    scores = jnp.where(is_child, state.scores[..., None] + step, -jnp.inf)
    best, parent, place = _best_children(scores, num_beams, margin)

    def pick(values: Array) -> Array:
        return jnp.take_along_axis(values.reshape(len(values), -1), place, axis=1)

    return _grown(state, best, parent, pick(codes), pick(nodes))


def _select_dense(
    state: BeamState,
    log_probs: Float[Array, "B M C"],
    trie: Trie,
    level: int,
    table: Bool[Array, "n C"],
    num_beams: int,
    log_normaliser: Float[Array, "B M"] | None,
    margin: float,
) -> BeamState:
    """`select` where most codes are children: scores of all codes, and the nodes of the best."""
    is_beam = state.nodes >= 0
    row = jnp.where(is_beam, state.nodes - jnp.asarray(trie.level_start)[level], 0)
    is_child = jnp.asarray(table)[row] & is_beam[..., None]
    before = state.scores if log_normaliser is None else state.scores - log_normaliser
    scores = jnp.where(is_child, before[..., None] + log_probs, -jnp.inf)
    best, parent, place = _best_children(scores, num_beams, margin)
    codes = place % log_probs.shape[-1]
    above = jnp.maximum(jnp.take_along_axis(state.nodes, parent, axis=1), 0)
    return _grown(state, best, parent, codes, child_of(trie, above, codes))


def _best_children(
    scores: Float[Array, "B M W"], num_beams: int, margin: float
) -> tuple[Float[Array, "B K"], Int[Array, "B K"], Int[Array, "B K"]]:
    """Scores of the best, their parents and their places among all M * W."""
    batch, parents, width = scores.shape
    flat = scores.reshape(batch, -1)
    if flat.shape[1] < num_beams:
        flat = jnp.pad(flat, ((0, 0), (0, num_beams - flat.shape[1])), constant_values=-jnp.inf)
    best, place = jax.lax.top_k(flat, num_beams)
    if margin < math.inf:
        best = jnp.where(best >= best[:, :1] - margin, best, -jnp.inf)
    place = jnp.minimum(place, parents * width - 1)
    return best, place // width, place


def _grown(
    state: BeamState,
    best: Float[Array, "B K"],
    parent: Int[Array, "B K"],
    codes: Int[Array, "B K"],
    nodes: Int[Array, "B K"],
) -> BeamState:
    """The state with these children in place of their parents."""

    def inherit(values: Array) -> Array:
        return jnp.take_along_axis(values, parent[..., None], axis=1)

    return BeamState(
        scores=best,
        nodes=jnp.where(jnp.isfinite(best), nodes, -1),
        codes=jnp.concatenate([inherit(state.codes), codes[..., None]], axis=-1),
        ancestors=inherit(state.ancestors),
    )


def _extend(model, tables, prompts: Prompts, state: BeamState, tokens, level: int, cache: KVCache):
    """Reads `tokens` [B, M, n] of each beam into rows of the cache; the hidden state [B, M, D] of
    each beam's last one."""
    batch, num_beams, count = tokens.shape
    rows = num_beams * count
    own_row = jnp.eye(rows, dtype=bool).reshape(num_beams, count, rows)
    before = jnp.cumsum(own_row, axis=1).astype(bool)  # token j of a beam sees tokens 0..j

    def each(values: Array, shape: tuple[int, ...]) -> Array:
        return jnp.broadcast_to(values, (batch, num_beams, count, *shape))

    prompt = each(prompts.is_token[:, None, None], prompts.is_token.shape[1:])
    above = each(state.ancestors[:, :, None], state.ancestors.shape[2:])
    mask = jnp.concatenate([prompt, above, each(before, (rows,))], axis=-1)
    positions = prompts.lengths[:, None, None] + level + jnp.arange(count)
    hidden, cache = model(
        tokens.reshape(batch, rows),
        jnp.full((batch, rows), -1),
        each(positions, ()).reshape(batch, rows),
        mask.reshape(batch, rows, -1),
        tables,
        cache=cache,
    )
    hidden = hidden.reshape(batch, num_beams, count, -1)[:, :, -1]
    seen = mask[:, :, -1, prompts.is_token.shape[1] :]
    return hidden, dataclasses.replace(state, ancestors=seen), cache
