"""Requests from rows of a file, or from Python: users, their histories and instructions.

A file is JSON lines, Parquet or CSV, with one row for each request:

    user_id       needed; the output holds it as text
    instruction   in plain words; the default of the parser if it is missing
    history       a list, oldest first, of item_ids or of objects {item_id, timestamp, session_id};
                  an object needs only item_id; in CSV the list is JSON text
    timestamp     the time of the request; if it is missing, a day after the training log and the
                  history
    ...           any other column is part of the profile, as in the users table of the training
"""

from __future__ import annotations

import csv
import dataclasses
import decimal
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int32, Int64

from sigma_jax.data.config import TextConfig
from sigma_jax.data.times import unix_time
from sigma_jax.schema import (
    DAY,
    Catalogue,
    Histories,
    PreparedData,
    RequestBatch,
    Requests,
    Users,
)

DEFAULT_INSTRUCTION = "recommend something for me"  # a wording of training
COLUMNS = ("user_id", "instruction", "history", "timestamp")
IDS = 100_000  # item ids held in Python at a time
READ = 1_000  # rows of Parquet read together


class ItemIndex:
    """Finds the number of an item by its id.

    The ids of a large catalogue are not held as Python strings. A binary search over their hashes
    finds a few rows of the table, and the ids of these rows are compared.
    """

    def __init__(self, catalogue: Catalogue):
        self._ids = catalogue.table["item_id"]
        parts = (self._ids[start : start + IDS] for start in range(0, len(self._ids), IDS))
        hashes = (hash(name) for part in parts for name in part.to_pylist())
        hashes = np.fromiter(hashes, np.int64, len(self._ids))
        self._order = np.argsort(hashes, kind="stable").astype(np.int32)
        self._hashes = hashes[self._order]
        self._known: dict[str, int] = {}  # a few items have most of the events

    def find(self, name: str) -> int | None:
        """The number of an item; None if it is unknown."""
        key = np.int64(hash(name))
        first = int(np.searchsorted(self._hashes, key))
        last = int(np.searchsorted(self._hashes, key, "right"))
        numbers = self._order[first:last].tolist()
        return next((n for n in numbers if self._ids[n].as_py() == name), None)

    def __call__(self, item_id: Any, where: str) -> int:
        """The number of an item. ValueError if it is unknown; the message begins with `where`."""
        name = as_text(item_id)
        number = self._known.get(name)
        if number is None:
            number = self.find(name)
        if number is None:
            raise ValueError(
                f"{where}: item {item_id!r} is not in the catalogue; leave it out or add it with "
                "`python -m sigma_jax.catalogue add`."
            )
        if len(self._known) < IDS:
            self._known[name] = number
        return number


def as_text(value: Any) -> str:
    """A value as text; 7.0 becomes "7", since a column of integers with gaps arrives as floats."""
    is_number = isinstance(value, float | decimal.Decimal)
    if is_number and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value)


def is_missing(value: Any) -> bool:
    """Whether a value is None or NaN, which stands for a gap in a column of numbers."""
    is_number = isinstance(value, float | decimal.Decimal)
    return value is None or (is_number and not math.isfinite(value))


def users_of(ids: Sequence[str], profiles: Sequence[str]) -> Users:
    """A users table of these ids and profiles."""
    columns = {"user_id": ids, "profile": profiles}
    return Users(
        pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})
    )


@dataclasses.dataclass(frozen=True)
class RequestParser:
    """Turns rows of a file, or dicts with the same columns, into a RequestBatch."""

    item_index: ItemIndex  # of the items that histories may hold
    text: TextConfig  # how columns of the profile become text
    has_instructions: bool  # False: the network was trained without instructions and gets none
    default_instruction: str  # of a row without one
    now: int  # end of the log in unix seconds, for events without a timestamp; 0: it has no times
    has_sessions: bool  # False: each event is a session, as in leave-one-out training
    session_gap: int  # seconds between events of a session where sessions have no ids; 0: none
    known: PreparedData | None  # users whose stored history and profile a row may rely on

    def read(self, path: str, rows: int) -> Iterator[RequestBatch]:
        """The requests of the file at `path`, in order, at most `rows` in a batch.

        Raises:
          ValueError: the file cannot be read, a row has no user_id, or a history holds an unknown
            item. The message names the row.
        """
        numbered = enumerate(file_rows(Path(path)), 1)
        while part := list(itertools.islice(numbered, rows)):
            yield self._parse(part, path)

    def parse(self, rows: Sequence[Mapping[str, Any]], name: str = "requests") -> RequestBatch:
        """The requests of `rows`, which have the columns of a file. ValueError as in `read`.

        Args:
          name: stands for the path of the file in messages.
        """
        return self._parse(list(enumerate(map(dict, rows), 1)), name)

    def _parse(self, numbered: Sequence[tuple[int, dict[str, Any]]], path: str) -> RequestBatch:
        parsed = [self._row(row, f"{path}: row {number}") for number, row in numbered]
        lengths = np.array([len(row.item) for row in parsed], np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ends = offsets[1:] - 1  # the last entry of a row is the request itself
        none = np.full(len(parsed), -1, np.int32)
        columns = (
            np.concatenate([np.zeros(0, kind), *(getattr(row, name) for row in parsed)])
            for name, kind in (("item", np.int32), ("time", np.int64), ("session", np.int32))
        )
        item, time, session = columns
        histories = Histories(
            item.astype(np.int32),
            time.astype(np.int64),
            session.astype(np.int32),
            offsets,
            ends,
            ends,
        )
        requests = Requests(
            np.arange(len(parsed), dtype=np.int32),
            ends,
            none,
            none,
            none,
            [row.instruction for row in parsed],
        )
        users = users_of([row.user_id for row in parsed], [row.profile for row in parsed])
        return RequestBatch(requests, histories, users)

    def _row(self, row: dict[str, Any], where: str) -> ParsedRow:
        """The history of a row, and behind it an entry with the time of the request."""
        if is_missing(row.get("user_id")) or not as_text(row["user_id"]).strip():
            raise ValueError(f"{where}: user_id is empty or missing; fill it or delete the row.")
        user_id = as_text(row["user_id"])
        profile = profile_of(row, self.text)
        given = row.get("instruction")
        instruction = "" if is_missing(given) else as_text(given).strip()
        check_text(user_id + profile + instruction, where)
        given = row.get("timestamp")
        timestamp = None if is_missing(given) or given == "" else unix_time(given, where)
        stored = self._stored(user_id, row)
        if stored is not None:
            item, time, session, known_profile = stored
            profile = profile or known_profile
            latest, number = int(time.max(initial=0)), int(session.max(initial=-1)) + 1
        else:
            now = self.now if timestamp is None else min(self.now, timestamp - DAY)
            timed = dataclasses.replace(self, now=now)
            sessions = sessions_of(events_of(row.get("history"), timed, where), self.session_gap)
            item = [item for _, items in sessions for item in items]
            time = [when for when, items in sessions for _ in items]
            session = [place for place, (_, items) in enumerate(sessions) for _ in items]
            latest, number = max((when for when, _ in sessions), default=0), len(sessions)
        return ParsedRow(
            user_id,
            profile,
            (instruction or self.default_instruction) if self.has_instructions else "",
            np.append(item, 0),
            np.append(time, request_time(timestamp, latest, self.now, where)),
            np.append(session, number),
        )

    def _stored(self, user_id: str, row: Mapping[str, Any]):
        """Items, times, sessions and profile of a known user; None if the row has a history."""
        history = row.get("history")
        is_given = not is_missing(history) and history != ""  # an empty cell of CSV is missing
        if self.known is None or is_given:
            return None
        user = self.known.users.find(user_id)
        if user is None:
            return None
        histories = self.known.histories
        rows = slice(int(histories.offsets[user]), int(histories.offsets[user + 1]))
        profile = self.known.users.table["profile"][user].as_py() or ""
        columns = (histories.item, histories.time, histories.session)
        return (*(np.asarray(column[rows]) for column in columns), profile)


@dataclasses.dataclass(frozen=True)
class ParsedRow:
    """One row of a file: a user's history of n events, and the request behind it."""

    user_id: str
    profile: str
    instruction: str
    item: Int32[np.ndarray, " n+1"]
    time: Int64[np.ndarray, " n+1"]
    session: Int32[np.ndarray, " n+1"]


def file_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file as dicts. ValueError if it cannot be read."""
    remedy = "save it as UTF-8 CSV, JSON lines or Parquet"
    try:
        match path.suffix:
            case ".parquet":
                for batch in pq.ParquetFile(path).iter_batches(READ):
                    yield from batch.to_pylist()
            case ".csv":
                with path.open(encoding="utf-8-sig", newline="") as file:
                    yield from csv.DictReader(file)
            case ".jsonl":
                with path.open(encoding="utf-8") as file:
                    yield from (json_row(line, n) for n, line in enumerate(file, 1) if line.strip())
            case _:
                raise ValueError(f"it ends in {path.suffix!r}")
    except (ValueError, csv.Error, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read ({error}); {remedy}.") from error


def json_row(line: str, number: int) -> dict[str, Any]:
    """The JSON object of a line, with None for NaN. ValueError if it is no object."""
    try:
        row = json.loads(line, parse_constant=lambda _: None)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is no JSON object")
    return row


def check_text(text: str, where: str) -> None:
    """ValueError for a lone surrogate ("\\ud800"), which JSON can escape but no file holds."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: it holds {error.object[error.start]!r}, which is no text; delete it."
        ) from None


def profile_of(row: Mapping[str, Any], config: TextConfig) -> str:
    """The profile of a row: JSON of its other columns, as in data/text.py; "" without any."""
    shown = {}
    for name, value in row.items():
        if name in COLUMNS or name is None or is_missing(value):
            continue
        if isinstance(value, list):
            value = ", ".join(map(as_text, value))
        if isinstance(value, bool) or not isinstance(value, int | float):
            value = str(value).strip()[: config.max_chars] or None
        if value is not None:
            shown[name] = value
    return json.dumps(shown, ensure_ascii=False) if shown else ""


@dataclasses.dataclass(frozen=True)
class Event:
    """An event of a history."""

    item: int
    time: int  # unix seconds
    session: Any  # id of its session; None: unknown
    is_timed: bool = True  # False: `time` stands in for a missing timestamp


def events_of(history: Any, parser: RequestParser, where: str) -> list[Event]:
    """The events of a history, in the order of the row."""
    if isinstance(history, str):
        try:
            history = json.loads(history) if history.strip() else []
        except ValueError:
            raise ValueError(f'{where}: history is no JSON list; write ["id", ...].') from None
    if history is not None and not isinstance(history, list):
        raise ValueError(f'{where}: history is no list; write ["id", ...].')
    events = []
    for entry in history or []:
        entry = entry if isinstance(entry, Mapping) else {"item_id": entry}
        if is_missing(entry.get("item_id")):
            raise ValueError(f"{where}: an entry of history has no item_id; add it.")
        given = entry.get("timestamp")
        is_timed = not is_missing(given)
        time = unix_time(given, where) if is_timed else parser.now
        session = entry.get("session_id") if parser.has_sessions else None
        number = parser.item_index(entry["item_id"], where)
        session = None if is_missing(session) else as_text(session)
        events.append(Event(number, time, session, is_timed))
    return events


def sessions_of(events: Sequence[Event], gap: int) -> list[tuple[int, list[int]]]:
    """Time and items of each session, oldest first, as training has them.

    The time of a session is that of its first event. An item stands in it once, and its items have
    no order. An event without a session id is a session of its own. With `gap` above 0, such events
    join if their timestamps are at most `gap` seconds apart.

    Worked example, gap 0: items 4 3 4 of session "a" at times 9 8 9, and item 7 without a session
    at time 5 -> [(5, [7]), (8, [3, 4])].
    """
    sessions: dict[Any, tuple[int, set[int]]] = {}
    last, alone = None, ()  # of events without a session id; tuples are no ids
    for place, event in enumerate(sorted(events, key=lambda event: event.time)):
        key = event.session
        if key is None:
            is_near = event.is_timed and last is not None and event.time - last <= gap
            key = alone = alone if is_near and gap > 0 else (place,)
            last = event.time if event.is_timed else None
        time, items = sessions.get(key, (event.time, set()))
        sessions[key] = time, items | {event.item}
    return [(time, sorted(items)) for time, items in sessions.values()]


def request_time(given: int | None, latest: int, now: int, where: str) -> int:
    """The time of a request, in unix seconds; 0 where nothing has a time.

    Args:
      given: the row's own timestamp. ValueError if it is before the end of the history.
      latest: time of the last session of its history.
      now: end of the log.
    """
    if given is None:
        latest = max(latest, now)
        return latest + DAY if latest else 0
    if given < latest:
        raise ValueError(f"{where}: its timestamp is before the end of its history; correct one.")
    return given
