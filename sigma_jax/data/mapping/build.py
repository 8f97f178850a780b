"""Builds the table of a section of a mapping file, as Ibis expressions on DuckDB."""

from __future__ import annotations

import dataclasses

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from sigma_jax.data import database, readers
from sigma_jax.data.mapping import opening, reshape, values
from sigma_jax.data.mapping.spec import ENCODINGS, NO_TIME, Join, Section
from sigma_jax.data.mapping.values import NUMBER, ORDER, PART_ROWS, find_column, text_of
from sigma_jax.runtime.config import did_you_mean

IDS = {"items": "item_id", "users": "user_id"}  # columns that `distinct` looks at
CATEGORIES = ("category", "categories", "category_path")


@dataclasses.dataclass(frozen=True)
class Place:
    """The database, the files of each section, and what joins the levels of a category."""

    con: ibis.BaseBackend
    paths: dict[str, tuple[str, ...]]  # Section.place -> paths or URLs
    separator: str
    notes: list[str]  # what may surprise the user, added while files are opened


def build_table(place: Place, table_name: str, section: Section) -> ir.Table:
    """The table `table_name` as its section describes it, rows in the order of the files.

    Raises:
      ValueError: a file, a column or a value is not as the section says.
    """
    table = _shaped(place, section)
    table = _with_times(place, section, table.select(*ORDER, **_columns(place, section, table)))
    if section.distinct:
        name = IDS.get(table_name)
        if name not in table.columns:
            raise ValueError(
                f"{section.place}.distinct needs a column item_id in items, or user_id in users; "
                "name it in columns, or remove distinct."
            )
        table = reshape.first_of_each(table, [name])
    steps = (section.pivot, section.explode, section.elapsed, section.joins, section.distinct)
    if any(steps):
        # These return rows in any order. The order of the files decides between equal times.
        ordered = table.order_by(*ORDER).drop(*ORDER)
        return database.save(place.con, f"mapped_{table_name}", ordered)
    return table.drop(*ORDER)


def _shaped(place: Place, section: Section) -> ir.Table:
    """The rows of a section with the columns of its files and joins, and those of ORDER."""
    table = _opened(place, section)
    if section.pivot:
        table = reshape.pivot(place.con, section, table, _properties(section))
    for name in section.explode:
        table = reshape.explode(section, table, name)
    if section.elapsed:
        table = reshape.elapsed(place.con, section, place.paths[section.place], table)
    for join in section.joins:
        table = reshape.join(place.con, join, section, table, _right_side(place, join))
    for name, kept in section.keep.items():
        text = text_of(find_column(f"{section.place}.keep", table, name)).nullif("")
        table = table.filter(text.isin(kept) if kept else text.notnull())
    return table


def _right_side(place: Place, join: Join) -> ir.Table:
    """The columns of a join's section, and its columns `by` as texts; one row for each of them."""
    section = join.section
    table = _shaped(place, section)
    keys = {
        reshape.KEY + ours: text_of(find_column(section.place, table, theirs))
        for ours, theirs in join.by.items()
    }
    columns = _columns(place, section, table)
    if not section.columns:
        columns = {name: value for name, value in columns.items() if name not in join.by.values()}
    table = _with_times(place, section, table.select(*ORDER, **keys, **columns))
    if section.distinct:
        table = reshape.first_of_each(table, list(keys))
    return table


def _opened(place: Place, section: Section) -> ir.Table:
    """The rows of the files behind one another, numbered by the columns of ORDER."""
    paths = place.paths[section.place]
    names = _referenced(section) if section.columns and not section.pivot else None
    tables = [_open(place, section, path, names) for path in paths]
    columns = list(dict.fromkeys(name for table in tables for name in table.columns))
    numbered = []
    for number, (path, table) in enumerate(zip(paths, tables, strict=True)):
        missing = [name for name in columns if name not in table.columns]
        is_json = all(kind.is_json() for kind in table.schema().types)
        if missing and not is_json:
            raise ValueError(
                f"{path}: column {missing[0]!r} is missing, which {paths[0]} or another file of "
                f"{section.place}.file has; give files of one shape."
            )
        table = table.mutate(**{name: ibis.null(dt.json) for name in missing}).select(columns)
        row = ibis.row_number().cast("int64") + number * PART_ROWS
        numbered.append(table.mutate(**{NUMBER: row, ORDER[1]: ibis.literal(0, dt.int64)}))
    return ibis.union(*numbered) if len(numbered) > 1 else numbered[0]


def _open(place: Place, section: Section, path: str, names: tuple[str, ...] | None) -> ir.Table:
    con = place.con
    if database.is_url(path):
        database.register_url(con, path)
    kind = opening.find_kind(path, section.encoding)
    if kind != "text" and (section.header or section.delimiter):
        raise ValueError(f"{section.place}: {path} is {kind}; remove header and delimiter.")
    if kind == "json" and section.encoding != ENCODINGS[0]:
        raise ValueError(
            f"{section.place}.encoding={section.encoding!r} is of delimited text; save {path} as "
            "UTF-8, and remove encoding."
        )
    match kind:
        case "parquet":
            with database.errors_of_file(path, "write the file again"):
                return con.read_parquet(path)
        case "text" if section.is_plain_text and opening.is_plain_csv(path):
            opened = readers.open_table(con, path)
            place.notes.extend(opened.notes)
            return opened.table
        case "text":
            return opening.open_text(
                con, path, section.delimiter, section.quote, section.encoding, section.header
            )
        case "python":
            target = database.scratch_file(con, "jsonl")
            opening.python_to_json(path, section.encoding, target)
            path = str(target)
    wanted = None if names is None else sorted({name.partition(".")[0] for name in names})
    return opening.open_json(con, path, wanted)


def _referenced(section: Section) -> tuple[str, ...]:
    """The columns that a section names of its files; of its joins too, as it cannot tell them."""
    names = [name for theirs in section.columns.values() for name in theirs]
    names += [*section.keep, *(name for join in section.joins for name in join.by)]
    names += section.explode
    if section.elapsed:
        names += [section.elapsed.user, section.elapsed.order, section.elapsed.gap]
    return tuple(dict.fromkeys(names))


def _properties(section: Section) -> tuple[str, ...]:
    """The properties that a pivot has to find: what is referenced and no join brings."""
    joined = {name for join in section.joins for name in join.section.columns}
    return tuple(name for name in _referenced(section) if name not in joined)


def _columns(place: Place, section: Section, table: ir.Table) -> dict[str, ir.Value]:
    """The columns of the table by our names; all of them if the section names none."""
    taken = section.columns or {name: (name,) for name in table.columns if name not in ORDER}
    columns = {}
    for ours, theirs in taken.items():
        where = f"{section.place}.columns.{ours}"
        is_path = ours in CATEGORIES
        inner = place.separator if is_path else ", "
        parts = [values.plain(find_column(where, table, name), inner, is_path) for name in theirs]
        if len(parts) > 1:
            between = place.separator if is_path else " "
            texts = [text_of(part).strip().nullif("") for part in parts]
            parts = [ibis.literal(between).join(texts).nullif("")]
        columns[ours] = parts[0]
    for ours in section.decimal_comma:
        if ours not in columns:
            raise ValueError(
                f"{section.place}.decimal_comma names {ours!r}; {did_you_mean(ours, columns)}"
            )
        columns[ours] = values.with_point(text_of(columns[ours]))
    return columns


def _with_times(place: Place, section: Section, table: ir.Table) -> ir.Table:
    """`table` with its columns of times read as section.time says."""
    if not section.time:
        return table
    if section.time == NO_TIME:
        return table.mutate(timestamp=ibis.null(dt.int64))
    paths = place.paths[section.place]
    return table.mutate(**values.times(place.con, section, paths, table))
