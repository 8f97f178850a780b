"""One file of a table, as a query of DuckDB, and several of them joined into one table."""

from __future__ import annotations

import dataclasses
import itertools
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence

import ibis
import ibis.expr.types as ir

from sigma_jax.data import database

LARGEST_EXACT = {"FLOAT": 2**24, "DOUBLE": 2**53}  # whole numbers below are exact in the type
_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
_WIDE = ("UBIGINT", "HUGEINT", "UHUGEINT")


@dataclasses.dataclass(frozen=True)
class Part:
    """A file of a table."""

    path: str  # of the user, for messages
    file: str  # what DuckDB reads: `path`, or a regular copy of it
    num_rows: int
    # A FROM clause of DuckDB with {files}, and the SELECT expression of each column. Neighbours
    # with the same clause and columns are read together.
    source: str
    columns: tuple[tuple[str, str, str], ...]  # name, type of DuckDB, expression
    notes: tuple[str, ...] = ()
    has_header: bool = False  # whether the names are a line of the file

    @property
    def types(self) -> dict[str, str]:
        """The type of each column, by name."""
        return {name: kind for name, kind, _ in self.columns}


@dataclasses.dataclass(frozen=True)
class Opened:
    """A table that is not read yet: rows stand in the order of `parts`."""

    table: ir.Table
    parts: tuple[Part, ...]
    notes: tuple[str, ...]  # what may surprise its user, for the data card

    @property
    def sizes(self) -> tuple[tuple[str, int], ...]:
        """(path, number of rows) of each part."""
        return tuple((part.path, part.num_rows) for part in self.parts)


def quoted(text: str) -> str:
    """`text` as a string of SQL."""
    return "'" + text.replace("'", "''") + "'"


def name_of(column: str) -> str:
    """`column` as a name of SQL."""
    return '"' + column.replace('"', '""') + '"'


def literal_path(path: str) -> str:
    """`path` as a string of SQL that DuckDB does not take for a pattern."""
    return quoted("".join(f"[{char}]" if char in "[*?" else char for char in path))


def with_constants(part: Part, constants: Mapping[str, str | None]) -> Part:
    """`part` with columns that have one value in all rows; columns of the file come first."""
    added = tuple(
        (name, "VARCHAR", "NULL::VARCHAR" if value is None else quoted(value))
        for name, value in constants.items()
        if name not in part.types
    )
    return dataclasses.replace(part, columns=part.columns + added)


def join(con: ibis.BaseBackend, parts: Sequence[Part], name: str) -> Opened:
    """The rows of all `parts` in their order, as one table. A missing column is null.

    Args:
      con: the database that reads them.
      parts: at least one.
      name: of the folder or the file, for messages.

    Raises:
      ValueError: names of columns differ in case only, or a part cannot be read.
    """
    _check_case(parts)
    _check_headers(parts)
    alike = itertools.groupby(parts, lambda part: (part.source, part.columns))
    groups = [list(group) for _, group in alike]
    notes = [note for part in parts for note in part.notes]
    names = list(dict.fromkeys(column for part in parts for column in part.types))
    expressions: dict[str, list[str]] = {}
    for column in names:
        kinds = [group[0].types.get(column) for group in groups]
        expressions[column], note = _unified(con, groups, column, kinds)
        notes += [f"{name}: {note}"] if note else []
    queries = []
    for number, group in enumerate(groups):
        shown = ", ".join(f"{expressions[c][number]} AS {name_of(c)}" for c in names)
        queries.append(f"SELECT {shown} FROM {_from(group)}")
    with database.errors_of_file(name, "save it as UTF-8 CSV, JSON lines or Parquet"):
        # Not by con.sql: it would parse the query and change texts such as '\\n'.
        view = f"opened_{uuid.uuid4().hex}"
        con.raw_sql(f"CREATE TEMP VIEW {view} AS {' UNION ALL '.join(queries)}")
        table = con.table(view)
    return Opened(table, tuple(parts), tuple(dict.fromkeys(notes)))


def as_text_sql(expression: str, kind: str) -> str:
    """SQL of a value as text; whole numbers have no ".0", nested values are JSON."""
    if kind in LARGEST_EXACT:
        is_exact = f"abs({expression}) < {LARGEST_EXACT[kind]}"
        is_whole = f"{expression} = floor({expression}) AND {is_exact}"
        whole = f"{expression}::BIGINT::VARCHAR"
        return f"CASE WHEN {is_whole} THEN {whole} ELSE {expression}::VARCHAR END"
    if kind.startswith("DECIMAL"):
        text = f"{expression}::VARCHAR"
        return (
            f"CASE WHEN contains({text}, '.') THEN rtrim(rtrim({text}, '0'), '.') ELSE {text} END"
        )
    if kind.endswith(("]", ")")):
        return f"to_json({expression})::VARCHAR"
    return f"{expression}::VARCHAR"


def _unified(
    con: ibis.BaseBackend, groups: list[list[Part]], column: str, kinds: list[str | None]
) -> tuple[list[str], str]:
    """The expression of a column in each group, all of one type, and a note if types differ."""
    found = sorted({kind for kind in kinds if kind})
    given = [
        next((text for name, _, text in group[0].columns if name == column), None)
        for group in groups
    ]
    missing = [group[0].path for group, kind in zip(groups, kinds, strict=True) if kind is None]
    note = ""
    if missing:
        note = f"column {column!r} is missing in {missing[0]}; its rows have no value"
    target = found[0]
    if len(found) > 1:
        if set(found) <= set(_INTEGERS):
            target = "BIGINT"
        elif set(found) <= {*_INTEGERS, *_WIDE}:
            target = "VARCHAR"
        elif set(found) <= {*_INTEGERS, "FLOAT", "DOUBLE"} and _fits_double(con, groups, column):
            target = "DOUBLE"
        else:
            target = "VARCHAR"
            note = f"column {column!r} has the types {', '.join(found)} and is read as text"
    converted = []
    for text, kind in zip(given, kinds, strict=True):
        if text is None or kind is None:
            converted.append(f"NULL::{target}")
        elif kind == target:
            converted.append(text)
        elif target == "VARCHAR":
            converted.append(as_text_sql(text, kind))
        else:
            converted.append(f"{text}::{target}")
    return converted, note


def _from(group: Sequence[Part]) -> str:
    """The FROM clause that reads the files of `group`."""
    files = ", ".join(literal_path(part.file) for part in group)
    return group[0].source.replace("{files}", f"[{files}]")


def _fits_double(con: ibis.BaseBackend, groups: list[list[Part]], column: str) -> bool:
    """Whether every whole number of a column is exact as a DOUBLE."""
    for group in groups:
        if group[0].types.get(column) not in _INTEGERS:
            continue
        text = next(text for name, _, text in group[0].columns if name == column)
        query = f"SELECT max(abs({text}::HUGEINT)) FROM {_from(group)}"
        largest = con.raw_sql(query).fetchone()[0]
        if largest is not None and largest >= LARGEST_EXACT["DOUBLE"]:
            return False
    return True


def _check_headers(parts: Sequence[Part]) -> None:
    """ValueError for a file of text whose names are none of the other files: values, it seems."""
    own = [{name for name, _, text in part.columns if text.startswith('"')} for part in parts]
    counts = Counter(name for names in own for name in names)
    usual = max(
        parts,
        key=lambda part: (
            sum(counts[name] for name in part.types),
            -sum(name[:1].isdigit() for name in part.types),
        ),
    )
    for part, names in zip(parts, own, strict=True):
        if names and part is not usual and part.has_header and all(counts[n] == 1 for n in names):
            raise ValueError(
                f"{part.path}: line 1: no column of {usual.path} has a name such as "
                f"{min(names, key=len)!r}; does the file lack the header? Add it, or move the file "
                "to another folder."
            )


def _check_case(parts: Sequence[Part]) -> None:
    """ValueError if two columns differ in case only: DuckDB would take them for one."""
    seen: dict[str, tuple[str, str]] = {}
    for part in parts:
        for column in part.types:
            other, path = seen.setdefault(column.casefold(), (column, part.path))
            if other != column:
                where = part.path if path == part.path else f"{path} and {part.path}"
                raise ValueError(
                    f"{where}: the columns {other!r} and {column!r} differ in case only; rename "
                    "or remove one."
                )
