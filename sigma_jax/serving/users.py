"""Who asks: a file of users, their histories and what they want.

One row a request, as JSON lines, Parquet or CSV:

    user_id       whose; goes into the output as it is
    instruction   what is wanted, in plain words; the default of the command where it is missing
    history       a list, oldest first, of item_ids, or of {item_id, timestamp, session_id}
                  objects, of which item_id alone is needed; JSON text in CSV
    timestamp     when it is asked; a day after the log of the training and the history where it is
                  missing
    ...           any other column is part of the profile, as in the users table of training
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sigma_jax.data import database, text
from sigma_jax.data.config import TextConfig
from sigma_jax.data.sources.files import open_table
from sigma_jax.schema import Catalogue, Histories, Requests, Users

COLUMNS = ("instruction", "history", "timestamp")
DAY = 86_400
MEMORY = "1GB"  # of the database that reads a file


@dataclasses.dataclass(frozen=True)
class Asked:
    """Some requests: request n is of user n."""

    users: Users
    histories: Histories
    requests: Requests

    def __len__(self) -> int:
        return len(self.requests)


class ItemNumbers:
    """The number of each item by its id."""

    def __init__(self, catalogue: Catalogue):
        ids = catalogue.table["item_id"].to_pylist()
        self.of_id = {name: number for number, name in enumerate(ids)}

    def __call__(self, item_id: Any, where: str) -> int:
        """The number of an item. ValueError naming `where` if it is unknown."""
        number = self.of_id.get(str(item_id))
        if number is None:
            raise ValueError(
                f"{where}: item {item_id!r} is not in the catalogue; leave it out or add it with "
                "`python -m sigma_jax.catalogue add`."
            )
        return number


def users_of(ids: Sequence[str], profiles: Sequence[str]) -> Users:
    """Users of these ids and profiles."""
    columns = {"user_id": ids, "profile": profiles}
    return Users(
        pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})
    )


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the rows of a file are understood."""

    numbers: ItemNumbers  # of the items histories may hold
    text: TextConfig  # how columns of the profile become text
    instruction: str  # where a row says none
    now: int  # unix seconds, of events without a timestamp: the end of the log; 0: it has no times
    has_sessions: bool  # False: each event is a session, as where training leaves out one event
    gap: int  # seconds between events of one session, where sessions have no ids; 0: none are


def read_users(path: str, reading: Reading, rows: int) -> Iterator[Asked]:
    """The requests of the file at `path`, `rows` at a time, in their order.

    ValueError where the file cannot be read, a row has no user_id, or its history holds what is no
    item; the row is named.
    """
    with (
        tempfile.TemporaryDirectory() as scratch,
        database.open_database(Path(scratch), MEMORY, 2) as con,
    ):
        table = open_table(con, path)
        if "user_id" not in table.columns:
            raise ValueError(
                f"{path}: column 'user_id' is missing (found: {', '.join(table.columns)}); add it."
            )
        columns = {name: table[name] for name in ("user_id", *COLUMNS) if name in table.columns}
        profile = text.profile(table, reading.text, COLUMNS)
        with database.reading(path, "save it as UTF-8 CSV, JSON lines or Parquet"):
            first = 0
            for batch in database.batches(con, table.select(**columns, profile=profile)):
                for start in range(0, batch.num_rows, rows):
                    yield read_rows(batch.slice(start, rows), reading, path, first + start)
                first += batch.num_rows


def read_rows(batch: pa.RecordBatch, reading: Reading, path: str, first: int) -> Asked:
    """The requests of a batch, whose rows are `first` and so on of the file."""
    ids, wanted, item, time, session, offsets = [], [], [], [], [], [0]
    for number, row in enumerate(batch.to_pylist(), first + 1):
        where = f"{path}: row {number}"
        if row["user_id"] is None or not str(row["user_id"]).strip():
            raise ValueError(f"{where}: user_id is empty; fill it or delete the row.")
        ids.append(str(row["user_id"]))
        wanted.append((row.get("instruction") or "").strip() or reading.instruction)
        events = events_of(row.get("history"), reading, where)
        sessions = sessions_of(events, reading.gap)
        for place, (when, items) in enumerate(sessions):
            item += items
            time += [when] * len(items)
            session += [place] * len(items)
        # The row behind a history is what a request is for: its time is that of the request.
        item.append(0)
        time.append(request_time(row.get("timestamp"), sessions, reading, where))
        session.append(len(sessions))
        offsets.append(len(item))
    ends = np.array(offsets[1:], np.int64) - 1
    none = np.full(len(ids), -1, np.int32)
    histories = Histories(
        np.array(item, np.int32),
        np.array(time, np.int64),
        np.array(session, np.int32),
        np.array(offsets, np.int64),
        ends,
        ends,
    )
    users = users_of(ids, batch["profile"].to_pylist())
    requests = Requests(np.arange(len(ids), dtype=np.int32), ends, none, none, none, wanted)
    return Asked(users, histories, requests)


@dataclasses.dataclass(frozen=True)
class Event:
    """An entry of a history."""

    item: int
    time: int  # unix seconds
    session: Any  # equal in one session; None: a session of its own


def events_of(history: Any, reading: Reading, where: str) -> list[Event]:
    """The events of a row, as they stand there."""
    if isinstance(history, str):
        try:
            history = json.loads(history) if history.strip() else []
        except ValueError:
            raise ValueError(f'{where}: history is no JSON list; write ["id", ...].') from None
    if history is not None and not isinstance(history, list):
        raise ValueError(f'{where}: history is no list; write ["id", ...].')
    found = []
    for entry in history or []:
        entry = entry if isinstance(entry, Mapping) else {"item_id": entry}
        if entry.get("item_id") is None:
            raise ValueError(f"{where}: an entry of history has no item_id; add it.")
        given = entry.get("timestamp")
        time = reading.now if given is None else unix_time(given, where)
        session = entry.get("session_id") if reading.has_sessions else None
        found.append(Event(reading.numbers(entry["item_id"], where), time, session))
    return found


def sessions_of(events: Sequence[Event], gap: int) -> list[tuple[int, list[int]]]:
    """Time and items of each session, oldest first, as training has them: the time is that of its
    first event, an item stands in it once, and its items have no order.

    Events without a session are one each; of `gap` above 0 those at most so many seconds apart are
    one.

    Worked example: items 4 3 4 of session "a" at 9 8 9 and 7 of none at 5, gap 0 -> [(5, [7]),
    (8, [3, 4])].
    """
    found: dict[Any, tuple[int, set[int]]] = {}
    last = -1
    for place, event in enumerate(sorted(events, key=lambda event: event.time)):
        if event.session is not None:
            key = event.session
        else:
            is_near = gap > 0 and last >= 0 and event.time - last <= gap
            key = key if is_near else (place,)  # a tuple is no session of a file
            last = event.time
        time, items = found.get(key, (event.time, set()))
        found[key] = time, items | {event.item}
    return [(time, sorted(items)) for time, items in found.values()]


def request_time(
    given: Any, sessions: Sequence[tuple[int, list[int]]], reading: Reading, where: str
) -> int:
    """When a row asks, in unix seconds; 0 where nothing has a time."""
    if given is not None:
        return unix_time(given, where)
    latest = max((when for when, _ in sessions), default=0)
    latest = max(latest, reading.now)
    return latest + DAY if latest else 0


def unix_time(value: Any, where: str) -> int:
    """Unix seconds of a number, a date or an ISO 8601 text; without a zone UTC.

    Numbers from 1e11 on are milliseconds, from 1e14 microseconds, as in the log of a training.
    """
    try:
        if isinstance(value, str) and not value.strip().lstrip("-").replace(".", "", 1).isdigit():
            value = datetime.fromisoformat(value.strip())
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        if isinstance(value, datetime):
            return int((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp())
        number = float(value)
        scale = 1e6 if abs(number) >= 1e14 else 1e3 if abs(number) >= 1e11 else 1.0
        return int(number / scale)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(
            f"{where}: timestamp {value!r} is no time; use ISO 8601 or unix seconds."
        ) from None
