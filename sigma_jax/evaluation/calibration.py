"""How true the printed probabilities are: that of the first item against how often it is taken.

The requests of a task are sorted by the probability of their first item and put into BINS groups of
equal size. The expected calibration error is the mean distance between the mean probability of a
group and the share of its requests whose target is the first item (Guo et al. 2017, On Calibration
of Modern Neural Networks, with groups of equal size).

    results["calibration"][task or "all"] = {"error": ..., "groups": [[probability, share, n], ...]}
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64

from sigma_jax.recommender.ranking import Recommendations
from sigma_jax.schema import TASKS, Requests

BINS = 10


def calibration(recommendations: Recommendations, requests: Requests) -> dict[str, Any]:
    """The calibration of each task and of all requests.

    Args:
      recommendations: with seen items, since a request may have one of them as its target.
    """
    probability = np.exp(recommendations.log_probs[:, 0].astype(np.float64))
    is_hit = recommendations.items[:, 0] == requests.target
    rows = {"all": np.ones(len(requests), bool)}
    rows |= {TASKS[task]: requests.task == task for task in np.unique(requests.task)}
    found = {}
    for name, here in rows.items():
        groups = reliability(probability[here], is_hit[here])
        found[name] = {"error": expected_error(groups), "groups": groups.tolist()}
    return found


def reliability(
    probability: Float[np.ndarray, " N"], is_hit: Bool[np.ndarray, " N"]
) -> Float64[np.ndarray, "G 3"]:
    """Mean probability, share of hits and number of requests of each group, ascending.

    Worked example, 2 groups: probabilities .1 .2 .6 .8, hits no no no yes -> [.15, 0, 2],
    [.7, .5, 2].
    """
    order = np.argsort(probability, kind="stable")
    groups = [part for part in np.array_split(order, BINS) if len(part)]
    return np.array(
        [[probability[part].mean(), is_hit[part].mean(), len(part)] for part in groups]
    ).reshape(-1, 3)


def expected_error(groups: Float64[np.ndarray, "G 3"]) -> float:
    """The mean distance of probability and share, weighted by the size of the groups."""
    if not len(groups):
        return 0.0
    return float(np.average(np.abs(groups[:, 0] - groups[:, 1]), weights=groups[:, 2]))
