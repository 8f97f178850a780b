"""Interactions of features: what a weighted sum cannot say.

A sum gives each feature one weight. Whether a frequent purchase counts depends on how often it was
repeated, and a likely item of the network needs less support from counts. So a small network reads
log p, the history features and the trending features of an item together, and adds to the sum s:

    s(i) + v . gelu(A x(i) + c_task + b)

It ranks the best DEPTH items of the sum anew. Their total probability stays, and so do the items
behind them. It is fitted to the same loss as the weights (fit.py), on the same requests. It is kept
only if it lowers the loss of requests that it was not fitted on by more than a standard error
(cross-validation).

Axes: N requests, C candidates of a request, n of the best ones, X inputs, H hidden units, T tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Float32, Int32

DEPTH = 100  # items of a request that are ranked anew
HIDDEN = 16
STEPS, BATCH, LEARNING_RATE = 1000, 128, 0.01
SHRINKAGE = 2.0  # of all values of the network, in targets
LIMIT = 4.0  # largest input, in standard deviations
MIN_EXAMPLES = 300  # least requests that it is fitted on
FOLDS = 4  # each part of the requests judges a network that is fitted on the others
SEED = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Interactions:
    """A network [X] -> what is added to the sum of an item."""

    mean: Float32[Array, " X"]
    scale: Float32[Array, " X"]
    inward: Float32[Array, "X H"]
    of_task: Float32[Array, "T H"]
    bias: Float32[Array, " H"]
    outward: Float32[Array, " H"]
    # One divided by the weight of log p in the sum of each task. Stored weights are divided by it.
    strength: Float32[Array, " T"]

    def added(
        self, inputs: Float[Array, "N n X"], shares: Float32[Array, "N rows"]
    ) -> Float32[Array, "N n"]:
        """The addition to the score of each item.

        Args:
          inputs: log p of the network, history features, trending features.
          shares: of the tasks. A further column is for novel instructions: they get nothing.
        """
        shares = shares[:, : len(self.strength)]
        standard = jnp.clip((inputs - self.mean) / self.scale, -LIMIT, LIMIT)
        return _network(self, standard, shares) * (shares @ self.strength)[:, None]

    def parts(
        self, inputs: Float[Array, "N n X"], shares: Float32[Array, "N rows"]
    ) -> Float32[Array, "N n X"]:
        """By how much each input changes the addition to its item, against its mean in its place.

        The parts do not sum to the addition, since inputs act together.
        """
        whole = self.added(inputs, shares)

        def part(column: Array) -> Array:
            return whole - self.added(inputs.at[..., column].set(self.mean[column]), shares)

        return jnp.moveaxis(jax.lax.map(part, jnp.arange(inputs.shape[-1])), 0, -1)

    def save(self, folder: Path) -> None:
        """Writes interactions.npz."""
        np.savez(folder / "interactions.npz", **dataclasses.asdict(self))  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path) -> Interactions | None:
        """The network that `save` wrote; None where there is none.

        Raises:
          One of relations.DAMAGE: the file is damaged.
        """
        if not (folder / "interactions.npz").exists():
            return None
        with np.load(folder / "interactions.npz") as stored:
            return cls(**{field.name: stored[field.name] for field in dataclasses.fields(cls)})


def _network(
    parameters: Interactions, inputs: Float[Array, "N n X"], shares: Float32[Array, "N T"]
) -> Float[Array, "N n"]:
    of_task = (shares @ parameters.of_task)[:, None]
    hidden = jax.nn.gelu(inputs @ parameters.inward + of_task + parameters.bias)
    return hidden @ parameters.outward


class Examples(NamedTuple):
    """The best items of each request by the sum, with the target among them."""

    inputs: Float32[np.ndarray, "N n X"]
    scores: Float32[np.ndarray, "N n"]  # the sums; -inf where there is no item
    target: Int32[np.ndarray, " N"]  # its column
    is_satisfying: Bool[np.ndarray, "N n"]
    shares: Float32[np.ndarray, "N T"]

    def take(self, rows: np.ndarray) -> Examples:
        """Some of the requests."""
        return Examples(*(part[rows] for part in self))


def best_of_sum(
    columns: Sequence[Float32[np.ndarray, "N C"]],
    scores: Float32[np.ndarray, "N C"],
    target: Int32[np.ndarray, " N"],
    is_satisfying: Bool[np.ndarray, "N C"],
    shares: Float32[np.ndarray, "N T"],
) -> Examples:
    """The requests whose target is among the best DEPTH items of the sum, with these items.

    Args:
      columns: the inputs of each candidate.
      scores: the sum; -inf where there is no candidate.
      target: the column of each target among the candidates.
      is_satisfying: whether each candidate satisfies the instruction.
      shares: of the tasks.
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
    is_target = best == target[:, None]
    kept = is_target.any(axis=1)
    best, is_target = best[kept], is_target[kept]

    def at(table: np.ndarray) -> np.ndarray:
        return np.take_along_axis(table[kept], best, axis=1)

    inputs = np.stack([at(column) for column in columns], axis=-1).astype(np.float32)
    column = is_target.argmax(axis=1).astype(np.int32)
    satisfying = at(is_satisfying) | is_target
    shares = shares[kept].astype(np.float32)
    return Examples(inputs, at(scores).astype(np.float32), column, satisfying, shares)


def fit_interactions(
    examples: Examples, strength: Float[np.ndarray, " T"]
) -> tuple[Interactions | None, dict[str, float]]:
    """The network with the least loss, and metrics; None where it does not help.

    Args:
      strength: see `Interactions`.
    """
    count = len(examples.target)
    if count < MIN_EXAMPLES:
        return None, {}
    is_item = np.isfinite(examples.scores)
    mean = examples.inputs[is_item].mean(axis=0)
    scale = examples.inputs[is_item].std(axis=0) + 1e-3
    standard = np.clip((examples.inputs - mean) / scale, -LIMIT, LIMIT)
    examples = examples._replace(inputs=standard)
    start = _start(standard.shape[-1], examples.shares.shape[1])
    before, after = losses_of_folds(start, examples)
    gain = before - after
    metrics = {
        "interactions_loss_without": float(before.mean()),
        "interactions_loss": float(after.mean()),
    }
    if gain.mean() <= gain.std() / len(gain) ** 0.5:
        return None, metrics
    fitted = _train(start, examples)
    return dataclasses.replace(fitted, mean=mean, scale=scale, strength=strength), metrics


def losses_of_folds(
    start: Interactions, examples: Examples
) -> tuple[Float32[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """Losses of the requests without a network, and with networks fitted on other requests."""
    rows = np.arange(len(examples.target) // FOLDS * FOLDS)  # equal parts: one compilation
    before, after = [], []
    for fold in range(FOLDS):
        is_held_out = rows % FOLDS == fold
        held_out = examples.take(rows[is_held_out])
        fitted = _train(start, examples.take(rows[~is_held_out]))
        before.append(np.asarray(_losses(start, held_out)))
        after.append(np.asarray(_losses(fitted, held_out)))
    return np.concatenate(before), np.concatenate(after)


def _start(inputs: int, tasks: int) -> Interactions:
    """A network that adds nothing."""
    inward = jax.random.normal(jax.random.key(SEED), (inputs, HIDDEN)) / inputs**0.5
    nothing, ones = jnp.zeros(HIDDEN), jnp.ones(inputs)
    of_task = jnp.zeros((tasks, HIDDEN))
    return Interactions(jnp.zeros(inputs), ones, inward, of_task, nothing, nothing, jnp.ones(tasks))


@jax.jit
def _losses(network: Interactions, examples: Examples) -> Float[Array, " N"]:
    """-log P(target) - log P(satisfying items) of each request, by a softmax over the best."""
    scores = examples.scores + _network(network, examples.inputs, examples.shares)
    satisfying = jnp.where(examples.is_satisfying, scores, -jnp.inf)
    of_target = jnp.take_along_axis(scores, examples.target[:, None], axis=1)[:, 0]
    total = jax.nn.logsumexp(scores, axis=1)
    return 2 * total - jax.nn.logsumexp(satisfying, axis=1) - of_target


@jax.jit
def _train(start: Interactions, examples: Examples) -> Interactions:
    """The network after STEPS steps of Adam on the examples."""
    count = len(examples.target)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, STEPS))
    examples = jax.tree.map(jnp.asarray, examples)

    def loss(network: Interactions, batch: Examples) -> Float[Array, ""]:
        values = network.inward, network.of_task, network.bias, network.outward
        size = sum((value**2).sum() for value in values)
        return _losses(network, batch).mean() + SHRINKAGE * size / count

    def step(carry, key):
        network, state = carry
        rows = jax.random.randint(key, (BATCH,), 0, count)
        slopes = jax.grad(loss)(network, jax.tree.map(lambda part: part[rows], examples))
        updates, state = optimizer.update(slopes, state)
        return (optax.apply_updates(network, updates), state), None

    keys = jax.random.split(jax.random.key(SEED), STEPS)
    return jax.lax.scan(step, (start, optimizer.init(start)), keys)[0][0]
