"""Head weights: how much the code head and the query head add to the item head.

A network with an item head scores an item by three heads. Each head has its own loss:

- the item head scores the item among all items;
- the code head scores its prefix (Eq. 4 of SIGMA);
- the query head scores it inside the prefix (Eq. 5).

They rank together as

    P(c_t | c_<t)      ~ P_Eq4(c_t | c_<t)^a * sum of exp(s(i)) over the items below c_<t, c_t
    P(i | c_1 .. c_y)  ~ exp(s(i) + b * query . v_i / tau),    s(i) = item head . v_i / tau

With a = b = 0 this is one softmax over all items. The best a and b depend on the catalogue and the
log. Training cannot fit them, since the network knows the codes of its training targets by heart.

log P is the sum of a part with a alone and a part with b alone. So each weight is chosen from a
grid on its own, by the likelihood of the targets of validation requests. A weight is good if its
mean log P is close to the best: the difference is at most a standard error (the rule of Breiman,
Friedman, Olshen and Stone 1984) or MIN_GAIN. The smallest good weight is chosen. If it gains no
more than MIN_GAIN over 0, the weight is 0.

Axes: N requests, T tokens, I items, D dimensions, G weights of the grid.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from sigma_jax import metrics
from sigma_jax.generation.beam import Prompts
from sigma_jax.generation.generator import all_item_vectors, take_rows
from sigma_jax.losses import LOG_ZERO, cosines
from sigma_jax.models.network import RecommenderNetwork, Tables
from sigma_jax.models.qwen3 import causal_mask

GRID = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.7, 1.0)
SCORES_A_STEP = 2**22  # item scores of the requests that are read together
MIN_GAIN = 0.01  # in log P: a target that is 1 % likelier does not justify beam search
HEAD_WEIGHTS = ("code_head_weight", "query_head_weight")  # of RecommenderNetwork


@dataclasses.dataclass(frozen=True)
class HeadWeights:
    """The fitted weights, and the mean log P of the targets with and without them."""

    code: float  # a
    query: float  # b
    log_p: float  # with these weights
    item_head_log_p: float  # with the item head alone

    @property
    def metrics(self) -> dict[str, float]:
        """The values by name, as metrics of a stage."""
        return {f"head_weight_{name}": value for name, value in dataclasses.asdict(self).items()}

    def put_into(self, model: RecommenderNetwork) -> None:
        """Sets the head weights of `model`."""
        model.code_head_weight[...] = jnp.float32(self.code)
        model.query_head_weight[...] = jnp.float32(self.query)


def fit_head_weights(
    model: RecommenderNetwork,
    tables: Tables,
    prompts: Mapping[str, np.ndarray],
    targets: Int[np.ndarray, " N"],
    depth: int,
    item_query: str,
    temperature: float,
) -> HeadWeights:
    """The head weights under which `targets` are about as likely as possible.

    Args:
      tables: the network's frozen tables, with the SIDs of all items as `codes` [I, L].
      prompts: the fields of `Prompts`, each with N rows.
      targets: the item that follows each prompt.
      depth: the number of codes that are generated, at least 1.
      item_query: the token that asks for the item (PromptLayout).
      temperature: tau.
    """
    num_items = tables["codes"].shape[0]
    vectors = jnp.asarray(all_item_vectors(model, tables, num_items))
    graphdef, state = nnx.split(model)
    total, size = len(targets), min(64, max(SCORES_A_STEP // num_items, 1))
    parts = []
    for start in range(0, total, size):
        rows = np.arange(start, start + size)
        batch = Prompts(**take_rows(dict(prompts), rows % total))
        batch_targets = jnp.asarray(targets[rows % total])
        part = _log_p(
            graphdef, state, tables, vectors, batch, batch_targets, depth, item_query, temperature
        )
        parts.append(np.asarray(part, np.float64)[:, rows < total])
    log_p = np.concatenate(parts, axis=1)
    chosen = [smallest_good_weight(by_weight) for by_weight in log_p]
    means = log_p.mean(axis=1)
    return HeadWeights(
        *(GRID[place] for place in chosen),
        log_p=float(means[range(len(HEAD_WEIGHTS)), chosen].sum()),
        item_head_log_p=float(means[:, 0].sum()),
    )


def smallest_good_weight(log_p: Float[np.ndarray, "N G"]) -> int:
    """The place of the smallest good weight in the grid.

    A weight is good if its mean is close to the best mean. The difference is at most MIN_GAIN, or
    at most its own standard error. The result is 0 if the smallest good weight gains at most
    MIN_GAIN over the first weight.

    Worked example: two weights, whose differences to the best are [2, 0, 1] and [.1, -.1, .06]. The
    means are 1 and .02, the standard errors .58 and .06. The second weight is the first good one.

    Args:
      log_p: log P of the target of each request under each weight, in ascending order of weights.
    """
    behind = log_p[:, [log_p.mean(axis=0).argmax()]] - log_p
    is_good = [
        column.mean() <= max(metrics.standard_error(column), MIN_GAIN) for column in behind.T
    ]
    chosen = is_good.index(True)
    return chosen if behind[:, 0].mean() - behind[:, chosen].mean() > MIN_GAIN else 0


@functools.partial(jax.jit, static_argnums=(0, 6, 7, 8))
def _log_p(
    graphdef,
    state,
    tables: Tables,
    vectors: Float[Array, "I D"],
    prompts: Prompts,
    targets: Int[Array, " N"],
    depth: int,
    item_query: str,
    temperature: float,
) -> Float[Array, "2 N G"]:
    """log P of the targets' codes for each a, and of the targets inside their prefix for each b.

    Both for a and for b, the weights are those of GRID.
    """
    model, tables = nnx.merge(graphdef, state), prompts.with_instructions(tables)
    codes = jnp.take(tables["codes"], targets, axis=0)[:, :depth]
    tokens = model.space.code(jnp.arange(depth), codes)
    if item_query == "token":
        tokens = jnp.pad(tokens, ((0, 0), (0, 1)), constant_values=model.space.query)
    hidden, items = _read_with_codes(model, tables, prompts, tokens)

    def head_inputs(offset: int):
        """Arguments of a head at the token that is `offset` tokens after the prompt's last."""
        place = (prompts.lengths - 1 + offset)[:, None]
        is_seen = jnp.arange(items.shape[1])[None, None] <= place[..., None]
        at = jnp.take_along_axis(hidden, place[..., None], axis=1)
        return at, items, is_seen, tables

    def scores(query) -> Float[Array, "N I"]:
        return cosines(query[:, 0], vectors) / temperature

    item_scores = scores(model.item_head_vector(*head_inputs(0)))
    mass = jnp.exp(item_scores - item_scores.max(axis=1, keepdims=True))
    is_in_prefix = jnp.ones(mass.shape, bool)
    code_log_p = jnp.zeros((len(targets), len(GRID)))
    for level in range(depth):
        log_probs = model.code_log_probs(head_inputs(level)[0][:, 0], level)
        mass_below = jax.ops.segment_sum(
            (mass * is_in_prefix).T, tables["codes"][:, level], log_probs.shape[-1]
        ).T
        prefix_scores = jnp.where(mass_below > 0, jnp.log(jnp.maximum(mass_below, 1e-37)), LOG_ZERO)
        parts = [_log_p_at(codes[:, level], weight * log_probs + prefix_scores) for weight in GRID]
        code_log_p += jnp.stack(parts, axis=1)
        is_in_prefix &= tables["codes"][None, :, level] == codes[:, level, None]
    item_log_p = jnp.zeros_like(code_log_p)
    if item_query != "none":
        query_scores = scores(model.query_head_vector(*head_inputs(tokens.shape[1])))
        parts = [
            _log_p_at(
                targets, jnp.where(is_in_prefix, item_scores + weight * query_scores, LOG_ZERO)
            )
            for weight in GRID
        ]
        item_log_p = jnp.stack(parts, axis=1)
    return jnp.stack([code_log_p, item_log_p])


def _log_p_at(places: Int[Array, " N"], logits: Float[Array, "N n"]) -> Float[Array, " N"]:
    """Log-probability of one place in each row of `logits`."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return jnp.take_along_axis(log_p, places[:, None], axis=-1)[:, 0]


def _read_with_codes(
    model: RecommenderNetwork, tables: Tables, prompts: Prompts, tokens: Int[Array, "N t"]
) -> tuple[Float[Array, "N T D"], Int[Array, "N T"]]:
    """(hidden, items) of the prompts with `tokens` behind them, padded on the right."""
    count, added = tokens.shape
    padding = ((0, 0), (0, added))
    rows = jnp.arange(count)[:, None]
    places = prompts.lengths[:, None] + jnp.arange(added)
    items = jnp.pad(prompts.items, padding, constant_values=-1)
    is_token = jnp.pad(prompts.is_token, padding).at[rows, places].set(True)
    hidden, _ = model(
        jnp.pad(prompts.tokens, padding).at[rows, places].set(tokens),
        items,
        jnp.pad(prompts.positions, padding).at[rows, places].set(places),
        causal_mask(is_token.astype(jnp.int32)),
        tables,
    )
    return hidden, items
