"""Fits the weights of the reranker and sigma of Eq. 11 on validation requests.

A validation request tells which item the user took. If its task has a constraint, it also tells
which items satisfy the instruction. So the loss is

    -log P(target) - log P(items that satisfy the instruction)

by a softmax over the candidates. A feature that raises targets at the cost of the instruction has a
higher loss. log p has a weight as well. The stored weights are divided by it, which changes no
ranking.

At last the probabilities are calibrated (calibration.py).

Axes: N requests, C candidates of a request, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Int32
from scipy.optimize import minimize

from sigma_jax.reranking.calibration import UNCALIBRATED
from sigma_jax.reranking.interactions import (
    Examples,
    Interactions,
    best_of_sum,
    fit_interactions,
)
from sigma_jax.reranking.reranker import (
    FEATURES,
    HISTORY_FEATURES,
    RerankerWeights,
)
from sigma_jax.reranking.trending import TRENDING_FEATURES
from sigma_jax.schema import TASKS, Requests
from sigma_jax.tasks.constraints import AllowedItems

SHRINKAGE = 1.0  # towards the network alone, in targets
TASK_SHRINKAGE = 10.0  # of the weights of a task towards those of all tasks, in targets
MIN_NETWORK_WEIGHT = 0.05  # least weight of log p, which divides the other weights
NOVEL_NETWORK_WEIGHT = 0.5  # the same for novel instructions
MIN_TARGETS = 30  # least targets among the candidates, and least targets of a task
ABSENT = -1e4  # log-probability where a request has fewer candidates

Ranked = tuple[Int32[np.ndarray, "N C"], Float32[np.ndarray, "N C"]]  # items, log-probabilities
Columns = list[Float32[np.ndarray, "n C"]]  # a feature of all candidates


def fit_reranker(
    ranked: Mapping[str | float, Ranked],
    requests: Requests,
    features_of: Callable[[Int[np.ndarray, " n"], Int32[np.ndarray, "n C"]], Columns],
    allowed: AllowedItems | None,
    has_task_head: bool,
    has_interactions: bool = True,
) -> tuple[RerankerWeights, Interactions | None, dict[str, float]]:
    """The weights with the least loss on `requests`, the interactions, and metrics of the fit.

    The metrics are log-losses before and after. If fewer than MIN_TARGETS targets are among the
    candidates, all weights are 0 and there are no interactions.

    Args:
      ranked: for each sigma, the candidates of the network alone. The first sigma is the configured
        one. The candidates are the same for all, since sigma keeps the order inside a prefix.
      features_of: a function of request numbers and candidates that gives their FEATURES. It gives
        the first of FEATURES alone if instructions are not read.
      allowed: the items that satisfy each instruction.
      has_task_head: whether the network has a task head: each task gets its own weights.
      has_interactions: False fits the weights alone.
    """
    sigmas, lists = list(ranked), list(ranked.values())
    answered = np.flatnonzero((lists[0][0] == requests.target[:, None]).any(axis=1))
    if len(answered) < MIN_TARGETS:
        tasks = len(TASKS) if has_task_head else 1
        weights = RerankerWeights(
            sigmas[0], dict.fromkeys(FEATURES, (0.0,) * tasks), (UNCALIBRATED,) * tasks
        )
        return weights, None, {"reranker_targets": len(answered)}
    requests = requests.take(answered)
    candidates = np.sort(lists[0][0][answered], axis=1)
    target = (candidates == requests.target[:, None]).argmax(axis=1)
    features = features_of(answered, candidates)
    is_satisfying = satisfies_instruction(allowed, answered, candidates)
    fits = []
    for sigma, (items, log_probs) in ranked.items():
        order = np.argsort(items[answered], axis=1)
        log_p = np.take_along_axis(log_probs[answered], order, axis=1)
        columns = [np.where(candidates >= 0, log_p, ABSENT), *features]
        fits.append((*fit_weights(columns, target, is_satisfying), sigma, columns))
    loss, weights, _, sigma, columns = min(fits, key=lambda fit: fit[0])
    metrics = {"reranker_targets": len(answered), "reranker_loss": loss, "network_loss": fits[0][2]}
    by_task = np.stack([weights])
    if has_task_head:
        by_task, losses = fit_by_task(columns, target, is_satisfying, requests.task, weights)
        metrics["reranker_loss"] = losses.mean()
    interactions, of_fit = None, {}
    if has_interactions:
        row = requests.task if has_task_head else np.zeros(len(target), np.int32)
        examples = examples_of(columns, by_task, row, target, is_satisfying)
        interactions, of_fit = fit_interactions(examples, 1 / by_task[:, 0])
    by_task = by_task / by_task[:, :1]
    relative = by_task[:, 1:].T.tolist()
    relative += [[0.0] * len(by_task)] * (len(FEATURES) - len(relative))
    of = {name: tuple(values) for name, values in zip(FEATURES, relative, strict=True)}
    weights = RerankerWeights(sigma, of, (UNCALIBRATED,) * len(by_task))
    return weights, interactions, metrics | of_fit


def examples_of(
    columns: Sequence[Float32[np.ndarray, "N C"]],
    by_task: Float[np.ndarray, "tasks F"],
    row: Int32[np.ndarray, " N"],
    target: Int32[np.ndarray, " N"],
    is_satisfying: Bool[np.ndarray, "N C"],
) -> Examples:
    """The requests as examples of interactions.

    Args:
      columns: log p, then the features.
      by_task: the weights of the columns.
      row: the row of `by_task` that each request has.
      target: the column of each target among the candidates.
      is_satisfying: whether each candidate satisfies the instruction.
    """
    weights = by_task[row].astype(np.float32)
    scores = sum(column * weights[:, [place]] for place, column in enumerate(columns))
    scores = np.where(columns[0] > ABSENT, scores, -np.inf)
    inputs = columns[: 1 + len(HISTORY_FEATURES) + len(TRENDING_FEATURES)]
    shares = np.eye(len(by_task), dtype=np.float32)[row]
    return best_of_sum(inputs, scores, target, is_satisfying, shares)


def fitted_values(weights: RerankerWeights) -> dict[str, float]:
    """Weights and calibrations by name and task, as metrics of a stage."""
    rows = len(weights.calibration)
    labels = [""] if rows == 1 else [f"_{name}" for name in (*TASKS, "novel")[:rows]]
    values = {
        f"weight_{name}{label}": value
        for name, of_rows in weights.of.items()
        for label, value in zip(labels, of_rows, strict=True)
    }
    for label, of_row in zip(labels, weights.calibration, strict=True):
        for name, value in of_row._asdict().items():
            values[f"calibration_{name}{label}"] = value
    return values


def fit_novel(
    weights: RerankerWeights,
    columns: Sequence[Float32[np.ndarray, "N C"]],
    target: Int32[np.ndarray, " N"],
    is_satisfying: Bool[np.ndarray, "N C"],
) -> RerankerWeights:
    """`weights` with a last row for novel instructions.

    The network has read a novel instruction as little as a general one. So its log p is that for a
    general instruction, and the words of the instruction are left out: the weights show how far
    its meaning can be trusted.

    Args:
      columns: log p for a general instruction, then the features; 0 for those that read words.
      target: the column of each target among the candidates.
      is_satisfying: whether each candidate satisfies the instruction that was asked.
    """
    _, fitted, _ = fit_weights(
        columns, target, is_satisfying, least_network_weight=NOVEL_NETWORK_WEIGHT
    )
    fitted = fitted / fitted[0]
    of = {
        name: (*weights.of[name], float(weight))
        for name, weight in zip(FEATURES, fitted[1:], strict=True)
    }
    return RerankerWeights(weights.sigma, of, (*weights.calibration, UNCALIBRATED))


def satisfies_instruction(
    allowed: AllowedItems | None, rows: Int[np.ndarray, " n"], candidates: Int32[np.ndarray, "n C"]
) -> Bool[np.ndarray, "n C"]:
    """Whether each candidate of the requests `rows` satisfies the instruction.

    All candidates of a request without a constraint satisfy it.
    """
    is_satisfying = np.ones(candidates.shape, bool)
    for place, row in enumerate(rows):
        items = allowed.of(row) if allowed is not None else None
        if items is not None:
            is_satisfying[place] = np.isin(candidates[place], items)
    return is_satisfying


def fit_by_task(
    columns: Sequence[Float32[np.ndarray, "N C"]],
    target: Int32[np.ndarray, " N"],
    is_satisfying: Bool[np.ndarray, "N C"],
    task: Int32[np.ndarray, " N"],
    common: Float64[np.ndarray, " F"],
) -> tuple[Float64[np.ndarray, "tasks F"], Float64[np.ndarray, " N"]]:
    """(weights, losses): the weights of each task, and for each target the mean loss of its task.

    A task with fewer than MIN_TARGETS targets has the weights `common`.

    Args:
      columns: log p, then the features.
      target: the column of each target among the candidates.
      is_satisfying: whether each candidate satisfies the instruction.
      task: the task of each request.
      common: weights fitted on all tasks.
    """
    by_task = np.tile(common, (len(TASKS), 1))
    losses = np.zeros(len(target))
    for number in np.unique(task):
        here = task == number
        of_task = [column[here] for column in columns]
        if here.sum() >= MIN_TARGETS:
            # A feature that is equal for all items of every request has no weight.
            varies = [bool((column != column[:, :1]).any()) for column in of_task]
            start = np.where([True, *varies[1:]], common, 0.0)
            losses[here], by_task[number], _ = fit_weights(
                of_task, target[here], is_satisfying[here], start, TASK_SHRINKAGE
            )
        else:
            values = np.stack(of_task, axis=-1)
            losses[here] = log_loss(values, target[here], is_satisfying[here], common)[0]
    return by_task, losses


def fit_weights(
    columns: Sequence[Float32[np.ndarray, "N C"]],
    target: Int32[np.ndarray, " N"],
    is_satisfying: Bool[np.ndarray, "N C"],
    start: Float64[np.ndarray, " F"] | None = None,
    shrinkage: float = SHRINKAGE,
    least_network_weight: float = MIN_NETWORK_WEIGHT,
) -> tuple[float, Float64[np.ndarray, " F"], float]:
    """(loss, weights, network loss): the weights with the least mean `log_loss`.

    The network loss is that of the first column alone.

    Args:
      columns: log p, whose weight is at least `least_network_weight`, then the features.
      target: the column of each target among the candidates.
      is_satisfying: whether each candidate satisfies the instruction.
      start: the weights that the fit starts from and shrinks to. None: the network alone.
      shrinkage: strength of the shrinkage, in targets.
    """
    values = np.stack(columns, axis=-1).astype(np.float64)
    alone = np.eye(values.shape[-1])[0]
    start = alone if start is None else start
    shrinkage = shrinkage / len(target)

    def penalised(weights):
        mean, slope = log_loss(values, target, is_satisfying, weights)
        away = weights - start
        return mean + shrinkage * (away**2).sum() / 2, slope + shrinkage * away

    bounds = [(least_network_weight, None)] + [(None, None)] * (len(start) - 1)
    result = minimize(penalised, start, jac=True, method="L-BFGS-B", bounds=bounds)
    fitted, plain = (
        float(log_loss(values, target, is_satisfying, w)[0]) for w in (result.x, alone)
    )
    return fitted, result.x, plain


def log_loss(
    values: Float64[np.ndarray, "N C F"],
    target: Int32[np.ndarray, " N"],
    is_satisfying: Bool[np.ndarray, "N C"],
    weights: Float64[np.ndarray, " F"],
) -> tuple[float, Float64[np.ndarray, " F"]]:
    """(loss, slope): mean of -log P(target) - log P(satisfying items), and its gradient.

    P is the softmax over the candidates. A target counts as satisfying.
    """
    rows = np.arange(len(target))
    scores = values @ weights
    satisfying = np.where(is_satisfying, scores, -np.inf)
    satisfying[rows, target] = scores[rows, target]
    shares, totals = [], []
    for part in (scores, satisfying):  # each minus its own maximum, for the range of exp
        top = part.max(axis=1, keepdims=True)
        share = np.exp(part - top)
        total = share.sum(axis=1, keepdims=True)
        shares.append(share / total)
        totals.append((np.log(total) + top)[:, 0])
    losses = 2 * totals[0] - totals[1] - scores[rows, target]
    pull = 2 * shares[0] - shares[1]
    expected = np.einsum("nc,ncf->nf", pull, values)
    return losses.mean(), (expected - values[rows, target]).mean(axis=0)
