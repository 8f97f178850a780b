"""The keys of a mapping file: `read_mapping` returns its checked sections.

A mapping file is YAML. It has a section for each table; a section has these keys, all but `file`
optional. They are applied in this order.

| key | value | does |
|---|---|---|
| file | a name, a glob, or a list of them | the files of the table, one behind the other |
| delimiter | text | separates the fields; without it the first line tells |
| quote | a character, or "" for none | encloses fields; without it `"` if `,` or `;` separates |
| encoding | utf-8, utf-16, latin-1, cp1252 | of a text file; utf-8 without it |
| header | list of names | the names of the columns of a file without a header |
| pivot | key, name, value, latest | one row a key from rows that each hold one property of it |
| explode | a column, or several | one row for each element of the list in that column |
| elapsed | user, order, gap, unit | the column `elapsed`: a time that is the sum of a user's gaps |
| join | list of sections with `by` | columns of other files, where the columns `by` agree |
| keep | column: list of values, or any | only rows with one of these values; any: not empty |
| columns | our name: their name | the columns of the table; all columns without it |
| time | seconds, ..., a format, or none | how `timestamp` is written |
| decimal_comma | list of our names | columns of numbers with a decimal comma: 3,50 becomes 3.50 |
| distinct | true | one row for each id, the first |

A dot reaches into an object: `details.Brand`. A list of columns joins their texts. The value
FILL_IN is refused: a person must replace it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from collections.abc import Mapping as Dict
from pathlib import Path
from typing import Any

import yaml

from sigma_jax.data.tables import TABLES
from sigma_jax.runtime.config import did_you_mean

FILE = "mapping.yaml"
# Unit of a number -> its seconds, and the unix seconds of its 0.
UNITS = {
    "seconds": (1, 0),
    "milliseconds": (1e-3, 0),
    "microseconds": (1e-6, 0),
    "nanoseconds": (1e-9, 0),
    "minutes": (60, 0),
    "hours": (3_600, 0),
    "days": (86_400, 0),
    "spreadsheet_days": (86_400, -2_209_161_600),  # counted from 1899-12-30
}
NO_TIME = "none"
ANY = "any"  # of keep: every value that is not empty
FILL_IN = "FILL_IN"  # of a proposal: a person must say what stands here
ENCODINGS = ("utf-8", "utf-16", "latin-1", "cp1252")
KEYS = (  # of a section
    "file",
    "delimiter",
    "quote",
    "encoding",
    "header",
    "pivot",
    "explode",
    "elapsed",
    "join",
    "keep",
    "columns",
    "time",
    "decimal_comma",
    "distinct",
)


@dataclasses.dataclass(frozen=True)
class Pivot:
    """One row a key from a long table, whose rows each hold one property of the key."""

    key: str  # column
    name: str  # column with the name of the property
    value: str  # column with its value
    latest: str  # column with a time: the latest value counts; "": the last row


@dataclasses.dataclass(frozen=True)
class Elapsed:
    """A time that is the sum of gaps: of rows that say how long ago the one before was."""

    user: str  # column
    order: str  # column with a number that puts the rows of a user in order
    gap: str  # column with the time since the row before
    unit: str  # of the gap, one of UNITS


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a mapping file: files that are read as one table."""

    place: str  # in the mapping file, for messages: "mapping.yaml: items"
    files: tuple[str, ...]  # names or globs
    delimiter: str  # "": the first line tells
    quote: str | None  # None: by the delimiter
    encoding: str  # one of ENCODINGS
    header: tuple[str, ...]  # (): the first line
    pivot: Pivot | None
    explode: tuple[str, ...]  # columns, from outside to inside; (): nothing
    elapsed: Elapsed | None
    joins: tuple[Join, ...]
    keep: dict[str, tuple[str, ...]]  # column -> values; (): all but empty ones
    columns: dict[str, tuple[str, ...]]  # our name -> theirs, joined; {}: all
    time: str  # "": by the values
    decimal_comma: tuple[str, ...]  # our names
    distinct: bool

    @property
    def is_plain_text(self) -> bool:
        """Whether the section says nothing about how a file of text is written."""
        is_default = self.quote is None and self.encoding == ENCODINGS[0]
        return is_default and not self.delimiter and not self.header

    @property
    def is_reshaped(self) -> bool:
        """Whether rows of the table are other than rows of the files."""
        return bool(self.pivot or self.explode or self.keep or self.distinct or len(self.files) > 1)


@dataclasses.dataclass(frozen=True)
class Join:
    """Another section whose columns are added where the columns `by` agree."""

    section: Section
    by: dict[str, str]  # column of the section above -> column of this one


def read_mapping(path: Path | str, text: str) -> dict[str, Section]:
    """Table -> section of the mapping file `path` that holds `text`.

    Raises:
      ValueError: it is no YAML, a table or key is unknown, a value is of another kind, or FILL_IN
        is not replaced. The message names the file, the place, and the nearest known name.
    """
    name = str(path)
    try:
        found = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{name} is not YAML ({reason}); correct it there.") from error
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{name} has no sections; add one for each table, such as items.")
    for table in found:
        if table not in TABLES:
            raise ValueError(
                f"{name}: {table!r} is not a table; {did_you_mean(str(table), TABLES)}"
            )
    return {table: _section(f"{name}: {table}", given) for table, given in found.items()}


class _Loader(yaml.SafeLoader):
    """Reads YAML; a key that stands twice is an error, as one of the two would be lost."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"key {key!r} twice, line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def _section(place: str, given: Any, extra: tuple[str, ...] = ()) -> Section:
    _check_keys(place, given, (*KEYS, *extra), ("file",))
    columns = {
        _text(f"{place}.columns", ours): _texts(f"{place}.columns.{ours}", theirs)
        for ours, theirs in _group(f"{place}.columns", given.get("columns", {})).items()
    }
    keep = {
        _text(f"{place}.keep", column): ()
        if values == ANY
        else _texts(f"{place}.keep.{column}", values, is_value=True)
        for column, values in _group(f"{place}.keep", given.get("keep", {})).items()
    }
    section = Section(
        place=place,
        files=_texts(f"{place}.file", given["file"]),
        delimiter=_text(f"{place}.delimiter", given.get("delimiter", "")),
        quote=_text(f"{place}.quote", given["quote"]) if "quote" in given else None,
        encoding=_text(f"{place}.encoding", given.get("encoding", ENCODINGS[0])),
        header=_texts(f"{place}.header", given.get("header", [])),
        pivot=_part(Pivot, f"{place}.pivot", given, "pivot", {"latest": ""}),
        explode=_texts(f"{place}.explode", given.get("explode", [])),
        elapsed=_part(Elapsed, f"{place}.elapsed", given, "elapsed", {}),
        joins=_joins(f"{place}.join", given.get("join", [])),
        keep=keep,
        columns=columns,
        time=_text(f"{place}.time", given.get("time", "")),
        decimal_comma=_texts(f"{place}.decimal_comma", given.get("decimal_comma", [])),
        distinct=given.get("distinct", False),
    )
    _check_section(section)
    return section


def _check_section(section: Section) -> None:
    place = section.place
    if section.encoding not in ENCODINGS:
        raise ValueError(
            f"{place}.encoding={section.encoding!r} is unknown; use one of {', '.join(ENCODINGS)}."
        )
    if section.quote is not None and len(section.quote) > 1:
        raise ValueError(f"{place}.quote={section.quote!r} is not one character; correct it.")
    if not isinstance(section.distinct, bool):
        raise ValueError(f"{place}.distinct={section.distinct!r}; use true or false.")
    if section.time and section.time != NO_TIME and "%" not in section.time:
        check_unit(f"{place}.time", section.time, (*UNITS, NO_TIME))
    if section.elapsed:
        check_unit(f"{place}.elapsed.unit", section.elapsed.unit, UNITS)
    if section.pivot and not section.columns:
        raise ValueError(f"{place}.pivot needs columns, which name the properties; add them.")


def check_unit(place: str, unit: str, known: Iterable[str]) -> None:
    """ValueError naming the nearest unit if `unit` is not in `known`."""
    known = tuple(known)
    if unit not in known:
        raise ValueError(
            f"{place}={unit!r} is no unit; {did_you_mean(unit, known)} "
            "(A format has a %, such as %d/%m/%Y.)"
        )


def _joins(place: str, given: Any) -> tuple[Join, ...]:
    if isinstance(given, dict):
        given = [given]
    if not isinstance(given, list):
        raise ValueError(f"{place} is {given!r}; give a list of sections with file and by.")
    joins = []
    for number, part in enumerate(given):
        where = f"{place}[{number}]"
        section = _section(where, part, ("by",))
        if "by" not in part:
            raise ValueError(f"{where}: by is missing; name the column that both files have.")
        by = part["by"]
        if isinstance(by, dict):
            pairs = {_text(f"{where}.by", a): _text(f"{where}.by.{a}", b) for a, b in by.items()}
        else:
            pairs = {name: name for name in _texts(f"{where}.by", by)}
        joins.append(Join(section, pairs))
    return tuple(joins)


def _part(cls: type, place: str, given: dict, key: str, defaults: dict[str, str]) -> Any:
    """The dataclass `cls` of column names that `given` has under `key`; None without it."""
    if key not in given:
        return None
    names = tuple(field.name for field in dataclasses.fields(cls))
    needed = tuple(name for name in names if name not in defaults)
    _check_keys(place, given[key], names, needed)
    texts = {name: _text(f"{place}.{name}", value) for name, value in given[key].items()}
    return cls(**defaults | texts)


def _check_keys(place: str, given: Any, known: tuple[str, ...], needed: tuple[str, ...]) -> None:
    for key in _group(place, given):
        if key not in known:
            raise ValueError(f"{place}: key {key!r} is unknown; {did_you_mean(str(key), known)}")
    for key in needed:
        if key not in given:
            raise ValueError(f"{place}: {key} is missing; add it.")


def _group(place: str, given: Any) -> Dict[Any, Any]:
    if not isinstance(given, dict):
        raise ValueError(f"{place} is {given!r}; give keys with values.")
    return given


def _texts(place: str, given: Any, is_value: bool = False) -> tuple[str, ...]:
    parts = given if isinstance(given, list) else [given]
    if is_value:  # 4 and "4" are the same value of a column
        parts = [str(p) if isinstance(p, int) and not isinstance(p, bool) else p for p in parts]
    return tuple(_text(place, part) for part in parts)


def _text(place: str, given: Any) -> str:
    if not isinstance(given, str):
        # YAML reads no, on and 12 as values of other types.
        raise ValueError(f"{place} is {given!r}, not a text; put it in quotes.")
    if given == FILL_IN:
        raise ValueError(
            f"{place} is still {FILL_IN}; replace it there, as the comment above it says."
        )
    return given
