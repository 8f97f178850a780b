"""From rankings to results: each method, with seen items kept and left out, by task and on average.

`results["methods"][method][mode]["tasks"][task]` and `[...]["average"]` hold figures
{"mean": ..., "error": standard error, "n": requests}:

    item.HR@10, sid.HR@10     K in 1, 5, 10, 20
    item.Recall@10, ...       K in 5, 10; one target a request, so equal to HR@K
    item.NDCG@10, ...         K in 5, 10
    item.MRR@20, sid.MRR@20
    long_tail@10              share of the returned items that belong to the long tail
    constraint@10             share of the returned items that satisfy the request's constraint (of
                              all that do, where these are fewer)
    cold.Recall@10, ...       item.Recall@10 of the targets without a training interaction, and of
    warm.Recall@10            the others
    coverage@10               share of the catalogue that some request's list shows (no error)

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
from sigma_jax.tasks.constraints import Allowed, allowed_items

MODES = ("include_seen", "exclude_seen", "unseen_targets")
HIT_RATES = (1, 5, 10, 20)
GAINS = (5, 10)
LIST = 10  # length of the lists that coverage and shares look at
FILTERED = " + filter"  # behind the name of a baseline that sees only what is allowed
HEAD_SHARE = 0.8  # interactions of the head; the rest of the catalogue is the long tail

Results = dict[str, Any]


def score(
    rankings: Mapping[str, Mapping[str, Int32[np.ndarray, "N K"]]],
    requests: Requests,
    data: PreparedData,
    semantic_ids: SemanticIds,
) -> Results:
    """Results of `rankings[method][mode]`: item numbers, best first, one row per request.

    A method has the mode "include_seen", "exclude_seen" or both; K is at least 20.

    Raises:
      ValueError: a ranking has another number of rows, or fewer than 20 columns.
    """
    allowed = allowed_items(data, requests)
    is_new = targets_are_new(data, requests)
    popularity = np.asarray(data.catalogue.popularity)
    results: Results = {
        "items": len(data.catalogue),
        "requests": len(requests),
        "unseen_targets": int(is_new.sum()),
        "methods": {},
        "warnings": [],
    }
    for method, by_mode in rankings.items():
        results["methods"][method] = {}
        for mode in MODES:
            source = "exclude_seen" if mode == "unseen_targets" else mode
            if source not in by_mode:
                continue
            chosen = np.asarray(by_mode[source])
            if chosen.shape[0] != len(requests) or chosen.shape[1] < HIT_RATES[-1]:
                raise ValueError(
                    f"the rankings of {method} ({mode}) have shape {chosen.shape}; "
                    f"give {len(requests)} rows and at least {HIT_RATES[-1]} columns."
                )
            values = request_figures(chosen, requests, semantic_ids, allowed, popularity)
            rows = is_new if mode == "unseen_targets" else np.ones(len(requests), bool)
            summary = summarise(values, chosen, requests, rows, len(data.catalogue))
            results["methods"][method][mode] = summary
            results["warnings"] += check(summary, f"{method}, {mode}")
    return results


def targets_are_new(data: PreparedData, requests: Requests) -> Bool[np.ndarray, " N"]:
    """Which requests have a target that their history does not hold."""
    starts, ends = history_ranges(data.histories, requests)
    lines = zip(starts, ends, requests.target, strict=True)
    return np.array([target not in data.histories.item[a:b] for a, b, target in lines], bool)


def request_figures(
    rankings: Int32[np.ndarray, "N K"],
    requests: Requests,
    semantic_ids: SemanticIds,
    allowed: Allowed,
    popularity: Int[np.ndarray, " I"],
) -> dict[str, np.ndarray]:
    """Every figure of every request, float64 [N]; NaN where it does not apply."""
    is_tail = metrics.long_tail(popularity, HEAD_SHARE)
    ranks = {
        "item": metrics.item_ranks(rankings, requests.target),
        "sid": metrics.sid_ranks(rankings, requests.target, semantic_ids.codes),
    }
    values = {}
    for level, rank in ranks.items():
        values |= {f"{level}.HR@{k}": metrics.hits(rank, k) for k in HIT_RATES}
        values |= {f"{level}.Recall@{k}": metrics.hits(rank, k) for k in GAINS}
        values |= {f"{level}.NDCG@{k}": metrics.ndcg(rank, k) for k in GAINS}
        values[f"{level}.MRR@{HIT_RATES[-1]}"] = metrics.reciprocal_ranks(rank, HIT_RATES[-1])
    top = rankings[:, :LIST]
    values[f"long_tail@{LIST}"] = metrics.share_of(top, is_tail)
    is_cold = popularity[requests.target] == 0
    for name, rows in (("cold", is_cold), ("warm", ~is_cold)):
        recall = values[f"item.Recall@{LIST}"] if is_cold.any() else np.full(len(rows), np.nan)
        values[f"{name}.Recall@{LIST}"] = np.where(rows, recall, np.nan)
    values[f"constraint@{LIST}"] = metrics.satisfied(top, allowed.items, allowed.row)
    return values


def summarise(
    values: dict[str, np.ndarray],
    rankings: Int32[np.ndarray, "N K"],
    requests: Requests,
    rows: Bool[np.ndarray, " N"],
    num_items: int,
) -> dict[str, Any]:
    """Means and standard errors over the requests `rows`, by task and on average over tasks."""
    by_task = {}
    for number, task in enumerate(TASKS):
        here = rows & (requests.task == number)
        if not here.any():
            continue
        by_task[task] = {name: summary_of(column[here]) for name, column in values.items()}
        by_task[task] = {name: figure for name, figure in by_task[task].items() if figure["n"]}
        covered = metrics.coverage(rankings[here, :LIST], num_items)
        by_task[task][f"coverage@{LIST}"] = {"mean": covered, "error": 0.0, "n": int(here.sum())}
    average = {}
    for name in [*values, f"coverage@{LIST}"]:
        figures = [figures[name] for figures in by_task.values() if name in figures]
        if figures:
            average[name] = _average(figures)
    covered = metrics.coverage(rankings[rows, :LIST], num_items)
    total = {"mean": covered, "error": 0.0, "n": int(rows.sum())}
    return {"tasks": by_task, "average": average | {f"coverage@{LIST}": total}}


def summary_of(values: np.ndarray) -> dict[str, float]:
    """Mean, standard error and number of the values that are not NaN."""
    values = values[~np.isnan(values)]
    mean = float(values.mean()) if len(values) else 0.0
    return {"mean": mean, "error": metrics.standard_error(values), "n": len(values)}


def _average(figures: list[dict[str, float]]) -> dict[str, float]:
    """Mean over tasks; errors of different requests add in squares."""
    return {
        "mean": float(np.mean([figure["mean"] for figure in figures])),
        "error": float(np.sqrt(np.sum([f["error"] ** 2 for f in figures])) / len(figures)),
        "n": int(sum(figure["n"] for figure in figures)),
    }


def check(summary: dict[str, Any], name: str) -> list[str]:
    """What is wrong with the figures of one method, by `metrics.leave_one_out_gap`."""
    found = []
    for task, figures in [*summary["tasks"].items(), ("average", summary["average"])]:
        for level in ("item", "sid"):
            names = [f"{level}.{figure}@{k}" for figure in ("Recall", "NDCG") for k in GAINS]
            if names[0] not in figures:
                continue
            wrong = metrics.leave_one_out_gap(*(figures[n]["mean"] for n in names), tolerance=1e-9)
            if wrong:
                found.append(f"{name}, {task}, {level}: {wrong}")
    return found
