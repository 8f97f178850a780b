"""Queries and the items clicked for them."""

from __future__ import annotations

import ibis
import ibis.expr.types as ir
import numpy as np

from sigma_jax.data import database
from sigma_jax.schema import Links, Queries


def clicks_of_searches(
    searches: ir.Table, users: ir.Table, cut_times: ir.Table, latest: int | None
) -> ir.Table:
    """query, item_id, clicks of the searches with clicks that training may see.

    A search without clicks only showed its item. Others count if they have no time, or stand
    before their user's validation target; by_time also before the cut, whoever searched.
    cut_times: user, cut (seconds).
    """
    known = searches.left_join(users.select("user_id", "user"), "user_id")
    known = known.select("query", "item_id", "clicks", "time", user=known["user"])
    known = known.left_join(cut_times, "user")
    is_late = (known["time"] >= known["cut"]).fill_null(False)
    if latest is not None:
        is_late = is_late | (known["time"] >= latest).fill_null(False)
    return known.filter(~is_late & (known["clicks"] > 0)).select("query", "item_id", "clicks")


def clicks_by_popularity(searches: ir.Table, items: ir.Table, training: ir.Table) -> ir.Table:
    """query, item_id, clicks of composed queries: an item's clicks are its training events."""
    sold = training.group_by("item").agg(sold=training.count())
    sold = sold.inner_join(items.select("item", "item_id"), "item").select("item_id", "sold")
    joined = searches.select("query", "item_id").left_join(sold, "item_id")
    return joined.select("query", "item_id", clicks=joined["sold"].fill_null(0).cast("float64"))


def category_queries(items: ir.Table) -> ir.Table:
    """query, item_id: the category's name, in small letters, for each of its items."""
    named = items.filter(items["category"].notnull())
    return named.select("item_id", query=named["category"].lower())


def build_queries(con: ibis.BaseBackend, clicks: ir.Table, items: ir.Table) -> Queries | None:
    """Queries by clicks, most first, with their items in the same order; None without any."""
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
