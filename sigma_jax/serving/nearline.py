"""The nearline worker: who did something gets new lists within a minute (section 3.3 of SIGMA).

Events put users into the queue of a store. The worker takes users in micro-batches, computes the
lists that its settings name, and stores them: the U2I index. Any number of workers may run.

- A batch begins when enough users wait, or when one has waited for `period` seconds.
- A worker that dies loses nothing: its users are taken by another when their lease ends.
- Where more users wait than `most_waiting`, those who have waited longest are left out first. They
  keep their old lists until their next event.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from sigma_jax.recommender.recommender import RecommendOptions
from sigma_jax.recommender.requests import COLUMNS, DEFAULT_INSTRUCTION
from sigma_jax.serving.engine import RecommendationEngine
from sigma_jax.serving.stores.base import (
    LEASE_SECONDS,
    Event,
    StoredList,
    StoreError,
    TenantStore,
    Work,
    steady_time,
)

HOME = "home"  # the list of a user without an instruction
POLL_SECONDS = 0.2  # between two looks at the queue
RETRY_SECONDS = 1.0  # after an error of the store
REPORT_SECONDS = 60.0  # the last report of a worker is kept so long
REPORT = "worker"  # kind of the documents with the reports


@dataclasses.dataclass(frozen=True)
class NearlineSettings:
    """What a worker computes, and when. ValueError for a value that makes no sense."""

    lists: Mapping[str, str] = dataclasses.field(  # name -> instruction
        default_factory=lambda: {HOME: DEFAULT_INSTRUCTION}
    )
    count: int = 100  # items of a list; readers filter them
    users_at_once: int = 64
    period: float = 60.0  # seconds that a user waits at most before a batch begins
    keep_seconds: float = 30 * 86_400.0  # lists that are not renewed vanish
    events: int = 1_000  # newest events of a user that are read
    most_waiting: int = 100_000
    lease: float = LEASE_SECONDS

    def __post_init__(self):
        if not self.lists:
            raise ValueError("lists is empty; name at least one list and its instruction.")
        for name in ("count", "users_at_once", "events", "most_waiting"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; use 1 or more.")
        for name in ("period", "keep_seconds", "lease"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}; use more than 0 seconds.")


@dataclasses.dataclass
class Totals:
    """What a worker has done so far."""

    users: int = 0
    lists: int = 0
    batches: int = 0
    shed: int = 0  # users who were left out
    failed: int = 0  # lists that could not be computed
    seconds: float = 0.0  # of computing
    last_batch: int = 0  # users
    staleness: float = 0.0  # seconds from a user's event to the list, the longest of the last batch


class NearlineWorker:
    """One worker of a tenant. `run` works until it is stopped."""

    def __init__(
        self,
        engine: RecommendationEngine,
        store: TenantStore,
        model: str,
        name: str,
        settings: NearlineSettings = NearlineSettings(),
        clock: Callable[[], float] = time.time,
    ):
        """Args:
        model: fingerprint of the recommender, which lists carry.
        name: of this worker; no other of the tenant has it.
        clock: the time of requests, in unix seconds; a replay of a log has one of its own.
        """
        self._clock = clock
        self.engine, self.store, self.model, self.name = engine, store, model, name
        self.settings, self.totals = settings, Totals()

    def run(self, stop: threading.Event) -> None:
        """Works until `stop` is set. Errors are logged, and the work is repeated."""
        while not stop.is_set():
            try:
                self._refresh()
                worked = self.run_once() if self.is_due() else 0
                self.report()
            except StoreError as error:
                logging.warning("worker %s: %s", self.name, error)
                stop.wait(RETRY_SECONDS)
                continue
            except Exception:  # the users of the batch are taken again when their lease ends
                logging.exception("worker %s: a batch failed", self.name)
                stop.wait(RETRY_SECONDS)
                continue
            if not worked:
                stop.wait(POLL_SECONDS)

    def is_due(self) -> bool:
        """Whether a batch begins now."""
        queue = self.store.queue()
        if queue.size >= self.settings.users_at_once:
            return True
        if queue.oldest is None:
            return False
        # An event from the future is of a clock that was ahead.
        return abs(steady_time() - queue.oldest) >= self.settings.period

    def run_once(self) -> int:
        """Computes and stores the lists of one batch. Returns its number of users."""
        self._shed()
        works = self.store.take(self.name, self.settings.users_at_once, self.settings.lease)
        if not works:
            return 0
        began = time.monotonic()
        found = self._lists_of(works)
        self.store.put_lists(found, self.settings.keep_seconds)
        self.store.done(works)
        totals = self.totals
        totals.batches += 1
        totals.users += len(works)
        totals.last_batch = len(works)
        totals.lists += sum(map(len, found.values()))
        totals.seconds += time.monotonic() - began
        totals.staleness = max(steady_time() - min(work.since for work in works), 0.0)
        return len(works)

    def report(self) -> None:
        """Stores what the worker has done, for those who watch the service."""
        content = {"time": time.time(), **dataclasses.asdict(self.totals)}
        self.store.put_document(REPORT, self.name, content, REPORT_SECONDS)

    def _refresh(self) -> None:
        """Loads the active version. If that fails, the running one goes on."""
        try:
            self.engine.refresh()
        except Exception as error:
            logging.warning("worker %s keeps its version: %s", self.name, error)

    def _lists_of(self, works: Sequence[Work]) -> dict[str, dict[str, StoredList]]:
        """The new lists by user and name."""
        states, now = self.store.states(), time.time()
        hidden = [item for item, state in states.items() if not state.is_shown(now)]
        requests, owners = [], []
        for work in works:
            events, _ = self.store.events(work.user_id, self.settings.events)
            profile = self.store.user(work.user_id)
            if not events and profile is None:  # the user was deleted
                continue
            now_of_request = int(self._clock())
            row = request_row(self.engine, work.user_id, profile or {}, events, now_of_request)
            for name, instruction in self.settings.lists.items():
                requests.append(row | {"instruction": instruction})
                owners.append((work, name))
        found: dict[str, dict[str, StoredList]] = {}
        options = RecommendOptions(self.settings.count)
        answers = self.engine.answer_each(requests, options, hidden)
        for (work, name), answer in zip(owners, answers, strict=True):
            if isinstance(answer, ValueError):
                logging.warning("worker %s: user %r: %s", self.name, work.user_id, answer)
                self.totals.failed += 1
                continue
            found.setdefault(work.user_id, {})[name] = StoredList(
                tuple(answer["items"]), time.time(), self.model, answer["version"], work.newest
            )
        return found

    def _shed(self) -> None:
        """Takes the users who have waited longest out of a queue that is too long."""
        excess = self.store.queue().size - self.settings.most_waiting
        if excess <= 0:
            return
        works = self.store.take(self.name, excess, self.settings.lease)
        self.store.done(works)
        self.totals.shed += len(works)
        logging.warning(
            "worker %s: %d users who waited longest keep their old lists, since more than %d wait",
            self.name,
            len(works),
            self.settings.most_waiting,
        )


def request_row(
    engine: RecommendationEngine,
    user_id: str,
    profile: Mapping[str, Any],
    events: Sequence[Event],
    now: int,
) -> dict[str, Any]:
    """The row of a users' file for a user of a store. Events with unknown items are left out."""
    index = engine.current.parser.item_index
    history = [
        {
            "item_id": event.item_id,
            "timestamp": event.time,
            "session_id": event.session_id or None,
        }
        for event in events
        if index.find(event.item_id) is not None
    ]
    known = {name: value for name, value in profile.items() if name not in COLUMNS}
    latest = max((event.time for event in events), default=0)  # a clock may have jumped back
    row = {**known, "user_id": user_id, "history": history}
    return row | {"timestamp": max(now, latest)}
