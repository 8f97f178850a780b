"""Experiments and their arms: which settings a user gets.

A salted hash of a user's id is a point between 0 and 1. Arms own intervals of their shares, one
behind the other. So a user stays in an arm, on every machine, without a table of users; and
experiments with different salts split users independently of each other.

    {"arms": [{"name": "control", "share": 0.5},
              {"name": "summer", "share": 0.5, "lists": {"home": "recommend items for summer"}}]}

The first arm is the control. Users behind the sum of the shares are in no arm.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from absl import logging

from sigma_jax.serving.stores.base import StoreError, TenantStore

EXPERIMENT = "experiment"  # kind of the documents
BUCKET_SECONDS = 3600  # a list is logged once a user and bucket
FRESH_SECONDS = 1.0  # experiments are read again after it; changes by this process at once


@dataclasses.dataclass(frozen=True)
class Arm:
    """One arm: what its users get in place of the service's own settings."""

    name: str
    share: float  # of all users
    export: str = ""  # name of another export that the service loads; "": the tenant's own
    lists: Mapping[str, str] = dataclasses.field(default_factory=dict)  # name -> instruction
    # Name -> fields of a rule (api/rules.py); beside the shop's rules, or in place of one.
    rules: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    ranking: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # arms.ranking_options

    @property
    def changes(self) -> set[str]:
        """Names of what differs from the service's own settings."""
        found = {"the export"} if self.export else set()
        found |= {f"the list {name!r}" for name in self.lists}
        found |= {f"the rule {name!r}" for name in self.rules}
        return found | {f"ranking.{name}" for name in self.ranking}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Arms beside one another. ValueError for arms that cannot be compared."""

    name: str
    arms: tuple[Arm, ...]
    salt: str = ""  # "": the name
    bucket_seconds: int = BUCKET_SECONDS
    started: float = 0.0  # unix seconds
    stopped: float | None = None  # unix seconds; None: it runs

    def __post_init__(self):
        names = [arm.name for arm in self.arms]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"experiment {self.name!r} has the arms {names}; name two or more.")
        total = sum(arm.share for arm in self.arms)
        if min(arm.share for arm in self.arms) <= 0 or total > 1 + 1e-9:
            raise ValueError(
                f"experiment {self.name!r}: the shares add up to {total:g}; give each arm more "
                "than 0, and all together at most 1."
            )
        if self.bucket_seconds < 1:
            raise ValueError(f"bucket_seconds={self.bucket_seconds}; use 1 or more.")

    def arm_of(self, user_id: str) -> Arm | None:
        """The arm of a user; None for a user in no arm."""
        point, end = point_of(self.salt or self.name, user_id), 0.0
        for arm in self.arms:
            end += arm.share
            if point < end:
                return arm
        return None

    @property
    def changes(self) -> set[str]:
        """Names of what some arm changes."""
        return set().union(*(arm.changes for arm in self.arms))

    def to_json(self) -> dict[str, Any]:
        """The fields, as a document of a store has them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Experiment:
        """The experiment of `to_json`. ValueError or TypeError for fields of another kind."""
        return cls(**{**fields, "arms": tuple(Arm(**arm) for arm in fields["arms"])})


def point_of(salt: str, user_id: str) -> float:
    """A number from 0 to below 1 that depends on the salt and the user only."""
    text = f"{len(salt)}:{salt}{user_id}".encode("utf-8", "surrogatepass")
    # 53 bits fit into a float, so that the point is never 1.
    return (int.from_bytes(hashlib.sha256(text).digest()[:8]) >> 11) / 2**53


@dataclasses.dataclass(frozen=True)
class Treatment:
    """The settings of a user under all experiments that run."""

    arms: Mapping[str, str]  # experiment -> arm
    export: str = ""
    lists: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rules: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    ranking: Mapping[str, Any] = dataclasses.field(default_factory=dict)


NO_TREATMENT = Treatment({})


def treatment_of(experiments: Iterable[Experiment], user_id: str) -> Treatment:
    """The settings of a user. Experiments that run together change different things."""
    chosen = [(one.name, arm) for one in experiments if (arm := one.arm_of(user_id)) is not None]
    if not chosen:
        return NO_TREATMENT
    lists: dict[str, str] = {}
    rules: dict[str, Mapping[str, Any]] = {}
    ranking: dict[str, Any] = {}
    for _, arm in chosen:
        lists |= arm.lists
        rules |= arm.rules
        ranking |= arm.ranking
    export = next((arm.export for _, arm in chosen if arm.export), "")
    return Treatment({name: arm.name for name, arm in chosen}, export, lists, rules, ranking)


def check_together(experiment: Experiment, running: Iterable[Experiment]) -> None:
    """ValueError if another experiment that runs changes the same thing."""
    for other in running:
        if other.name != experiment.name and (both := experiment.changes & other.changes):
            raise ValueError(
                f"experiment {other.name!r} runs and changes {min(both)} too; stop it first."
            )


def read_experiments(store: TenantStore) -> dict[str, Experiment]:
    """All experiments of a tenant by name."""
    found = store.documents(EXPERIMENT)
    return {name: Experiment.from_json(fields) for name, fields in found.items()}


class RunningExperiments:
    """The experiments of a tenant that run, at most FRESH_SECONDS old. Threads may share it."""

    def __init__(self, store: TenantStore):
        self._store, self._lock = store, threading.Lock()
        self._read_at, self._running = -np.inf, dict[str, Experiment]()

    @property
    def by_name(self) -> dict[str, Experiment]:
        """The experiments that run, by name; the last known ones if the store does not answer."""
        with self._lock:
            if time.monotonic() - self._read_at > FRESH_SECONDS:
                try:
                    every = read_experiments(self._store)
                    running = {name: one for name, one in every.items() if one.stopped is None}
                    self._running = running
                except StoreError as error:
                    logging.warning("service: experiments stay as they were: %s", error)
                self._read_at = time.monotonic()
            return self._running

    def forget(self) -> None:
        """Reads the experiments again at the next question: they have changed."""
        with self._lock:
            self._read_at = -np.inf

    def treatment(self, user_id: str) -> Treatment:
        """The settings of a user; none of an experiment for "", an unknown user."""
        running = self.by_name
        return treatment_of(running.values(), user_id) if user_id and running else NO_TREATMENT
