"""Ids that are none, and notes on ids that have an odd form or match another table badly."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from typing import Any

import ibis
import ibis.expr.types as ir

from sigma_jax.data import database
from sigma_jax.data.engines.dialect import BYTE_ORDER_MARK, INVISIBLE, trimmed, visible
from sigma_jax.data.oddities.texts import MISSING

# Spreadsheets write long numbers so: with six digits at most, the rest is lost.
_ROUNDED = r"^-?[0-9][.,][0-9]{1,6}E[+][0-9]{2}$"
_EXPONENT = r"^-?[0-9]+E[+][0-9]{2}$"
_OBJECT, _LIST = r'^\{".*":.*\}$', r'^\[".*"\]$'
_COMBINING = "[\u0300-\u036f]"  # marks that make one letter with the letter before them
_MAX_COMBINING = 1_000  # ids with such marks that are looked at
_FEW = 0.5  # a smaller share of users with interactions is noted


def wrong_ids(value: ir.StringValue) -> list[tuple[ir.BooleanValue, str]]:
    """Conditions under which a text is no id, each with the complaint.

    A complaint is the end of a sentence; `{part}` in it stands for `part_of_object`.
    """
    return [
        (
            value.startswith("{") & value.re_search(_OBJECT),
            "is an object, no id; use a mapping with {part}",
        ),
        (
            value.startswith("[") & value.re_search(_LIST),
            "is a list, no id; write a row for each of its values",
        ),
        (
            value.contains(BYTE_ORDER_MARK),
            "holds a byte order mark, which begins a file; split the file there or remove the mark",
        ),
        (
            value.contains("E+") & value.re_search(_ROUNDED),
            "is a number that a spreadsheet has rounded and may stand for several ids; format the "
            "column as text there, and export it again",
        ),
    ]


def part_of_object(column: str, value: str) -> str:
    """The entry of a mapping that takes the first value of an object, such as item_id: id.$oid."""
    try:
        key = next(iter(json.loads(value)))
    except (ValueError, TypeError, StopIteration):
        key = "KEY"
    return f"{column}: {column}.{key}"


def id_counts(table: ir.Table, column: str) -> dict[str, ir.Scalar]:
    """The facts that `id_notes` reads, as aggregates of `table`: counts and examples."""
    value = table[column]
    conditions = {
        "blank": value != trimmed(value),
        "word": trimmed(value).lower().isin(MISSING),
        "hidden": value.re_search(f"[{INVISIBLE}]"),
        "exponent": value.contains("E+") & value.re_search(_EXPONENT),
    }
    counts = {f"{name}s": table.count(where=is_so) for name, is_so in conditions.items()}
    counts |= {name: value.min(where=is_so) for name, is_so in conditions.items()}
    return counts | {"last_word": value.max(where=conditions["word"])}


def id_notes(file: str, column: str, found: Mapping[str, Any]) -> list[str]:
    """Notes on ids (text): blanks around them, words such as NULL, characters that are not seen.

    Args:
      found: the values of `id_counts`.
    """
    notes = []
    if found["blanks"]:
        notes.append(
            f"{file}: {found['blanks']} values of {column} have blanks around them, such as "
            f"{found['blank']!r}; they are other ids than without blanks: remove them"
        )
    if found["words"]:
        words = f"the word {found['word']!r}, which is taken for an id"
        if found["word"] != found["last_word"]:
            words = f"words such as {found['word']!r} and {found['last_word']!r}, taken for ids"
        notes.append(
            f"{file}: {found['words']} values of {column} are {words}; delete such rows if they "
            "have none"
        )
    if found["hiddens"]:
        notes.append(
            f"{file}: {found['hiddens']} values of {column} hold a character that is not seen, "
            f"such as {found['hidden']!r}; they are other ids than without it: remove it"
        )
    if found["exponents"]:
        notes.append(
            f"{file}: {found['exponents']} values of {column} look like numbers of a spreadsheet, "
            f"such as {found['exponent']!r}; format the column as text there"
        )
    return notes


def alike_notes(con: ibis.BaseBackend, file: str, table: ir.Table, column: str) -> list[str]:
    """Notes on ids of one column that differ in case, blanks, hidden characters or ".0" only."""
    ids = table.select(column).distinct()
    form = visible(ids[column]).lower().re_replace("[.]0+$", "")
    forms = ids.mutate(form=form)
    groups = forms.group_by("form").agg(
        ids=forms.count(), left=forms[column].min(), right=forms[column].max()
    )
    groups = groups.filter(groups["ids"] > 1)
    groups = groups.mutate(total=groups.count().over(ibis.window()))
    found = database.rows(con, groups.order_by("form").limit(1))
    remedy = "if they are one, write them the same way"
    if found:
        left, right, total = (found[0][name] for name in ("left", "right", "total"))
        return [
            f"{file}: {total} groups of {column} differ in capitals, blanks, hidden characters or "
            f".0 only, such as {left!r} and {right!r}; {remedy}"
        ]
    marked = ids.filter(ids[column].re_search(_COMBINING)).order_by(column).limit(_MAX_COMBINING)
    composed = {}
    for row in database.rows(con, marked):
        composed.setdefault(unicodedata.normalize("NFC", row[column]), row[column])
    if not composed:
        return []
    both = ids.filter(ids[column].isin(list(composed))).order_by(column).limit(1)
    return [
        f"{file}: {column} has {row[column]!a} and {composed[row[column]]!a}, which look the same; "
        f"{remedy}"
        for row in database.rows(con, both)
        if composed[row[column]] != row[column]
    ]


def similar_id(con: ibis.BaseBackend, table: ir.Table, others: ir.Table, column: str) -> str | None:
    """An id in `others` that differs from the one of `table` (one row) in its form only."""
    wanted = table.select(form=_form(table[column]))
    known = others.select(column, form=_form(others[column]))
    found = database.rows(con, known.semi_join(wanted, "form").select(column).limit(1))
    if found:
        return found[0][column]
    given = database.rows(con, table.select(column))[0][column]
    forms = {unicodedata.normalize(form, given) for form in ("NFC", "NFD", "NFKC")} - {given}
    if not forms:
        return None
    same = others.filter(others[column].isin(sorted(forms))).select(column).limit(1)
    found = database.rows(con, same)
    return found[0][column] if found else None


def user_notes(
    con: ibis.BaseBackend,
    files: tuple[str, str],
    users: ir.Table,
    interactions: ir.Table,
    loss: str = "their profiles are not used",
) -> list[str]:
    """Notes on users that no interaction has, if most are so, or if forms of ids differ.

    Args:
      con: the database.
      files: of users and of interactions.
      users: user_id, one row each.
      interactions: user_id.
      loss: the effect of an id without a match, as the end of a sentence.
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
    if example is None and matched < _FEW * min(total, matched + database.count(con, unknown)):
        example = {
            side: database.rows(con, table.order_by("user_id").select("user_id").limit(1))
            for side, table in (("left", unused), ("right", unknown))
        }
        example = {side: rows[0]["user_id"] for side, rows in example.items() if rows}
    if not example:
        return []
    return [
        f"{matched} of the {total} users of {files[0]} are in {files[1]}: such as "
        f"{example.get('left')!r} there and {example.get('right')!r} here; write ids the same way, "
        f"or {loss}"
    ]


def _form(value: ir.StringValue) -> ir.StringValue:
    """An id without what exports change.

    Blanks, hidden characters, case, a trailing .0, leading zeros, quotes and braces around it, and
    commas between thousands.
    """
    text = visible(value).lower().re_replace("[.]0+$", "")
    text = text.re_replace("^(=?\"|'|[{])|[\"'}]$", "")
    thousands = text.re_search("^[0-9]{1,3}(,[0-9]{3})+$")
    text = thousands.ifelse(text.replace(",", ""), text)
    rest = text.re_replace("^0+", "")
    # Not by a group of the pattern: engines write the groups of a replacement in two ways.
    return text.re_search("^0+[0-9]").ifelse((rest == "").ifelse("0", rest), text)
