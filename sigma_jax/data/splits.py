"""Histories: interactions numbered, put into sessions, sorted, and cut into training and targets.

leave_one_out            every event is a session; the last is the test target, the one before
                         the validation target. Events at one time keep the order of the source.
leave_last_session_out   the same with sessions by session_id, or by gaps in time without one. The
                         lines of a session carry one time and no order, so they are sorted by
                         item, and lines of one item are one.
by_time                  targets are the user's first session from `valid_from` (before
                         `test_from`) and the first from `test_from`.

A user with fewer than three sessions (by_time: none from the cut on) gets no target and is all
training. By time, a user can have a test target only: then valid_start = test_start, and what
stands before it is training.
"""

from __future__ import annotations

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

from sigma_jax.data import database
from sigma_jax.data.config import SplitConfig
from sigma_jax.data.tables import unix_seconds
from sigma_jax.schema import Histories


def number_items(con: ibis.BaseBackend, texts: ir.Table, interactions: ir.Table, min_count: int):
    """`texts` of the items bought `min_count` times or more, numbered in the order of the source.

    ValueError if none is left.
    """
    if min_count > 0:
        counts = interactions.group_by("item_id").agg(lines=interactions.count())
        kept = counts.filter(counts["lines"] >= min_count)
        texts = texts.filter(texts["item_id"].isin(kept["item_id"]))
    number = ibis.row_number().over(order_by=texts["source_row"]).cast("int32")
    items = database.save(con, "items", texts.mutate(item=number))
    if not database.count(con, items):
        raise ValueError(
            f"data.min_item_count={min_count} leaves no item; set a smaller --config.data."
            "min_item_count."
        )
    return items


def number_users(con: ibis.BaseBackend, interactions: ir.Table, profiles: ir.Table | None):
    """user, user_id, profile: all users of either table, in the order of their ids.

    Shorter ids come first, so that 9 stands before 10.
    """
    ids = interactions.select("user_id").distinct()
    if profiles is None:
        users = ids.mutate(profile=ibis.literal(""))
    else:
        users = ids.union(profiles.select("user_id"), distinct=True).left_join(profiles, "user_id")
        users = users.select("user_id", profile=ibis.coalesce(users["profile"], ""))
    order = (users["user_id"].length(), users["user_id"])
    number = ibis.row_number().over(order_by=order).cast("int32")
    return database.save(con, "users", users.mutate(user=number))


def number_events(
    con: ibis.BaseBackend, interactions: ir.Table, items: ir.Table, users: ir.Table, by_id: bool
) -> ir.Table:
    """user, item, time, session_id, source_row of the interactions with items of the catalogue."""
    events = interactions.inner_join(items.select("item_id", "item"), "item_id")
    events = events.inner_join(users.select("user_id", "user"), "user_id")
    columns = ["user", "item", "time", "source_row"] + (["session_id"] if by_id else [])
    return events.select(*columns)


def with_sessions(
    con: ibis.BaseBackend, events: ir.Table, config: SplitConfig
) -> tuple[ir.Table, bool]:
    """user, session, item, time, place (of the session's row in the user's history).

    And whether sessions can hold several events.
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
        # Ordered by time alone: events of one second share their session, in any order of rows.
        total = ibis.range_window(group_by="user", order_by="time", preceding=None, following=0)
        events = events.mutate(session_id=events["starts"].sum().over(total).cast("string"))
    inside = ibis.window(group_by=["user", "session_id"])
    events = events.mutate(time=events["time"].min().over(inside))
    order = ibis.window(group_by="user", order_by=["time", "session_id"])
    session = ibis.dense_rank().over(order).cast("int32")
    lines = events.mutate(session=session).select("user", "session", "item", "time").distinct()
    order = ibis.window(group_by="user", order_by=["session", "item"])
    return lines.mutate(place=ibis.row_number().over(order).cast("int32")), True


def user_cuts(con: ibis.BaseBackend, events: ir.Table, config: SplitConfig) -> ir.Table:
    """Per user with events: rows, valid_rows and test_rows (rows before each target, or all)."""
    sessions = events["session"].max() + 1
    if config.kind == "by_time":
        valid_time, test_time = time_cuts(con, events, config)
        time, session = events["time"], events["session"]
        in_valid = (time >= valid_time) & (time < test_time)
        cuts = events.group_by("user").agg(  # null where the user has no session there
            test=session.min(where=time >= test_time),
            valid=ibis.coalesce(session.min(where=in_valid), session.min(where=time >= test_time)),
        )
    else:
        cuts = events.group_by("user").agg(sessions=sessions)
        enough = cuts["sessions"] >= 3
        cuts = cuts.mutate(
            valid=enough.ifelse(cuts["sessions"] - 2, ibis.null("int32")),
            test=enough.ifelse(cuts["sessions"] - 1, ibis.null("int32")),
        )
    joined = events.inner_join(cuts.select("user", "valid", "test"), "user")
    session, valid, test = joined["session"], joined["valid"], joined["test"]
    return joined.group_by("user").agg(
        rows=joined.count(),
        valid_rows=joined.count(where=valid.isnull() | (session < valid)),
        test_rows=joined.count(where=test.isnull() | (session < test)),
    )


def without_cold(
    con: ibis.BaseBackend, events: ir.Table, cuts: ir.Table, cold: ir.Table
) -> tuple[ir.Table, ir.Table]:
    """Events and cuts without the training rows of the items in `cold` (column item)."""
    joined = events.inner_join(cuts.select("user", "valid_rows", "test_rows"), "user")
    is_training = joined["place"] < joined["valid_rows"]
    kept = joined.filter(~(is_training & joined["item"].isin(cold["item"])))
    place, valid, test = kept["place"], kept["valid_rows"], kept["test_rows"]
    counts = kept.group_by("user").agg(
        rows=kept.count(),
        valid_rows=kept.count(where=place < valid),
        test_rows=kept.count(where=place < test),
    )
    counts = database.save(con, "warm_cuts", counts)
    order = ibis.window(group_by="user", order_by="place")
    kept = kept.mutate(place=ibis.row_number().over(order).cast("int32"))
    return database.save(con, "warm_events", kept.drop("valid_rows", "test_rows")), counts


def time_cuts(con: ibis.BaseBackend, events: ir.Table, config: SplitConfig) -> tuple[int, int]:
    """The two cuts of a split by time in unix seconds. ValueError if they aren't two times."""
    cuts = []
    for name in ("valid_from", "test_from"):
        given = getattr(config, name)
        try:
            share = float(given)
        except ValueError:
            share = None
        if share is not None and 0 < share < 1:
            cut = con.to_pyarrow(events["time"].quantile(share)).as_py()
        elif share is None:
            cut = con.to_pyarrow(unix_seconds(ibis.literal(given))).as_py()
        else:
            cut = None
        if cut is None:
            raise ValueError(
                f"data.split.{name}={given!r} is neither a share of the events (0.8) nor a date "
                "(2024-05-01); correct it."
            )
        cuts.append(int(np.ceil(cut)))
    if cuts[0] >= cuts[1]:
        raise ValueError(
            f"data.split.valid_from={config.valid_from!r} is not before "
            f"test_from={config.test_from!r}; move one of them."
        )
    return cuts[0], cuts[1]


def build_histories(
    con: ibis.BaseBackend, events: ir.Table, cuts: ir.Table, num_users: int
) -> Histories:
    """The events as arrays, streamed from the database in their final order."""
    dtypes = {"user": np.int32, "rows": np.int64, "valid_rows": np.int64, "test_rows": np.int64}
    found = database.columns(con, cuts, dtypes, database.count(con, cuts))
    rows, valid_rows, test_rows = np.zeros((3, num_users), np.int64)
    for array, name in ((rows, "rows"), (valid_rows, "valid_rows"), (test_rows, "test_rows")):
        array[found["user"]] = found[name]
    offsets = np.zeros(num_users + 1, np.int64)
    np.cumsum(rows, out=offsets[1:])
    ordered = events.order_by("user", "place")
    columns = {"item": np.int32, "time": np.int64, "session": np.int32}
    arrays = database.columns(con, ordered, columns, int(offsets[-1]))
    starts = offsets[:-1]
    return Histories(
        **arrays, offsets=offsets, valid_start=starts + valid_rows, test_start=starts + test_rows
    )


def training_events(con: ibis.BaseBackend, events: ir.Table, cuts: ir.Table) -> ir.Table:
    """The rows before each user's validation target: all that lifts, pairs and counts may see."""
    joined = events.inner_join(cuts.select("user", "valid_rows"), "user")
    training = joined.filter(joined["place"] < joined["valid_rows"]).drop("valid_rows")
    return database.save(con, "training", training)


def target_times(con: ibis.BaseBackend, histories: Histories) -> ir.Table:
    """user, cut: the time (seconds) of each user's first target; nothing later may be seen."""
    users = np.flatnonzero(histories.valid_start < histories.offsets[1:])
    cuts = histories.time[histories.valid_start[users]]
    return database.from_arrow(
        con, "target_times", pa.table({"user": users.astype(np.int32), "cut": cuts})
    )
