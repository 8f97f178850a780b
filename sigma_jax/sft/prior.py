"""What counts say about a request, fused with the model's probability.

A model that meets an item a dozen times knows less about it than plain counts do: which items are
bought together, and whether people here come back to what they had. APF multiplies the prefix's
probability by the item's (Eq. 10 of SIGMA); this multiplies one more factor to it,

    log p(i) + a * log(1 + ties(i) / 0.1) + b * log(1 + own(i) / 0.1)

ties(i): of i to the last sessions of the history, as co-visitation counts them
         (sigma_jax/baselines/covisitation.py), from training rows only
own(i):  the lines of the history with i, each decayed by 0.9 a session

a, b and the sigma of Eq. 11 are fitted on validation requests, together with a weight of log p,
so that the targets are most probable among the items the model retrieves; a and b are what
remains when all is divided by that weight, which changes no ranking. Where nobody takes an item
twice b comes out far below 0, where people buy the same milk every week above it.

Whoever asks for something new wants what he has least of all. A model that tells which task an
instruction is of (Recommender.task_logits) has an a and a b for each; its own doubt mixes them.

Axes: N requests, C candidates of a request, S items of a request that have a bias, I items.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Float32, Float64, Int32
from scipy.optimize import minimize

from sigma_jax.baselines.candidates import history_ranges
from sigma_jax.baselines.covisitation import (
    REQUESTS_A_STEP,
    CoVisitation,
    recent_items,
    strongest,
)
from sigma_jax.generation.generate import Choice, Generator
from sigma_jax.generation.retrieval import ItemFeatures
from sigma_jax.schema import TASKS, Histories, PreparedData, Requests

UNIT = 0.1  # of ties and of decayed lines: what makes a difference from none
DECAY = 0.9  # of a session in own(i)
MOST_TIED = 1_024  # items of a request whose ties count: the strongest
SIGMAS = (0.25, 0.35, 0.5, 0.7, 1.0)  # constants tried beside the one configured
SHRINKAGE = 1.0  # of the weights to those of the model alone, over all targets: as one more target
TASK_SHRINKAGE = 10.0  # of a task's weights to those of all tasks: a task has few targets
LEAST_TRUST = 0.05  # the least weight of the model, so that it can divide
LEAST_TARGETS = 30  # among the retrieved items, of a task too: fewer teach nothing
ABSENT = -1e4  # log-probability where a request has fewer candidates
PADDING = np.iinfo(np.int32).max
DAMAGE = (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """How much counts may say."""

    neighbours: int  # ties an item, the strongest; 0: no prior, and the configured sigma
    fit_requests: int  # validation requests of the task with the highest weight

    def __post_init__(self):
        if self.neighbours < 0:
            raise ValueError(f"prior.neighbours={self.neighbours}; use 0 or more.")
        if self.fit_requests < 1:
            raise ValueError(f"prior.fit_requests={self.fit_requests}; use 1 or more.")


@dataclasses.dataclass(frozen=True)
class PriorWeights:
    """What is fitted; a and b of each of TASKS, or of all of them in one."""

    sigma: str | float  # of Eq. 11
    ties: tuple[float, ...]
    own: tuple[float, ...]

    @property
    def by_task(self) -> Float32[np.ndarray, "tasks 2"]:
        """The weights of the features, as the generator takes them."""
        return np.array([self.ties, self.own], np.float32).T


@dataclasses.dataclass(frozen=True)
class Prior:
    """Fitted weights with the ties they go with."""

    weights: PriorWeights
    ties: sparse.csr_matrix  # float32 [I, I]; row: item of the history

    def features(self, requests: Requests, histories: Histories) -> ItemFeatures:
        """What the weights are of, for each request, as the generator takes it."""
        items, *features = request_features(requests, histories, self.ties)
        return ItemFeatures(items, np.stack(features, axis=-1))

    def save(self, folder: Path) -> None:
        """Writes prior.json and ties.npz."""
        (folder / "prior.json").write_text(json.dumps(dataclasses.asdict(self.weights)))
        sparse.save_npz(folder / "ties.npz", self.ties)

    @classmethod
    def load(cls, folder: Path) -> Prior:
        """What `save` wrote. ValueError where a file is missing or damaged."""
        try:
            found = json.loads((folder / "prior.json").read_text())
            by_task = {name: tuple(map(float, found.pop(name))) for name in ("ties", "own")}
            weights = PriorWeights(**found, **by_task)
            return cls(weights, sparse.load_npz(folder / "ties.npz"))
        except DAMAGE as error:
            raise ValueError(
                f"{folder}: prior.json or ties.npz is damaged ({error}); delete {folder} and run "
                "again, which goes on from the last checkpoint."
            ) from error


def training_ties(data: PreparedData, neighbours: int, seed: int) -> sparse.csr_matrix:
    """The strongest ties of each item, from training rows."""
    return strongest(CoVisitation.fit(data, seed).ties, neighbours)


def request_features(
    requests: Requests, histories: Histories, ties: sparse.csr_matrix
) -> tuple[Int32[np.ndarray, "N S"], Float32[np.ndarray, "N S"], Float32[np.ndarray, "N S"]]:
    """Items of each request that counts know of, ascending, with log(1 + ties / 0.1) and own."""
    starts, ends = history_ranges(histories, requests)
    parts = []
    for first in range(0, len(requests), REQUESTS_A_STEP):
        rows = slice(first, first + REQUESTS_A_STEP)
        recent = recent_items(histories, starts[rows], ends[rows], ties.shape[0])
        parts.append(strongest((recent @ ties).tocsr(), MOST_TIED))
    tied = sparse.vstack(parts, format="csr")
    own = own_items(histories, starts, ends, ties.shape[0])
    listed = (tied + own).tocsr()  # all of either, none twice
    listed.sort_indices()
    width = max(1, int(np.diff(listed.indptr).max(initial=0)))
    width = 1 << (width - 1).bit_length()  # few distinct shapes: few compilations
    items = np.full((len(requests), width), PADDING, np.int32)
    features = np.zeros((2, len(requests), width), np.float32)
    for row in range(len(requests)):
        here = listed.indices[listed.indptr[row] : listed.indptr[row + 1]]
        items[row, : len(here)] = here
        for feature, counts in zip(features, (tied, own), strict=True):
            columns = slice(*counts.indptr[row : row + 2])
            places = np.searchsorted(here, counts.indices[columns])
            feature[row, places] = np.log1p(counts.data[columns] / UNIT)
    return items, features[0], features[1]


def own_items(histories: Histories, starts, ends, num_items: int) -> sparse.csr_matrix:
    """[N, I]: lines of each history with the item, decayed by the age of their session."""
    own = recent_items(histories, starts, ends, num_items, DECAY, sessions=None)
    own.eliminate_zeros()  # a thousand sessions ago
    return own


def fit_prior(
    generator: Generator,
    prompts: dict[str, np.ndarray],
    requests: Requests,
    histories: Histories,
    ties: sparse.csr_matrix,
) -> tuple[Prior, dict[str, float]]:
    """The weights that serve `requests` best, and figures: log-loss before and after.

    The model alone where too few targets are among the items it retrieves.
    """
    config = generator.config
    items, *features = request_features(requests, histories, ties)
    configs = [dataclasses.replace(config, sigma=s) for s in (config.sigma, *SIGMAS)]
    count = config.num_beams * config.num_retrieved
    found = generator.variants(prompts, count, [Choice(config=c) for c in configs])
    # Another sigma orders a prefix's items alike: all choices have the same candidates.
    known = np.flatnonzero((found[0].items == requests.target[:, None]).any(axis=1))
    if len(known) < LEAST_TARGETS:
        none = (0.0,) * (len(TASKS) if generator.reads_task else 1)
        return Prior(PriorWeights(config.sigma, none, none), ties), {"prior_targets": len(known)}
    fits = []
    for choice, result in zip(configs, found, strict=True):
        candidates = result.items[known]
        target = (candidates == requests.target[known, None]).argmax(axis=1)
        columns = [np.where(candidates >= 0, result.log_probs[known], ABSENT)]
        columns += [listed_at(candidates, items[known], feature[known]) for feature in features]
        # With another sigma they stand in another order: columns and places go together.
        fits.append((*fit_weights(columns, target), choice.sigma, columns, target))
    loss, weights, _, sigma, columns, target = min(fits, key=lambda fit: fit[0])
    figures = {"prior_targets": len(known), "prior_loss": loss, "model_loss": fits[0][2]}
    by_task = np.stack([weights])
    if generator.reads_task:
        by_task, losses = fit_by_task(columns, target, requests.task[known], weights)
        figures["prior_loss"] = losses.mean()
    of_ties, of_own = (by_task[:, 1:] / by_task[:, :1]).T.tolist()
    for name, values in (("ties", of_ties), ("own", of_own)):
        labels = [f"_{task}" for task in TASKS] if generator.reads_task else [""]
        figures |= {f"prior_{name}{label}": v for label, v in zip(labels, values, strict=True)}
    return Prior(PriorWeights(sigma, tuple(of_ties), tuple(of_own)), ties), figures


def fit_by_task(
    columns: Sequence[Float32[np.ndarray, "N C"]],
    target: Int32[np.ndarray, " N"],
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
            losses[here], by_task[number], _ = fit_weights(
                of_task, target[here], common, TASK_SHRINKAGE
            )
        else:
            losses[here] = log_loss(np.stack(of_task, axis=-1), target[here], common)[0]
    return by_task, losses


def listed_at(
    candidates: Int32[np.ndarray, "N C"],
    items: Int32[np.ndarray, "N S"],
    feature: Float32[np.ndarray, "N S"],
) -> Float32[np.ndarray, "N C"]:
    """The feature of each candidate, 0 where it is not listed."""
    values = np.zeros(candidates.shape, np.float32)
    for row, (wanted, listed) in enumerate(zip(candidates, items, strict=True)):
        places = np.minimum(np.searchsorted(listed, wanted), len(listed) - 1)
        values[row] = np.where(listed[places] == wanted, feature[row, places], 0)
    return values


def fit_weights(
    columns: Sequence[Float32[np.ndarray, "N C"]],
    target: Int32[np.ndarray, " N"],
    start: Float64[np.ndarray, " F"] | None = None,
    shrinkage: float = SHRINKAGE,
) -> tuple[float, Float64[np.ndarray, " F"], float]:
    """Weights of the columns under which the softmax over candidates gives `target` most.

    The first column is the model's log-probability; its weight is at least LEAST_TRUST. They shrink
    to `start`, or to the model alone, as by `shrinkage` more targets. Returns the mean log-loss,
    the weights, and the log-loss of the first column alone.
    """
    values = np.stack(columns, axis=-1).astype(np.float64)
    alone = np.eye(values.shape[-1])[0]
    start = alone if start is None else start
    shrinkage = shrinkage / len(target)

    def penalised(weights):
        mean, slope = log_loss(values, target, weights)
        away = weights - start
        return mean + shrinkage * (away**2).sum() / 2, slope + shrinkage * away

    bounds = [(LEAST_TRUST, None)] + [(None, None)] * (len(start) - 1)
    result = minimize(penalised, start, jac=True, method="L-BFGS-B", bounds=bounds)
    fitted, plain = (float(log_loss(values, target, w)[0]) for w in (result.x, alone))
    return fitted, result.x, plain


def log_loss(
    values: Float64[np.ndarray, "N C F"],
    target: Int32[np.ndarray, " N"],
    weights: Float64[np.ndarray, " F"],
) -> tuple[float, Float64[np.ndarray, " F"]]:
    """Mean log-loss of `target` among the candidates, and its slope by the weights."""
    rows = np.arange(len(target))
    scores = values @ weights
    scores -= scores.max(axis=1, keepdims=True)
    share = np.exp(scores)
    total = share.sum(axis=1, keepdims=True)
    mean = (np.log(total[:, 0]) - scores[rows, target]).mean()
    expected = np.einsum("nc,ncf->nf", share / total, values)
    return mean, (expected - values[rows, target]).mean(axis=0)
