"""What counts say about a request, fused with the model's probability.

A model that meets an item a dozen times knows less about it than plain counts do: which items are
bought together, and whether people here come back to what they had. APF multiplies the prefix's
probability by the item's (Eq. 10 of SIGMA); this multiplies one more factor to it,

    log p(i) + a * ties(i) + b * back(i) + c * near(i) + d * own(i) + ...

of the features of sft/relations.py (what goes with the items of the history), of sft/trends.py
(what everybody takes at the time) and of generation/told.py (what the instruction asks for, whoever
asks, by the model's answer to it and by its words, so that favourites do not crowd it out). Their
weights and the sigma of Eq. 11 are fitted on validation requests, together with a weight of log p,
so that the targets are most probable among the items the model retrieves; what is kept is divided
by that weight, which changes no ranking. Where nobody takes an item twice d comes out far below 0,
where people buy the same milk every week above it.

Each request says two things: which item was taken, and, where it asks for a query, a category or a
theme, which items would have done. So the loss is -log P(target) - log P(what was asked for), and
counts may not buy the one by the other.

Whoever asks for something new wants what he has least of all. A model that tells which task an
instruction is of (RecommenderNetwork.task_logits) has weights for each; its own doubt mixes them.

Axes: N requests, C candidates of a request, F features.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import scipy.sparse as sparse
from jaxtyping import Bool, Float, Float16, Float32, Float64, Int32
from scipy.optimize import minimize

from sigma_jax.baselines.candidates import Allowed
from sigma_jax.generation.bias import ItemFeatures
from sigma_jax.generation.config import GenerationConfig
from sigma_jax.generation.generate import Choice, Generator
from sigma_jax.generation.told import TOLD, Told
from sigma_jax.schema import TASKS, Histories, PreparedData, Requests
from sigma_jax.sft.relations import DAMAGE, RELATED, Relations, values_at
from sigma_jax.sft.trends import TRENDS, Trends, request_times

FEATURES = (*RELATED, *TRENDS, *TOLD)

SIGMAS = (0.25, 0.35, 0.5, 0.7, 1.0)  # constants tried beside the one configured
SHRINKAGE = 1.0  # of the weights to those of the model alone, over all targets: as one more target
TASK_SHRINKAGE = 10.0  # of a task's weights to those of all tasks: a task has few targets
LEAST_TRUST = 0.05  # the least weight of the model, so that it can divide
LEAST_TARGETS = 30  # among the retrieved items, of a task too: fewer teach nothing
ABSENT = -1e4  # log-probability where a request has fewer candidates


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """How much counts may say."""

    neighbours: int  # of an item in each relation; 0: no prior, and the configured sigma
    fit_requests: int  # validation requests of the task with the highest weight

    def __post_init__(self):
        if self.neighbours < 0:
            raise ValueError(f"prior.neighbours={self.neighbours}; use 0 or more.")
        if self.fit_requests < 1:
            raise ValueError(f"prior.fit_requests={self.fit_requests}; use 1 or more.")


@dataclasses.dataclass(frozen=True)
class PriorWeights:
    """What is fitted; for each of FEATURES a weight of each of TASKS, or of all of them in one."""

    sigma: str | float  # of Eq. 11
    of: dict[str, tuple[float, ...]]

    @property
    def by_task(self) -> Float32[np.ndarray, "tasks F"]:
        """The weights of the features, as the generator takes them."""
        return np.array([self.of[name] for name in FEATURES], np.float32).T


@dataclasses.dataclass(frozen=True)
class Counts:
    """What the features are read from."""

    relations: Relations
    trends: Trends

    @classmethod
    def make(cls, data: PreparedData, vectors: Float[np.ndarray, "I D"], neighbours: int) -> Counts:
        """From training rows, and the model's item vectors (of unit length)."""
        return cls(Relations.make(data, vectors, neighbours), Trends.make(data))

    def features(
        self, requests: Requests, histories: Histories
    ) -> tuple[ItemFeatures, Float16[np.ndarray, "T I G"]]:
        """RELATED and TRENDS of the requests, as the generator takes them."""
        times = request_times(histories, requests)
        related = self.relations.features(requests, histories, times)
        table, row = self.trends.at(times)
        return dataclasses.replace(related, row=row), table

    def at(
        self, requests: Requests, histories: Histories, candidates: Int32[np.ndarray, "N C"]
    ) -> list[Float32[np.ndarray, "N C"]]:
        """Each of RELATED and TRENDS of some items of each request; of item -1 no matter what."""
        features, table = self.features(requests, histories)
        related = values_at(features, candidates)
        trends = table[features.row[:, None], np.maximum(candidates, 0)]
        return list(np.moveaxis(np.concatenate([related, trends], axis=-1), -1, 0))

    def over(self, num_items: int, near: sparse.csr_matrix | None = None) -> Counts:
        """The same over more items, of which nothing is counted; `near` in place of its own."""
        trends = dataclasses.replace(self.trends, num_items=num_items)
        return Counts(self.relations.over(num_items, near), trends)

    def save(self, folder: Path) -> None:
        """Writes an .npz for each relation and one of the trends."""
        self.relations.save(folder)
        self.trends.save(folder)

    @classmethod
    def load(cls, folder: Path) -> Counts:
        """What `save` wrote. One of DAMAGE where a file is missing or damaged."""
        return cls(Relations.load(folder), Trends.load(folder))


@dataclasses.dataclass(frozen=True)
class Prior:
    """Fitted weights with the counts they go with."""

    weights: PriorWeights
    counts: Counts

    def choice(
        self,
        config: GenerationConfig,
        requests: Requests,
        histories: Histories,
        told: Told | None,
        seen: Int32[np.ndarray, "N S"] | None = None,
    ) -> Choice:
        """How a generator of `config` ranks for `requests`, given what their instructions say.

        The fitted sigma stands in for "deviation", not for a number.
        """
        if config.sigma == "deviation":
            config = dataclasses.replace(config, sigma=self.weights.sigma)
        features, table = self.counts.features(requests, histories)
        return Choice(seen, features, self.weights.by_task, config, table, told)

    def save(self, folder: Path) -> None:
        """Writes prior.json and the counts."""
        (folder / "prior.json").write_text(json.dumps(dataclasses.asdict(self.weights)))
        self.counts.save(folder)

    @classmethod
    def load(cls, folder: Path) -> Prior:
        """What `save` wrote. ValueError where a file is missing or damaged."""
        try:
            found = json.loads((folder / "prior.json").read_text())
            of = {name: tuple(map(float, found["of"][name])) for name in FEATURES}
            return cls(PriorWeights(found["sigma"], of), Counts.load(folder))
        except DAMAGE as error:
            raise ValueError(
                f"{folder}: prior.json or an .npz beside it is damaged or of another version "
                f"({error}); delete {folder}, and its copy where --artifacts was given, and run "
                "again, which goes on from the last checkpoint."
            ) from error


def fit_prior(
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
    sigmas = (config.sigma, *SIGMAS)
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
    is_asked = asked_for(allowed, known, candidates)
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
        shares += [[0.0] * len(by_task)] * len(TOLD)
    of = {name: tuple(values) for name, values in zip(FEATURES, shares, strict=True)}
    labels = [f"_{task}" for task in TASKS] if generator.has_task_head else [""]
    for name, values in of.items():
        figures |= {f"prior_{name}{label}": v for label, v in zip(labels, values, strict=True)}
    return Prior(PriorWeights(sigma, of), counts), figures


def asked_for(
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
