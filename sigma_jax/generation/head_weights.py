"""Head weights: how much the code head and the query head add to the item head.

A network with an item head scores an item three times, and each score has a loss of its own: the
item head scores it among all items, the code head its prefix (Eq. 4), the query head inside the
prefix (Eq. 5). They rank together as

    P(c_t | c_<t)      ~ P_Eq4(c_t | c_<t)^a * sum of exp(s(i)) over the items below c_<t, c_t
    P(i | c_1 .. c_y)  ~ exp(s(i) + b * query . v_i / tau),    s(i) = item head . v_i / tau

With a = b = 0 this is one softmax over all items. The value of a and b depends on the catalogue and
the log, not on the training loss, which knows by heart what the codes say. log P is a sum of a part
with a alone and a part with b alone. Each weight is chosen from a grid by how likely it makes the
targets of validation requests. The smallest weight wins that is not worse than the best by more
than a standard error (the rule of Breiman, Friedman, Olshen and Stone 1984) or than MIN_GAIN. It is
0 unless it is better than 0 by more than MIN_GAIN.

A likelihood is not yet a better list: beam search finds the items of some prefixes only, and the
reranker chooses among them. `beam_search_helps` compares the lists of both rankers.

Axes: N requests, T tokens, I items, G values of a weight.
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
SCORES_A_STEP = 2**22  # of items, for the requests looked at together
MIN_GAIN = 0.01  # in log P: to make a target less than 1 % likelier is worth no beam search
RANK_CUTOFF = 10  # of the NDCG that compares two rankers
HEAD_WEIGHTS = ("code_head_weight", "query_head_weight")  # of RecommenderNetwork


@dataclasses.dataclass(frozen=True)
class HeadWeights:
    """The fitted weights, and the mean log P of the targets with them and without."""

    code: float  # a
    query: float  # b
    log_p: float  # with these weights
    item_head_log_p: float  # with the item head alone

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the stage."""
        return {f"head_weight_{name}": value for name, value in dataclasses.asdict(self).items()}

    def put_into(self, model: RecommenderNetwork) -> None:
        """Sets the weights of a network."""
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
    """The head weights under which `targets` are likeliest after `prompts` (fields of `Prompts`).

    `depth` is the number of codes generated, at least 1; `item_query` as in PromptLayout.
    """
    num_items = tables["codes"].shape[0]
    vectors = jnp.asarray(all_item_vectors(model, tables, num_items))
    graphdef, state = nnx.split(model)
    total, size = len(targets), min(64, max(SCORES_A_STEP // num_items, 1))
    parts = []
    for start in range(0, total, size):
        rows = np.arange(start, start + size)
        batch = Prompts(**take_rows(dict(prompts), rows % total))
        wanted = jnp.asarray(targets[rows % total])
        of_rows = _log_p(
            graphdef, state, tables, vectors, batch, wanted, depth, item_query, temperature
        )
        parts.append(np.asarray(of_rows, np.float64)[:, rows < total])
    log_p = np.concatenate(parts, axis=1)
    chosen = [smallest_about_best(of_gain) for of_gain in log_p]
    means = log_p.mean(axis=1)
    return HeadWeights(
        *(GRID[place] for place in chosen),
        log_p=float(means[range(len(HEAD_WEIGHTS)), chosen].sum()),
        item_head_log_p=float(means[:, 0].sum()),
    )


def smallest_about_best(log_p: Float[np.ndarray, "N G"]) -> int:
    """The first column whose mean is about the best's: at most a standard error (of the
    difference) below it, or MIN_GAIN. The first of all where that is MIN_GAIN above it at most.

    Worked example: differences to the best of [2, 0, 1] and [.1, -.1, .06]: the means are 1 and
    .02, the errors .58 and .06; the second column is taken.
    """
    behind = log_p[:, [log_p.mean(axis=0).argmax()]] - log_p
    is_as_good = [
        column.mean() <= max(metrics.standard_error(column), MIN_GAIN) for column in behind.T
    ]
    chosen = is_as_good.index(True)
    return chosen if behind[:, 0].mean() - behind[:, chosen].mean() > MIN_GAIN else 0


def beam_search_helps(
    three_step_ranks: Int[np.ndarray, " N"], exhaustive_ranks: Int[np.ndarray, " N"]
) -> bool:
    """Whether the three-step ranker ranks targets better than the exhaustive one.

    Better means that NDCG@RANK_CUTOFF is higher by more than a standard error of the difference.

    Worked example: of four requests two rise from rank 1 to 0 and none falls. The mean gain is .18,
    the error .11: it helps. If one of the two falls from 0 to 1 instead, it does not.
    """
    gain = metrics.ndcg(three_step_ranks, RANK_CUTOFF) - metrics.ndcg(exhaustive_ranks, RANK_CUTOFF)
    return bool(gain.mean() > metrics.standard_error(gain))


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
    """log P of each target's codes for every a, and of the target among their items for every b."""
    model = nnx.merge(graphdef, state)
    codes = jnp.take(tables["codes"], targets, axis=0)[:, :depth]
    tokens = model.space.code(jnp.arange(depth), codes)
    if item_query == "token":
        tokens = jnp.pad(tokens, ((0, 0), (0, 1)), constant_values=model.space.query)
    hidden, items = _read(model, tables, prompts, tokens)

    def looked_at(offset: int):
        """Arguments of a query at the `offset`-th token after the prompt's last."""
        place = (prompts.lengths - 1 + offset)[:, None]
        is_seen = jnp.arange(items.shape[1])[None, None] <= place[..., None]
        at = jnp.take_along_axis(hidden, place[..., None], axis=1)
        return at, items, is_seen, tables

    def scores(query) -> Float[Array, "N I"]:
        return cosines(query[:, 0], vectors) / temperature

    opened = scores(model.item_head_vector(*looked_at(0)))
    mass = jnp.exp(opened - opened.max(axis=1, keepdims=True))
    is_below = jnp.ones(mass.shape, bool)
    of_codes = jnp.zeros((len(targets), len(GRID)))
    for level in range(depth):
        log_probs = model.code_log_probs(looked_at(level)[0][:, 0], level)
        below = jax.ops.segment_sum(
            (mass * is_below).T, tables["codes"][:, level], log_probs.shape[-1]
        ).T
        prefix_scores = jnp.where(below > 0, jnp.log(jnp.maximum(below, 1e-37)), LOG_ZERO)
        parts = [_of(codes[:, level], gain * log_probs + prefix_scores) for gain in GRID]
        of_codes += jnp.stack(parts, axis=1)
        is_below &= tables["codes"][None, :, level] == codes[:, level, None]
    of_items = jnp.zeros_like(of_codes)
    if item_query != "none":
        asked = scores(model.query_head_vector(*looked_at(tokens.shape[1])))
        parts = [
            _of(targets, jnp.where(is_below, opened + gain * asked, LOG_ZERO)) for gain in GRID
        ]
        of_items = jnp.stack(parts, axis=1)
    return jnp.stack([of_codes, of_items])


def _of(places: Int[Array, " N"], logits: Float[Array, "N n"]) -> Float[Array, " N"]:
    """Log-probability of the place of each row."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return jnp.take_along_axis(log_p, places[:, None], axis=-1)[:, 0]


def _read(
    model: RecommenderNetwork, tables: Tables, prompts: Prompts, tokens: Int[Array, "N t"]
) -> tuple[Float[Array, "N T D"], Int[Array, "N T"]]:
    """Hidden states of the prompts with `tokens` behind them, and the items of these rows."""
    count, more = tokens.shape
    room = ((0, 0), (0, more))
    rows = jnp.arange(count)[:, None]
    behind = prompts.lengths[:, None] + jnp.arange(more)
    items = jnp.pad(prompts.items, room, constant_values=-1)
    is_token = jnp.pad(prompts.is_token, room).at[rows, behind].set(True)
    hidden, _ = model(
        jnp.pad(prompts.tokens, room).at[rows, behind].set(tokens),
        items,
        jnp.pad(prompts.positions, room).at[rows, behind].set(behind),
        causal_mask(is_token.astype(jnp.int32)),
        tables,
    )
    return hidden, items
