"""A replay of a log: its last days happen again, speeded up, for a demo of the service.

The histories before the replay are in the store when it begins. Then each event comes when the
replay's clock reaches its time. The clock starts when the API is ready. It is a document of the
store, so that API and worker, also after a restart, have the same one.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from absl import logging

from sigma_jax.histories import rows_of_ranges
from sigma_jax.schema import DAY, Histories, PreparedData
from sigma_jax.serving.stores.base import Event, StoreError, TenantStore

REPLAY = "replay"  # kind and name of the document with the clock
BEGUN = "begun"  # name of the document that says that histories are being stored
EVENTS_BEFORE = 100  # newest events of a user that are there when the replay begins
EVENTS_AT_ONCE = 2_000  # that are stored together
STEP_SECONDS = 0.5  # between two looks at the clock
WAIT_SECONDS = 0.2  # between two looks for the clock of another process


@dataclasses.dataclass(frozen=True)
class Replay:
    """When a replay began, and how fast it runs."""

    began: float | None  # unix seconds of this machine; None: not yet
    first: float  # unix seconds of the log
    last: float  # unix seconds of the log
    speed: float  # seconds of the log in a second


@dataclasses.dataclass
class ReplayClock:
    """The time of a replayed log, in unix seconds. It stands still when the log is over."""

    replay: Replay

    def __call__(self) -> float:
        began = self.replay.began
        passed = 0.0 if began is None else max(time.time() - began, 0.0) * self.replay.speed
        return min(self.replay.first + passed, self.replay.last)

    @property
    def is_over(self) -> bool:
        """Whether the log has ended."""
        return self() >= self.replay.last


def clock_of(store: TenantStore) -> Callable[[], float]:
    """The clock of a tenant: that of its replay, or this machine's."""
    fields = store.document(REPLAY, REPLAY)
    return time.time if fields is None else ReplayClock(Replay(**fields))


def wait_for_clock(store: TenantStore, stop: threading.Event) -> Callable[[], float]:
    """The clock of a replay that another process begins; this machine's if `stop` comes first."""
    while not stop.is_set():
        try:
            if isinstance(clock := clock_of(store), ReplayClock):
                return clock
        except StoreError as error:
            logging.warning("replay: %s", error)
        stop.wait(WAIT_SECONDS)
    return time.time


def read_log(path: Path) -> PreparedData:
    """The prepared data in a folder, or of a workdir. ValueError where there is none."""
    for folder in (path / "data", path):
        if (folder / "manifest.json").exists() and (folder / "items.arrow").exists():
            return PreparedData.load(folder)
    raise ValueError(
        f"--demo={path} holds no prepared data; give a workdir of `python -m sigma_jax.train`, or "
        "the folder that `python -m sigma_jax.prepare` wrote."
    )


class LogReplay:
    """Sends the events of a log to a store, each at its time."""

    def __init__(
        self, data: PreparedData, store: TenantStore, speed: float, days: float, users: int
    ):
        """Begins a replay, or goes on with the one that the store has.

        ValueError for a log without times, and for a speed or days that make no sense.

        Args:
          speed: seconds of the log in a second.
          days: how many of the last days of the log are replayed.
          users: so many users are replayed, those with most interactions in these days.
        """
        if not (speed > 0 and days > 0):
            raise ValueError(f"--demo_speed={speed:g}, --demo_days={days:g}; use more than 0.")
        time_of = np.asarray(data.histories.time)
        if not time_of.max(initial=0):
            raise ValueError("the log has no times, so it cannot be replayed.")
        self._data, self._store = data, store
        known = clock_of(store)
        if isinstance(known, ReplayClock):
            self.clock, is_new = known, False
        else:
            last = float(time_of.max())
            first = max(last - days * DAY, float(time_of.min()))
            self.clock, is_new = ReplayClock(Replay(None, first, last + 1, speed)), True
        rows = np.flatnonzero(time_of >= self.clock.replay.first)
        rows = rows[np.argsort(time_of[rows], kind="stable")]
        owner = owners_of(data.histories, rows)
        counts = np.bincount(owner, minlength=data.histories.num_users)
        self._users = np.sort(np.argsort(-counts, kind="stable")[:users])
        self._rows = rows[np.isin(owner, self._users)]
        if is_new:
            self._begin()

    def _begin(self) -> None:
        """Stores profiles and histories.

        ValueError for a store with users of its own, which a replay would mix up.
        """
        if self._store.document(REPLAY, BEGUN) is None and self._store.users("", 1):
            raise ValueError("the store holds users of its own; give the demo another --store.")
        self._store.put_document(REPLAY, BEGUN, True)
        users = self._data.users.table.take(self._users)
        pairs = zip(users["user_id"].to_pylist(), users["profile"].to_pylist(), strict=True)
        self._store.put_users({user: json.loads(text or "{}") for user, text in pairs})
        histories, first = self._data.histories, self.clock.replay.first
        rows = rows_before(histories, self._users, first, EVENTS_BEFORE)
        for part in parts_of(rows):
            self._store.add_events(self._events(part))
        logging.info("replay: %d events stored, %d come", len(rows), len(self._rows))

    def start(self) -> None:
        """Starts the clock, for all processes, unless it runs."""
        if self.clock.replay.began is None:
            replay = dataclasses.replace(self.clock.replay, began=time.time())
            self._store.put_document(REPLAY, REPLAY, dataclasses.asdict(replay))
            self.clock.replay = replay

    def run(self, stop: threading.Event) -> None:
        """Starts the clock, and sends events until the log is over or `stop` is set.

        A repeated event is stored once.
        """
        time_of = np.asarray(self._data.histories.time)[self._rows]
        sent = 0
        while sent < len(time_of) and not stop.is_set():
            try:
                self.start()
                due = int(np.searchsorted(time_of, self.clock(), side="right"))
                for part in parts_of(self._rows[sent:due]):
                    self._store.add_events(self._events(part))
                    sent += len(part)
            except StoreError as error:
                logging.warning("replay: %s", error)
            stop.wait(STEP_SECONDS)
        logging.info("replay: %s", "stopped" if sent < len(time_of) else "the log is over")

    def _events(self, rows: np.ndarray) -> list[Event]:
        """The events of some rows of the histories. Their ids are the rows' numbers."""
        histories, catalogue = self._data.histories, self._data.catalogue
        owner = owners_of(histories, rows)
        users = self._data.users.table["user_id"].take(owner).to_pylist()
        items = catalogue.ids(np.asarray(histories.item)[rows])
        columns = (histories.time[rows].tolist(), histories.session[rows].tolist())
        return [
            Event(user, item, when, event_id=f"{REPLAY}-{row}", session_id=f"{REPLAY}-{session}")
            for row, user, item, when, session in zip(
                rows.tolist(), users, items, *columns, strict=True
            )
        ]


def owners_of(histories: Histories, rows: np.ndarray) -> np.ndarray:
    """The user of each row [n]."""
    return np.searchsorted(histories.offsets, rows, side="right") - 1


def rows_before(histories: Histories, users: np.ndarray, first: float, most: int) -> np.ndarray:
    """The rows of the newest `most` interactions of some users before the time `first`."""
    starts = histories.offsets[users]
    # The rows of a user are in order of time.
    ends = [
        start + np.searchsorted(histories.time[start:end], first)
        for start, end in zip(starts, histories.offsets[users + 1], strict=True)
    ]
    return rows_of_ranges(np.maximum(starts, np.array(ends) - most), np.array(ends))


def parts_of(rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows in parts of EVENTS_AT_ONCE."""
    for start in range(0, len(rows), EVENTS_AT_ONCE):
        yield rows[start : start + EVENTS_AT_ONCE]
