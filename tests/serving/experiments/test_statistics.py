"""The statistics of an experiment, against known figures and by simulation with daily looks."""

import math

import numpy as np
import pytest

from sigma_jax.serving.experiments.statistics import (
    MOST_BET,
    confidence_sequence,
    difference_interval,
    rate_interval,
    sample_ratio_p,
)

ALPHA = 0.05
TRIALS, USERS, A_DAY = 300, 4_000, 100


def trials(control, treatment, share=0.5, seed=0):
    """(is_hit, is_treated) [TRIALS, USERS] of experiments with these hit rates."""
    rng = np.random.default_rng(seed)
    is_treated = rng.random((TRIALS, USERS)) < share
    return rng.random((TRIALS, USERS)) < np.where(is_treated, treatment, control), is_treated


def naive_alarms(is_hit, is_treated):
    """Whether a z test at the 5 per cent level says "different" on any day of each trial."""
    days = slice(A_DAY - 1, None, A_DAY)
    users = np.stack([np.cumsum(~is_treated, -1)[:, days], np.cumsum(is_treated, -1)[:, days]])
    hits = np.stack(
        [np.cumsum(is_hit & ~is_treated, -1)[:, days], np.cumsum(is_hit & is_treated, -1)[:, days]]
    )
    rate = hits.sum(0) / users.sum(0)
    deviation = np.sqrt(rate * (1 - rate) * (1 / users).sum(0))
    z = np.diff(hits / users, axis=0)[0] / np.maximum(deviation, 1e-12)
    return (np.abs(z) > 1.96).any(-1)


@pytest.mark.parametrize("rate, share", [(0.02, 0.5), (0.1, 0.5), (0.5, 0.2)])
def test_daily_looks_cause_no_false_alarms(rate, share):
    is_hit, is_treated = trials(rate, rate, share)
    low, high = confidence_sequence(is_hit, is_treated, share, ALPHA)
    alarms = ((low > 0) | (high < 0)).any(-1)  # at every user, not only once a day
    assert alarms.mean() <= ALPHA
    assert naive_alarms(is_hit, is_treated).mean() > 4 * ALPHA


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_all_intervals_hold_the_true_difference(share):
    is_hit, is_treated = trials(0.10, 0.16, share, seed=1)
    low, high = confidence_sequence(is_hit, is_treated, share, ALPHA)
    assert ((low > 0.06) | (high < 0.06)).any(-1).mean() <= ALPHA


def test_a_large_difference_is_found():
    is_hit, is_treated = trials(0.1, 0.2, seed=2)
    low, high = confidence_sequence(is_hit, is_treated, 0.5, ALPHA)
    assert (low > 0).any(-1).mean() > 0.9 and not (high < 0).any()
    worse = confidence_sequence(is_hit, ~is_treated, 0.5, ALPHA)[1]
    assert (worse < 0).any(-1).mean() > 0.9


def test_the_price_of_looking_every_day():
    is_hit, is_treated = trials(0.1, 0.1)
    low, high = confidence_sequence(is_hit, is_treated, 0.5, ALPHA)
    usual = 2 * 1.96 * math.sqrt(4 * 0.1 * 0.9 / USERS)
    assert 1.5 < (high - low)[:, -1].mean() / usual < 2.1


def test_the_sequence_is_that_of_a_plain_loop():
    rng = np.random.default_rng(3)
    is_hit, is_treated, share = rng.random(40) < 0.3, rng.random(40) < 0.25, 0.25
    values, bets, spread = [], [], 0.0
    for n in range(40):
        expected = (0.5 + sum(is_hit[:n])) / (n + 1)
        weight = 1 / share if is_treated[n] else -1 / (1 - share)
        means = [(0.5 + sum(values[: k + 1])) / (k + 2) for k in range(n)]
        squares = sum((x - m) ** 2 for x, m in zip(values, means, strict=True))
        variance = (0.25 + squares) / (n + 1)
        before = (0.5 + sum(values)) / (n + 1)
        values.append(((is_hit[n] - expected) * weight * share + 1) / 2)
        bet = math.sqrt(2 * math.log(2 / ALPHA) / (variance * (n + 1) * math.log(n + 2)))
        bets.append(min(bet, MOST_BET))
        # v of the theorem is 4 (x - mean)^2, and psi_E has a divisor of 4
        spread += 4 * (values[-1] - before) ** 2 * (-math.log(1 - bets[-1]) - bets[-1]) / 4
    center = np.dot(bets, values) / sum(bets)
    radius = (math.log(2 / ALPHA) + spread) / sum(bets)
    low, high = confidence_sequence(is_hit, is_treated, share, ALPHA)
    np.testing.assert_allclose(low[-1], max((2 * (center - radius) - 1) / share, -1))
    np.testing.assert_allclose(high[-1], min((2 * (center + radius) - 1) / share, 1))


def test_later_users_do_not_change_earlier_intervals():
    [is_hit], [is_treated] = (part[:1] for part in trials(0.1, 0.2))
    whole = np.array(confidence_sequence(is_hit, is_treated, 0.5, ALPHA))
    first = np.array(confidence_sequence(is_hit[:700], is_treated[:700], 0.5, ALPHA))
    np.testing.assert_allclose(whole[:, :700], first, rtol=1e-12)


def test_intervals_of_rates():
    # Newcombe (1998), table II, row (b): 9/10 against 3/10.
    low, high = difference_interval((3, 9), (10, 10), 0.05)
    assert (round(low, 4), round(high, 4)) == (0.1705, 0.8090)
    # The same paper's Wilson interval of 81/263.
    assert [round(limit, 4) for limit in rate_interval(81, 263, 0.05)] == [0.2553, 0.3662]
    assert rate_interval(0, 0, 0.05) == (0, 1)
    assert difference_interval((0, 3), (0, 5), 0.05) == (-1, 1)


def test_the_sample_ratio():
    assert sample_ratio_p([500, 500], [0.5, 0.5]) == 1
    assert sample_ratio_p([250, 500], [0.1, 0.2]) == 1  # some users are in no arm
    assert sample_ratio_p([5_000, 5_400], [0.5, 0.5]) < 0.001 < sample_ratio_p([500, 540], [1, 1])
    assert sample_ratio_p([0, 0], [0.5, 0.5]) == 1
