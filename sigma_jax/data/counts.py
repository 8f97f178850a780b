"""Counts over the interactions, as expressions for any engine: covisits, hours, users of items.

All sums are of whole numbers, so that every engine finds the same ones in any order of rows.

Co-visitation: two interactions of one user at distance d <= WINDOW count 1/d from the earlier item
to the later one, and half of that backwards. Interactions of one session have no order, so sessions
define the distance:

- interactions of one session lie at distance 1. Either may be the earlier one, so they count
  (1 + 1/2) / 2 each way;
- interactions of different sessions lie at 1 + the number of interactions in the sessions between.

With one interaction a session this is the definition over interactions:

    sessions [a][b c][d]: a-b 1, a-c 1, b-c 1, b-d 1, c-d 1, a-d 3 (two interactions between)
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from sigma_jax.data import database
from sigma_jax.histories import CHUNK_ROWS, rows_of_ranges, user_chunks
from sigma_jax.schema import Histories

WINDOW = 20  # the largest distance that counts
BACKWARD = 0.5  # share of a count that goes from the later item to the earlier one
# A count of 1: every share 1/d, its half and 3/4 are whole numbers of it.
COVISIT_UNIT = 4 * math.lcm(*range(1, WINDOW + 1))
SMOOTHING = 5.0  # interactions added to the popularity of an item
HOUR = 3_600  # seconds
MEMORY_LIMIT = "2GB"  # of a count inside this process
SHARD_ROWS = 5_000_000  # rows of a part of a stored count
RANGE_ROWS = 2_000_000  # interactions whose pairs are counted together
# Stored covisits of an item with later items, and with earlier ones: as many as keep those of all
# items in each direction below MOST_COVISITS, but between the two numbers.
COVISITS_PER_ITEM = (100, 1_000)
MOST_COVISITS = 100_000_000
# Most items of EASE: the most popular ones. If there are fewer users than items, memory holds a
# matrix of both; otherwise two square matrices of the items.
MAX_EASE_ITEMS = 16_384


def covisits(events: ir.Table, known: ir.IntegerColumn | None = None) -> ir.Table:
    """item, other and weight (in COVISIT_UNIT, int64) of the items that users take together.

    Args:
      events: user, session, place, item. Places count the rows of a user from 0, without gaps.
      known: a column of `events`: the number of the user's first rows. Pairs of two of them are
        left out. They end with a session. None leaves out nothing.
    """
    rows = with_borders(events, known)
    pairs = _pairs(rows, rows)
    is_up = pairs["left"] <= pairs["right"]
    pairs = pairs.select(
        low=ibis.least(pairs["left"], pairs["right"]),
        high=ibis.greatest(pairs["left"], pairs["right"]),
        up=is_up.ifelse(pairs["ahead"], pairs["back"]),  # counts from the lower item
        down=is_up.ifelse(pairs["back"], pairs["ahead"]),
    )
    # Each pair of items is one group, with both of its directions.
    sums = pairs.group_by("low", "high").agg(
        up=pairs["up"].sum().cast("int64"), down=pairs["down"].sum().cast("int64")
    )
    is_same = sums["low"] == sums["high"]
    weight = is_same.ifelse(sums["up"] + sums["down"], sums["up"])
    upward = sums.select(item="low", other="high", weight=weight)
    return upward.union(sums.filter(~is_same).select(item="high", other="low", weight="down"))


def with_borders(events: ir.Table, known: ir.IntegerColumn | None = None) -> ir.Table:
    """user, session, place, item, known; begin and end: the places of the row's whole session.

    Args:
      events, known: as of `covisits`.
    """
    inside = ibis.window(group_by=["user", "session"])
    return events.select(
        "user",
        "session",
        "place",
        "item",
        begin=events["place"].min().over(inside),
        end=events["place"].max().over(inside) + 1,
        known=0 if known is None else known,
    )


def covisits_of_items(rows: ir.Table, first: int, end: int) -> ir.Table:
    """item, other, ahead and back of the items from `first` to before `end`.

    `ahead` is the weight from the item to the other one, `back` that from the other one to it.

    Args:
      rows: of `with_borders`.
    """
    mine = rows.filter((rows["item"] >= first) & (rows["item"] < end))
    as_left, as_right = _pairs(mine, rows), _pairs(rows, mine)
    pairs = as_left.select("ahead", "back", item="left", other="right").union(
        as_right.select(ahead="back", back="ahead", item="right", other="left")
    )
    return pairs.group_by("item", "other").agg(
        ahead=pairs["ahead"].sum().cast("int64"), back=pairs["back"].sum().cast("int64")
    )


def _pairs(left: ir.Table, right: ir.Table) -> ir.Table:
    """left, right, ahead, back: items of both tables, the counts from left to right and back.

    The row of `right` is in a later session, or at a later place of the same one.
    """
    return _between_sessions(left, right).union(_inside_sessions(left, right))


def _between_sessions(left: ir.Table, right: ir.Table) -> ir.Table:
    """The pairs of interactions of different sessions."""
    # A later session within the window begins in the block of the earlier one's end or in the next
    # block. So an equality finds it, however long a history is.
    block = (left["end"] / WINDOW).floor().cast("int32")
    ends = left.select("user", "end", left="item", block=block)
    near = ends.union(ends.mutate(block=(ends["block"] + 1).cast("int32")))
    later = right.filter(right["begin"] >= right["known"]).select(
        "user", "begin", right="item", block=(right["begin"] / WINDOW).floor().cast("int32")
    )
    found = near.inner_join(later, ["user", "block"])
    found = found.mutate(distance=1 + found["begin"] - found["end"])
    found = found.filter((found["distance"] >= 1) & (found["distance"] <= WINDOW))
    share = (COVISIT_UNIT // 4 / found["distance"]).round().cast("int64")  # without a rest
    return found.select("left", "right", ahead=share * 4, back=share * int(4 * BACKWARD))


def _inside_sessions(left: ir.Table, right: ir.Table) -> ir.Table:
    """The pairs of interactions of one session; either may be the earlier one."""

    def counted(rows: ir.Table) -> ir.Table:
        return rows.filter((rows["end"] - rows["begin"] > 1) & (rows["begin"] >= rows["known"]))

    left = counted(left).select("user", "session", "place", left="item")
    right = counted(right).select("user", "session", other_place="place", right="item")
    pairs = left.inner_join(right, ["user", "session"])
    pairs = pairs.filter(pairs["place"] < pairs["other_place"])
    share = ibis.literal(int(COVISIT_UNIT * (1 + BACKWARD) / 2), "int64")
    return pairs.select("left", "right", ahead=share, back=share)


def strongest_covisits(sums: ir.Table, popularity: ir.Table, weight: str, count: int) -> ir.Table:
    """item, other and weight: the `count` strongest entries of each item.

    The strength is the weight, divided by sqrt(interactions + SMOOTHING) of the other item.

    Args:
      sums: of `covisits_of_items`.
      popularity: item and its number of interactions.
      weight: "ahead" or "back".
    """
    scale = (popularity["interactions"].cast("float64") + SMOOTHING).sqrt()
    scales = popularity.select(other="item", scale=scale)
    rows = sums.select("item", "other", weight=weight).inner_join(scales, "other")
    strength = rows["weight"].cast("float64") / rows["scale"]
    best = ibis.window(group_by="item", order_by=[strength.desc(), rows["other"]])
    ranked = rows.mutate(rank=ibis.row_number().over(best))
    return ranked.filter(ranked["rank"] < count).select("item", "other", "weight")


def hourly(events: ir.Table) -> ir.Table:
    """hour (since 1970), item and the number of interactions in that hour."""
    hour = (events["time"] / HOUR).floor().cast("int64")
    rows = events.select("item", hour=hour)
    return rows.group_by("hour", "item").agg(number=rows.count())


def users_of_items(events: ir.Table) -> ir.Table:
    """item and the number of its users."""
    pairs = events.select("user", "item").distinct()
    return pairs.group_by("item").agg(users=pairs.count())


def users_of_most_common(events: ir.Table, count: int) -> ir.Table:
    """user and item, once each, of the `count` items with most users."""
    users = users_of_items(events)
    rank = ibis.row_number().over(order_by=[users["users"].desc(), users["item"]])
    ranked = users.mutate(rank=rank)
    kept = ranked.filter(ranked["rank"] < count).select("item")
    return events.select("user", "item").distinct().inner_join(kept, "item")


def gram_of_items(pairs: ir.Table, first: int, end: int) -> ir.Table:
    """item, other (not below item) and users: rows of X^T X, from `first` to before `end`.

    X tells which users have which items. The diagonal has the users of each item.

    Args:
      pairs: user and item, once each: X.
    """
    mine = pairs.filter((pairs["item"] >= first) & (pairs["item"] < end)).select("user", "item")
    joined = mine.inner_join(pairs.select("user", other="item"), "user")
    joined = joined.filter(joined["other"] >= joined["item"])
    return joined.group_by("item", "other").agg(users=joined.count())


def item_ranges(con: ibis.BaseBackend, popularity: ir.Table) -> list[tuple[int, int]]:
    """(first item, item behind the last) of ranges with about RANGE_ROWS interactions each.

    Args:
      popularity: item and its number of interactions.
    """
    dtypes = {"item": np.int32, "interactions": np.int64}
    number = database.count(con, popularity)
    found = database.columns(con, popularity.order_by("item"), dtypes, number)
    part = (np.cumsum(found["interactions"]) - 1) // RANGE_ROWS
    first = found["item"][np.flatnonzero(np.diff(part, prepend=-1))].tolist()
    first = first or [0]  # a range without items writes an empty file
    return list(zip(first, [*first[1:], np.iinfo(np.int32).max], strict=True))


def save_counts(con: ibis.BaseBackend, events: ir.Table, folder: Path) -> None:
    """Writes FOLDER/NAME-00000.parquet and so on for the counts of `events`.

    - covisits, reverse_covisits: item, other and weight: the strongest counts from an item to
      others, and from others to it;
    - hourly: of `hourly`;
    - gram: item, other and users, of `gram_of_items`, for the MAX_EASE_ITEMS most common items.

    The pairs of a range of items are counted together, so that the disk never holds all pairs.

    Args:
      events: user, session, place, item, time of the counted rows.
    """
    folder.mkdir(parents=True)
    _save_covisits(con, events, folder)
    in_order = hourly(events).order_by("hour", "item")
    database.stream_parquet(con, in_order, folder, "hourly", SHARD_ROWS)
    pairs = users_of_most_common(events, MAX_EASE_ITEMS)
    with _saved(con, f"pairs_{folder.name}", pairs) as pairs:
        number = pairs.group_by("item").agg(interactions=pairs.count())
        part = 0
        for first, end in item_ranges(con, number):
            rows = gram_of_items(pairs, first, end).order_by("item", "other")
            part = database.stream_parquet(con, rows, folder, "gram", SHARD_ROWS, part)


def _save_covisits(con: ibis.BaseBackend, events: ir.Table, folder: Path) -> None:
    """Writes covisits and reverse_covisits of `save_counts`."""
    popularity = events.group_by("item").agg(interactions=events.count())
    with (
        _saved(con, f"popularity_{folder.name}", popularity) as popularity,
        _saved(con, f"borders_{folder.name}", with_borders(events)) as rows,
    ):
        least, most = COVISITS_PER_ITEM
        items = max(database.count(con, popularity), 1)
        count = min(max(MOST_COVISITS // items, least), most)
        part = {"covisits": 0, "reverse_covisits": 0}
        for first, end in item_ranges(con, popularity):
            sums = covisits_of_items(rows, first, end)
            with _saved(con, f"covisits_{folder.name}", sums) as sums:
                for name, weight in zip(part, ("ahead", "back"), strict=True):
                    best = strongest_covisits(sums, popularity, weight, count)
                    best = best.order_by("item", "other")
                    part[name] = database.stream_parquet(
                        con, best, folder, name, SHARD_ROWS, part[name]
                    )


@contextlib.contextmanager
def _saved(con: ibis.BaseBackend, name: str, table: ir.Table) -> Iterator[ir.Table]:
    """`table`, computed once and saved under `name` for the body of a `with`."""
    saved = database.save(con, name, table)
    try:
        yield saved
    finally:
        con.drop_table(name)


def read_counts(folder: Path, name: str, columns: Sequence[str]) -> list[np.ndarray]:
    """Columns of a stored count. ValueError if its files are missing or damaged."""
    paths = sorted(folder.glob(f"{name}-*.parquet"))
    try:
        parts = [pq.read_table(path, columns=list(columns)) for path in paths]
        table = pa.concat_tables(parts)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{folder}/{name}-*.parquet is missing or damaged ({error}); delete the folder "
            f"{folder.parent.parent} and prepare the data again."
        ) from error
    return [table[column].to_numpy() for column in columns]


@contextlib.contextmanager
def training_table(
    histories: Histories, known: Int64[np.ndarray, " U"] | None = None
) -> Iterator[tuple[ibis.BaseBackend, ir.Table]]:
    """(DuckDB, user session place item time known) of the training rows, for the body of a `with`.

    Args:
      known: the number of each user's first rows that are known: a column of the table. Users
        without other rows are left out. None is 0 for every user, and leaves out nobody.
    """
    if known is None:
        known = np.zeros(histories.num_users, np.int64)
    with database.open_reader(MEMORY_LIMIT) as con:
        batches = pa.RecordBatchReader.from_batches(_SCHEMA, _training_batches(histories, known))
        yield con, database.from_arrow(con, "training", batches)


_SCHEMA = pa.schema(
    [
        ("user", pa.int32()),
        ("session", pa.int32()),
        ("place", pa.int32()),
        ("item", pa.int32()),
        ("time", pa.int64()),
        ("known", pa.int64()),
    ]
)


def _training_batches(
    histories: Histories, known: Int64[np.ndarray, " U"]
) -> Iterator[pa.RecordBatch]:
    for users in user_chunks(histories.offsets, CHUNK_ROWS):
        part = slice(users.start, users.stop)
        starts, ends = histories.offsets[:-1][part], histories.valid_start[part]
        ends = np.where(ends - starts > known[part], ends, starts)
        rows = rows_of_ranges(starts, ends)
        sizes = np.maximum(ends - starts, 0)
        columns = {
            "user": np.repeat(np.arange(users.start, users.stop), sizes),
            "session": histories.session[rows],
            "place": rows - np.repeat(starts, sizes),
            "item": histories.item[rows],
            "time": histories.time[rows],
            "known": np.repeat(known[part], sizes),
        }
        yield pa.record_batch(
            [pa.array(columns[field.name], field.type) for field in _SCHEMA], _SCHEMA
        )
