"""Search queries and the items that were clicked for them."""

from __future__ import annotations

import ibis
import ibis.expr.types as ir
import numpy as np

from sigma_jax.data import database
from sigma_jax.schema import Links, Queries


def clicks_of_searches(
    searches: ir.Table, users: ir.Table, target_times: ir.Table, latest: int | None
) -> ir.Table:
    """query, item_id and clicks of the searches that training may see.

    A search is dropped
      - without clicks: it only showed its item;
      - at or after the first target of its user;
      - at or after `latest`, for any user.
    A search without a time is kept.

    Args:
      searches: query, item_id, clicks, user_id, time.
      users: user_id, user.
      target_times: user, target_time (unix seconds) of each user's first target.
      latest: unix seconds of the split by time; None for other splits.
    """
    known = searches.left_join(users.select("user_id", "user"), "user_id")
    known = known.select("query", "item_id", "clicks", "time", user=known["user"])
    known = known.left_join(target_times, "user")
    is_late = (known["time"] >= known["target_time"]).fill_null(False)
    if latest is not None:
        is_late = is_late | (known["time"] >= latest).fill_null(False)
    return known.filter(~is_late & (known["clicks"] > 0)).select("query", "item_id", "clicks")


def clicks_by_popularity(searches: ir.Table, items: ir.Table, training: ir.Table) -> ir.Table:
    """query, item_id and clicks, for queries that nobody typed.

    The clicks of an item are its training interactions.
    """
    counts = training.group_by("item").agg(popularity=training.count())
    counts = counts.inner_join(items.select("item", "item_id"), "item")
    counts = counts.select("item_id", "popularity")
    joined = searches.select("query", "item_id").left_join(counts, "item_id")
    clicks = joined["popularity"].fill_null(0).cast("float64")
    return joined.select("query", "item_id", clicks=clicks)


def category_queries(items: ir.Table) -> ir.Table:
    """query and item_id: the name of each item's category, in small letters."""
    with_category = items.filter(items["category"].notnull())
    return with_category.select("item_id", query=with_category["category"].lower())


def build_queries(con: ibis.BaseBackend, clicks: ir.Table, items: ir.Table) -> Queries | None:
    """The queries with most clicks first, and their items in the same order; None without any.

    Args:
      con: the database of the tables; two tables are added to it.
      clicks: query, item_id, clicks; several rows of one query and item add up.
      items: item_id, item.
    """
    pairs = clicks.inner_join(items.select("item_id", "item"), "item_id")
    pairs = pairs.group_by("query", "item").agg(clicks=pairs["clicks"].sum())
    pairs = database.save(con, "query_clicks", pairs)
    totals = pairs.group_by("query").agg(total=pairs["clicks"].sum())
    number = ibis.row_number().over(order_by=[totals["total"].desc(), totals["query"]])
    texts = database.save(con, "queries", totals.mutate(number=number.cast("int32")))
    count = database.count(con, texts)
    if not count:
        return None
    pairs = pairs.inner_join(texts.select("query", "number"), "query")
    pairs = pairs.order_by("number", pairs["clicks"].desc(), "item")
    dtypes = {"number": np.int32, "item": np.int32}
    edges = database.columns(con, pairs, dtypes, database.count(con, con.table("query_clicks")))
    names = con.to_pyarrow(texts.order_by("number").select("query"))["query"]
    return Queries(names.combine_chunks(), Links.from_edges(edges["number"], edges["item"], count))
