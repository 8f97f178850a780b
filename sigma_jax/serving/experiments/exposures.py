"""The log of exposures: which items users in experiments were shown, and when.

An answer does not wait for the log: exposures are collected, and stored together every
FLUSH_SECONDS. A store that does not answer gets them again later; a repeated exposure is stored
once. A killed process loses the exposures of FLUSH_SECONDS, the same share of every arm's.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Mapping, Sequence

from absl import logging

from sigma_jax.serving.experiments.assignment import Experiment
from sigma_jax.serving.stores.base import Exposure, StoreError, TenantStore

FLUSH_SECONDS = 0.5
MOST_WAITING = 100_000  # exposures that wait for a store; later ones are dropped
MOST_KNOWN = 100_000  # keys that are remembered, so that they are not sent again

Key = tuple[str, str, str, int]  # experiment, user, list, bucket


class ExposureLog:
    """Collects the exposures of a tenant. Threads may share it."""

    def __init__(self, store: TenantStore):
        self._store, self._lock = store, threading.Lock()
        self._waiting: dict[Key, Exposure] = {}
        self._known: collections.OrderedDict[Key, None] = collections.OrderedDict()
        self.dropped = 0  # exposures that found no room since the last flush

    def add(
        self,
        experiments: Sequence[Experiment],
        arms: Mapping[str, str],
        user_id: str,
        list_name: str,
        items: Sequence[str],
        now: float,
    ) -> None:
        """Notes that a user was shown items at `now`, in unix seconds, under some experiments.

        Args:
          arms: experiment -> arm of the user.
        """
        with self._lock:
            for one in experiments:
                bucket = int(now) // one.bucket_seconds
                key = (one.name, user_id, list_name, bucket)
                if key in self._known or key in self._waiting:
                    continue
                if len(self._waiting) >= MOST_WAITING:
                    self.dropped += 1
                    continue
                self._waiting[key] = Exposure(
                    one.name, arms[one.name], user_id, list_name, bucket, int(now), tuple(items)
                )

    def flush(self) -> int:
        """Stores what waits, and returns how many exposures it was. After an error they wait on."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
            dropped, self.dropped = self.dropped, 0
        if dropped:
            logging.warning("exposures: %d found no room, since the store is away", dropped)
        if not waiting:
            return 0
        try:
            self._store.add_exposures(list(waiting.values()))
        except StoreError as error:
            logging.warning("exposures: %d wait: %s", len(waiting), error)
            with self._lock:
                self._waiting = waiting | self._waiting
            return 0
        with self._lock:
            self._known.update(dict.fromkeys(waiting))
            while len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)
        return len(waiting)
