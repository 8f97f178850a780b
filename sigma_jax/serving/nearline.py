"""The nearline worker: who did something gets new lists within a minute (section 3.3 of SIGMA).

Events put users into the queue of a store. The worker takes users in micro-batches, computes the
lists that its settings name, and stores them: the U2I index. Any number of workers may run.

- A batch begins when enough users wait, or when one has waited for `period` seconds.
- A worker that dies loses nothing: its users are taken by another when their lease ends.
- Where more users wait than `most_waiting`, those who have waited longest are left out first. They
  keep their old lists until their next event.
- When another model or version of the catalogue is active, lists of the old one are computed anew,
  while no user waits.
"""

from __future__ import annotations

import bisect
import dataclasses
import threading
import time
import types
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from sigma_jax.data.times import is_unix_time
from sigma_jax.recommender.recommender import RecommendOptions
from sigma_jax.recommender.requests import COLUMNS, DEFAULT_INSTRUCTION
from sigma_jax.serving.engine import RecommendationEngine
from sigma_jax.serving.experiments.arms import known_treatment, lists_of, ranking_options
from sigma_jax.serving.experiments.assignment import (
    Treatment,
    read_experiments,
    treatment_of,
)
from sigma_jax.serving.rollout import Rollout
from sigma_jax.serving.stores.base import (
    LEASE_SECONDS,
    Event,
    StoredList,
    StoreError,
    TenantStore,
    steady_time,
)

HOME = "home"  # the list of a user without an instruction
POLL_SECONDS = 0.2  # between two looks at the queue
RETRY_SECONDS = 1.0  # after an error of the store
STALENESS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 90.0, 120.0, 300.0, 900.0, 3600.0)  # seconds
TRIES = 3  # of a user whose computation fails
REPORT_SECONDS = 60.0  # the last report of a worker is kept so long
REPORT = "worker"  # kind of the documents with the reports


@dataclasses.dataclass(frozen=True)
class NearlineSettings:
    """What a worker computes, and when. ValueError for a value that makes no sense."""

    lists: Mapping[str, str] = dataclasses.field(  # name -> instruction
        default_factory=lambda: {HOME: DEFAULT_INSTRUCTION}
    )
    count: int = 100  # items of a list; readers filter them
    explains: bool = False  # lists hold how each item came about; they take ten times the room
    users_at_once: int = 64
    period: float = 60.0  # seconds that a user waits at most before a batch begins
    keep_seconds: float = 30 * 86_400.0  # lists that are not renewed vanish
    events: int = 1_000  # newest events of a user that are read
    most_waiting: int = 100_000
    lease: float = LEASE_SECONDS
    # Whether a new version of the catalogue renews all lists, or a new model alone does.
    renews_versions: bool = True

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
    """The work of a worker so far."""

    users: int = 0
    lists: int = 0
    batches: int = 0
    shed: int = 0  # users who were left out
    renewed: int = 0  # users whose lists another model or version had made
    failed: int = 0  # lists that could not be computed
    seconds: float = 0.0  # of computing
    last_batch: int = 0  # users
    staleness: float = 0.0  # seconds from a user's event to the list, the longest of the last batch
    # Users by the seconds from their event to their list: up to each of STALENESS, and longer.
    stale: list[int] = dataclasses.field(default_factory=lambda: [0] * (len(STALENESS) + 1))
    stale_seconds: float = 0.0  # the sum over these users
    kept_columns: int = 0  # of prompts, whose keys and values were kept
    new_columns: int = 0  # of prompts, that were computed


@dataclasses.dataclass(frozen=True)
class Renewal:
    """How far a worker has read all lists, to find those of other models and versions."""

    # Export ("": the worker's own) -> model and version that answer now.
    models: Mapping[str, tuple[str, str]]
    is_shared: bool = True  # whether it reads its share of the users, or all
    cursor: str = ""  # of the next users
    is_done: bool = False

    def after(self, cursor: str) -> Renewal:
        """The renewal when some users are done; `cursor` is that of the next ones, "" for none."""
        if cursor:
            return dataclasses.replace(self, cursor=cursor)
        return dataclasses.replace(self, cursor="", is_shared=False, is_done=not self.is_shared)


class NearlineWorker:
    """One worker of a tenant. `run` works until it is stopped."""

    def __init__(
        self,
        engine: RecommendationEngine,
        store: TenantStore,
        name: str,
        settings: NearlineSettings = NearlineSettings(),
        clock: Callable[[], float] = time.time,
        others: Mapping[str, RecommendationEngine] = types.MappingProxyType({}),
        rollout: Rollout | None = None,
    ):
        """Args:
        name: of this worker; no other of the tenant has it.
        clock: the time of requests, in unix seconds; a replay of a log has one of its own.
        others: exports of arms of experiments, by name.
        rollout: says which export answers. None: that of the engine.
        """
        self._clock, self._others, self._rollout = clock, dict(others), rollout
        self.engine, self.store, self.name = engine, store, name
        self.settings, self.totals = settings, Totals()
        self._renewal = Renewal({})
        self._failures: Counter[str] = Counter()  # of users whose computation failed, in a row

    def run(self, stop: threading.Event, heartbeat: Path | None = None) -> None:
        """Works until `stop` is set. Errors are logged, and the work is repeated.

        Args:
          heartbeat: a file that each round touches (heartbeat.py).
        """
        while not stop.is_set():
            if heartbeat is not None:
                heartbeat.touch()
            try:
                self.follow()
                worked = self.run_once() if self.is_due() else self.renew()
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

    def follow(self) -> bool:
        """Puts the active models in place; False if they are there already, or cannot be loaded.

        One that cannot be loaded keeps no other from its place.
        """
        own = self._rollout.follow if self._rollout is not None else self.engine.refresh
        has_changed = False
        for follow in (own, *(other.refresh for other in self._others.values())):
            try:
                has_changed |= follow()
            except StoreError:
                raise
            except Exception as error:  # such as a missing or damaged export
                logging.warning("worker %s keeps a model: %s", self.name, error)
        return has_changed

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
        newest = {work.user_id: work.newest for work in works}
        found = self._lists_of(newest)
        while self.follow():  # lists of a model that was replaced meanwhile are not stored
            found = self._lists_of(newest)
        self._put(found)
        again = {user for user, tries in self._failures.items() if tries < TRIES}
        self.store.done([work for work in works if work.user_id not in again])
        for user in newest.keys() - again:
            self._failures.pop(user, None)
        totals = self.totals
        totals.batches += 1
        totals.users += len(works)
        totals.last_batch = len(works)
        totals.lists += sum(map(len, found.values()))
        totals.seconds += time.monotonic() - began
        waited = [max(steady_time() - work.since, 0.0) for work in works]
        totals.staleness = max(waited)
        totals.stale_seconds += sum(waited)
        for seconds in waited:
            totals.stale[bisect.bisect_left(STALENESS, seconds)] += 1
        return len(works)

    def renew(self) -> int:
        """Computes lists anew that another model made, for some users. Returns how many it read.

        When a worker starts and when the model changes, it reads all lists: first those of its
        share of the users, then the others, where another worker may have ended. A version of the
        catalogue counts like a model, if `renews_versions`.
        """
        engines = {"": self.engine, **self._others}
        now = {name: engine.current for name, engine in engines.items()}
        models = {name: self._maker(one.model, one.name) for name, one in now.items()}
        if self._renewal.models != models:
            self._renewal = Renewal(models)
        if self._renewal.is_done:
            return 0
        users, cursor = self.store.listed(self._renewal.cursor, self.settings.users_at_once)
        treatments = self._treatments(self._own(users) if self._renewal.is_shared else users)
        wanted = [
            (user, name)
            for user, treatment in treatments.items()
            for name in lists_of(treatment, self.settings.lists)
        ]
        newest: dict[str, int] = {}
        for (user, _), one in zip(wanted, self.store.lists_of(wanted), strict=True):
            if one is None:
                continue
            if self._maker(one.model, one.version) != models[treatments[user].export]:
                newest[user] = max(one.newest, newest.get(user, 0))
        if newest:
            found = self._lists_of(newest)
            if self.follow():
                return len(users)  # begin anew
            self._put(found)
            self.totals.renewed += len(newest)
        self._renewal = self._renewal.after(cursor)
        return len(users)

    def _maker(self, model: str, version: str) -> tuple[str, str]:
        """Two lists with equal values here need no renewal of one of them."""
        return model, version if self.settings.renews_versions else ""

    def _put(self, lists: Mapping[str, Mapping[str, StoredList]]) -> None:
        """Stores lists, without those of users who were deleted meanwhile."""
        there = {}
        for user, of_user in lists.items():
            if self.store.user(user) is None and not self.store.events(user, 1)[0]:
                for engine in (self.engine, *self._others.values()):
                    if (contexts := engine.current.recommender.contexts) is not None:
                        contexts.drop(user)
            else:
                there[user] = of_user
        self.store.put_lists(there, self.settings.keep_seconds)

    def _own(self, users: Sequence[str]) -> list[str]:
        """The users of this worker, if all workers that report share them."""
        workers = sorted({*self.store.documents(REPORT), self.name})
        own = workers.index(self.name)
        return [user for user in users if zlib.crc32(user.encode()) % len(workers) == own]

    def report(self) -> None:
        """Stores what the worker has done, for those who watch the service."""
        if (contexts := self.engine.current.recommender.contexts) is not None:
            self.totals.kept_columns = contexts.kept_columns
            self.totals.new_columns = contexts.new_columns
        content = {
            "time": time.time(),
            "list_names": list(self.settings.lists),
            **dataclasses.asdict(self.totals),
        }
        self.store.put_document(REPORT, self.name, content, REPORT_SECONDS)

    def _lists_of(self, newest: Mapping[str, int]) -> dict[str, dict[str, StoredList]]:
        """The new lists by user and name, each under the user's arms of running experiments.

        Args:
          newest: user -> number of the newest event that the lists know.
        """
        states, now = self.store.states(), time.time()
        hidden = [item for item, state in states.items() if not state.is_shown(now)]
        tasks: dict[tuple[str, RecommendOptions], list[_Task]] = {}
        # One version of each export makes all lists.
        engines = {
            name: engine.at(engine.current)
            for name, engine in {"": self.engine, **self._others}.items()
        }
        treatments = self._treatments(newest)
        for user, number in newest.items():
            engine = engines[treatments[user].export]
            for key, task in self._tasks_of(user, number, treatments[user], engine):
                tasks.setdefault(key, []).append(task)
        found: dict[str, dict[str, StoredList]] = {}
        for (export, options), some in tasks.items():
            answers = self._answers(engines[export], some, options, hidden)
            for task, answer in zip(some, answers, strict=True):
                if isinstance(answer, ValueError):
                    logging.warning("worker %s: user %r: %s", self.name, task.user_id, answer)
                    self.totals.failed += 1
                    continue
                found.setdefault(task.user_id, {})[task.name] = StoredList(
                    tuple(answer["items"]),
                    time.time(),
                    answer["model"],
                    answer["version"],
                    task.newest,
                    task.arms,
                )
        return found

    def _answers(
        self,
        engine: RecommendationEngine,
        tasks: Sequence[_Task],
        options: RecommendOptions,
        hidden: Sequence[str],
    ) -> list[dict[str, Any] | ValueError]:
        """The answer of each task, or why it has none.

        A user whose row makes the computation fail keeps no other of the batch waiting. That user
        is taken again when the lease ends, TRIES times in all.
        """
        try:
            return engine.answer_each([task.row for task in tasks], options, hidden)
        except Exception as error:
            if len(tasks) == 1:
                logging.exception("worker %s: user %r", self.name, tasks[0].user_id)
                self._failures[tasks[0].user_id] += 1
                return [ValueError(f"the computation failed ({error})")]
        logging.warning("worker %s: a batch failed; its users are computed one by one", self.name)
        return [
            answer for task in tasks for answer in self._answers(engine, [task], options, hidden)
        ]

    def _tasks_of(
        self, user_id: str, newest: int, treatment: Treatment, engine: RecommendationEngine
    ) -> Iterator[tuple[tuple[str, RecommendOptions], _Task]]:
        """((export, options), task) for each list of a user."""
        events, number = self.store.events(user_id, self.settings.events)
        profile = self.store.user(user_id)
        if not events and profile is None:  # the user was deleted
            return
        row = request_row(engine, user_id, profile or {}, events, int(self._clock()))
        options = ranking_options(treatment.ranking, engine, self.settings.count)
        options = dataclasses.replace(options, explains=self.settings.explains)
        newest = max(newest, number)  # a user who is computed again comes without a number
        for name, instruction in lists_of(treatment, self.settings.lists).items():
            task = _Task(user_id, name, row | {"instruction": instruction}, newest, treatment.arms)
            yield (treatment.export, options), task

    def _treatments(self, users: Iterable[str]) -> dict[str, Treatment]:
        """The settings of some users under the experiments that run."""
        running = [one for one in read_experiments(self.store).values() if one.stopped is None]
        return {
            user: known_treatment(treatment_of(running, user), self._others, f"worker {self.name}")
            for user in users
        }

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


@dataclasses.dataclass(frozen=True)
class _Task:
    """One list to compute."""

    user_id: str
    name: str
    row: dict[str, Any]
    newest: int
    arms: Mapping[str, str]  # experiment -> arm


def request_row(
    engine: RecommendationEngine,
    user_id: str,
    profile: Mapping[str, Any],
    events: Sequence[Event],
    now: int,
) -> dict[str, Any]:
    """The row of a users' file for a user of a store.

    Events with unknown items are left out, those with times that no request can hold, and those of
    a kind that the training left out.
    """
    index, kinds = engine.current.parser.item_index, engine.current.event_kinds
    readable = [event for event in events if is_unix_time(event.time)]
    if left_out := len(events) - len(readable):
        text = "service: user %r: %d events are left out: their times are no unix seconds"
        logging.log_every_n_seconds(logging.WARNING, text, 1.0, user_id, left_out)
    events = readable
    history = [
        {
            "item_id": event.item_id,
            "timestamp": event.time,
            "session_id": event.session_id or None,
        }
        for event in events
        if index.find(event.item_id) is not None
        and (not kinds or not event.kind or event.kind in kinds)
    ]
    known = {name: value for name, value in profile.items() if name not in COLUMNS}
    latest = max((event.time for event in events), default=0)  # a clock may have jumped back
    row = {**known, "user_id": user_id, "history": history}
    return row | {"timestamp": max(now, latest)}
