"""The steps of a section that change rows: pivot, explode, elapsed, join, distinct.

Each takes and returns a table with the columns of ORDER, which number its rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from sigma_jax.data import database
from sigma_jax.data.mapping.spec import UNITS, Join, Section
from sigma_jax.data.mapping.values import NUMBER, ORDER, find_column, refuse, text_of
from sigma_jax.data.tables import as_number, unix_seconds
from sigma_jax.runtime.config import did_you_mean

KEY = "key "  # before the name of a column that a join compares
PLACE = "place of key"  # of a row among those with its key
MAX_ELEMENTS = 1 << 31  # of a list inside the elements of another one
ELAPSED = "elapsed"  # the column that the step of this name adds


@ibis.udf.scalar.builtin(name="json_extract")
def _json_elements(value: dt.JSON, path: str) -> dt.Array[dt.JSON]:
    """The elements at a path with a star. The database computes it."""


def pivot(
    con: ibis.BaseBackend, section: Section, table: ir.Table, names: Sequence[str]
) -> ir.Table:
    """One row for each key, with the properties `names` as columns, null where a key has none.

    Worked example: rows (7, "colour", "red"), (7, "size", "M"), (7, "colour", "blue") -> the row
    (7, colour "blue", size "M").

    Raises:
      ValueError: no row has one of the properties.
    """
    rule, place = section.pivot, f"{section.place}.pivot"
    key, name, value = (
        find_column(f"{place}.{part}", table, getattr(rule, part))
        for part in ("key", "name", "value")
    )
    wanted = [property_name for property_name in names if property_name != rule.key]
    rank = {"row": table[NUMBER]}
    if rule.latest:
        latest = find_column(f"{place}.latest", table, rule.latest)
        rank = {"time": unix_seconds(text_of(latest)), **rank}
    long = table.select(
        NUMBER, key=text_of(key), name=text_of(name), value=value, rank=ibis.struct(rank)
    )
    found = database.rows(con, long.filter(long["name"].isin(wanted)).select("name").distinct())
    missing = sorted(set(wanted) - {row["name"] for row in found})
    if missing:
        known = [row["name"] for row in database.rows(con, long.select("name").distinct())]
        known = [property_name for property_name in known if property_name]
        raise ValueError(
            f"{section.place}: no row has {rule.name}={missing[0]!r}; "
            f"{did_you_mean(missing[0], known)}"
        )
    columns = {
        property_name: long["value"].argmax(long["rank"], where=long["name"] == property_name)
        for property_name in wanted
    }
    wide = long.group_by("key").agg(**{NUMBER: long[NUMBER].min()}, **columns)
    return wide.rename({rule.key: "key"}).mutate(**{ORDER[1]: ibis.literal(0, dt.int64)})


def explode(section: Section, table: ir.Table, name: str) -> ir.Table:
    """One row for each element of the list in the column `name`.

    Rows whose list is empty leave the table. The column may be inside an object, or inside the
    elements of a list that was exploded before: `orders.lines` behind `orders`.
    """
    value = find_column(f"{section.place}.explode", table, name)
    if value.type().is_json():
        value = _json_elements(value, "$[*]")
    if not value.type().is_array():
        raise ValueError(
            f"{section.place}.explode={name!r} is a column of {value.type()}, not of lists; "
            "name a column of lists, or remove explode."
        )
    # Two lists of one length in a row become rows side by side. `Table.unnest` with an offset
    # joins each row with its list instead, which takes ten times as long.
    places = ibis.range(value.length()).unnest().cast("int64")
    outer = table[ORDER[1]] * MAX_ELEMENTS
    return table.mutate(**{name: value.unnest(), ORDER[1]: outer + places})


def elapsed(
    con: ibis.BaseBackend, section: Section, paths: tuple[str, ...], table: ir.Table
) -> ir.Table:
    """`table` with the column `elapsed`: a time from 1970, the sum of a user's gaps up to a row.

    Worked example: gaps null, 7, 30 of a user, in days -> 1970-01-01, 1970-01-08, 1970-02-07.
    """
    rule, place = section.elapsed, f"{section.place}.elapsed"
    user, order, gap = (
        text_of(find_column(f"{place}.{part}", table, getattr(rule, part))).nullif("")
        for part in ("user", "order", "gap")
    )
    for name, text in ((rule.order, order), (rule.gap, gap)):
        wrong = table.filter(as_number(text).isnull() & text.notnull())
        refuse(con, paths, wrong, name, text, f"is not a number, which {place} needs; correct it")
    repeated = table.select(NUMBER, ORDER[1], user=user, order=order)
    groups = repeated.group_by("user", "order").agg(n=repeated.count(), row=repeated[NUMBER].max())
    found = database.rows(con, groups.filter(groups["n"] > 1).limit(1))
    if found:
        raise ValueError(
            f"{place}: {rule.user}={found[0]['user']!r} has {rule.order}={found[0]['order']!r} "
            "twice; elapsed needs one row for each, so name the file that has one."
        )
    window = ibis.window(group_by=user, order_by=as_number(order), preceding=None, following=0)
    seconds = (as_number(gap).fill_null(0.0) * UNITS[rule.unit][0]).sum().over(window)
    return table.mutate(**{ELAPSED: seconds.floor().cast("int64").as_timestamp("s")})


def join(
    con: ibis.BaseBackend, rule: Join, section: Section, table: ir.Table, right: ir.Table
) -> ir.Table:
    """`table` with the columns of `right` where the columns `by` agree, null elsewhere.

    Raises:
      ValueError: a column is in both, `right` has a key twice, or no row agrees.
    """
    place = rule.section.place
    keys = [KEY + ours for ours in rule.by]
    added = [name for name in right.columns if name not in (*ORDER, *keys)]
    clash = next((name for name in added if name in table.columns), None)
    if clash is not None:
        raise ValueError(
            f"{place}: column {clash!r} is in {section.place}.file too; rename it here: "
            f"columns: {{other_{clash}: {clash}}}."
        )
    groups = right.group_by(keys).agg(n=right.count())
    found = database.rows(con, groups.filter(groups["n"] > 1).order_by(keys).limit(1))
    if found:
        shown = ", ".join(f"{name.removeprefix(KEY)}={found[0][name]!r}" for name in keys)
        raise ValueError(
            f"{place}: {shown} is in {found[0]['n']} rows; a join needs one row for each, so "
            "correct by, or set distinct: true there."
        )
    left = table.mutate(
        **{KEY + ours: text_of(find_column(place + ".by", table, ours)) for ours in rule.by}
    )
    right = right.drop(*ORDER)
    if not database.rows(con, left.semi_join(right, keys).select(keys).limit(1)):
        examples = [database.rows(con, side.select(keys).limit(1)) for side in (left, right)]
        values = [next(iter(rows[0].values()), None) if rows else None for rows in examples]
        raise ValueError(
            f"{place}: no row agrees with {section.place}.file by {', '.join(rule.by)} (for "
            f"example {values[1]!r} here, {values[0]!r} there); correct by."
        )
    joined = left.left_join(right, keys)
    return joined.select(*table.columns, *added)


def first_of_each(table: ir.Table, keys: Sequence[str]) -> ir.Table:
    """The first row for each value of the columns `keys`; rows with an empty key stay."""
    rows = ibis.window(group_by=list(keys), order_by=list(ORDER))
    is_empty = ibis.or_(*(table[name].isnull() for name in keys))
    marked = table.mutate(**{PLACE: ibis.row_number().over(rows)})
    return marked.filter((marked[PLACE] == 0) | is_empty).drop(PLACE)
