"""The judgement of a refresh: the refreshed recommender against the running one.

Both answer the same requests: those of the judged users on the newest day, whose rows of that day
neither was trained on. The measure is NDCG@10 of the target, averaged over tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sigma_jax import metrics
from sigma_jax.recommender.parts import RecommenderParts
from sigma_jax.recommender.recommender import Recommender, RecommendOptions
from sigma_jax.schema import TASKS, Histories, PreparedData, RequestBatch, Requests
from sigma_jax.tasks.requests import sample_requests

TOP = 10  # length of the judged lists


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two recommenders on the same requests; all but `requests` are averages over tasks."""

    requests: int
    ndcg: float  # of the first recommender, at 10
    ndcg_before: float  # of the second
    hit_rate: float  # at 10
    hit_rate_before: float
    difference: float  # of the two NDCGs
    error: float  # standard error of the difference, over users

    @property
    def is_worse(self) -> bool:
        """Whether the first is worse by more than the error of the difference."""
        return self.difference < -self.error


def judge(
    workdir: Path, running: Path, max_requests: Mapping[str, int], seed: int
) -> tuple[Comparison, dict[str, Any]]:
    """The recommender of `workdir` against that of `running`, and metrics by task.

    Args:
      running: a workdir whose users and items are the first ones of `workdir`.

    Raises:
      ValueError: there is no request to judge by.
    """
    data = PreparedData.load(workdir / "data")
    parts = RecommenderParts.of_workdir(workdir, data)
    spec = parts.spec
    requests = sample_requests(
        data, "test", seed, max_requests, spec.longtail_share, spec.wordings, is_random=True
    )
    if not len(requests):
        raise ValueError(
            "the newest day has no request to judge by; give rows of a day on which known users "
            "come again, or raise --config.judge_share."
        )
    options = RecommendOptions(TOP)
    batch = RequestBatch.of(requests, data)
    items = Recommender(parts, spec.generation).recommend(batch, options).items
    del parts
    old = PreparedData.load(running / "data")
    parts = RecommenderParts.of_workdir(running, old)
    batch = known_part(batch, len(old.catalogue))
    before = Recommender(parts, parts.spec.generation).recommend(batch, options).items
    return compare(requests, items, before)


def known_part(batch: RequestBatch, items: int) -> RequestBatch:
    """The same requests with histories of the first `items` items alone.

    Worked example: a history of items 3, 70 and 4, and `items` 60: the history is 3, 4.
    """
    histories = batch.histories
    kept = np.asarray(histories.item) < items
    place = np.concatenate([[0], np.cumsum(kept)])
    cut = Histories(
        histories.item[kept],
        histories.time[kept],
        histories.session[kept],
        place[histories.offsets],
        place[histories.valid_start],
        place[histories.test_start],
    )
    requests = dataclasses.replace(batch.requests, history_end=place[batch.requests.history_end])
    return dataclasses.replace(batch, requests=requests, histories=cut)


def compare(
    requests: Requests, items: Int[np.ndarray, "N K"], before: Int[np.ndarray, "N K"]
) -> tuple[Comparison, dict[str, Any]]:
    """The comparison of two lists for each request, and {task: metrics}."""
    ranks = [metrics.item_ranks(lists, requests.target) for lists in (items, before)]
    ndcg = [np.asarray(metrics.ndcg(rank, TOP), np.float64) for rank in ranks]
    hits = [np.asarray(metrics.hits(rank, TOP), np.float64) for rank in ranks]
    counts = np.bincount(requests.task, minlength=len(TASKS))
    weight = 1 / (counts[requests.task] * np.count_nonzero(counts))
    gain = ndcg[0] - ndcg[1]
    of_tasks = {
        TASKS[task]: {
            "requests": int(counts[task]),
            "ndcg": float(ndcg[0][requests.task == task].mean()),
            "ndcg_before": float(ndcg[1][requests.task == task].mean()),
        }
        for task in np.flatnonzero(counts)
    }
    averages = [float((weight * values).sum()) for values in (*ndcg, *hits, gain)]
    error = error_over_users(weight, gain, requests.user)
    comparison = Comparison(len(requests), *averages, error=error)
    return comparison, of_tasks


def error_over_users(
    weight: Float[np.ndarray, " N"], gain: Float[np.ndarray, " N"], user: Int[np.ndarray, " N"]
) -> float:
    """The standard error of sum(weight * gain) where requests of one user go together.

    Infinite for a single user.
    """
    _, place = np.unique(user, return_inverse=True)
    users = int(place.max()) + 1
    if users < 2:
        return float("inf")
    mean = float((weight * gain).sum())
    # Linear in the weights: each user's part of the mean is around its share of the weight.
    parts = np.bincount(place, weight * (gain - mean), users)
    return float(np.sqrt(users / (users - 1) * np.square(parts).sum()))
