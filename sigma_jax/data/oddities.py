"""Properties of tables that are no error and may still surprise: notes for the data card.

A function returns a list of sentences, each with a count or an example and what to do.
"""

from __future__ import annotations

import time

import ibis
import ibis.expr.types as ir

from sigma_jax.data import database
from sigma_jax.data.engines.dialect import trimmed
from sigma_jax.data.times import SCALES

# Texts that programs write for "no value", in lower case.
MISSING = ("nan", "null", "none", "n/a", "#n/a", "<na>", "nat", "undefined")
SPREADSHEET_DAYS = (20_000, 80_000)  # 1954 to 2119, in days since 1899-12-30
YEAR = 365 * 86_400
FUTURE = 86_400  # seconds that clocks and zones may differ by
# Shares of the values of a column that make it a column of addresses or of encoded bytes.
_TYPICAL, _ENCODED_CHARS = 0.9, 200
_ADDRESS = r"^\s*([a-z0-9+.-]+://\S+|www\.\S+|data:[a-z]+/\S+)\s*$"
_DOMINANT = 0.5  # share of the interactions that one item has


def id_notes(con: ibis.BaseBackend, file: str, table: ir.Table, column: str) -> list[str]:
    """Notes on ids (text): blanks around them, and words such as NULL."""
    value = table[column]
    has_blanks, is_word = value != trimmed(value), value.lower().isin(MISSING)
    found = database.rows(
        con,
        table.aggregate(
            blanks=table.count(where=has_blanks),
            blank=value.min(where=has_blanks),
            words=table.count(where=is_word),
            word=value.min(where=is_word),
        ),
    )[0]
    notes = []
    if found["blanks"]:
        notes.append(
            f"{file}: {found['blanks']} values of {column} have blanks around them, such as "
            f"{found['blank']!r}; they are other ids than without blanks: remove them"
        )
    if found["words"]:
        notes.append(
            f"{file}: {found['words']} values of {column} are the word {found['word']!r}, which is "
            "taken for an id; delete such rows if they have none"
        )
    return notes


def time_notes(con: ibis.BaseBackend, file: str, table: ir.Table) -> list[str]:
    """Notes on times that may have another unit, or lie in the future.

    Args:
      con: the database.
      file: of the interactions.
      table: `time` in unix seconds, and `given` as in the source.
    """
    seconds, given = table["time"], table["given"]
    kind = given.type()
    number = ibis.null("float64")
    if kind.is_numeric() or kind.is_string():
        number = given.try_cast("float64")
    now = int(time.time())
    size = number.abs()
    bounds = [float("inf"), *(smallest for smallest, _ in SCALES), 0.0]
    units = ("nanoseconds", "microseconds", "milliseconds", "seconds")
    counts = {
        unit: table.count(where=(size < high) & (size >= low))
        for unit, high, low in zip(units, bounds[:-1], bounds[1:], strict=True)
    }
    is_day = number.between(*SPREADSHEET_DAYS).fill_null(False)
    found = database.rows(
        con,
        table.aggregate(
            rows=table.count(),
            last=seconds.max(),
            first=seconds.min(),
            days=table.count(where=is_day),
            future=table.count(where=seconds > now + FUTURE),
            past=table.count(where=seconds < 0),
            **counts,
        ),
    )[0]
    notes = []
    if found["rows"] and found["days"] == found["rows"] and found["last"] > found["first"]:
        notes.append(
            f"{file}: all timestamps are numbers from 20,000 to 80,000, read as seconds of 1970; "
            "if they are days of a spreadsheet, write them as dates"
        )
    elif found["rows"] and 0 < found["last"] < YEAR:
        notes.append(
            f"{file}: all timestamps lie in 1970; if they do not count seconds, write them as dates"
        )
    if found["future"]:
        notes.append(f"{file}: {found['future']} timestamps lie in the future; check their unit")
    if found["past"]:
        notes.append(f"{file}: {found['past']} timestamps lie before 1970; check their unit")
    mixed = [f"{found[unit]} of {unit}" for unit in units if found[unit]]
    if len(mixed) > 1:
        notes.append(
            f"{file}: timestamps have several units by their size: {', '.join(mixed)}; check that "
            "each is right"
        )
    return notes


def missing_words(con: ibis.BaseBackend, file: str, table: ir.Table) -> list[str]:
    """Notes on columns of text that hold words such as NULL, which are read as text."""
    names = [name for name in table.columns if table[name].type().is_string()]
    counts = {
        f"n{place}": table.count(where=trimmed(table[name]).lower().isin(MISSING))
        for place, name in enumerate(names)
    }
    if not counts:
        return []
    found = database.rows(con, table.aggregate(**counts))[0]
    return [
        f"{file}: {found[f'n{place}']} values of {name} are words such as NULL or nan, which are "
        "read as text; leave such values empty"
        for place, name in enumerate(names)
        if found[f"n{place}"]
    ]


def not_for_text(con: ibis.BaseBackend, items: ir.Table) -> dict[str, str]:
    """The columns of `items` that say nothing in words, each with the reason."""
    left_out, checked = {}, []
    for name in items.columns:
        kind = items[name].type()
        if kind.is_binary():
            left_out[name] = "holds bytes"
        elif kind.is_string() or kind.is_array():
            checked.append(name)
    counts = {}
    for place, name in enumerate(checked):
        value, kind = items[name], items[name].type()
        is_nested_list = kind.is_array() and not kind.value_type.is_string()
        if is_nested_list:
            continue
        if kind.is_array():
            value = (value.length() > 0).ifelse(value[0], ibis.null("string"))
        value = trimmed(value).nullif("")
        is_json = value.re_search(r"^[\[{]") & value.contains("://")
        counts |= {
            f"all{place}": value.count(),
            f"address{place}": items.count(where=value.lower().re_search(_ADDRESS) | is_json),
            f"encoded{place}": items.count(
                where=(value.length() >= _ENCODED_CHARS) & ~value.re_search(r"\s")
            ),
        }
    found = database.rows(con, items.aggregate(**counts))[0] if counts else {}
    for place, name in enumerate(checked):
        filled = found.get(f"all{place}", 0)
        if filled and found[f"address{place}"] >= _TYPICAL * filled:
            left_out[name] = "holds web addresses"
        elif filled and found[f"encoded{place}"] >= _TYPICAL * filled:
            left_out[name] = "holds encoded bytes"
    return left_out


def similar_id(con: ibis.BaseBackend, table: ir.Table, others: ir.Table, column: str) -> str | None:
    """An id in `others` that differs from the one of `table` (one row) in its form only."""
    wanted = table.select(form=_form(table[column]))
    known = others.select(column, form=_form(others[column]))
    found = database.rows(con, known.semi_join(wanted, "form").select(column).limit(1))
    return found[0][column] if found else None


def user_notes(
    con: ibis.BaseBackend, files: tuple[str, str], users: ir.Table, interactions: ir.Table
) -> list[str]:
    """Notes on rows of `users` that no interaction has, if most are, or if forms of ids differ.

    Args:
      con: the database.
      files: of users and of interactions.
      users: user_id.
      interactions: user_id.
    """
    active = interactions.select("user_id").distinct()
    total = database.count(con, users)
    unused = users.filter(users["user_id"].notin(active["user_id"])).select("user_id")
    unknown = active.filter(active["user_id"].notin(users["user_id"]))
    matched = total - database.count(con, unused)
    left = unused.select(left="user_id").mutate(form=lambda table: _form(table["left"]))
    right = unknown.select(right="user_id").mutate(form=lambda table: _form(table["right"]))
    forms = left.inner_join(right, "form")
    pairs = database.rows(con, forms.select("left", "right").order_by("left").limit(1))
    example = pairs[0] if pairs else None
    if example is None and not matched:
        example = {
            side: database.rows(con, table.order_by("user_id").select("user_id").limit(1))
            for side, table in (("left", unused), ("right", unknown))
        }
        example = {side: rows[0]["user_id"] for side, rows in example.items() if rows}
    if not example or (matched and not pairs):
        return []
    return [
        f"{matched} of the {total} users of {files[0]} are in {files[1]}: such as "
        f"{example.get('left')!r} there and {example.get('right')!r} here; write ids the same way, "
        "or their profiles are not used"
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


def _form(value: ir.StringValue) -> ir.StringValue:
    """An id without what exports change: blanks, case, a trailing .0 and leading zeros."""
    text = trimmed(value).lower().re_replace("[.]0+$", "")
    rest = text.re_replace("^0+", "")
    # Not by a group of the pattern: engines write the groups of a replacement in two ways.
    return text.re_search("^0+[0-9]").ifelse((rest == "").ifelse("0", rest), text)
