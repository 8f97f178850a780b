"""Results of rankings: metrics of each method by mode and task, and on average over tasks.

`results["methods"][method][mode]["tasks"][task]` and `[...]["average"]` map each metric to an
estimate {"mean": ..., "error": standard error, "n": number of requests}:

    item.HR@K, sid.HR@K            K in 1, 5, 10, 20
    item.Recall@K, sid.Recall@K    K in 5, 10; equal to HR@K, since a request has one target
    item.NDCG@K, sid.NDCG@K        K in 5, 10
    item.MRR@20, sid.MRR@20
    long_tail@10                   share of the first ten items that are long-tail items
    constraint@10                  share of the first ten items that satisfy the request's
                                   constraint; if fewer items satisfy it, the share of these shown
    cold.Recall@10                 item.Recall@10 of targets without training interactions
    warm.Recall@10                 item.Recall@10 of all other targets
    coverage@10                    share of the catalogue in the first ten of any list; no error

Mode "include_seen" ranks all items. Mode "exclude_seen" ranks all items except those of the user's
history. Mode "unseen_targets" scores the exclude_seen rankings on the requests whose target is not
in the user's history, the only requests that they can serve.

The average is over tasks with equal weights (section 3.1.1 of SIGMA).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int32

from sigma_jax import metrics
from sigma_jax.histories import history_ranges
from sigma_jax.schema import TASKS, PreparedData, Requests, SemanticIds
from sigma_jax.tasks.constraints import AllowedItems, allowed_items

MODES = ("include_seen", "exclude_seen", "unseen_targets")
HIT_RATE_CUTOFFS = (1, 5, 10, 20)  # K of HR@K
LONGEST = HIT_RATE_CUTOFFS[-1]  # K of MRR@K, and the shortest ranking that can be scored
NDCG_CUTOFFS = (5, 10)  # K of NDCG@K and Recall@K
TOP = 10  # items of a list that coverage, shares and cold recall look at
FILTERED = " + filter"  # ending of the names of baselines restricted to the allowed items
# The most popular items with this share of interactions are the head; the others are long-tail.
HEAD_SHARE = 0.8

Results = dict[str, Any]


def score(
    rankings: Mapping[str, Mapping[str, Int32[np.ndarray, "N K"]]],
    requests: Requests,
    data: PreparedData,
    semantic_ids: SemanticIds | None,
) -> Results:
    """Results of all methods, in the structure that the module's docstring describes.

    Args:
      rankings: `rankings[method][mode]` holds item numbers, best first, one row per request; -1
        stands for no item. Modes are "include_seen" and "exclude_seen"; a method may lack one.
      semantic_ids: None leaves out hits by SID.

    Raises:
      ValueError: a ranking has another number of rows, or fewer than 20 columns.
    """
    allowed = allowed_items(data, requests)
    is_unseen = targets_are_unseen(data, requests)
    popularity = np.asarray(data.catalogue.popularity)
    results: Results = {
        "items": len(data.catalogue),
        "requests": len(requests),
        "unseen_targets": int(is_unseen.sum()),
        "methods": {},
        "warnings": [],
    }
    for method, by_mode in rankings.items():
        results["methods"][method] = {}
        for mode in MODES:
            source = "exclude_seen" if mode == "unseen_targets" else mode
            if source not in by_mode:
                continue
            ranking = np.asarray(by_mode[source])
            if ranking.shape[0] != len(requests) or ranking.shape[1] < LONGEST:
                raise ValueError(
                    f"the rankings of {method} ({mode}) have shape {ranking.shape}; "
                    f"give {len(requests)} rows and at least {LONGEST} columns."
                )
            values = request_metrics(ranking, requests, semantic_ids, allowed, popularity)
            rows = is_unseen if mode == "unseen_targets" else np.ones(len(requests), bool)
            summary = summarise(values, ranking, requests, rows, len(data.catalogue))
            results["methods"][method][mode] = summary
            results["warnings"] += check(summary, f"{method}, {mode}")
    return results


def targets_are_unseen(data: PreparedData, requests: Requests) -> Bool[np.ndarray, " N"]:
    """True for each request whose target is not in the user's history."""
    starts, ends = history_ranges(data.histories, requests)
    ranges = zip(starts, ends, requests.target, strict=True)
    return np.array([target not in data.histories.item[a:b] for a, b, target in ranges], bool)


def request_metrics(
    rankings: Int32[np.ndarray, "N K"],
    requests: Requests,
    semantic_ids: SemanticIds | None,
    allowed: AllowedItems,
    popularity: Int[np.ndarray, " I"],
) -> dict[str, np.ndarray]:
    """Metric -> its value for each request, float64 [N]; NaN where the metric does not apply."""
    is_tail = metrics.long_tail(popularity, HEAD_SHARE)
    ranks = {"item": metrics.item_ranks(rankings, requests.target)}
    if semantic_ids is not None:
        ranks["sid"] = metrics.sid_ranks(rankings, requests.target, semantic_ids.codes)
    values = {}
    for level, rank in ranks.items():
        values |= {f"{level}.HR@{k}": metrics.hits(rank, k) for k in HIT_RATE_CUTOFFS}
        values |= {f"{level}.Recall@{k}": metrics.hits(rank, k) for k in NDCG_CUTOFFS}
        values |= {f"{level}.NDCG@{k}": metrics.ndcg(rank, k) for k in NDCG_CUTOFFS}
        values[f"{level}.MRR@{LONGEST}"] = metrics.reciprocal_ranks(rank, LONGEST)
    first = rankings[:, :TOP]
    values[f"long_tail@{TOP}"] = metrics.share_of(first, is_tail)
    is_cold = popularity[requests.target] == 0
    for name, rows in (("cold", is_cold), ("warm", ~is_cold)):
        recall = values[f"item.Recall@{TOP}"] if is_cold.any() else np.full(len(rows), np.nan)
        values[f"{name}.Recall@{TOP}"] = np.where(rows, recall, np.nan)
    values[f"constraint@{TOP}"] = metrics.satisfied(first, allowed.items, allowed.row)
    return values


def summarise(
    values: dict[str, np.ndarray],
    rankings: Int32[np.ndarray, "N K"],
    requests: Requests,
    rows: Bool[np.ndarray, " N"],
    num_items: int,
) -> dict[str, Any]:
    """Estimates over the requests where `rows` is True, by task and on average over tasks.

    Args:
      values: the result of `request_metrics`.
      num_items: size of the catalogue, for coverage.
    """
    by_task = {}
    for number, task in enumerate(TASKS):
        of_task = rows & (requests.task == number)
        if not of_task.any():
            continue
        estimates = {name: mean_with_error(column[of_task]) for name, column in values.items()}
        by_task[task] = {name: value for name, value in estimates.items() if value["n"]}
        covered = metrics.coverage(rankings[of_task, :TOP], num_items)
        by_task[task][f"coverage@{TOP}"] = {"mean": covered, "error": 0.0, "n": int(of_task.sum())}
    average = {}
    for name in [*values, f"coverage@{TOP}"]:
        estimates = [by_metric[name] for by_metric in by_task.values() if name in by_metric]
        if estimates:
            average[name] = _average(estimates)
    covered = metrics.coverage(rankings[rows, :TOP], num_items)
    total = {"mean": covered, "error": 0.0, "n": int(rows.sum())}
    return {"tasks": by_task, "average": average | {f"coverage@{TOP}": total}}


def mean_with_error(values: np.ndarray) -> dict[str, float]:
    """{"mean", "error", "n"}: mean, standard error and number of the values that are not NaN."""
    values = values[~np.isnan(values)]
    mean = float(values.mean()) if len(values) else 0.0
    return {"mean": mean, "error": metrics.standard_error(values), "n": len(values)}


def _average(estimates: list[dict[str, float]]) -> dict[str, float]:
    """The mean over tasks with its standard error.

    Tasks have different requests, so their variances add.
    """
    squares = [estimate["error"] ** 2 for estimate in estimates]
    return {
        "mean": float(np.mean([estimate["mean"] for estimate in estimates])),
        "error": float(np.sqrt(np.sum(squares)) / len(estimates)),
        "n": int(sum(estimate["n"] for estimate in estimates)),
    }


def check(summary: dict[str, Any], name: str) -> list[str]:
    """Warnings where metrics of one method contradict each other (metrics.leave_one_out_gap)."""
    warnings = []
    for task, by_metric in [*summary["tasks"].items(), ("average", summary["average"])]:
        for level in ("item", "sid"):
            checked = [
                f"{level}.{metric}@{k}" for metric in ("Recall", "NDCG") for k in NDCG_CUTOFFS
            ]
            if checked[0] not in by_metric:
                continue
            means = (by_metric[metric]["mean"] for metric in checked)
            problem = metrics.leave_one_out_gap(*means, tolerance=1e-9)
            if problem:
                warnings.append(f"{name}, {task}, {level}: {problem}")
    return warnings
