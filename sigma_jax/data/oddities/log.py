"""Notes on the interactions: times, events, repeats, and one item or user with most of them."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ibis
import ibis.expr.types as ir

from sigma_jax.data import database
from sigma_jax.data.times import DAYS, SCALES

SPREADSHEET_DAYS = (20_000, 80_000)  # 1954 to 2119, in days since 1899-12-30
YEAR = 365 * 86_400
FUTURE = 86_400  # seconds that clocks and zones may differ by
EARLY = 788_918_400  # 1995-01-01: a log that ends before counts from another year than 1970
_DOMINANT = 0.5  # share of the interactions that one item has
_BUSY_SHARE, _BUSY_TIMES = 0.05, 20  # a user with this share, and so many times the average
_ROUNDED = r"^[0-9]([.,][0-9]{1,5})?[eE][+][0-9]{2}$"  # a time that a spreadsheet has rounded
_SHOWN = 5  # values of a column that a note names


def time_notes(con: ibis.BaseBackend, file: str, table: ir.Table) -> list[str]:
    """Notes on times that may have another unit, stand for "no time", or lie in the future.

    Args:
      con: the database.
      file: of the interactions.
      table: `time` in unix seconds, and `given` as in the source.
    """
    seconds, given = table["time"], table["given"]
    kind = given.type()
    number, is_rounded = ibis.null("float64"), ibis.literal(False)
    if kind.is_numeric() or kind.is_string():
        number = given.try_cast("float64")
    if kind.is_string():
        is_rounded = given.contains("+") & given.re_search(_ROUNDED)
    size = number.abs()
    bounds = [float("inf"), *(smallest for smallest, _ in SCALES), 0.0]
    counts = {
        unit: table.count(where=(size < high) & (size >= low))
        for unit, high, low in zip(_UNITS, bounds[:-1], bounds[1:], strict=True)
    }
    found = database.rows(
        con,
        table.aggregate(
            rows=table.count(),
            last=seconds.max(),
            first=seconds.min(),
            spreadsheet_days=table.count(where=number.between(*SPREADSHEET_DAYS).fill_null(False)),
            # A day that is read as seconds: the column holds other numbers too.
            days=table.count(where=number.between(*DAYS) & (seconds == number)),
            later=table.count(where=(number > DAYS[1]) & (seconds > YEAR)),
            future=table.count(where=seconds > int(time.time()) + FUTURE),
            past=table.count(where=seconds < 0),
            zero=table.count(where=(seconds >= 0) & (seconds < YEAR)),
            rounded=table.count(where=is_rounded),
            **counts,
        ),
    )[0]
    return [f"{file}: {note}" for note in _time_notes(found)] if found["rows"] else []


_UNITS = ("nanoseconds", "microseconds", "milliseconds", "seconds")


def _time_notes(found: Mapping[str, Any]) -> list[str]:
    rows, first, last = found["rows"], found["first"], found["last"]
    notes = []
    if rows > 1 and first == last:
        notes.append("all timestamps are equal; the order of the interactions is not known")
    if found["spreadsheet_days"] == rows and first < last:
        notes.append(
            "all timestamps are numbers from 20,000 to 80,000, read as seconds of 1970; "
            "if they are days of a spreadsheet, write them as dates"
        )
    elif 0 < last < YEAR:
        notes.append(
            "all timestamps lie in 1970; if they do not count seconds, write them as dates"
        )
    elif YEAR <= last < EARLY:
        begin, end = (datetime.date(1970, 1, 1) + datetime.timedelta(0, t) for t in (first, last))
        notes.append(
            f"all timestamps lie before 1995, from {begin} to {end}; numbers are read as counted "
            "from 1970: write them as dates if they count from another year or in another unit"
        )
    elif last >= EARLY and found["zero"] > found["days"]:
        notes.append(
            f"{found['zero']} timestamps lie in 1970 and others later; programs write 0 for no "
            "time: delete such rows, or correct their unit"
        )
    if found["days"] and found["later"]:
        notes.append(
            f"{found['days']} timestamps look like days such as 20240501, but are read as seconds "
            "of 1970, because the column holds other numbers; write all of them in one way"
        )
    if found["rounded"]:
        notes.append(
            f"{found['rounded']} timestamps are rounded to a few digits, such as 1.71E+09, as "
            "spreadsheets do; format the column as a number there, and export it again"
        )
    if found["future"]:
        notes.append(f"{found['future']} timestamps lie in the future; check their unit")
    if found["past"]:
        notes.append(f"{found['past']} timestamps lie before 1970; check their unit")
    mixed = [f"{found[unit]} of {unit}" for unit in _UNITS if found[unit]]
    if len(mixed) > 1:
        notes.append(
            f"timestamps have several units by their size: {', '.join(mixed)}; check that "
            "each is right"
        )
    return notes


def event_notes(
    con: ibis.BaseBackend, file: str, event: ir.StringValue, table: ir.Table, kept: Sequence[str]
) -> list[str]:
    """Notes on rows whose event is not among those to keep, and on events that no row has.

    Args:
      event: a column of `table`.
      kept: of data.events.
    """
    counts = table.group_by(event=event).agg(rows=table.count())
    counts = counts.mutate(kind=counts["event"].isin(kept).fill_null(False))
    total = counts.group_by("kind").agg(rows=counts["rows"].sum())
    dropped = {row["kind"]: row["rows"] for row in database.rows(con, total)}.get(False, 0)
    seen = {row["event"] for row in database.rows(con, counts.filter(counts["kind"]))}
    largest = counts.filter(~counts["kind"]).order_by(ibis.desc("rows"), "event")
    others = database.rows(con, largest.select("event", "rows").limit(100))
    notes = []
    if dropped:
        shown = ", ".join(f"{row['rows']} of {row['event']!r}" for row in others[:_SHOWN])
        notes.append(
            f"{file}: {dropped} rows are left out, because data.events does not list their event: "
            f"{shown}{', ...' if len(others) > _SHOWN else ''}"
        )
    for name in kept:
        alike = [row for row in others if row["event"] and _plain(row["event"]) == _plain(name)]
        if alike:
            notes.append(
                f"{file}: data.events lists {name!r}, but {alike[0]['rows']} rows have "
                f"{alike[0]['event']!r}, which are left out; list it too, or write both the same "
                "way"
            )
        elif name not in seen:
            notes.append(f"{file}: no row has the event {name!r} of data.events; correct its name")
    return notes


def _plain(event: str) -> str:
    text = event.strip().casefold()
    return text.removesuffix(".0")


def repeat_notes(con: ibis.BaseBackend, file: str, interactions: ir.Table) -> list[str]:
    """A note if rows are equal to another row. In one session they count once, without a note.

    Args:
      interactions: user_id, item_id, time, event and session_id.
    """
    rows = interactions.filter(interactions["session_id"].isnull())
    rows = rows.select("user_id", "item_id", "time", "event")
    repeats = database.count(con, rows) - database.count(con, rows.distinct())
    if not repeats:
        return []
    return [
        f"{file}: {repeats} rows are equal to another row in user, item, time and event; remove "
        "them if the log was exported twice"
    ]


def dominant_item(con: ibis.BaseBackend, file: str, interactions: ir.Table) -> list[str]:
    """A note if one item has most of the interactions."""
    counts = interactions.group_by("item_id").agg(rows=interactions.count())
    counts = counts.mutate(total=counts["rows"].sum().over(ibis.window()))
    found = database.rows(con, counts.order_by(ibis.desc("rows"), "item_id").limit(1))
    if not found or found[0]["rows"] <= _DOMINANT * found[0]["total"]:
        return []
    share = 100 * found[0]["rows"] // found[0]["total"]
    return [
        f"{file}: item_id={found[0]['item_id']!r} has {share} per cent of the interactions; "
        "lists of popular items are as good as any"
    ]


def dominant_user(con: ibis.BaseBackend, file: str, interactions: ir.Table) -> list[str]:
    """A note if one user has far more interactions than others, as visitors without a login do."""
    counts = interactions.group_by("user_id").agg(rows=interactions.count())
    everyone = ibis.window()
    counts = counts.mutate(
        total=counts["rows"].sum().over(everyone), users=counts.count().over(everyone)
    )
    found = database.rows(con, counts.order_by(ibis.desc("rows"), "user_id").limit(1))
    if not found or found[0]["users"] < 3:
        return []
    rows, total, users = (found[0][name] for name in ("rows", "total", "users"))
    is_busy = rows > _BUSY_SHARE * total and rows * users > _BUSY_TIMES * total
    if rows <= _DOMINANT * total and not is_busy:
        return []
    return [
        f"{file}: user_id={found[0]['user_id']!r} has {100 * rows // total} per cent of the "
        "interactions; if it stands for visitors without a login, delete its rows"
    ]
