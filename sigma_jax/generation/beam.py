"""Step one of generation: SID prefixes by beam search over the trie (Eq. 6-8 of SIGMA).

The network reads each prompt once, and all beams share its keys and values. The tokens of the beams
follow in the same cache, and a mask says which of them each beam sees: its ancestors. So the search
copies no keys or values when beams change their parents. It changes rows of the mask.

Worked example, two beams, two codes: cache rows [prompt | a b | ...]. If both survivors descend
from b, both see row b and neither sees row a.

Axes: B requests, T tokens of a prompt, I items, C codes, D dimensions, M beams, K beams of the next
level, W children of a beam, y codes of a prefix, n nodes of a level.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sigma_jax.generation.prefix_scores import Scorer
from sigma_jax.index.trie import ActiveItems, Trie, child_of, children, leaves_of
from sigma_jax.losses import LOG_ZERO
from sigma_jax.models.attention import KVCache
from sigma_jax.models.network import RecommenderNetwork, Tables
from sigma_jax.models.qwen3 import causal_mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Past:
    """Rotated keys and values of the first P columns of a batch of prompts (contexts.py)."""

    keys: Float[Array, "layers B P K H"]
    values: Float[Array, "layers B P K H"]

    @property
    def columns(self) -> int:
        """P."""
        return self.keys.shape[2]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """A batch of prompts, padded on the right; with a past, its columns are padded too."""

    tokens: Int[Array, "B T"]
    items: Int[Array, "B T"]  # the items at the item slots, else -1
    positions: Int[Array, "B T"]
    is_token: Bool[Array, "B T"]  # False for padding
    lengths: Int[Array, " B"]  # tokens of each prompt
    # The sentence vector of each instruction, where the network reads them.
    instructions: Float[Array, "B 1 E"] | None = None
    past: Past | None = None  # the network reads only the columns behind it
    last: Int[Array, " B"] | None = None  # column of each prompt's last token; None: lengths - 1

    def with_instructions(self, tables: Tables) -> Tables:
        """`tables` with the vectors of the instructions, as the network reads them."""
        if self.instructions is None:
            return tables
        return {**tables, "instructions": self.instructions}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Root:
    """The whole catalogue as one prefix, for items in no beam: the item head scores them alone."""

    queries: Float[Array, "B D"]  # of the item head, unit length
    log_normaliser: Float[Array, " B"]  # log of the sum of exp(cosine / temperature) of all items

    @classmethod
    def make(cls, queries: Float[Array, "B D"], scores: list[Float[Array, "B n"]]) -> Root | None:
        """The root over the prefix scores of each level; None without codes."""
        return cls(queries, jax.nn.logsumexp(scores[0], axis=-1)) if scores else None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Beams:
    """The best SID prefixes, best first; invalid ones (fewer paths than beams) come last."""

    codes: Int[Array, "B M y"]
    scores: Float[Array, "B M"]  # phi of Eq. 7; -inf where invalid
    is_valid: Bool[Array, "B M"]
    leaves: Int[Array, "B M"]  # the prefix's number in the trie, -1 where invalid
    queries: Float[Array, "B M D"]  # h of Eq. 8, in the space of fused item vectors
    # Probability that the instruction is of each task; one column of 1 without a task head.
    tasks: Float[Array, "B tasks"]
    root: Root | None = None

    def with_root(
        self, inverse_temperature: Float[Array, " B"], temperature: float
    ) -> tuple[Beams, Float[Array, " B"] | None]:
        """The beams with the root as a last one, and its normaliser; as they are without a root.

        The root has no leaf, so that no search finds its items. Its query is scaled such that the
        product with an item vector, times `inverse_temperature`, is the item head's logit.

        Args:
          inverse_temperature: of the cosines of the beams (Eq. 11).
          temperature: of the item head.
        """
        if self.root is None:
            return self, None
        scale = 1 / jnp.maximum(inverse_temperature * temperature, 1e-6)
        last = dataclasses.replace(
            self,
            codes=jnp.full_like(self.codes[:, :1], -1),
            scores=jnp.zeros_like(self.scores[:, :1]),  # log P of all items together
            is_valid=jnp.ones_like(self.is_valid[:, :1]),
            leaves=jnp.full_like(self.leaves[:, :1], -1),
            queries=(self.root.queries * scale[:, None])[:, None].astype(self.queries.dtype),
        )
        names = ("codes", "scores", "is_valid", "leaves", "queries")
        joined = {
            name: jnp.concatenate([getattr(self, name), getattr(last, name)], axis=1)
            for name in names
        }
        return dataclasses.replace(self, **joined), self.root.log_normaliser


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BeamState:
    """The beams between two steps."""

    scores: Float[Array, "B M"]  # -inf where invalid
    nodes: Int[Array, "B M"]  # -1 where invalid
    codes: Int[Array, "B M t"]  # codes chosen so far
    ancestors: Bool[Array, "B M R"]  # whether a beam descends from each of R rows


def beam_search(*arguments: Any, **options: Any) -> Beams:
    """The beams of `search_and_keep`."""
    return search_and_keep(*arguments, **options)[0]


def search_and_keep(
    model: RecommenderNetwork,
    tables: Tables,
    prompts: Prompts,
    trie: Trie,
    widths: tuple[int, ...],
    item_query: str = "token",
    prefix_scorer: Scorer | None = None,
    active: ActiveItems | None = None,
    margin: float = math.inf,
) -> tuple[Beams, Past]:
    """The likeliest prefixes, the query of each (Eq. 6-8 of SIGMA), and the keys of new columns.

    Scores are exact log-probabilities. They equal those of paths that are scored one by one. Every
    prefix is a path of the trie, so at least one item has it. A trie of depth 0 gives one beam, the
    root. The function may be traced by `jax.jit`.

    Args:
      widths: beams after each level of the trie.
      item_query: the token that asks for the item (PromptLayout). With "none", queries are 0.
      prefix_scorer: scores prefixes by the item head. None: the network has no item head.
      active: the items that may be recommended. None: all.
      margin: beams that are less likely than the best by more than this, in log P, are dropped.
    """
    depth, tables = trie.depth, prompts.with_instructions(tables)
    assert len(widths) == depth, (widths, depth)
    batch, length = prompts.tokens.shape
    tokens_of = _tokens_of_levels(depth, item_query)
    beam_rows = sum(map(operator.mul, widths, tokens_of))
    cache = KVCache.empty(model.backbone.config, batch, length + beam_rows)
    hidden, cache = _read_prompt(model, tables, prompts, cache)
    first = 0 if prompts.past is None else prompts.past.columns
    kept = Past(cache.keys[:, :, first:length], cache.values[:, :, first:length])
    state, hidden = first_state(batch), hidden[:, None]
    tasks = jnp.ones((batch, 1), jnp.float32)
    if model.config.has_task_head:
        tasks = jax.nn.softmax(model.task_logits(hidden[:, 0]), axis=-1)
    pointer_inputs = (prompts.items, prompts.is_token[:, None], tables)
    item_head_query, prefix_scores, root = None, [None] * depth, None
    if prefix_scorer is not None:
        item_head_query = model.item_head_vector(hidden, *pointer_inputs)
        prefix_scores = prefix_scorer.node_scores(item_head_query[:, 0])
        root = Root.make(item_head_query[:, 0], prefix_scores)
    for level in range(depth):
        log_probs = model.code_log_probs(hidden, level)
        if prefix_scorer is not None:
            log_probs *= model.code_head_weight[...]
        state = select(
            state, log_probs, trie, level, widths[level], None, prefix_scores[level], active, margin
        )
        if level == depth - 1 and item_query == "none":
            break
        tokens = _tokens_after(model, state, level, tokens_of[level])
        hidden, state, cache = _extend(model, tables, prompts, state, tokens, level, cache)
    queries = _queries(model, state, hidden, item_head_query, pointer_inputs, item_query)
    leaves, is_valid = leaves_of(trie, state.nodes), jnp.isfinite(state.scores)
    return Beams(state.codes, state.scores, is_valid, leaves, queries, tasks, root), kept


def _tokens_of_levels(depth: int, item_query: str) -> list[int]:
    """The number of tokens that a beam reads after each level.

    It reads one code. After the last level this depends on `item_query`: with "token" it reads the
    query token too, and with "none" it reads nothing.
    """
    last = {"token": 2, "code": 1, "none": 0}[item_query]
    return [1] * (depth - 1) + [last] * (depth > 0)


def _tokens_after(model, state: BeamState, level: int, count: int) -> Int[Array, "B M n"]:
    """The tokens that each beam reads after `level`: its last code; with count=2 a query."""
    last = state.codes[:, :, -1]
    tokens = jnp.where(jnp.isfinite(state.scores), model.space.code(level, last), 0)[..., None]
    if count < 2:
        return tokens
    query = jnp.full_like(tokens, model.space.query)
    return jnp.concatenate([tokens, query], axis=-1)


def _queries(
    model,
    state: BeamState,
    hidden,
    item_head_query: Array | None,
    pointer_inputs: tuple,
    item_query: str,
) -> Float[Array, "B M D"]:
    """The query of each beam (Eq. 8). A network with an item head adds the query of that head.

    Args:
      hidden: [B, M, D], the state at the token that asks for the item.
      item_head_query: [B, 1, D]. None: the network has no item head.
      pointer_inputs: the prompts' items, which tokens are seen, and the tables.
    """
    if item_query == "none":
        return jnp.zeros((*state.scores.shape, model.config.item_encoder.fused_width))
    if not state.codes.shape[-1]:
        return item_head_query
    queries = model.query_head_vector(hidden, *pointer_inputs)
    return (
        queries
        if item_head_query is None
        else item_head_query + model.query_head_weight[...] * queries
    )


def _read_prompt(model, tables, prompts: Prompts, cache: KVCache):
    """(hidden, cache): the state [B, D] at each prompt's last token, and the filled cache."""
    mask, first = causal_mask(prompts.is_token.astype(jnp.int32)), 0
    if prompts.past is not None:
        first = prompts.past.columns
        cache = KVCache(
            cache.keys.at[:, :, :first].set(prompts.past.keys),
            cache.values.at[:, :, :first].set(prompts.past.values),
            jnp.int32(first),
        )
    columns = (prompts.tokens, prompts.items, prompts.positions, mask)
    hidden, cache = model(*(part[:, first:] for part in columns), tables, cache=cache)
    last = prompts.lengths - 1 if prompts.last is None else prompts.last
    return hidden[jnp.arange(len(hidden)), last - first], cache


def first_state(batch: int) -> BeamState:
    """One beam for each prompt, at the root. It has read no tokens beyond the prompt."""
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
    prefix_scores: Float[Array, "B n"] | None = None,
    active: ActiveItems | None = None,
    margin: float = math.inf,
) -> BeamState:
    """The best `num_beams` children of all beams (Eq. 6-7 of SIGMA).

    Score -inf and node -1 fill up where there are fewer children.

    Args:
      log_probs: log-probability of each code of `level` for each beam.
      log_normaliser: is subtracted from `log_probs` that do not sum to one. None: they do.
      prefix_scores: the prefix score of each node of the next level. The children of a beam then
        share all its probability. None: the network has no item head.
      active: the items that may be recommended. None: all.
      margin: children that are less likely than the best by more than this are dropped.
    """
    tables = trie.dense if active is None else active.dense
    if prefix_scores is None and str(level) in tables:
        table = tables[str(level)]
        return _select_dense(
            state, log_probs, trie, level, table, num_beams, log_normaliser, margin
        )
    codes, nodes, is_child = children(trie, level, state.nodes)
    step = jnp.take_along_axis(log_probs, jnp.where(is_child, codes, 0), axis=-1)
    if log_normaliser is not None:
        step -= log_normaliser[..., None]
    if prefix_scores is not None:
        place = nodes - jnp.asarray(trie.level_start)[level + 1]  # negative: a tail, an only child
        flat = jnp.maximum(place, 0).reshape(len(nodes), -1)
        node_scores = jnp.take_along_axis(prefix_scores, flat, axis=1).reshape(nodes.shape)
        step += jnp.where(place >= 0, node_scores, 0.0)
        step = jax.nn.log_softmax(jnp.where(is_child, step, LOG_ZERO), axis=-1)
    if active is not None:  # active items keep the probability that they have among all items
        is_child &= active.has_nodes(nodes)
    scores = jnp.where(is_child, state.scores[..., None] + step, -jnp.inf)
    best, parent, place = _best_children(scores, num_beams, margin)

    def pick(values: Array) -> Array:
        return jnp.take_along_axis(values.reshape(len(values), -1), place, axis=1)

    return _next_state(state, best, parent, pick(codes), pick(nodes))


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
    """`select` for a level with a dense table: it scores all codes and then finds the best nodes.

    Args:
      table: whether each code follows each node of the level.
    """
    is_beam = state.nodes >= 0
    row = jnp.where(is_beam, state.nodes - jnp.asarray(trie.level_start)[level], 0)
    is_child = jnp.asarray(table)[row] & is_beam[..., None]
    beam_scores = state.scores if log_normaliser is None else state.scores - log_normaliser
    scores = jnp.where(is_child, beam_scores[..., None] + log_probs, -jnp.inf)
    best, parent, place = _best_children(scores, num_beams, margin)
    codes = place % log_probs.shape[-1]
    parents = jnp.maximum(jnp.take_along_axis(state.nodes, parent, axis=1), 0)
    return _next_state(state, best, parent, codes, child_of(trie, parents, codes))


def _best_children(
    scores: Float[Array, "B M W"], num_beams: int, margin: float
) -> tuple[Float[Array, "B K"], Int[Array, "B K"], Int[Array, "B K"]]:
    """(scores, parent, place) of the best children; a place counts all M * W children."""
    batch, parents, width = scores.shape
    flat = scores.reshape(batch, -1)
    if flat.shape[1] < num_beams:
        flat = jnp.pad(flat, ((0, 0), (0, num_beams - flat.shape[1])), constant_values=-jnp.inf)
    best, place = jax.lax.top_k(flat, num_beams)
    if margin < math.inf:
        best = jnp.where(best >= best[:, :1] - margin, best, -jnp.inf)
    place = jnp.minimum(place, parents * width - 1)
    return best, place // width, place


def _next_state(
    state: BeamState,
    best: Float[Array, "B K"],
    parent: Int[Array, "B K"],
    codes: Int[Array, "B K"],
    nodes: Int[Array, "B K"],
) -> BeamState:
    """The state in which children replace their parents.

    Args:
      best: scores of the children.
      parent: the beam that each child descends from.
    """

    def inherit(values: Array) -> Array:
        return jnp.take_along_axis(values, parent[..., None], axis=1)

    return BeamState(
        scores=best,
        nodes=jnp.where(jnp.isfinite(best), nodes, -1),
        codes=jnp.concatenate([inherit(state.codes), codes[..., None]], axis=-1),
        ancestors=inherit(state.ancestors),
    )


def _extend(model, tables, prompts: Prompts, state: BeamState, tokens, level: int, cache: KVCache):
    """(hidden, state, cache) after the network has read `tokens` [B, M, n] of the beams.

    `hidden` [B, M, D] is the state at the last token of each beam. The cache has a new row for each
    token.
    """
    batch, num_beams, count = tokens.shape
    rows = num_beams * count
    is_own_row = jnp.eye(rows, dtype=bool).reshape(num_beams, count, rows)
    own_tokens = jnp.cumsum(is_own_row, axis=1).astype(bool)  # token j of a beam sees 0..j

    def for_each_token(values: Array, shape: tuple[int, ...]) -> Array:
        return jnp.broadcast_to(values, (batch, num_beams, count, *shape))

    prompt = for_each_token(prompts.is_token[:, None, None], prompts.is_token.shape[1:])
    ancestors = for_each_token(state.ancestors[:, :, None], state.ancestors.shape[2:])
    mask = jnp.concatenate([prompt, ancestors, for_each_token(own_tokens, (rows,))], axis=-1)
    positions = prompts.lengths[:, None, None] + level + jnp.arange(count)
    hidden, cache = model(
        tokens.reshape(batch, rows),
        jnp.full((batch, rows), -1),
        for_each_token(positions, ()).reshape(batch, rows),
        mask.reshape(batch, rows, -1),
        tables,
        cache=cache,
    )
    hidden = hidden.reshape(batch, num_beams, count, -1)[:, :, -1]
    seen_rows = mask[:, :, -1, prompts.is_token.shape[1] :]
    return hidden, dataclasses.replace(state, ancestors=seen_rows), cache
