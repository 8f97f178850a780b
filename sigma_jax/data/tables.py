"""Checks of the user's tables. Checked tables have ids as strings and times as unix seconds.

| table | required columns | optional columns |
|---|---|---|
| items | item_id | any: they become the text of the item |
| interactions | user_id, item_id, timestamp | event, session_id |
| users | user_id | any: they become the profile of the user |
| searches | query, item_id | clicks, user_id, timestamp |
| themes | theme, kind (season, holiday, trend) | item_id, start, end (exclusive) |
| knowledge | text, item_id or category | weight |

`data/times.py` lists the times that are understood, besides the timestamps of Parquet.

An error is a ValueError of one line: file, row, column, value, remedy. Rows count from 1, without
the header. A property that is no error but may surprise is a note (`data/oddities/`).
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import shlex
from collections.abc import Mapping, Sequence

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from sigma_jax.data import database, oddities
from sigma_jax.data.engines.dialect import (
    INVISIBLE,
    floor_divided,
    is_blank,
    one_line,
    text_of_number,
    trimmed,
    visible,
)
from sigma_jax.data.readers import parquet
from sigma_jax.data.times import (
    BASIC_ISO,
    DAYS,
    FIRST,
    ISO,
    LARGEST,
    LAST,
    MINUTES,
    NOT_A_TIME,
    SCALES,
    YEARS,
)

TABLES = ("items", "interactions", "users", "searches", "themes", "knowledge")
_SETTABLE = ("item_id", "user_id", "timestamp", "event", "session_id", "query", "clicks")
_SIMILAR = 0.75  # least likeness of a column's name to the one that is meant
_HEADER_CANDIDATES = 100  # rows that are looked at as a second header
KINDS = ("season", "holiday", "trend")
_NEEDED = {
    "items": ("item_id",),
    "interactions": ("user_id", "item_id", "timestamp"),
    "users": ("user_id",),
    "searches": ("query", "item_id"),
    "themes": ("theme", "kind"),
    "knowledge": ("text",),
}


@dataclasses.dataclass(frozen=True)
class Tables:
    """The tables of a source, not checked yet; None if the source has no such table."""

    items: ir.Table
    interactions: ir.Table
    names: dict[str, str]  # table -> path of its file, for messages
    files: dict[str, str]  # use -> path of every file that is read, for checksums
    has_times: bool  # False: timestamps are null, and rows are in order of time
    has_composed_searches: bool  # True: nobody typed the queries; clicks are the items' popularity
    users: ir.Table | None = None
    searches: ir.Table | None = None
    themes: ir.Table | None = None
    knowledge: ir.Table | None = None
    # Path of a .npy in row order of items, or of a Parquet by item_id.
    id_vectors: str | None = None
    visual_vectors: str | None = None
    text_vectors: str | None = None
    # Table -> (path, number of rows) of each of its files, in order; {} if a table is one file.
    parts: Mapping[str, tuple[tuple[str, int], ...]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what may surprise the user, for the data card


class Checker:
    """Reads the tables of one source into the database and checks them, one method a table.

    Attributes:
      dropped: the number of dropped rows, by table.
      notes: properties that may surprise the user, a sentence each.
    """

    def __init__(
        self,
        con: ibis.BaseBackend,
        tables: Tables,
        unknown_items: str,
        max_chars: int,
        field: str = "data.unknown_items",
    ):
        """A checker of `tables`.

        Args:
          field: the config's field of `unknown_items`, for messages.
        """
        self.field = field
        self.con = con
        self.tables = tables
        self.unknown_items = unknown_items
        self.max_chars = max_chars
        self.dropped: dict[str, int] = {}
        self.notes: list[str] = []

    def items(self) -> ir.Table:
        """item_id, source_row and the columns of the source. ValueError names a bad row."""
        table = self._load("items")
        table = self._with_ids("items", table, "item_id")
        table = self._check_unique("items", table, "item_id")
        self.notes += oddities.alike_notes(self.con, self.tables.names["items"], table, "item_id")
        return table

    def users(self) -> ir.Table | None:
        """user_id, source_row and the columns of the source; None without a table of users."""
        if self.tables.users is None:
            return None
        table = self._load("users")
        table = self._with_ids("users", table, "user_id")
        return self._check_unique("users", table, "user_id")

    def interactions(self, items: ir.Table, events: tuple[str, ...]) -> ir.Table:
        """user_id, item_id, time (unix seconds), session_id or null, source_row.

        Args:
          items: the checked items.
          events: values of column event to keep; () keeps all.
        """
        table, file = self._load("interactions"), self.tables.names["interactions"]
        if events:
            self._need_columns("interactions", table, ("event",))
            event = as_text(table["event"])
            self.notes += oddities.event_notes(self.con, file, event, table, events)
            table = table.filter(event.isin(events))
        columns = {name: table[name] for name in ("user_id", "item_id", "source_row")}
        columns["given"] = table["timestamp"]
        has_events = "event" in table.columns
        columns["event"] = as_text(table["event"]) if has_events else ibis.null(dt.string)
        has_sessions = "session_id" in table.columns
        columns["session_id"] = table["session_id"] if has_sessions else ibis.null(dt.string)
        table = table.select(**columns)
        for name in ("user_id", "item_id") + (("session_id",) if has_sessions else ()):
            table = self._with_ids("interactions", table, name)
        if self.tables.has_times:
            table = self._with_time("interactions", table, "given", "time", "timestamp")
            self.notes += oddities.time_notes(self.con, file, table)
        else:
            table = table.mutate(time=ibis.literal(0, dt.int64))
        table = self._known("interactions", table.drop("given"), items)
        table = database.save(self.con, "interactions", table)
        for name in ("raw_interactions", "interactions_with_time"):  # for their place on the disk
            self.con.drop_table(name, force=True)
        if not database.count(self.con, table):
            raise ValueError(
                f"{file} has no usable interaction; check its columns item_id and event, and "
                "--config.data.events."
            )
        if self.tables.has_times:
            self.notes += oddities.repeat_notes(self.con, file, table)
        self.notes += oddities.alike_notes(self.con, file, table, "user_id")
        return table.drop("event")

    def searches(self, items: ir.Table) -> ir.Table | None:
        """query, item_id, clicks, user_id or null, time or null, source_row.

        None without a table of searches.
        """
        if self.tables.searches is None:
            return None
        table = self._load("searches")
        table = self._with_ids("searches", table, "item_id")
        query = one_line(table["query"].cast("string")).lower()
        table = table.mutate(query=query[: self.max_chars])
        table = self._check_ids("searches", table, "query")
        columns = {name: table[name] for name in ("query", "item_id", "source_row")}
        has_clicks = "clicks" in table.columns
        columns["given"] = table["clicks"] if has_clicks else ibis.literal(1)
        has_user = "user_id" in table.columns
        columns["user_id"] = table["user_id"] if has_user else ibis.null(dt.string)
        has_time = "timestamp" in table.columns
        columns["when"] = table["timestamp"] if has_time else ibis.null(dt.int64)
        table = table.select(**columns)
        table = self._with_ids("searches", table, "user_id", nullable=True)
        table = table.mutate(clicks=table["given"].try_cast("float64"))
        self._refuse(
            "searches",
            table.filter(
                ~(table["clicks"] >= 0).fill_null(False)
                | table["clicks"].isnan()
                | table["clicks"].isinf()
            ),
            "clicks",
            "given",
            "is not a count; use a number of 0 or more",
        )
        if has_time:
            table = self._with_time("searches", table, "when", "time", "timestamp", nullable=True)
        else:
            table = table.mutate(time=ibis.null(dt.int64))
        table = self._known("searches", table.drop("given", "when"), items)
        return database.save(self.con, "searches", table)

    def themes(self, items: ir.Table) -> ir.Table | None:
        """theme, kind, item_id or null, start and end (unix seconds) or null, source_row.

        None without a table of themes.
        """
        if self.tables.themes is None:
            return None
        table = self._load("themes")
        columns = {name: trimmed(table[name].cast("string")) for name in ("theme", "kind")}
        columns["kind"] = columns["kind"].lower()
        has_items = "item_id" in table.columns
        columns["item_id"] = table["item_id"] if has_items else ibis.null(dt.string)
        for name in ("start", "end"):
            has_column = name in table.columns
            columns[f"given_{name}"] = table[name] if has_column else ibis.null(dt.int64)
        table = table.select("source_row", **columns)
        if has_items:
            table = self._with_ids("themes", table, "item_id", nullable=True)
        table = self._check_ids("themes", table, "theme")
        self._refuse(
            "themes",
            table.filter(~table["kind"].isin(KINDS).fill_null(False)),
            "kind",
            "kind",
            f"is unknown; use one of {', '.join(KINDS)}",
        )
        for name in ("start", "end"):
            table = self._with_time("themes", table, f"given_{name}", name, name, nullable=True)
        self._refuse(
            "themes",
            table.filter((table["end"] <= table["start"]).fill_null(False)),
            "end",
            "given_end",
            "is not after start; correct one of them",
        )
        table = self._known("themes", table.drop("given_start", "given_end"), items)
        return database.save(self.con, "themes", table)

    def knowledge(self, items: ir.Table) -> ir.Table | None:
        """text, item_id or null, category or null, weight, source_row.

        Each row has an item_id or a category. None without a table of knowledge.
        """
        if self.tables.knowledge is None:
            return None
        table = self._load("knowledge")
        if "item_id" in table.columns:
            table = self._with_ids("knowledge", table, "item_id", nullable=True)
        text = one_line(table["text"].cast("string"))
        columns = {"text": text[: self.max_chars]}
        for name in ("item_id", "category"):
            given = table[name] if name in table.columns else ibis.null(dt.string)
            columns[name] = trimmed(as_text(given)).nullif("")
        has_weight = "weight" in table.columns
        given = ibis.null(dt.string)
        if has_weight:
            given = trimmed(as_text(table["weight"])).nullif("")
        columns |= {"given": given, "weight": given.try_cast("float64").fill_null(1.0)}
        table = self._check_ids("knowledge", table.select("source_row", **columns), "text")
        self._refuse(
            "knowledge",
            table.filter(table["item_id"].isnull() & table["category"].isnull()),
            "item_id",
            "item_id",
            "is empty, and so is the category; fill one of them",
        )
        number = table["given"].try_cast("float64")
        is_weight = (number > 0).fill_null(False) & ~(number.isnan() | number.isinf())
        self._refuse(
            "knowledge",
            table.filter(table["given"].notnull() & ~is_weight.fill_null(False)),
            "weight",
            "given",
            "is not a weight; use a number above 0",
        )
        table = self._known("knowledge", table.drop("given"), items)
        return database.save(self.con, "knowledge", table)

    def _load(self, name: str) -> ir.Table:
        """The table `name` in the database, with its rows numbered from 0 as source_row.

        Raises:
          ValueError: a required column is missing, or there are no rows.
        """
        table, file = getattr(self.tables, name), self.tables.names[name]
        self._need_columns(name, table, _NEEDED[name])
        if name not in ("items", "users"):  # lists in their columns are described in words
            nested = [
                column
                for column in table.columns
                if table[column].type().is_nested() and not column.endswith("_id")
            ]
            table = table.mutate(**{column: table[column].cast("string") for column in nested})
        table = database.numbered(self.con, table, file)
        remedy = "save it as UTF-8 CSV, JSON lines or Parquet"
        try:
            with database.errors_of_file(file, remedy):
                kept = database.save(self.con, f"raw_{name}", table)
        except ValueError:
            for path, _ in self.tables.parts.get(name, ()):
                parquet.check_times(path)
            raise
        num_rows = database.count(self.con, kept)
        if not num_rows:
            raise ValueError(
                f"{file} has no rows; add rows, or remove the file if its table is optional."
            )
        # The reader has counted the rows by other means than the engine.
        expected = sum(rows for _, rows in self.tables.parts.get(name, ()))
        if expected and expected != num_rows:
            raise ValueError(
                f"{file} has {expected} rows, but {num_rows} are read; save it as Parquet."
            )
        self._check_no_header(name, kept)
        return kept

    def _check_no_header(self, name: str, table: ir.Table) -> None:
        """ValueError for a row whose values are names of columns: two exports in one file."""
        names = [column for column in table.columns if column != "source_row"]
        if len(names) < 2 or not all(table[column].type().is_string() for column in names):
            return
        # Two columns find the candidates: all at once would be a query of thousands of terms.
        plain = [visible(column).lower() for column in (table[names[0]], table[names[1]])]
        known = {_plain(column) for column in names}
        longest = 2 * max(map(len, names))  # other values need no pattern
        likely = table.filter(table[names[0]].length() <= longest)
        likely = likely.filter(plain[0].isin(known) & plain[1].isin(known))
        likely = likely.order_by("source_row").limit(_HEADER_CANDIDATES)
        for row in database.rows(self.con, likely):
            if all(row[column] is not None and _plain(row[column]) in known for column in names):
                file, number = self._place(name, row["source_row"])
                raise ValueError(
                    f"{file}: row {number}: {names[0]}={row[names[0]]!r} is a name of a column; it "
                    "looks like a second header: split the file there."
                )

    def _need_columns(self, name: str, table: ir.Table, needed: tuple[str, ...]) -> None:
        missing = [column for column in needed if column not in table.columns]
        if missing:
            raise ValueError(
                f"{self.tables.names[name]}: column {missing[0]!r} is missing "
                f"(found: {', '.join(table.columns)[:400]}); "
                f"{_nearest_column(missing[0], table.columns)}rename or add it, or let "
                "`python -m sigma_jax.prepare --inspect=FOLDER` propose a mapping."
            )

    def _with_ids(
        self, name: str, table: ir.Table, column: str, nullable: bool = False
    ) -> ir.Table:
        """`table` with `column` as text. ValueError names a value that is no id."""
        value = table[column]
        kind = value.type()
        if kind.is_nested() or kind.is_binary():
            raise ValueError(
                f"{self.tables.names[name]}: column {column!r} holds {kind}, no ids; save it as "
                "text or as whole numbers."
            )
        if kind.is_floating():
            no_number = table.filter(value.isnan() | value.isinf())
            self._refuse(name, no_number, column, column, "is no id; fill it or delete the row")
            large = table.filter(value.abs() >= _largest_exact(kind))
            remedy = "is a float that may stand for several ids; save the column as whole numbers"
            self._refuse(name, large, column, column, remedy)
        table = as_id(table, column)
        rules = oddities.wrong_ids(table[column])
        if not nullable:
            is_empty = table[column].isnull() | is_blank(table[column])
            rules.append((is_empty, "is empty; fill it or delete the row"))
        # One pass over the rows for all rules and notes.
        first = {
            f"wrong{place}": table["source_row"].min(where=is_wrong)
            for place, (is_wrong, _) in enumerate(rules)
        }
        facts = table.aggregate(**first, **oddities.id_counts(table, column))
        found = database.rows(self.con, facts)[0]
        rows = [(found[key], place) for place, key in enumerate(first) if found[key] is not None]
        if rows:
            row, place = min(rows)
            wrong = table.filter(table["source_row"] == row)
            complaint = rules[place][1]
            if "{part}" in complaint:
                value = database.rows(self.con, wrong.select(value=column))[0]["value"]
                complaint = complaint.format(part=oddities.part_of_object(column, value))
            self._refuse(name, wrong, column, column, complaint)
        self.notes += oddities.id_notes(self.tables.names[name], column, found)
        return table

    def _check_ids(self, name: str, table: ir.Table, column: str) -> ir.Table:
        empty = table.filter(table[column].isnull() | is_blank(table[column]))
        self._refuse(name, empty, column, column, "is empty; fill it or delete the row")
        return table

    def _check_unique(self, name: str, table: ir.Table, column: str) -> ir.Table:
        row = table["source_row"]
        groups = table.group_by(column).agg(first=row.min(), rows=table.count(), last=row.max())
        found = database.rows(
            self.con, groups.filter(groups["rows"] > 1).order_by("first").limit(1)
        )
        if found:
            (file, last), (other, first) = (
                self._place(name, found[0][end]) for end in ("last", "first")
            )
            first = f"row {first}" if other == file else f"row {first} of {other}"
            raise ValueError(
                f"{file}: row {last}: {column}={found[0][column]!r} is in {first} too; keep one "
                f"row for each {column}."
            )
        return table

    def _with_time(
        self, name: str, table: ir.Table, source: str, target: str, field: str, nullable=False
    ) -> ir.Table:
        given = table[source]
        is_empty = given.isnull()
        if given.type().is_string():
            is_empty = is_empty | is_blank(given).fill_null(False)
        if not nullable:
            self._refuse(
                name, table.filter(is_empty), field, source, "is empty; fill it or delete the row"
            )
        if given.type().is_float32():
            self._refuse(
                name,
                table.filter(given.abs() >= _largest_exact(given.type())),
                field,
                source,
                "is a float of 32 bits, which rounds times to minutes; save the column as whole "
                "numbers",
            )
        seconds = unix_seconds(given)
        dates = date_seconds(given)
        # A log may count seconds from 0 past 20,240,501: the column has days only if all are days.
        others = table.filter(as_number(given).notnull() & dates.isnull())
        if not database.rows(self.con, others.select("source_row").limit(1)):
            seconds = ibis.coalesce(dates, seconds)
        table = table.mutate(**{target: seconds, "is_empty": is_empty})
        # Computed once: the many forms of a time are a query of thousands of terms.
        table = database.save(self.con, f"{name}_with_{target}", table)
        wrong = table.filter(table[target].isnull() & ~table["is_empty"])
        self._refuse(name, wrong, field, source, NOT_A_TIME)
        return table.drop("is_empty")

    def _known(self, name: str, table: ir.Table, items: ir.Table) -> ir.Table:
        """The rows of `table` whose item_id is in `items`, or null.

        Other rows raise an error, or are dropped and counted.
        """
        unknown = table.filter(table["item_id"].notnull()).anti_join(
            items.select("item_id"), "item_id"
        )
        num_unknown = database.count(self.con, unknown)
        if not num_unknown:
            return table
        if self.unknown_items == "error":
            first = unknown.order_by("source_row").limit(1)
            similar = oddities.similar_id(self.con, first, items, "item_id")
            hint = f", but {similar!a} is: write both the same way" if similar else ""
            remedy = (
                f"is not in items ({num_unknown} such rows){hint}; add the item there, or set "
                f"--config.{self.field}=drop to drop such rows"
            )
            self._refuse(name, unknown, "item_id", "item_id", remedy)
        self.dropped[name] = num_unknown
        known = table["item_id"].isin(items["item_id"]) | table["item_id"].isnull()
        return table.filter(known)

    def _refuse(self, name: str, wrong: ir.Table, field: str, shown: str, complaint: str) -> None:
        """Raises ValueError about the first row of `wrong`, if there is one.

        Args:
          name: the table.
          wrong: the rows that break a rule.
          field: the column that the message names.
          shown: the column of `wrong` that holds the value as it was given.
          complaint: the rule and the remedy, as the end of a sentence.
        """
        value = wrong[shown]
        if not (value.type().is_integer() or value.type().is_floating()):
            value = value.cast("string")  # Python has no time after the year 9999
        first = wrong.order_by("source_row").limit(1).select("source_row", value=value)
        found = database.rows(self.con, first)
        if found:
            value = found[0]["value"]
            if not isinstance(value, int | float | None):
                value = str(value)[:80]
            file, row = self._place(name, found[0]["source_row"])
            raise ValueError(f"{file}: row {row}: {field}={value!r} {complaint}.")

    def _place(self, name: str, source_row: int) -> tuple[str, int]:
        """The file of a row of a table, and the row's number in that file, from 1."""
        for path, num_rows in self.tables.parts.get(name, ()):
            if source_row < num_rows:
                return path, source_row + 1
            source_row -= num_rows
        return self.tables.names[name], source_row + 1


def _plain(name: str) -> str:
    """The name of a column without what exports change: case, blanks, signs around it."""
    return re.sub(rf"[\s\x0b{INVISIBLE}]", "", name).casefold()


def _nearest_column(name: str, columns: Sequence[str]) -> str:
    """The column that is probably meant by `name`, as the beginning of a remedy; "" if none is."""
    letters = {column: re.sub(r"[\W_]", "", column).casefold() for column in columns}
    wanted = name.replace("_", "")
    equal = [column for column, text in letters.items() if text == wanted]
    ending = [column for column, text in letters.items() if text.endswith(wanted)]
    near = difflib.get_close_matches(wanted, letters.values(), 1, _SIMILAR)
    near = [column for column, text in letters.items() if text in near]
    for column in equal + ending + near:
        setting = ""
        if name in _SETTABLE:
            setting = f" --config.data.columns.{name}={shlex.quote(column)} takes it;"
        return f"did you mean {column!r}?{setting} "
    if any(re.fullmatch(r"-?[0-9]+([.:-][0-9]+)*", column) for column in columns):
        return "does the file lack a header? "
    return ""


def as_id(table: ir.Table, column: str) -> ir.Table:
    """`table` with `column` as text."""
    return table.mutate(**{column: as_text(table[column])})


def as_text(value: ir.Value) -> ir.StringValue:
    """A value as text. 7.0 becomes "7": a column of integers with gaps arrives as floats."""
    text = value.cast("string")
    kind = value.type()
    if kind.is_floating():
        is_whole = (value == value.floor()) & (value.abs() < _largest_exact(kind))
        whole = value.try_cast("int64").cast("string")
        return is_whole.ifelse(whole, text_of_number(value))
    if kind.is_decimal():
        return text.contains(".").ifelse(text.re_replace("[.]?0+$", ""), text)
    return text


def _largest_exact(kind: dt.DataType) -> int:
    """The number below which every whole number is exact in a type of floats."""
    return 2**24 if kind.is_float32() else 2**53


def as_number(value: ir.Value) -> ir.FloatingValue:
    """A number, or the text of a number, as float64; null for infinity, NaN and other values."""
    if not value.type().is_numeric():
        value = trimmed(value.cast("string"))
    number = value.try_cast("float64")
    return (number.isinf() | number.isnan()).ifelse(ibis.null("float64"), number)


def date_seconds(value: ir.Value) -> ir.IntegerValue:
    """Unix seconds of days such as 20240501 (number or text) and of years such as "2024" (text).

    A year stands for its 1 January. Other values give null; so does 20240230, which is no day.
    """
    number = _bounded(as_number(value))
    is_whole = number == number.floor()
    digits = number.try_cast("int64").cast("string")
    date = ibis.cases(
        (
            is_whole & number.between(*DAYS),
            digits[:4] + "-" + digits[4:6] + "-" + digits[6:8],
        ),
        (
            is_whole & number.between(*YEARS) & ibis.literal(value.type().is_string()),
            digits + "-01-01",
        ),
        else_=ibis.null(dt.string),
    )
    return date.try_cast("date").cast("timestamp").epoch_seconds().cast("int64")


def unix_seconds(value: ir.Value) -> ir.Value:
    """Unix seconds of timestamps, dates, ISO 8601 texts and numbers; null for other values.

    `times.SCALES` gives the unit of a number by its size. Fractions of a second are dropped.
    """
    kind = value.type()
    if kind.is_timestamp() or kind.is_date():
        return _in_range(_whole_seconds(value.cast("timestamp")))
    if kind.is_integer():
        return _in_range(_scaled(value.try_cast("int64")))
    seconds = _numeric_seconds(_bounded(as_number(value)))
    if kind.is_numeric():
        return _in_range(seconds)
    text = trimmed(value.cast("string"))
    is_whole = text.re_search("^[+-]?[0-9]+$")
    whole = is_whole.ifelse(text, ibis.null(dt.string)).try_cast("int64")
    return _in_range(ibis.coalesce(_scaled(whole), seconds, _iso_seconds(text)))


def _iso_seconds(text: ir.StringValue) -> ir.IntegerValue:
    """Unix seconds of texts in the forms times.ISO and times.BASIC_ISO.

    The clock and the zone are computed here: engines differ in the clocks and zones that they read.
    """
    found = ibis.null("int64")
    for form in (BASIC_ISO, ISO):
        form = f"^{form}$"
        year, month, day, hour, minute, second, _, zone = (
            text.re_extract(form, group).nullif("") for group in range(1, 9)
        )
        date = ibis.literal("-").join([year, month, day]).try_cast("date")
        hours, minutes, seconds = (
            part.fill_null("0").try_cast("int64") for part in (hour, minute, second)
        )
        is_clock = (hours < 24) & (minutes < 60) & (seconds < 60)
        zone = zone.fill_null("Z")
        ahead, rest = (
            zone.re_extract("^[+-]([0-9]{2}):?([0-9]{2})?$", group).nullif("").fill_null("0")
            for group in (1, 2)
        )
        offset = ahead.try_cast("int64") * 3_600 + rest.try_cast("int64") * 60
        is_clock = is_clock & (offset < 86_400)
        offset = zone.startswith("-").ifelse(-offset, offset)
        time = date.cast("timestamp").epoch_seconds().cast("int64")
        time = time + hours * 3_600 + minutes * 60 + seconds - offset
        found = (text.re_search(form) & is_clock).ifelse(time, found)
    return found


def _whole_seconds(time: ir.TimestampValue) -> ir.IntegerValue:
    # It truncates first, since DuckDB rounds when it casts a fraction to a whole number.
    return time.truncate("s").epoch_seconds().cast("int64")


def _in_range(seconds: ir.IntegerValue) -> ir.IntegerValue:
    """`seconds`, or null before times.FIRST and after times.LAST."""
    return seconds.between(FIRST, LAST).ifelse(seconds, ibis.null("int64"))


def _scaled(number: ir.IntegerValue) -> ir.IntegerValue:
    """Unix seconds of whole numbers, rounded down without a float: it would round nanoseconds.

    Null for numbers of 12 digits that read as yyyymmddHHMM.
    """
    number = (~_is_minute(number)).ifelse(_bounded(number), ibis.null("int64"))
    size = number.abs()
    cases = (
        (size >= int(smallest), floor_divided(number, int(units)).cast("int64"))
        for smallest, units in SCALES
    )
    return ibis.cases(*cases, else_=number)


def _bounded(number: ir.NumericValue) -> ir.NumericValue:
    """`number`, or null if it is no time in any unit: engines fail on what fits no int64."""
    return number.between(-LARGEST, LARGEST).ifelse(number, ibis.null(number.type()))


def _is_minute(number: ir.IntegerValue) -> ir.BooleanValue:
    """Whether a number reads as yyyymmddHHMM, such as 202405011230."""
    month, day = number // 1_000_000 % 100, number // 10_000 % 100
    is_day = month.between(1, 12) & day.between(1, 31)
    is_clock = (number // 100 % 100 < 24) & (number % 100 < 60)
    return (number.between(*MINUTES) & is_day & is_clock).fill_null(False)


def _numeric_seconds(number: ir.FloatingValue) -> ir.IntegerValue:
    whole = number.try_cast("int64")
    number = (~_is_minute(whole)).ifelse(number, ibis.null("float64"))
    size = number.abs()
    cases = ((size >= smallest, number / units) for smallest, units in SCALES)
    seconds = ibis.cases(*cases, else_=number)
    return seconds.floor().try_cast("int64")
