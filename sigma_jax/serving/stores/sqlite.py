"""A store in one SQLite file, for one machine: several processes read and write it (WAL mode)."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sigma_jax.serving.stores.base import (
    COUNT_SECONDS,
    HOUR,
    LEASE_SECONDS,
    Event,
    Exposure,
    ItemState,
    ListsOfUsers,
    Queue,
    StoredList,
    StoreError,
    Work,
    steady_time,
)

BUSY_SECONDS = 5.0  # a writer waits so long for another
TABLES = """
CREATE TABLE IF NOT EXISTS users (
    tenant TEXT, user TEXT, profile TEXT NOT NULL, PRIMARY KEY (tenant, user)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, user TEXT NOT NULL,
    item TEXT NOT NULL, time INTEGER NOT NULL, kind TEXT NOT NULL, session TEXT NOT NULL,
    event_id TEXT);
CREATE INDEX IF NOT EXISTS events_of_user ON events (tenant, user, time, number);
CREATE UNIQUE INDEX IF NOT EXISTS event_ids ON events (tenant, event_id)
    WHERE event_id IS NOT NULL;
CREATE TABLE IF NOT EXISTS counts (
    tenant TEXT, hour INTEGER, item TEXT, count INTEGER NOT NULL, expires REAL NOT NULL,
    PRIMARY KEY (tenant, hour, item)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS counts_expire ON counts (expires);
CREATE TABLE IF NOT EXISTS waiting (
    tenant TEXT, user TEXT, newest INTEGER NOT NULL, since REAL NOT NULL,
    leased_until REAL NOT NULL, PRIMARY KEY (tenant, user)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS waiting_since ON waiting (tenant, since);
CREATE TABLE IF NOT EXISTS lists (
    tenant TEXT, user TEXT, name TEXT, content TEXT NOT NULL, newest INTEGER NOT NULL,
    expires REAL NOT NULL, PRIMARY KEY (tenant, user, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS lists_expire ON lists (expires);
CREATE TABLE IF NOT EXISTS exposures (
    tenant TEXT, experiment TEXT, user TEXT, list TEXT, bucket INTEGER, content TEXT NOT NULL,
    PRIMARY KEY (tenant, experiment, user, list, bucket)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS exposures_of_user ON exposures (tenant, user);
CREATE TABLE IF NOT EXISTS states (
    tenant TEXT, item TEXT, content TEXT NOT NULL, PRIMARY KEY (tenant, item)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS documents (
    tenant TEXT, kind TEXT, name TEXT, content TEXT NOT NULL, expires REAL,
    PRIMARY KEY (tenant, kind, name)) WITHOUT ROWID;
"""


class SqliteStore:
    """All tenants in one file. Each thread has a connection of its own."""

    def __init__(self, url: str):
        """Opens or creates the file of `sqlite:///FILE`. StoreError if that fails."""
        self.path = Path(url.removeprefix("sqlite:///"))
        self._threads = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.transaction() as con:
            con.execute("SELECT 1")

    def tenant(self, name: str) -> SqliteTenant:
        """The rows of one tenant."""
        return SqliteTenant(self, name)

    def check(self) -> str:
        """Reads a row, and writes one. Returns why none can be written; "" if one can.

        StoreError if none can be read.
        """
        tenant = self.tenant("\0check")
        tenant.document("check", "time")
        try:
            tenant.put_document("check", "time", steady_time())
        except StoreError as error:
            return str(error)
        return ""

    def close(self) -> None:
        """Ends all connections."""
        with self._lock:
            for con in self._connections:
                con.close()
            self._connections.clear()
        self._threads = threading.local()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for one statement. Errors become StoreError."""
        with _as_store_error(self.path):
            yield self._connection()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection whose changes are all made, or none of them. Errors become StoreError."""
        with _as_store_error(self.path):
            con = self._connection()
            con.execute("BEGIN IMMEDIATE")
            try:
                yield con
                con.commit()  # fails where the disk is full: then the transaction is still open
            except BaseException:
                con.rollback()
                raise

    def _connection(self) -> sqlite3.Connection:
        con: sqlite3.Connection | None = getattr(self._threads, "con", None)
        if con is None:
            con = sqlite3.connect(
                self.path, BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            _set_up(con)
            self._threads.con = con
            with self._lock:
                self._connections.append(con)
        return con


@dataclasses.dataclass(frozen=True)
class SqliteTenant:
    """The rows of one tenant; TenantStore has the functions."""

    store: SqliteStore
    name: str

    def put_users(self, profiles: Mapping[str, Mapping[str, Any]]) -> None:
        """Creates users, or replaces their profiles."""
        rows = [(self.name, user, _json(profile)) for user, profile in profiles.items()]
        with self.store.transaction() as con:
            con.executemany("INSERT OR REPLACE INTO users VALUES (?, ?, ?)", rows)

    def user(self, user_id: str) -> dict[str, Any] | None:
        """The profile of a user; None for an unknown one."""
        sql = "SELECT profile FROM users WHERE tenant = ? AND user = ?"
        row = self._one(sql, user_id)
        return None if row is None else json.loads(row[0])

    def users(self, after: str, count: int) -> list[str]:
        """At most `count` ids of users with a profile or events, behind `after`, ascending."""
        part = "SELECT user FROM {} WHERE tenant = ? AND user > ?"
        sql = f"{part.format('users')} UNION {part.format('events')} ORDER BY user LIMIT ?"
        return [row[0] for row in self._all(sql, after, self.name, after, count)]

    def delete_user(self, user_id: str) -> bool:
        """Deletes a user with events, lists and exposures; whether there was one."""
        with self.store.transaction() as con:
            found = 0
            for table in ("users", "events", "waiting", "lists", "exposures"):
                sql = f"DELETE FROM {table} WHERE tenant = ? AND user = ?"
                found += con.execute(sql, (self.name, user_id)).rowcount
        return found > 0

    def add_events(self, events: Sequence[Event]) -> int:
        """Stores events and puts their users into the queue. Returns how many were new."""
        stored, now = 0, steady_time()
        with self.store.transaction() as con:
            for event in events:
                row = con.execute(
                    "INSERT INTO events (tenant, user, item, time, kind, session, event_id) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING number",
                    (
                        self.name,
                        event.user_id,
                        event.item_id,
                        event.time,
                        event.kind,
                        event.session_id,
                        event.event_id or None,
                    ),
                ).fetchone()
                if row is None:
                    continue
                stored += 1
                con.execute(
                    "INSERT INTO waiting VALUES (?, ?, ?, ?, 0) ON CONFLICT DO UPDATE "
                    "SET newest = excluded.newest",
                    (self.name, event.user_id, row[0], now),
                )
                con.execute(
                    "INSERT INTO counts VALUES (?, ?, ?, 1, ?) ON CONFLICT DO UPDATE "
                    "SET count = count + 1, expires = excluded.expires",
                    (self.name, event.time // HOUR, event.item_id, now + COUNT_SECONDS),
                )
            con.execute("DELETE FROM counts WHERE expires < ?", (now,))
        return stored

    def events(self, user_id: str, count: int) -> tuple[list[Event], int]:
        """(the newest `count` events by time, oldest first; the number of the newest one or 0)."""
        sql = (
            "SELECT item, time, kind, event_id, session, number FROM events "
            "WHERE tenant = ? AND user = ? ORDER BY time DESC, number DESC LIMIT ?"
        )
        rows = self._all(sql, user_id, count)
        found = [
            Event(user_id, item, when, kind, event_id or "", session)
            for item, when, kind, event_id, session, _ in reversed(rows)
        ]
        return found, max((row[-1] for row in rows), default=0)

    def seen_items(self, user_id: str) -> set[str]:
        """The ids of all items of a user's events, however old."""
        sql = "SELECT DISTINCT item FROM events WHERE tenant = ? AND user = ?"
        return {row[0] for row in self._all(sql, user_id)}

    def event_counts(self, first: int, last: int) -> dict[int, dict[str, int]]:
        """Hour -> item id -> number of events, for the hours from `first` to `last`."""
        sql = "SELECT hour, item, count FROM counts WHERE tenant = ? AND hour BETWEEN ? AND ?"
        found: dict[int, dict[str, int]] = {}
        for hour, item, count in self._all(sql, first, last):
            found.setdefault(hour, {})[item] = count
        return found

    def delete_events(self, user_id: str, event_id: str = "") -> int:
        """Deletes the events of a user, or the one with an id. Returns how many there were."""
        where, values = "WHERE tenant = ? AND user = ?", (self.name, user_id)
        one, of_one = (" AND event_id = ?", (event_id,)) if event_id else ("", ())
        with self.store.transaction() as con:
            deleted = con.execute(f"DELETE FROM events {where}{one}", (*values, *of_one)).rowcount
            if deleted:
                con.execute(f"DELETE FROM lists {where}", values)
                self._wait(con, user_id)
        return deleted

    def ask_again(self, user_ids: Sequence[str]) -> None:
        """Puts users into the queue without an event."""
        with self.store.transaction() as con:
            for user in user_ids:
                self._wait(con, user)

    def _wait(self, con: sqlite3.Connection, user_id: str) -> None:
        """Puts a user into the queue with the number of an event that does not exist.

        So lists that are computed at this moment do not take the user out of it.
        """
        sql = "UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'events' RETURNING seq"
        row = con.execute(sql).fetchone()
        number = row[0] if row else 1
        if row is None:  # no event was stored yet
            con.execute("INSERT INTO sqlite_sequence VALUES ('events', 1)")
        con.execute(
            "INSERT INTO waiting VALUES (?, ?, ?, ?, 0) ON CONFLICT DO UPDATE "
            "SET newest = excluded.newest",
            (self.name, user_id, number, steady_time()),
        )

    def take(self, worker: str, count: int, lease: float = LEASE_SECONDS) -> list[Work]:
        """At most `count` users from the queue, those who wait longest first."""
        now = steady_time()
        with self.store.transaction() as con:
            # A lease that ends later than one taken now is of a clock that was ahead.
            rows = con.execute(
                "SELECT user, newest, since FROM waiting WHERE tenant = ? "
                "AND (leased_until <= ? OR leased_until > ?) ORDER BY since LIMIT ?",
                (self.name, now, now + max(lease, LEASE_SECONDS), count),
            ).fetchall()
            con.executemany(
                "UPDATE waiting SET leased_until = ? WHERE tenant = ? AND user = ?",
                [(now + lease, self.name, user) for user, _, _ in rows],
            )
        return [Work(user, newest, since, str(now + lease)) for user, newest, since in rows]

    def done(self, works: Sequence[Work]) -> None:
        """Takes users out of the queue, except those with events since they were taken."""
        now = steady_time()
        with self.store.transaction() as con:
            for work in works:
                key = (self.name, work.user_id, float(work.receipt))
                where = "WHERE tenant = ? AND user = ? AND leased_until = ?"
                con.execute(f"DELETE FROM waiting {where} AND newest <= ?", (*key, work.newest))
                con.execute(f"UPDATE waiting SET leased_until = 0, since = ? {where}", (now, *key))

    def queue(self) -> Queue:
        """How many users wait, those who are taken included."""
        row = self._one("SELECT COUNT(*), MIN(since) FROM waiting WHERE tenant = ?")
        return Queue(*row) if row else Queue(0, None)

    def put_lists(self, lists: ListsOfUsers, keep_seconds: float) -> None:
        """Stores lists by user and name; they vanish after `keep_seconds`."""
        now = steady_time()
        with self.store.transaction() as con:
            con.execute("DELETE FROM lists WHERE expires < ?", (now,))
            con.executemany(
                "INSERT INTO lists VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "content = excluded.content, newest = excluded.newest, expires = excluded.expires "
                "WHERE excluded.newest >= lists.newest",
                (
                    (self.name, user, name, one.to_json(), one.newest, now + keep_seconds)
                    for user, of_user in lists.items()
                    for name, one in of_user.items()
                ),
            )

    def list_of(self, user_id: str, name: str) -> StoredList | None:
        """A list; None if there is none."""
        return self.lists_of([(user_id, name)])[0]

    def lists_of(self, wanted: Sequence[tuple[str, str]]) -> list[StoredList | None]:
        """The lists of some (user id, name), read together; None where there is none."""
        sql = "SELECT content FROM lists WHERE tenant = ? AND user = ? AND name = ? AND expires > ?"
        now = steady_time()
        with self.store.reading() as con:
            rows = [con.execute(sql, (self.name, *one, now)).fetchone() for one in wanted]
        return [None if row is None else StoredList.from_json(row[0]) for row in rows]

    def listed(self, cursor: str, count: int) -> tuple[list[str], str]:
        """(about `count` users with lists, the cursor of the next ones; "" behind the last)."""
        sql = "SELECT DISTINCT user FROM lists WHERE tenant = ? AND user > ? ORDER BY user LIMIT ?"
        users = [row[0] for row in self._all(sql, cursor, count)]
        return users, users[-1] if len(users) == count else ""

    def count_lists(self) -> int:
        """The number of users with lists."""
        row = self._one("SELECT COUNT(DISTINCT user) FROM lists WHERE tenant = ?")
        return int(row[0]) if row else 0

    def add_exposures(self, exposures: Sequence[Exposure]) -> None:
        """Stores exposures. The first one of an experiment, user, list and bucket stays."""
        rows = [
            (self.name, one.experiment, one.user_id, one.list_name, one.bucket, one.to_json())
            for one in exposures
        ]
        sql = "INSERT INTO exposures VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
        with self.store.transaction() as con:
            con.executemany(sql, rows)

    def exposures(self, experiment: str, after: str, count: int) -> list[Exposure]:
        """All exposures of the next `count` users behind `after`, in the order of user ids."""
        where = "FROM exposures WHERE tenant = ? AND experiment = ? AND user > ?"
        sql = f"SELECT DISTINCT user {where} ORDER BY user LIMIT ?"
        users = [row[0] for row in self._all(sql, experiment, after, count)]
        if not users:
            return []
        sql = (
            f"SELECT user, list, bucket, content {where} AND user <= ? ORDER BY user, list, bucket"
        )
        rows = self._all(sql, experiment, after, users[-1])
        return [Exposure.from_json(experiment, *row) for row in rows]

    def delete_exposures(self, experiment: str) -> None:
        """Deletes all exposures of an experiment."""
        sql = "DELETE FROM exposures WHERE tenant = ? AND experiment = ?"
        with self.store.transaction() as con:
            con.execute(sql, (self.name, experiment))

    def put_states(self, states: Mapping[str, ItemState]) -> None:
        """Replaces the states of some items."""
        rows = [
            (self.name, item, _json(dataclasses.asdict(state))) for item, state in states.items()
        ]
        with self.store.transaction() as con:
            con.executemany("INSERT OR REPLACE INTO states VALUES (?, ?, ?)", rows)

    def states(self) -> dict[str, ItemState]:
        """The states of all items that have one."""
        rows = self._all("SELECT item, content FROM states WHERE tenant = ?")
        return {item: ItemState(**json.loads(content)) for item, content in rows}

    def put_document(self, kind: str, name: str, content: Any, keep_seconds: float = 0.0) -> None:
        """Stores JSON under a kind and a name; 0 seconds keep it for good."""
        now = steady_time()
        expires = now + keep_seconds if keep_seconds else None
        with self.store.transaction() as con:
            con.execute("DELETE FROM documents WHERE expires < ?", (now,))
            con.execute(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?)",
                (self.name, kind, name, _json(content), expires),
            )

    def document(self, kind: str, name: str) -> Any:
        """The JSON of a document; None if there is none."""
        sql = (
            "SELECT content FROM documents WHERE tenant = ? AND kind = ? AND name = ? "
            "AND (expires IS NULL OR expires > ?)"
        )
        row = self._one(sql, kind, name, steady_time())
        return None if row is None else json.loads(row[0])

    def documents(self, kind: str) -> dict[str, Any]:
        """All documents of a kind by name."""
        sql = (
            "SELECT name, content FROM documents WHERE tenant = ? AND kind = ? "
            "AND (expires IS NULL OR expires > ?) ORDER BY name"
        )
        rows = self._all(sql, kind, steady_time())
        return {name: json.loads(content) for name, content in rows}

    def delete_document(self, kind: str, name: str) -> bool:
        """Deletes a document; whether there was one."""
        sql = "DELETE FROM documents WHERE tenant = ? AND kind = ? AND name = ?"
        with self.store.transaction() as con:
            return con.execute(sql, (self.name, kind, name)).rowcount > 0

    def _one(self, sql: str, *values: Any) -> Any:
        with self.store.reading() as con:
            return con.execute(sql, (self.name, *values)).fetchone()

    def _all(self, sql: str, *values: Any) -> list[Any]:
        with self.store.reading() as con:
            return con.execute(sql, (self.name, *values)).fetchall()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _set_up(con: sqlite3.Connection) -> None:
    """Makes the tables of a new file. Waits for another process that does so at the same time.

    SQLite itself does not wait when a file becomes one with a write-ahead log.
    """
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            con.execute("PRAGMA journal_mode=WAL")
            con.execute("PRAGMA synchronous=FULL")  # an answered call outlives a loss of power
            con.executescript(TABLES)
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


@contextlib.contextmanager
def _as_store_error(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:  # busy, full, damaged
        raise StoreError(f"{path}: {error}") from error
