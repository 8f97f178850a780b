"""What a store keeps for a service, and the functions that each kind of store has.

A service writes users, events and the state of items. Events put their user into a queue. A worker
takes users from the queue, computes their lists, and stores the lists: the U2I index of section 3.3
of SIGMA. Readers get a list by user and name.

All rows belong to a tenant. A tenant never sees rows of another.

- An event with an `event_id` that is there already is not stored again: callers may repeat calls.
- A user who is taken has a lease. If the worker dies, the lease ends, and another takes the user.
- A list never replaces one that knows newer events.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

MOST_EVENTS = 2_000  # of a user, the newest, that a store keeps; it may keep more
HOUR = 3600
COUNT_SECONDS = 60 * 86_400.0  # counts of an hour are kept so long after its last event
LEASE_SECONDS = 60.0  # a worker that has not finished a user by then is taken for dead
# Scheme of a URL -> module and class.
STORES = {
    "sqlite": ("sigma_jax.serving.stores.sqlite", "SqliteStore"),
    "redis": ("sigma_jax.serving.stores.redis", "RedisStore"),
    "rediss": ("sigma_jax.serving.stores.redis", "RedisStore"),
}
ALIASES = {"valkey": "redis", "valkeys": "rediss"}  # schemes of the same servers
ADDRESS = "SIGMA_STORE"  # environment variable in place of --store: it may hold a password

_STARTED = time.time(), time.monotonic()


def steady_time() -> float:
    """Unix seconds that a jump of the machine's clock does not change while this process runs.

    Leases, waiting times and ends of lists are measured by it.
    """
    return _STARTED[0] + time.monotonic() - _STARTED[1]


class StoreError(Exception):
    """The store does not answer, or is full. The call may be repeated."""


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that a user did with an item."""

    user_id: str
    item_id: str
    time: int  # unix seconds
    kind: str = ""  # "view", "purchase"; "" where a log has one kind
    event_id: str = ""  # "" where the caller has none: then a repeated call stores it twice
    session_id: str = ""


@dataclasses.dataclass(frozen=True)
class StoredList:
    """A list of the U2I index."""

    items: tuple[dict[str, Any], ...]  # as in recommender/results.py, best first
    made: float  # unix seconds
    model: str  # fingerprint of the recommender
    version: str  # of the catalogue
    newest: int  # number of the user's newest event that it knows; 0 for none
    # Experiment -> arm whose settings made the list (serving/experiments).
    arms: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """The list as a store writes it."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> StoredList:
        """The list of `to_json`."""
        import orjson  # here: `experiment` reads no lists, and works without the extra serve

        fields = orjson.loads(text)
        fields["items"] = tuple(fields["items"])
        return cls(**fields)


ListsOfUsers = Mapping[str, Mapping[str, StoredList]]  # user id -> name -> list


@dataclasses.dataclass(frozen=True)
class Exposure:
    """Items that a user in an experiment was shown."""

    experiment: str
    arm: str
    user_id: str
    list_name: str
    bucket: int  # number of the time bucket
    time: int  # unix seconds
    items: tuple[str, ...]  # item ids, best first

    def to_json(self) -> str:
        """The columns that are no part of its key, as a store writes them."""
        return json.dumps([self.arm, self.time, self.items], ensure_ascii=False)

    @classmethod
    def from_json(
        cls, experiment: str, user_id: str, list_name: str, bucket: int, text: str
    ) -> Exposure:
        """The exposure of a key and its `to_json`."""
        arm, time, items = json.loads(text)
        return cls(experiment, arm, user_id, list_name, bucket, time, tuple(items))


@dataclasses.dataclass(frozen=True)
class ItemState:
    """The state of an item, which may change by the minute. It acts at once."""

    is_hidden: bool = False
    stock: int | None = None  # None: not counted; 0: out of stock
    expires: float | None = None  # unix seconds; None: never

    def is_shown(self, now: float) -> bool:
        """Whether the item may be recommended at `now`, unix seconds."""
        is_over = self.expires is not None and now >= self.expires
        return not (self.is_hidden or self.stock == 0 or is_over)


@dataclasses.dataclass(frozen=True)
class Work:
    """A user whose lists are out of date, leased to a worker."""

    user_id: str
    newest: int  # number of the newest event
    since: float  # unix seconds: when the oldest event that no list knows came in
    receipt: str  # what `done` needs


@dataclasses.dataclass(frozen=True)
class Queue:
    """The users that wait."""

    size: int  # users, each counted once
    oldest: float | None  # unix seconds of the oldest event; None for an empty queue


class TenantStore(Protocol):
    """The rows of one tenant. Every method raises StoreError if the store does not answer."""

    def put_users(self, profiles: Mapping[str, Mapping[str, Any]]) -> None:
        """Creates users, or replaces their profiles: user id -> columns."""

    def user(self, user_id: str) -> dict[str, Any] | None:
        """The profile of a user; None for an unknown one."""

    def users(self, after: str, count: int) -> list[str]:
        """At most `count` ids of users with a profile or events, behind `after`, ascending."""

    def delete_user(self, user_id: str) -> bool:
        """Deletes a user with events, lists and exposures; whether there was one."""

    def add_events(self, events: Sequence[Event]) -> int:
        """Stores events and puts their users into the queue. Returns how many were new."""

    def events(self, user_id: str, count: int) -> tuple[list[Event], int]:
        """(the newest `count` events by time, oldest first; the number of the newest one or 0)."""

    def seen_items(self, user_id: str) -> set[str]:
        """The ids of all items of a user's events, however old."""

    def event_counts(self, first: int, last: int) -> dict[int, dict[str, int]]:
        """Hour -> item id -> number of events, for the hours from `first` to `last`.

        Hours are unix seconds // HOUR. A deleted user's events stay counted.
        """

    def delete_events(self, user_id: str, event_id: str = "") -> int:
        """Deletes the events of a user, or the one with an id. Returns how many there were.

        The user's lists go too, and are computed anew. Counts of events stay.
        """

    def ask_again(self, user_ids: Sequence[str]) -> None:
        """Puts users into the queue without an event: their lists are out of date."""

    def take(self, worker: str, count: int, lease: float = LEASE_SECONDS) -> list[Work]:
        """At most `count` users from the queue, those who wait longest first."""

    def done(self, works: Sequence[Work]) -> None:
        """Takes users out of the queue, except those with events since they were taken."""

    def queue(self) -> Queue:
        """How many users wait, those who are taken included."""

    def put_lists(self, lists: ListsOfUsers, keep_seconds: float) -> None:
        """Stores lists by user and name; they vanish after `keep_seconds`."""

    def list_of(self, user_id: str, name: str) -> StoredList | None:
        """A list; None if there is none."""

    def lists_of(self, wanted: Sequence[tuple[str, str]]) -> list[StoredList | None]:
        """The lists of some (user id, name), read together; None where there is none."""

    def listed(self, cursor: str, count: int) -> tuple[list[str], str]:
        """(about `count` users with lists, the cursor of the next ones; "" behind the last).

        Args:
          cursor: "" for the first users.
        """

    def count_lists(self) -> int:
        """The number of users with lists, roughly."""

    def add_exposures(self, exposures: Sequence[Exposure]) -> None:
        """Stores exposures. The first one of an experiment, user, list and bucket stays."""

    def exposures(self, experiment: str, after: str, count: int) -> list[Exposure]:
        """All exposures of the next `count` users behind `after`, in the order of user ids."""

    def delete_exposures(self, experiment: str) -> None:
        """Deletes all exposures of an experiment."""

    def put_states(self, states: Mapping[str, ItemState]) -> None:
        """Replaces the states of some items."""

    def states(self) -> dict[str, ItemState]:
        """The states of all items that have one."""

    def put_document(self, kind: str, name: str, content: Any, keep_seconds: float = 0.0) -> None:
        """Stores JSON under a kind ("rule", "job") and a name; 0 seconds keep it for good."""

    def document(self, kind: str, name: str) -> Any:
        """The JSON of a document; None if there is none."""

    def documents(self, kind: str) -> dict[str, Any]:
        """All documents of a kind by name."""

    def delete_document(self, kind: str, name: str) -> bool:
        """Deletes a document; whether there was one."""


class Store(Protocol):
    """A store of all tenants."""

    def tenant(self, name: str) -> TenantStore:
        """The rows of one tenant."""

    def check(self) -> str:
        """Reads a row, and writes one. Returns why none can be written; "" if one can.

        StoreError if none can be read.
        """

    def close(self) -> None:
        """Ends all connections."""


def without_password(url: str) -> str:
    """An address of a store as errors and logs may show it."""
    url = re.sub(r"://.*@", "://***@", url)
    return re.sub(r"(password=)[^&]*", r"\1***", url)


def open_store(url: str) -> Store:
    """The store at a URL: `sqlite:///FILE`, `redis://HOST:PORT/NUMBER`, or a path of a file.

    `valkey://` is the same as `redis://`. No error shows a password.

    Raises:
      ValueError: the URL is of no known kind or has a wrong form, or a package is missing.
      StoreError: the store does not answer.
    """
    scheme, found, rest = url.partition("://")
    if not found:
        scheme, url = "sqlite", f"sqlite:///{url}"
    elif scheme in ALIASES:
        scheme, url = ALIASES[scheme], f"{ALIASES[scheme]}://{rest}"
    shown = without_password(url)
    if scheme not in STORES:
        known = ", ".join(sorted([*STORES, *ALIASES]))
        raise ValueError(f"store {shown!r} is of no known kind; use {known}.")
    module, name = STORES[scheme]
    try:
        made: Store = getattr(importlib.import_module(module), name)(url)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"store {shown!r} needs the package {error.name}; install the extra serve."
        ) from error
    except ValueError:  # its message may hold a part of the password
        raise ValueError(
            f"store {shown!r} has a wrong form; use {scheme}://USER:PASSWORD@HOST:PORT/NUMBER, "
            "with %40 for @ and %2F for / in the password."
        ) from None
    return made
