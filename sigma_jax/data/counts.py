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
COVISITS_PER_ITEM = 1_000  # stored covisits of an item with later items, and with earlier ones
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
    inside = ibis.window(group_by=["user", "session"])
    rows = events.select(
        "user",
        "session",
        "place",
        "item",
        begin=events["place"].min().over(inside),
        end=events["place"].max().over(inside) + 1,
        known=0 if known is None else known,
    )
    pairs = _between_sessions(rows).union(_inside_sessions(rows))
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


def _between_sessions(rows: ir.Table) -> ir.Table:
    """left, right, ahead and back: an item, one of a later session, and the counts both ways."""
    # A later session within the window begins in the block of the earlier one's end or in the next
    # block. So an equality finds it, however long a history is.
    block = (rows["end"] / WINDOW).floor().cast("int32")
    ends = rows.select("user", "end", left="item", block=block)
    near = ends.union(ends.mutate(block=(ends["block"] + 1).cast("int32")))
    later = rows.filter(rows["begin"] >= rows["known"]).select(
        "user", "begin", right="item", block=(rows["begin"] / WINDOW).floor().cast("int32")
    )
    found = near.inner_join(later, ["user", "block"])
    found = found.mutate(distance=1 + found["begin"] - found["end"])
    found = found.filter((found["distance"] >= 1) & (found["distance"] <= WINDOW))
    share = (COVISIT_UNIT // 4 / found["distance"]).round().cast("int64")  # without a rest
    return found.select("left", "right", ahead=share * 4, back=share * int(4 * BACKWARD))


def _inside_sessions(rows: ir.Table) -> ir.Table:
    """The same for each two interactions of one session; either may be the earlier one."""
    is_new = rows["begin"] >= rows["known"]
    rows = rows.filter((rows["end"] - rows["begin"] > 1) & is_new)
    left = rows.select("user", "session", "place", left="item")
    right = rows.select("user", "session", other_place="place", right="item")
    pairs = left.inner_join(right, ["user", "session"])
    pairs = pairs.filter(pairs["place"] < pairs["other_place"])
    share = ibis.literal(int(COVISIT_UNIT * (1 + BACKWARD) / 2), "int64")
    return pairs.select("left", "right", ahead=share, back=share)


def strongest_covisits(counts: ir.Table, events: ir.Table, count: int) -> ir.Table:
    """The `count` strongest entries of `counts` of each item, to later and to earlier items.

    The strength is the weight, divided by sqrt(interactions + SMOOTHING) of the other item.

    Args:
      counts: of `covisits`.
      events: the same interactions.
    """
    popularity = events.group_by("item").agg(popularity=events.count())
    scale = popularity.select(
        "item", scale=(popularity["popularity"].cast("float64") + SMOOTHING).sqrt()
    )
    rows = counts.inner_join(scale.select(other="item", other_scale="scale"), "other")
    rows = rows.inner_join(scale, "item")
    weight = rows["weight"].cast("float64")
    forward = ibis.window(
        group_by="item", order_by=[(weight / rows["other_scale"]).desc(), rows["other"]]
    )
    backward = ibis.window(
        group_by="other", order_by=[(weight / rows["scale"]).desc(), rows["item"]]
    )
    ranked = rows.mutate(
        forward=ibis.row_number().over(forward), backward=ibis.row_number().over(backward)
    )
    kept = ranked.filter((ranked["forward"] < count) | (ranked["backward"] < count))
    return kept.select("item", "other", "weight")


def hourly(events: ir.Table) -> ir.Table:
    """hour (since 1970), item and the number of interactions in that hour."""
    hour = (events["time"] / HOUR).floor().cast("int64")
    rows = events.select("item", hour=hour)
    return rows.group_by("hour", "item").agg(number=rows.count())


def users_of_items(events: ir.Table) -> ir.Table:
    """item and the number of its users."""
    pairs = events.select("user", "item").distinct()
    return pairs.group_by("item").agg(users=pairs.count())


def gram(events: ir.Table, count: int) -> ir.Table:
    """item, other (not below item) and users: X^T X of the `count` items with most users.

    X tells which users have which items. The diagonal has the users of each item.
    """
    users = users_of_items(events)
    rank = ibis.row_number().over(order_by=[users["users"].desc(), users["item"]])
    ranked = users.mutate(rank=rank)
    kept = ranked.filter(ranked["rank"] < count).select("item")
    pairs = events.select("user", "item").distinct().inner_join(kept, "item")
    left, right = pairs.select("user", "item"), pairs.select("user", other="item")
    joined = left.inner_join(right, "user")
    joined = joined.filter(joined["other"] >= joined["item"])
    return joined.group_by("item", "other").agg(users=joined.count())


def save_counts(con: ibis.BaseBackend, events: ir.Table, folder: Path) -> None:
    """Writes FOLDER/NAME-00000.parquet and so on for covisits, hourly and gram.

    Args:
      events: user, session, place, item, time of the counted rows.
    """
    folder.mkdir(parents=True)
    raw = database.save(con, f"covisits_{folder.name}", covisits(events))
    tables = {
        "covisits": strongest_covisits(raw, events, COVISITS_PER_ITEM).order_by("item", "other"),
        "hourly": hourly(events).order_by("hour", "item"),
        "gram": gram(events, MAX_EASE_ITEMS).order_by("item", "other"),
    }
    for name, table in tables.items():
        database.stream_parquet(con, table, folder, name, SHARD_ROWS)
    con.drop_table(f"covisits_{folder.name}")


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
