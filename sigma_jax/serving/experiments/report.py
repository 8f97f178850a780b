"""The report of an experiment: hit rates of the arms, their differences, checks.

A user counts from the first exposure on. After a window the outcome is known: a hit, if the user
took an item within the window that had been shown before. So each exposed user is one outcome,
which no later look changes, if events come in before the window is over. Users whose window is not
over wait; users who were not exposed do not count.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from sigma_jax.serving.experiments import statistics
from sigma_jax.serving.experiments.assignment import Experiment
from sigma_jax.serving.stores.base import MOST_EVENTS, Event, Exposure, TenantStore

USERS_AT_ONCE = 1_000  # whose exposures are read together
MISMATCH = 0.001  # a p value of the sample ratio below it is said to be one
ALPHA = 0.05


@dataclasses.dataclass(frozen=True)
class ArmReport:
    """One arm."""

    name: str
    share: float  # of the users in the experiment
    exposed: int  # users
    waiting: int  # of them, users whose window is not over
    users: int  # of them, users whose outcome is known
    hits: int  # of them, users who took an item that they were shown
    exposures: int  # lists of all exposed users
    hit_rate: float | None  # hits / users; None without users
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An arm against the control: differences of hit rates."""

    arm: str
    control: str
    difference: float | None
    low: float  # of an interval for a report that is read once
    high: float
    always_low: float  # of an interval that holds at every look
    always_high: float
    verdict: str  # "ahead", "behind" or "open": whether the latter interval ever excluded 0
    decided_at: int | None  # unix seconds of the user's outcome at which it did so first


@dataclasses.dataclass(frozen=True)
class Report:
    """The report of an experiment."""

    experiment: str
    now: float  # unix seconds
    window_seconds: float
    kinds: tuple[str, ...]  # of events that count as taking an item; none: all
    alpha: float
    arms: tuple[ArmReport, ...]
    comparisons: tuple[Comparison, ...]
    sample_ratio_p: float
    has_mismatch: bool  # then the differences are of different users, and worth nothing
    mixed_users: int  # users with exposures in several arms, who do not count

    def to_json(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One exposed user."""

    arm: str
    known_at: float  # unix seconds: the end of the window
    user_id: str
    is_hit: bool
    exposures: int


def make_report(
    experiment: Experiment,
    store: TenantStore,
    window_seconds: float,
    kinds: Collection[str] = (),
    alpha: float = ALPHA,
    now: float | None = None,
) -> Report:
    """The report of an experiment. ValueError for a window or an alpha that makes no sense.

    Args:
      kinds: of events that count as taking an item; none: all.
      now: unix seconds; None: the time of this machine.
    """
    if not window_seconds > 0:
        raise ValueError(f"the window has {window_seconds:g} seconds; use more than 0.")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha:g}; use a number between 0 and 1, such as 0.05.")
    now = time.time() if now is None else now
    outcomes, mixed = outcomes_of(experiment, store, window_seconds, frozenset(kinds))
    names = [arm.name for arm in experiment.arms]
    total = sum(arm.share for arm in experiment.arms)
    arms = tuple(
        _arm(
            arm.name,
            arm.share / total,
            [one for one in outcomes if one.arm == arm.name],
            now,
            alpha,
        )
        for arm in experiment.arms
    )
    known = sorted(
        (one for one in outcomes if one.known_at <= now),
        key=lambda one: (one.known_at, one.user_id),
    )
    p = statistics.sample_ratio_p([arm.exposed for arm in arms], [arm.share for arm in arms])
    comparisons = tuple(
        # Several comparisons share alpha, so that a false alarm of any is as rare.
        _comparison(arms[0], arm, known, alpha / (len(names) - 1))
        for arm in arms[1:]
    )
    return Report(
        experiment.name,
        now,
        window_seconds,
        tuple(sorted(kinds)),
        alpha,
        arms,
        comparisons,
        p,
        p < MISMATCH,
        mixed,
    )


def outcomes_of(
    experiment: Experiment, store: TenantStore, window_seconds: float, kinds: Collection[str]
) -> tuple[list[Outcome], int]:
    """(outcomes of the exposed users, the number of users with exposures in several arms)."""
    outcomes, mixed = [], 0
    for user_id, exposures in exposures_by_user(experiment.name, store):
        arms = {one.arm for one in exposures}
        if len(arms) > 1:
            mixed += 1
            continue
        events, _ = store.events(user_id, MOST_EVENTS)
        end = min(one.time for one in exposures) + window_seconds
        is_hit = has_hit(exposures, events, end, kinds)
        outcomes.append(Outcome(arms.pop(), end, user_id, is_hit, len(exposures)))
    return outcomes, mixed


def exposures_by_user(experiment: str, store: TenantStore) -> Iterator[tuple[str, list[Exposure]]]:
    """(user id, exposures) of each exposed user."""
    after = ""
    while page := store.exposures(experiment, after, USERS_AT_ONCE):
        for user_id, exposures in itertools.groupby(page, lambda one: one.user_id):
            yield user_id, list(exposures)
        after = page[-1].user_id


def has_hit(
    exposures: Sequence[Exposure], events: Sequence[Event], end: float, kinds: Collection[str]
) -> bool:
    """Whether an event until `end` is of an item that an exposure had shown by then."""
    first_shown: dict[str, int] = {}
    for one in exposures:
        for item in one.items:
            first_shown[item] = min(one.time, first_shown.get(item, one.time))
    return any(
        first_shown.get(event.item_id, end + 1) <= event.time <= end
        for event in events
        if not kinds or event.kind in kinds
    )


def _arm(
    name: str, share: float, outcomes: Sequence[Outcome], now: float, alpha: float
) -> ArmReport:
    """The report of one arm."""
    known = [one for one in outcomes if one.known_at <= now]
    users, hits = len(known), sum(one.is_hit for one in known)
    low, high = statistics.rate_interval(hits, users, alpha)
    return ArmReport(
        name,
        share,
        len(outcomes),
        len(outcomes) - users,
        users,
        hits,
        sum(one.exposures for one in outcomes),
        hits / users if users else None,
        low,
        high,
    )


def _comparison(
    control: ArmReport, arm: ArmReport, known: Sequence[Outcome], alpha: float
) -> Comparison:
    """An arm against the control, from outcomes in the order in which they became known."""
    both = [one for one in known if one.arm in (control.name, arm.name)]
    low, high = statistics.difference_interval(
        (control.hits, arm.hits), (control.users, arm.users), alpha
    )
    always_low, always_high, verdict, decided_at = -1.0, 1.0, "open", None
    if both:
        lows, highs = statistics.confidence_sequence(
            np.array([one.is_hit for one in both]),
            np.array([one.arm == arm.name for one in both]),
            arm.share / (arm.share + control.share),
            alpha,
        )
        always_low, always_high = float(lows[-1]), float(highs[-1])
        decided = np.flatnonzero((lows > 0) | (highs < 0))
        if len(decided):
            verdict = "ahead" if lows[decided[0]] > 0 else "behind"
            decided_at = int(both[decided[0]].known_at)
    difference = None
    if control.hit_rate is not None and arm.hit_rate is not None:
        difference = arm.hit_rate - control.hit_rate
    return Comparison(
        arm.name,
        control.name,
        difference,
        low,
        high,
        always_low,
        always_high,
        verdict,
        decided_at,
    )
