"""Histories: numbers interactions, groups them into sessions, sorts them, and sets targets apart.

| kind | test target of a user | validation target |
|---|---|---|
| leave_one_out | the last interaction | the interaction before it |
| leave_last_session_out | the last session | the session before it |
| by_time | the first session from `test_from` on | the first from `valid_from` to `test_from` |

- leave_one_out takes every interaction as a session. Interactions of one time keep the order of
  the source.
- The other kinds take sessions by session_id; without one, by gaps in time. The interactions of a
  session get one time and no order. They are sorted by item, and repeats of an item count once.
- A user with fewer than three sessions has no target; all rows are training. By time, this holds
  for a user without a session from `valid_from` on.
- By time, a user can have a test target only. Then valid_start equals test_start, and the rows
  before are training.
"""

from __future__ import annotations

from pathlib import Path

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

from sigma_jax.data import database
from sigma_jax.data.config import SplitConfig
from sigma_jax.data.engines.dialect import last_edge
from sigma_jax.data.tables import unix_seconds
from sigma_jax.schema import DAY, Histories

RANGE_ROWS = 2_000_000  # rows that are numbered together


def number_items(con: ibis.BaseBackend, texts: ir.Table, name: str) -> ir.Table:
    """`texts` with column item: the numbers of the catalogue, in the order of the source.

    Args:
      name: of the table that is saved.
    """
    return number_rows(con, name, texts, "item", ("source_row",))


def number_rows(
    con: ibis.BaseBackend, name: str, rows: ir.Table, column: str, order: tuple[str, ...]
) -> ir.Table:
    """The saved table `name`: `rows` with their numbers from 0, int32, in the order of `order`.

    Ranges of the order are numbered apart, so that no machine sorts all rows. A sample draws the
    borders of the ranges; the numbers do not depend on it.

    Args:
      order: columns without nulls, unique together; the strongest comes first.
    """
    ranges = -(-database.count(con, rows) // RANGE_ROWS)
    if ranges <= 1:
        number = ibis.row_number().over(order_by=[rows[key] for key in order])
        return database.save(con, name, rows.mutate(**{column: number.cast("int32")}))
    keys = rows.select(*order).sample(min(1.0, 100.0 / RANGE_ROWS))
    found = sorted({tuple(row.values()) for row in database.rows(con, keys)})
    borders = [found[len(found) * part // ranges] for part in range(1, ranges)] if found else []
    borders = sorted(set(borders))

    def is_before(border: tuple) -> ir.BooleanValue:
        before = ibis.literal(False)
        for key, value in reversed(list(zip(order, border, strict=True))):
            before = (rows[key] < value) | ((rows[key] == value) & before)
        return before

    parts = rows.mutate(part=last_edge(borders, is_before))
    parts = database.save(con, f"{name}_parts", parts)
    sizes = {
        row["part"]: row["rows"]
        for row in database.rows(con, parts.group_by("part").agg(rows=parts.count()))
    }
    firsts = np.cumsum([0] + [sizes[part] for part in sorted(sizes)])[:-1].tolist()
    cases = [
        (parts["part"] == part, ibis.literal(first, "int64"))
        for part, first in zip(sorted(sizes), firsts, strict=True)
    ]
    inside = ibis.row_number().over(group_by=parts["part"], order_by=[parts[key] for key in order])
    number = ibis.cases(*cases, else_=ibis.literal(0, "int64")) + inside
    numbered = parts.mutate(**{column: number.cast("int32")}).drop("part")
    saved = database.save(con, name, numbered)
    con.drop_table(f"{name}_parts")
    return saved


def frequent_items(interactions: ir.Table, key: str, min_count: int) -> ir.Table:
    """Column `key` of the items with at least `min_count` interactions."""
    counts = interactions.group_by(key).agg(rows=interactions.count())
    return counts.filter(counts["rows"] >= min_count).select(key)


def number_users(
    con: ibis.BaseBackend, interactions: ir.Table, profiles: ir.Table | None
) -> ir.Table:
    """user, user_id and profile of the users of both tables, in the order of their ids.

    A shorter id comes first, so that 9 precedes 10.
    """
    ids = interactions.select("user_id").distinct()
    if profiles is None:
        users = ids.mutate(profile=ibis.literal(""))
    else:
        users = ids.union(profiles.select("user_id"), distinct=True).left_join(profiles, "user_id")
        users = users.select("user_id", profile=ibis.coalesce(users["profile"], ""))
    users = database.save(con, "user_ids", users.mutate(length=users["user_id"].length()))
    return number_rows(con, "users", users, "user", ("length", "user_id")).drop("length")


def number_events(
    con: ibis.BaseBackend, interactions: ir.Table, items: ir.Table, users: ir.Table, by_id: bool
) -> ir.Table:
    """user, item, time, source_row (and session_id if `by_id`) of the interactions.

    Interactions with items outside the catalogue are dropped.
    """
    events = interactions.inner_join(items.select("item_id", "item"), "item_id")
    events = events.inner_join(users.select("user_id", "user"), "user_id")
    columns = ["user", "item", "time", "source_row"] + (["session_id"] if by_id else [])
    return events.select(*columns)


def with_sessions(
    con: ibis.BaseBackend, events: ir.Table, config: SplitConfig
) -> tuple[ir.Table, bool]:
    """The interactions in sessions, and whether a session can hold several interactions.

    Returns:
      user, session, item, time, and place: the number of the row within the user's history.
      True if sessions are by id or by gap; False if every interaction is a session.
    """
    by_id = "session_id" in events.columns
    by_gap = config.session_gap_seconds > 0
    if config.kind == "leave_one_out" or not (by_id or by_gap):
        order = ibis.window(group_by="user", order_by=["time", "source_row"])
        place = ibis.row_number().over(order).cast("int32")
        return events.select("user", "item", "time", session=place, place=place), False
    if not by_id:
        order = ibis.window(group_by="user", order_by=["time", "source_row"])
        gap = events["time"] - events["time"].lag().over(order)
        starts = (gap > config.session_gap_seconds).fill_null(False).cast("int32")
        events = events.mutate(starts=starts)
        # The order is by time only: interactions of one second share a session in any row order.
        total = ibis.range_window(group_by="user", order_by="time", preceding=None, following=0)
        events = events.mutate(session_id=events["starts"].sum().over(total).cast("string"))
    inside = ibis.window(group_by=["user", "session_id"])
    events = events.mutate(time=events["time"].min().over(inside))
    # Sessions of one time are sorted by the number of their id, so that 9 precedes 10.
    number = ibis.cases(
        (events["session_id"].re_search("^[0-9]{1,18}$"), events["session_id"].try_cast("int64")),
        else_=ibis.null("int64"),
    )
    length = events["session_id"].length()
    order = ibis.window(
        group_by="user", order_by=["time", number.asc(nulls_first=False), length, "session_id"]
    )
    session = ibis.dense_rank().over(order).cast("int32")
    rows = events.mutate(session=session).select("user", "session", "item", "time").distinct()
    order = ibis.window(group_by="user", order_by=["session", "item"])
    return rows.mutate(place=ibis.row_number().over(order).cast("int32")), True


def count_rows(con: ibis.BaseBackend, events: ir.Table, config: SplitConfig) -> ir.Table:
    """user, rows, valid_rows and test_rows of the users with interactions.

    valid_rows counts the rows before the validation target, test_rows those before the test target.
    Without that target, all rows of the user are counted.

    Worked example: leave_last_session_out, sessions [a b] [c] [d e]: rows 5, valid_rows 2,
    test_rows 3.
    """
    sessions = events["session"].max() + 1
    if config.kind == "by_time":
        valid_time, test_time = split_times(con, events, config)
        time, session = events["time"], events["session"]
        in_valid = (time >= valid_time) & (time < test_time)
        targets = events.group_by("user").agg(  # null if the user has no such session
            test=session.min(where=time >= test_time),
            valid=ibis.coalesce(session.min(where=in_valid), session.min(where=time >= test_time)),
        )
    else:
        targets = events.group_by("user").agg(sessions=sessions)
        enough = targets["sessions"] >= 3
        targets = targets.mutate(
            valid=enough.ifelse(targets["sessions"] - 2, ibis.null("int32")),
            test=enough.ifelse(targets["sessions"] - 1, ibis.null("int32")),
        )
    joined = events.inner_join(targets.select("user", "valid", "test"), "user")
    session, valid, test = joined["session"], joined["valid"], joined["test"]
    return joined.group_by("user").agg(
        rows=joined.count(),
        valid_rows=joined.count(where=valid.isnull() | (session < valid)),
        test_rows=joined.count(where=test.isnull() | (session < test)),
    )


def draw_cold_items(con: ibis.BaseBackend, items: ir.Table, share: float, seed: int) -> ir.Table:
    """item and item_id of a share of the items, at least one, drawn by the seed."""
    count = database.count(con, items)
    drawn = np.random.default_rng(seed).permutation(count)[: max(int(share * count), 1)]
    numbers = database.from_arrow(con, "cold", pa.table({"item": drawn.astype(np.int32)}))
    return items.inner_join(numbers, "item").select("item", "item_id")


def remove_cold_items(
    con: ibis.BaseBackend, events: ir.Table, row_counts: ir.Table, cold: ir.Table
) -> tuple[ir.Table, ir.Table]:
    """`events` and `row_counts` without the training rows of the items in `cold` (column item)."""
    joined = events.inner_join(row_counts.select("user", "valid_rows", "test_rows"), "user")
    is_training = joined["place"] < joined["valid_rows"]
    kept = joined.filter(~(is_training & joined["item"].isin(cold["item"])))
    place, valid, test = kept["place"], kept["valid_rows"], kept["test_rows"]
    counts = kept.group_by("user").agg(
        rows=kept.count(),
        valid_rows=kept.count(where=place < valid),
        test_rows=kept.count(where=place < test),
    )
    counts = database.save(con, "warm_row_counts", counts)
    order = ibis.window(group_by="user", order_by="place")
    kept = kept.mutate(place=ibis.row_number().over(order).cast("int32"))
    return database.save(con, "warm_events", kept.drop("valid_rows", "test_rows")), counts


def split_times(con: ibis.BaseBackend, events: ir.Table, config: SplitConfig) -> tuple[int, int]:
    """`valid_from` and `test_from` of a split by time, in unix seconds.

    Raises:
      ValueError: one of them is no time, or `valid_from` is not before `test_from`.
    """
    times = []
    for name in ("valid_from", "test_from"):
        given = getattr(config, name)
        try:
            share = float(given)
        except ValueError:
            share = None
        if share is not None and 0 < share < 1:
            seconds = time_of_share(con, events, share)
        elif share is None:
            seconds = con.to_pyarrow(unix_seconds(ibis.literal(given))).as_py()
        else:
            seconds = None
        if seconds is None:
            raise ValueError(
                f"data.split.{name}={given!r} is neither a share of the interactions (0.8) nor a "
                f"date (2024-05-01); correct --config.data.split.{name}."
            )
        times.append(int(np.ceil(seconds)))
    if times[0] >= times[1]:
        first, last = (
            con.to_pyarrow(value).as_py() for value in (events["time"].min(), events["time"].max())
        )
        if first == last:
            raise ValueError(
                "data.split.kind='by_time' needs times that differ, but all interactions have the "
                f"time {first}; use --config.data.split.kind=leave_one_out."
            )
        raise ValueError(
            f"data.split.valid_from={config.valid_from!r} is not before "
            f"test_from={config.test_from!r}; change one of them."
        )
    return times[0], times[1]


def time_of_share(con: ibis.BaseBackend, events: ir.Table, share: float) -> float:
    """The time below which a share of the interactions lies, interpolated between two of them.

    Days are counted first, then the seconds of one day: no engine sorts all times.
    """
    days = (events["time"] / DAY).floor().cast("int64")
    dated = events.select("time", day=days)
    place = share * (database.count(con, events) - 1)
    low, high = (_nth_time(con, dated, number) for number in (int(place), int(np.ceil(place))))
    return low + (high - low) * (place - int(place))


def _nth_time(con: ibis.BaseBackend, dated: ir.Table, number: int) -> int:
    """The time at place `number` of all times in ascending order."""
    for column in ("day", "time"):
        counts = dated.group_by(column).agg(rows=dated.count()).order_by(column)
        for row in database.rows(con, counts):
            found = row[column]
            if number < row["rows"]:
                break
            number -= row["rows"]
        dated = dated.filter(dated[column] == found)
    return found


def build_histories(
    con: ibis.BaseBackend, events: ir.Table, row_counts: ir.Table, num_users: int, scratch: Path
) -> Histories:
    """The histories of all users, streamed from the database in their final order.

    The interactions lie in memory-mapped files.

    Args:
      con: the database of the tables.
      events: user, session, item, time, place, as of `with_sessions`.
      row_counts: as of `count_rows`.
      num_users: with those without interactions.
      scratch: the folder of the files; it exists.
    """
    dtypes = {"user": np.int32, "rows": np.int64, "valid_rows": np.int64, "test_rows": np.int64}
    counts = database.columns(con, row_counts, dtypes, database.count(con, row_counts))
    rows, valid_rows, test_rows = np.zeros((3, num_users), np.int64)
    for array, name in ((rows, "rows"), (valid_rows, "valid_rows"), (test_rows, "test_rows")):
        array[counts["user"]] = counts[name]
    offsets = np.zeros(num_users + 1, np.int64)
    np.cumsum(rows, out=offsets[1:])
    ordered = events.order_by("user", "place")
    columns = {"item": np.int32, "time": np.int64, "session": np.int32}
    arrays = database.columns(con, ordered, columns, int(offsets[-1]), scratch)
    starts = offsets[:-1]
    return Histories(
        **arrays, offsets=offsets, valid_start=starts + valid_rows, test_start=starts + test_rows
    )


def training_events(events: ir.Table, row_counts: ir.Table) -> ir.Table:
    """The rows before each user's validation target. Lifts, pairs and counts see only these."""
    joined = events.inner_join(row_counts.select("user", "valid_rows"), "user")
    return joined.filter(joined["place"] < joined["valid_rows"]).drop("valid_rows")


def target_times(con: ibis.BaseBackend, histories: Histories) -> ir.Table:
    """user and target_time: the time (unix seconds) of each user's first target.

    Training must not see a search from that time on.
    """
    users = np.flatnonzero(histories.valid_start < histories.offsets[1:])
    times = histories.time[histories.valid_start[users]]
    table = pa.table({"user": users.astype(np.int32), "target_time": times})
    return database.from_arrow(con, "target_times", table)
