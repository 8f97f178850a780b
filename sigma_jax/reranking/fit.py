"""TODO."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32
from scipy.optimize import minimize

from sigma_jax.generation.config import SIGMA_GRID
from sigma_jax.generation.generator import Choice, Generator
from sigma_jax.reranking.instruction import INSTRUCTION_FEATURES, Told
from sigma_jax.reranking.reranker import FEATURES, Counts, Prior, PriorWeights
from sigma_jax.schema import TASKS, Histories, Requests
from sigma_jax.tasks.constraints import Allowed

SHRINKAGE = 1.0  # of the weights to those of the model alone, over all targets: as one more target


TASK_SHRINKAGE = 10.0  # of a task's weights to those of all tasks: a task has few targets


LEAST_TRUST = 0.05  # the least weight of the model, so that it can divide


LEAST_TARGETS = 30  # among the retrieved items, of a task too: fewer teach nothing


ABSENT = -1e4  # log-probability where a request has fewer candidates


def fit_reranker(
    generator: Generator,
    prompts: dict[str, np.ndarray],
    requests: Requests,
    histories: Histories,
    counts: Counts,
    told: Told | None = None,
    allowed: Allowed | None = None,
) -> tuple[Prior, dict[str, float]]:
    """The weights that serve `requests` best, and figures: log-loss before and after.

    `told`: what the instructions say by themselves; None where that is no feature. `allowed`: what
    they ask for. The model alone where too few targets are among the items it retrieves.
    """
    config = generator.config
    sigmas = (config.sigma, *SIGMA_GRID)
    if not generator.trie.depth:
        # One prefix has no deviation: sigma is its floor, and another one a factor of log p alone.
        sigmas = (config.sigma_floor if config.sigma == "deviation" else config.sigma,)
    choices = [Choice(config=dataclasses.replace(config, sigma=sigma)) for sigma in sigmas]
    found = generator.variants(prompts, config.num_beams * config.num_retrieved, choices)
    # Another sigma orders a prefix's items alike: all choices have the same candidates.
    known = np.flatnonzero((found[0].items == requests.target[:, None]).any(axis=1))
    if len(known) < LEAST_TARGETS:
        none = dict.fromkeys(FEATURES, (0.0,) * (len(TASKS) if generator.has_task_head else 1))
        return Prior(PriorWeights(config.sigma, none), counts), {"prior_targets": len(known)}
    requests = requests.take(known)
    candidates = np.sort(found[0].items[known], axis=1)
    target = (candidates == requests.target[:, None]).argmax(axis=1)
    columns = counts.at(requests, histories, candidates)
    if told is not None:
        told = jax.tree.map(lambda rows: rows[known], told)
        columns += list(np.moveaxis(generator.told_at(told, candidates), -1, 0))
    is_asked = satisfies_instruction(allowed, known, candidates)
    fits = []
    for sigma, result in zip(sigmas, found, strict=True):
        order = np.argsort(result.items[known], axis=1)
        log_p = np.take_along_axis(result.log_probs[known], order, axis=1)
        of_sigma = [np.where(candidates >= 0, log_p, ABSENT), *columns]
        fits.append((*fit_weights(of_sigma, target, is_asked), sigma, of_sigma))
    loss, weights, _, sigma, columns = min(fits, key=lambda fit: fit[0])
    figures = {"prior_targets": len(known), "prior_loss": loss, "model_loss": fits[0][2]}
    by_task = np.stack([weights])
    if generator.has_task_head:
        by_task, losses = fit_by_task(columns, target, is_asked, requests.task, weights)
        figures["prior_loss"] = losses.mean()
    shares = (by_task[:, 1:] / by_task[:, :1]).T.tolist()
    if told is None:
        shares += [[0.0] * len(by_task)] * len(INSTRUCTION_FEATURES)
    of = {name: tuple(values) for name, values in zip(FEATURES, shares, strict=True)}
    labels = [f"_{task}" for task in TASKS] if generator.has_task_head else [""]
    for name, values in of.items():
        figures |= {f"prior_{name}{label}": v for label, v in zip(labels, values, strict=True)}
    return Prior(PriorWeights(sigma, of), counts), figures


def satisfies_instruction(
    allowed: Allowed | None, rows: np.ndarray, candidates: Int32[np.ndarray, "n C"]
) -> Bool[np.ndarray, "n C"]:
    """Which candidates of the requests `rows` are allowed; all of a request that allows any."""
    found = np.ones(candidates.shape, bool)
    for place, row in enumerate(rows):
        items = allowed.of(row) if allowed is not None else None
        if items is not None:
            found[place] = np.isin(candidates[place], items)
    return found


def fit_by_task(
    columns: Sequence[Float32[np.ndarray, "N C"]],
    target: Int32[np.ndarray, " N"],
    is_asked: Bool[np.ndarray, "N C"],
    task: Int32[np.ndarray, " N"],
    common: Float64[np.ndarray, " F"],
) -> tuple[Float64[np.ndarray, "tasks F"], Float64[np.ndarray, " N"]]:
    """Weights of each task, `common` for those with few targets, and each target's mean log-loss of
    its task."""
    by_task = np.tile(common, (len(TASKS), 1))
    losses = np.zeros(len(target))
    for number in np.unique(task):
        here = task == number
        of_task = [column[here] for column in columns]
        if here.sum() >= LEAST_TARGETS:
            # What tells no item from another in any request of the task has no say in it.
            tells = [bool((column != column[:, :1]).any()) for column in of_task]
            start = np.where([True, *tells[1:]], common, 0.0)
            losses[here], by_task[number], _ = fit_weights(
                of_task, target[here], is_asked[here], start, TASK_SHRINKAGE
            )
        else:
            values = np.stack(of_task, axis=-1)
            losses[here] = log_loss(values, target[here], is_asked[here], common)[0]
    return by_task, losses


def fit_weights(
    columns: Sequence[Float32[np.ndarray, "N C"]],
    target: Int32[np.ndarray, " N"],
    is_asked: Bool[np.ndarray, "N C"],
    start: Float64[np.ndarray, " F"] | None = None,
    shrinkage: float = SHRINKAGE,
) -> tuple[float, Float64[np.ndarray, " F"], float]:
    """Weights of the columns under which the softmax over candidates gives `target`, and all of
    `is_asked`, most (log_loss).

    The first column is the model's log-probability; its weight is at least LEAST_TRUST. They shrink
    to `start`, or to the model alone, as by `shrinkage` more targets. Returns the mean log-loss,
    the weights, and the log-loss of the first column alone.
    """
    values = np.stack(columns, axis=-1).astype(np.float64)
    alone = np.eye(values.shape[-1])[0]
    start = alone if start is None else start
    shrinkage = shrinkage / len(target)

    def penalised(weights):
        mean, slope = log_loss(values, target, is_asked, weights)
        away = weights - start
        return mean + shrinkage * (away**2).sum() / 2, slope + shrinkage * away

    bounds = [(LEAST_TRUST, None)] + [(None, None)] * (len(start) - 1)
    result = minimize(penalised, start, jac=True, method="L-BFGS-B", bounds=bounds)
    fitted, plain = (float(log_loss(values, target, is_asked, w)[0]) for w in (result.x, alone))
    return fitted, result.x, plain


def log_loss(
    values: Float64[np.ndarray, "N C F"],
    target: Int32[np.ndarray, " N"],
    is_asked: Bool[np.ndarray, "N C"],
    weights: Float64[np.ndarray, " F"],
) -> tuple[float, Float64[np.ndarray, " F"]]:
    """Mean of -log P(target) - log P(what was asked for) among the candidates, and its slope by the
    weights. A target counts as asked for."""
    rows = np.arange(len(target))
    scores = values @ weights
    asked = np.where(is_asked, scores, -np.inf)
    asked[rows, target] = scores[rows, target]
    shares, totals = [], []
    for part in (scores, asked):  # each from its own largest: the target may be far behind
        top = part.max(axis=1, keepdims=True)
        share = np.exp(part - top)
        total = share.sum(axis=1, keepdims=True)
        shares.append(share / total)
        totals.append((np.log(total) + top)[:, 0])
    losses = 2 * totals[0] - totals[1] - scores[rows, target]
    pull = 2 * shares[0] - shares[1]
    expected = np.einsum("nc,ncf->nf", pull, values)
    return losses.mean(), (expected - values[rows, target]).mean(axis=0)
