"""New rows of a log: read, checked against the prepared data, and numbered as it is."""

from __future__ import annotations

import dataclasses

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int, Int32, Int64

from sigma_jax.data import database, splits
from sigma_jax.data.config import SplitConfig, TextConfig
from sigma_jax.data.sources.added import PLAIN, AddedFiles
from sigma_jax.data.tables import Checker, Tables
from sigma_jax.histories import rows_of_ranges
from sigma_jax.runtime.artifacts import Manifest
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.schema import Catalogue, Histories, PreparedData


class NoNewRowsError(ValueError):
    """A file has nothing that the known log lacks. A job of every day may meet it."""


@dataclasses.dataclass(frozen=True)
class LogSettings:
    """Settings of the first preparation that new rows must follow."""

    split: SplitConfig
    text: TextConfig
    events: tuple[str, ...]
    unknown_items: str
    min_item_count: int
    has_sessions: bool  # whether a session can hold several interactions

    @classmethod
    def of(cls, manifest: Manifest) -> LogSettings:
        """The settings of prepared data, by its manifest."""
        data = manifest.config["data"]
        return cls(
            to_dataclass(SplitConfig, data["split"], "split"),
            to_dataclass(TextConfig, data["text"], "text"),
            tuple(data["events"]),
            data["unknown_items"],
            data["min_item_count"],
            manifest.metrics["sessions_hold_several_items"],
        )


@dataclasses.dataclass(frozen=True)
class NewRows:
    """New interactions, sorted by user, session and item or time; new users and new items.

    User and item numbers go on from those of the data. Session 0 is the first new one of a user.
    """

    user_ids: list[str]  # of the new users, whose numbers follow those of the known ones
    items: pa.Table  # item_id, text, title, category of the new items
    user: Int32[np.ndarray, " n"]
    item: Int32[np.ndarray, " n"]
    time: Int64[np.ndarray, " n"]  # unix seconds
    session: Int32[np.ndarray, " n"]
    counts: dict[str, int]  # by kind, for the report of the refresh


@dataclasses.dataclass(frozen=True)
class NewItems:
    """The rows of a table of items, apart: items that the catalogue lacks, and the others."""

    items: pa.Table  # item_id, text, title, category of the items that the catalogue lacks
    places: Int64[np.ndarray, " n"]  # of these items in the table
    known: int  # number of the other rows
    changed: int  # number of those whose text is another than that of the catalogue

    @classmethod
    def of(cls, table: pa.Table, catalogue: Catalogue) -> NewItems:
        """The items of `table`, with the columns of `catalogue_update.read_items`."""
        known = catalogue.table["item_id"]
        place = pc.index_in(table["item_id"].cast(known.type), value_set=known.combine_chunks())
        is_new = pc.is_null(place)
        old = table.filter(pc.invert(is_new))
        texts = catalogue.table["text"].take(place.drop_null())
        changed = pc.sum(pc.not_equal(old["text"].cast(texts.type), texts)).as_py() or 0
        places = np.flatnonzero(is_new.to_numpy())
        return cls(table.filter(is_new), places, old.num_rows, int(changed))


def read_rows(
    con: ibis.BaseBackend,
    path: str,
    items: NewItems,
    before: PreparedData,
    log: LogSettings,
    late_rows: str,
    unknown_items: str,
    added: AddedFiles = PLAIN,
) -> NewRows:
    """The interactions of the file at `path`, after those of `before`.

    Rows that `before` has already are dropped and counted.

    Args:
      con: a database for the work.
      items: new items, beside those of `before`.
      log: of the preparation of `before`.
      late_rows, unknown_items: as in RefreshConfig.
      added: how the file becomes a table.

    Raises:
      NoNewRowsError: there is no row, or all rows are known.
      ValueError: a row breaks a rule of data/tables.py, or is from before the end of `before`.
    """
    all_items, known_users = _known_tables(con, before, items.items)
    tables = _tables(con, path, all_items, added)
    interactions, dropped = _checked(con, tables, log, unknown_items)
    users, user_ids = _with_new_users(con, interactions, known_users, before.histories.num_users)
    has_ids = bool(con.to_pyarrow(interactions["session_id"].notnull().any()).as_py())
    events = splits.number_events(con, interactions, all_items, users, has_ids and log.has_sessions)
    events = database.save(con, "numbered", events)
    events, counts = _without_known(con, path, events, before, log.has_sessions, late_rows)
    num_rows = database.count(con, events)
    if not num_rows:
        late = f", {counts['late_rows']} come too late" if counts["late_rows"] else ""
        raise NoNewRowsError(
            f"{path} has no row after the known log ({counts['known_rows']} rows are known "
            f"already{late}), so the recommender stays as it is."
        )
    ordered, _ = splits.with_sessions(con, events, log.split)
    ordered = database.save(con, "ordered", ordered).order_by("user", "place")
    dtypes = {"user": np.int32, "item": np.int32, "time": np.int64, "session": np.int32}
    arrays = database.columns(con, ordered, dtypes, database.count(con, ordered))
    counts |= {
        "rows": len(arrays["user"]),
        "users": len(np.unique(arrays["user"])),
        "new_users": len(user_ids),
        "new_items": items.items.num_rows,
        "known_items": items.known,
        "known_items_with_another_text": items.changed,
        "rows_of_unknown_items": dropped,
    }
    return NewRows(user_ids, items.items, **arrays, counts=counts)


def _checked(
    con: ibis.BaseBackend, tables: Tables, log: LogSettings, unknown_items: str
) -> tuple[ir.Table, int]:
    """The checked interactions of `tables`, and the number of rows with unknown items."""
    # With a least count, the catalogue lacks items that the first log had.
    may_drop = "drop" in (unknown_items, log.unknown_items) or log.min_item_count > 0
    columns = tables.interactions.columns
    is_by_id = log.has_sessions and log.split.session_gap_seconds == 0
    if is_by_id and "session_id" not in columns:
        raise ValueError(
            f"{tables.names['interactions']}: column 'session_id' is missing (found: "
            f"{', '.join(columns)}); add it, since the first log has it."
        )
    policy = "drop" if may_drop else "error"
    checker = Checker(con, tables, policy, log.text.max_chars, "unknown_items")
    return checker.interactions(tables.items, log.events), checker.dropped.get("interactions", 0)


def _known_tables(
    con: ibis.BaseBackend, before: PreparedData, new: pa.Table
) -> tuple[ir.Table, ir.Table]:
    """(item_id and item of all items with the new ones, user_id and user of the known users)."""
    known = before.catalogue.table["item_id"]
    ids = pa.chunked_array([*known.chunks, *new["item_id"].cast(known.type).chunks], known.type)
    numbers = pa.array(np.arange(len(ids), dtype=np.int32))
    items = database.from_arrow(con, "all_items", pa.table({"item_id": ids, "item": numbers}))
    ids = before.users.table["user_id"]
    numbers = pa.array(np.arange(len(ids), dtype=np.int32))
    users = database.from_arrow(con, "known_users", pa.table({"user_id": ids, "user": numbers}))
    return items, users


def _tables(con: ibis.BaseBackend, path: str, items: ir.Table, added: AddedFiles) -> Tables:
    """The tables of a source that has the interactions at `path` alone.

    Raises:
      NoNewRowsError: there is no row.
    """
    opened = added.open(con, "interactions", path)
    sizes = [rows for _, rows in opened.sizes] or [database.count(con, opened.table)]
    if not any(sizes):
        raise NoNewRowsError(f"{path} has no rows, so the recommender stays as it is.")
    return Tables(
        items=items,
        interactions=opened.table,
        names={"items": "the catalogue", "interactions": opened.name},
        files={},
        has_times=True,
        has_composed_searches=False,
        parts={"interactions": opened.sizes},
        notes=opened.notes,
    )


def _with_new_users(
    con: ibis.BaseBackend, interactions: ir.Table, known: ir.Table, count: int
) -> tuple[ir.Table, list[str]]:
    """(user_id and user of known and new users, ids of the new ones in order of their numbers)."""
    ids = interactions.select("user_id").distinct().anti_join(known, "user_id")
    order = (ids["user_id"].length(), ids["user_id"])
    number = (ibis.row_number().over(order_by=order) + count).cast("int32")
    new = database.save(con, "new_users", ids.mutate(user=number))
    names = con.to_pyarrow(new.order_by("user").select("user_id"))["user_id"].to_pylist()
    users = known.select("user_id", "user").union(new.select("user_id", "user"))
    return database.save(con, "users", users), names


def _without_known(
    con: ibis.BaseBackend,
    path: str,
    events: ir.Table,
    before: PreparedData,
    has_sessions: bool,
    late_rows: str,
) -> tuple[ir.Table, dict[str, int]]:
    """The rows that `before` lacks, and how many were dropped. ValueError for a late row."""
    end = int(np.max(before.histories.time, initial=0))
    early = events.filter(events["time"] <= end)
    dtypes = {"user": np.int32, "item": np.int32, "time": np.int64, "source_row": np.int64}
    rows = database.columns(con, early, dtypes, database.count(con, early))
    known = is_known(before.histories, rows["user"], rows["item"], rows["time"], has_sessions)
    is_late = ~known & (rows["time"] < end)
    if late_rows == "error" and is_late.any():
        row = np.argmin(np.where(is_late, rows["source_row"], np.iinfo(np.int64).max))
        raise ValueError(
            f"{path}: row {rows['source_row'][row] + 1}: timestamp={rows['time'][row]} (unix "
            f"seconds) is before {end}, the end of the known log ({is_late.sum()} such rows); give "
            "newer rows, or drop these with --config.late_rows=drop."
        )
    dropped = pa.table({"source_row": rows["source_row"][known | is_late]})
    dropped = database.from_arrow(con, "dropped_rows", dropped)
    counts = {"known_rows": int(known.sum()), "late_rows": int(is_late.sum())}
    return database.save(con, "new_events", events.anti_join(dropped, "source_row")), counts


def is_known(
    histories: Histories,
    user: Int[np.ndarray, " n"],
    item: Int[np.ndarray, " n"],
    time: Int[np.ndarray, " n"],
    has_sessions: bool,
) -> Bool[np.ndarray, " n"]:
    """Whether the histories have an interaction of each user with an item at some time.

    Interactions of a session have one time, that of its start. So the session is the last one that
    starts at the time or before it.

    Args:
      user: of known and of new users.
      has_sessions: whether a session can hold several interactions.
    """
    found = np.zeros(len(user), bool)
    has_rows = user < histories.num_users
    chosen, place = np.unique(user[has_rows], return_inverse=True)
    starts, ends = (np.asarray(histories.offsets)[chosen + step] for step in (0, 1))
    rows = rows_of_ranges(starts, ends)
    if not len(rows):
        return found
    owner = np.repeat(np.arange(len(chosen), dtype=np.int64), ends - starts)
    # Users and times in one ascending number: a user's rows lie together and ascend in time.
    times, number = np.unique(
        np.concatenate([histories.time[rows], time[has_rows]]), return_inverse=True
    )
    key = owner * len(times) + number[: len(rows)]
    wanted = place * len(times) + number[len(rows) :]
    last = np.maximum(np.searchsorted(key, wanted, side="right") - 1, 0)
    group = owner * (int(histories.session[rows].max()) + 1) + histories.session[rows]
    is_possible = owner[last] == place
    if not has_sessions:  # several interactions may have one time
        group, is_possible = key, key[last] == wanted
    is_possible &= key[last] <= wanted
    asked, last = np.flatnonzero(has_rows)[is_possible], last[is_possible]
    first = np.searchsorted(group, group[last], side="left")
    inside = rows_of_ranges(first, last + 1)
    of_row = np.repeat(np.arange(len(asked)), last + 1 - first)
    is_item = histories.item[rows[inside]] == item[asked[of_row]]
    found[asked] = np.bincount(of_row, is_item, len(asked)) > 0
    return found
