"""Calibration: what makes a printed probability how often such an item is the one that is taken.

The softmax p of the reranker ranks well, but is too sure of itself: its weights were also fitted to
rank items that satisfy the instruction. So each task gets two logistic regressions of hits (Platt
scaling; Platt 1999, Probabilistic Outputs for Support Vector Machines), one for the first item of a
list and one for the items behind it, which reads their rank too:

    sigmoid(slope * x + tempered * y + offset)
    sigmoid(slope' * x + tempered' * y + offset' - decline * log(rank))

    x = log(p / (1 - p))
    y = the same of p^(1 / temperature), normalised over the first DEPTH items of the list

x mostly says how far the next item is. y also says how many items are near: of two lists whose
first items both have p = 0.99, the one with ten items close behind is the less certain
(temperature scaling; Guo et al. 2017, On Calibration of Modern Neural Networks).

An item never gets more than the one before it, so no ranking changes.

Axes: B requests, N items of a list, n rows of a regression, c its columns.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Float64
from scipy.optimize import minimize
from scipy.special import expit

DEPTH = 50  # items of a list that y compares
FIRST = 3  # items of a list that are fitted
TEMPERATURES = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
MIN_SLOPE = 0.01
NEVER = -1e4  # log-probability in place of -inf


class Calibration(NamedTuple):
    """The fitted values of a task. Files of earlier versions have the first five."""

    slope: float  # of x, the first item of a list
    offset: float
    slope_behind: float  # of the items behind it
    offset_behind: float
    decline: float  # by the logarithm of the rank
    tempered: float = 0.0  # slope of y, the first item of a list
    tempered_behind: float = 0.0
    temperature: float = 1.0  # the same for all tasks


UNCALIBRATED = Calibration(1.0, 0.0, 1.0, 0.0, 0.0)


def log_odds(log_p: Float[Array, "B N"]) -> Float[Array, "B N"]:
    """log(p / (1 - p)), finite for every p."""
    bounded = jnp.clip(log_p, NEVER, jnp.log1p(-jnp.finfo(jnp.float32).eps))
    return bounded - jnp.log1p(-jnp.exp(bounded))


def tempered_log_odds(
    log_p: Float[Array, "B N"], temperature: Float[Array, "B 1"] | float
) -> Float[Array, "B N"]:
    """y of the module's docstring, finite for every p."""
    scaled = jnp.maximum(log_p, NEVER) / temperature
    return log_odds(scaled - jax.nn.logsumexp(scaled[:, :DEPTH], axis=1, keepdims=True))


@jax.jit
def calibrated(
    log_p: Float32[Array, "B N"], calibration: Float32[Array, "B 8"]
) -> Float32[Array, "B N"]:
    """The calibrated log-probabilities of lists; -inf stays.

    Args:
      log_p: of the items of each list, best first. The first DEPTH decide; shorter lists are
        complete.
      calibration: the values of Calibration for each request.
    """
    slope, offset, slope_behind, offset_behind, decline, tempered, tempered_behind, temperature = (
        jnp.split(calibration, len(Calibration._fields), axis=1)
    )
    x, y = log_odds(log_p), tempered_log_odds(log_p, temperature)
    log_rank = jnp.log1p(jnp.arange(log_p.shape[1], dtype=jnp.float32))
    behind = slope_behind * x + tempered_behind * y + offset_behind - decline * log_rank
    score = jnp.where(log_rank > 0, behind, slope * x + tempered * y + offset)
    finite = jax.lax.cummin(jax.nn.log_sigmoid(score), axis=1)
    return jnp.where(jnp.isfinite(log_p), finite, -jnp.inf)


def fit_calibrations(
    log_p: Float[np.ndarray, "N D"],
    is_hit: Bool[np.ndarray, "N D"],
    tasks: Float[np.ndarray, "N tasks"],
) -> tuple[Calibration, ...]:
    """The calibration of each task.

    A request has the mean of the tasks, weighted by their probabilities. A task with few requests
    has about the values of all. The temperature is the one under which first items have the least
    log-loss.

    Args:
      log_p: log-probabilities of the first DEPTH items of each request, best first; -inf where
        there is none.
      is_hit: whether each of them is the target.
      tasks: probability of each task; one column of 1 without a task head.
    """
    log_p = np.asarray(log_p, np.float32)
    x = np.asarray(log_odds(log_p), np.float64)
    log_rank = np.broadcast_to(np.log(1 + np.arange(log_p.shape[1])), log_p.shape)
    first, behind = (slice(None), slice(0, 1)), (slice(None), slice(1, FIRST))

    def regression(
        part: tuple[slice, slice], y: Float64[np.ndarray, "N D"], count: int
    ) -> tuple[float, Float64[np.ndarray, "tasks c"]]:
        """(log-loss, coefficients of each task)."""
        there = np.isfinite(log_p[part])
        rows = np.nonzero(there)[0]
        columns = np.stack([x, y, np.ones_like(x), -log_rank], axis=-1)[part][there][:, :count]
        hits = is_hit[part][there]
        start = np.array([[1.0, 0.0, 0.0, 0.0]])[:, :count]
        _, common = _fit_logistic(columns, hits, np.ones((len(rows), 1)), start)
        start = np.tile(common, (tasks.shape[1], 1))
        return _fit_logistic(columns, hits, tasks[rows].astype(np.float64), start)

    tried = {
        temperature: np.asarray(tempered_log_odds(log_p, temperature), np.float64)
        for temperature in TEMPERATURES
    }
    fits = {temperature: regression(first, y, 3) for temperature, y in tried.items()}
    best = min(fits, key=lambda temperature: fits[temperature][0])
    of_first, of_rest = fits[best][1], regression(behind, tried[best], 4)[1]
    found = []
    for front, rest in zip(of_first.tolist(), of_rest.tolist(), strict=True):
        (slope, tempered, offset), (slope_behind, tempered_behind, *others) = front, rest
        values = (slope, offset, slope_behind, *others, tempered, tempered_behind, best)
        found.append(Calibration(*values))
    return tuple(found)


def _fit_logistic(
    columns: Float64[np.ndarray, "n c"],
    hits: Bool[np.ndarray, " n"],
    weights: Float64[np.ndarray, "n tasks"],
    start: Float64[np.ndarray, "tasks c"],
) -> tuple[float, Float64[np.ndarray, "tasks c"]]:
    """(log-loss and the price of the shrinkage to `start`, coefficients of each task).

    Args:
      columns: x, y, 1, and for items behind the first minus the logarithm of the rank.
      weights: of the tasks.
    """

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        away = values.reshape(start.shape) - start
        z = np.einsum("nt,tc,nc->n", weights, values.reshape(start.shape), columns)
        value = (np.logaddexp(0, z) - hits * z).sum() + (away**2).sum() / 2
        slopes = np.einsum("n,nt,nc->tc", expit(z) - hits, weights, columns)
        return float(value), (slopes + away).ravel()

    of_column = [(MIN_SLOPE, None), (0.0, None), (None, None), (0.0, None)]
    bounds = of_column[: start.shape[1]] * len(start)
    result = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", bounds=bounds)
    return float(result.fun), result.x.reshape(start.shape)
