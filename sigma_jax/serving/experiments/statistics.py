"""Statistics of an experiment: hit rates, their difference, shares of users, a sequential test.

Axes: n users, in the order in which their outcomes became known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

MOST_BET = 0.5  # the largest lambda of the sequential test; any value below 1 is valid


def rate_interval(hits: int, users: int, alpha: float) -> tuple[float, float]:
    """Wilson's interval of a hit rate; (0, 1) without users."""
    if not users:
        return 0.0, 1.0
    interval = stats.binomtest(hits, users).proportion_ci(1 - alpha, "wilson")
    return float(interval.low), float(interval.high)


def difference_interval(
    hits: tuple[int, int], users: tuple[int, int], alpha: float
) -> tuple[float, float]:
    """The interval of the second hit rate less the first, for a report that is read once.

    Newcombe's hybrid score interval (Statistics in Medicine 17, 1998, method 10). A reader who
    looks every day and stops at the first difference is misled by it; see `confidence_sequence`.
    """
    (low0, high0), (low1, high1) = (
        rate_interval(hit, count, alpha) for hit, count in zip(hits, users, strict=True)
    )
    if not all(users):
        return -1.0, 1.0
    rate0, rate1 = (hit / count for hit, count in zip(hits, users, strict=True))
    below = np.hypot(rate1 - low1, high0 - rate0)
    above = np.hypot(high1 - rate1, rate0 - low0)
    return float(rate1 - rate0 - below), float(rate1 - rate0 + above)


def sample_ratio_p(users: Sequence[int], shares: Sequence[float]) -> float:
    """P value of the chi-square test that users come to the arms by their shares; 1 for no users.

    A tiny value says that an arm loses users, so that its hit rate is of other users: see Fabijan
    et al., "Diagnosing sample ratio mismatch in online controlled experiments" (KDD 2019).
    """
    total = sum(users)
    if not total:
        return 1.0
    expected = np.array(shares, float) / sum(shares) * total
    return float(stats.chisquare(users, expected).pvalue)


def confidence_sequence(
    is_hit: Bool[np.ndarray, "*trials n"],
    is_treated: Bool[np.ndarray, "*trials n"],
    share: float,
    alpha: float,
) -> tuple[Float[np.ndarray, "*trials n"], Float[np.ndarray, "*trials n"]]:
    """(low, high) after each user: limits of the treatment's hit rate less that of the control.

    With probability 1 - alpha all n intervals hold the true difference, so the report may be looked
    at after any of them, and the experiment stopped at the first that excludes 0.

    Each user gives an unbiased estimate of the difference, weighted by the inverse of the
    assignment's probability: (hit - m) / share with the treatment, -(hit - m) / (1 - share) with
    the control. m is the hit rate of earlier users, which makes the estimates vary less. They are
    bounded, so Theorem 2 of Waudby-Smith and Ramdas, "Estimating means of bounded random variables
    by betting" (JRSS B 86, 2024) holds for them, whatever the number of users.

    Args:
      is_hit: in the order in which outcomes became known. Later calls only append users.
      share: probability of the treatment among users of the two arms, between 0 and 1.
    """
    number = np.arange(1, is_hit.shape[-1] + 1)
    rate = (0.5 + _before(is_hit.astype(float))) / number
    weight = np.where(is_treated, 1 / share, -1 / (1 - share))
    bound = 1 / min(share, 1 - share)
    value = ((is_hit - rate) * weight / bound + 1) / 2  # from 0 to 1
    mean = (0.5 + np.cumsum(value, -1)) / (number + 1)
    mean_before = (0.5 + _before(value)) / number
    variance = (0.25 + _before((value - mean) ** 2)) / number
    log_term = np.log(2 / alpha)
    bet = np.sqrt(2 * log_term / (variance * number * np.log1p(number)))
    bet = np.minimum(bet, MOST_BET)
    spread = (value - mean_before) ** 2 * (-np.log1p(-bet) - bet)
    total = np.cumsum(bet, -1)
    center = np.cumsum(bet * value, -1) / total
    radius = (log_term + np.cumsum(spread, -1)) / total
    low, high = (((2 * limit) - 1) * bound for limit in (center - radius, center + radius))
    return np.maximum(low, -1.0), np.minimum(high, 1.0)


def _before(values: Any) -> Any:
    """The sum of all values before each one."""
    return np.cumsum(values, -1) - values
