"""Columns of foreign files and their values: a field inside an object, a text, a time."""

from __future__ import annotations

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from sigma_jax.data import database
from sigma_jax.data.engines.dialect import floor_divided
from sigma_jax.data.mapping.spec import UNITS, Section
from sigma_jax.data.tables import as_number, as_text
from sigma_jax.runtime.config import did_you_mean

# Columns that number the rows of a table: place in the files, place in an exploded list.
NUMBER = "row number"
ORDER = (NUMBER, "element number")
PART_ROWS = 1 << 40  # NUMBER of the first row of the second file; more than rows of a file
TIMES = ("timestamp", "start", "end")
# Patterns of whole values, read by Python and by DuckDB.
DECIMAL_COMMA = r"^[+-]?([0-9]+|[0-9]{1,3}(\.[0-9]{3})+),[0-9]+$"
THOUSANDS = r"^[+-]?[0-9]{1,3}(,[0-9]{3})+$"


@ibis.udf.scalar.builtin(name="json_extract_string")
def _json_texts(value: dt.JSON, path: str) -> dt.Array[dt.String]:
    """The values at a path with a star, strings without their quotes."""


@ibis.udf.scalar.builtin(name="json_type")
def _json_type(value: dt.JSON) -> str:
    """The kind of a JSON value, such as ARRAY."""


@ibis.udf.scalar.builtin(name="try_strptime")
def _try_strptime(text: str, form: str) -> dt.timestamp:
    """The time that `text` holds in the format `form`; null for another text."""


@ibis.udf.scalar.builtin(
    name="try_strptime", signature=((dt.string, dt.string), dt.Timestamp("UTC"))
)
def _try_strptime_in_zone(text, form):
    """The same of a format with a zone (%z), as a time of UTC."""


def find_column(where: str, table: ir.Table, name: str) -> ir.Value:
    """The column `name` of `table`, or the field of an object column: details.Brand.

    Raises:
      ValueError: there is none. It names `where` and the nearest column.
    """
    if name in table.columns:
        return table[name]
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        head = ".".join(parts[:length])
        if head in table.columns:
            return _field(where, table[head], head, parts[length:])
    known = [column for column in table.columns if column not in ORDER]
    raise ValueError(
        f"{where}: no column {name!r} (found: {', '.join(known)}); {did_you_mean(name, known)}"
    )


def _field(where: str, value: ir.Value, head: str, fields: list[str]) -> ir.Value:
    for field in fields:
        kind = value.type()
        if kind.is_json():
            # DuckDB takes what begins with "$" for a path.
            value = value[f'$."{field}"' if field.startswith("$") else field]
        elif kind.is_struct() and field in kind.names:
            value = value[field]
        elif kind.is_map():
            value = value.get(field)
        else:
            known = kind.names if kind.is_struct() else ()
            raise ValueError(
                f"{where}: {head!r} has no field {field!r} inside; {did_you_mean(field, known)}"
            )
        head = f"{head}.{field}"
    return value


def plain(value: ir.Value, separator: str, is_path: bool) -> ir.Value:
    """A column without JSON: a text, or what the file has.

    The elements of a list are joined by `separator`. Of a list of category paths the first path
    counts.
    """
    if not value.type().is_json():
        return value
    flat = _json_texts(value, "$[*]").join(separator).nullif("")
    if is_path:
        flat = ibis.coalesce(_json_texts(value, "$[0][*]").join(separator).nullif(""), flat)
    return (_json_type(value) == "ARRAY").ifelse(flat, database.json_text(value, "$"))


def text_of(value: ir.Value) -> ir.StringValue:
    """A value as text, to compare it with another column's."""
    kind = value.type()
    if kind.is_array():
        return value.cast("array<string>").join(", ")
    return as_text(plain(value, ", ", False)).strip()


def times(
    con: ibis.BaseBackend, section: Section, paths: tuple[str, ...], table: ir.Table
) -> dict[str, ir.Value]:
    """The columns of times in `table`, read as section.time says, as timestamps of UTC.

    Raises:
      ValueError: there is none, or a value is no such time. It names file, row and value.
    """
    read = {}
    for name in TIMES:
        if name not in table.columns or table[name].type().is_timestamp():
            continue
        text = text_of(table[name]).nullif("")
        if section.time in UNITS:
            read[name] = unit_time(text, section.time)
            wanted = f"a number of {section.time}"
        else:
            parse = _try_strptime_in_zone if "%z" in section.time else _try_strptime
            read[name] = parse(text, section.time).cast("timestamp")
            wanted = f"a time in the format {section.time!r}"
        wrong = table.filter(text.notnull() & read[name].isnull())
        refuse(
            con, paths, wrong, name, table[name], f"is not {wanted}; correct {section.place}.time"
        )
    if not read and "timestamp" not in table.columns:
        raise ValueError(
            f"{section.place}.time says how timestamp is written, but columns has no timestamp; "
            "add it."
        )
    return read


def unit_time(text: ir.StringValue, unit: str) -> ir.TimestampValue:
    """The time of a number of `unit` since the unit's 0, to the second; null for other texts.

    The number may have a decimal comma, as in the tables of many countries: 45413,5.
    """
    seconds, start = UNITS[unit]
    text = with_point(text)
    number = as_number(text)
    if seconds >= 1:
        scaled = (number * seconds).floor()
    else:
        parts = round(1 / seconds)
        exact = floor_divided(text.try_cast("int64"), parts)
        scaled = ibis.coalesce(exact, (number / parts).floor())
    return (scaled + start).try_cast("int64").as_timestamp("s")


def with_point(text: ir.StringValue) -> ir.StringValue:
    """`text` with a decimal point where it is a number with a decimal comma: 1.250,5 -> 1250.5.

    45,413 stays: it may be a whole number with a separator.
    """
    is_number = text.re_search(DECIMAL_COMMA) & ~text.re_search(THOUSANDS)
    pointed = is_number.ifelse(text.replace(".", "").replace(",", "."), text)
    # A branch is computed for its rows alone: patterns cost more than the look for a comma.
    return text.contains(",").ifelse(pointed, text)


def refuse(
    con: ibis.BaseBackend,
    paths: tuple[str, ...],
    wrong: ir.Table,
    name: str,
    shown: ir.Value,
    complaint: str,
) -> None:
    """ValueError about the first row of `wrong`, if there is one: file, row, column and value."""
    first = wrong.order_by(*ORDER).limit(1).select(NUMBER, value=text_of(shown))
    found = database.rows(con, first)
    if found:
        part, row = divmod(found[0][NUMBER], PART_ROWS)
        raise ValueError(
            f"{paths[part]}: row {row + 1}: {name}={str(found[0]['value'])[:80]!r} {complaint}."
        )
