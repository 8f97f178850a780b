"""Opens files as they come: a table of texts from delimited text, JSON, Python literals, Parquet.

The first bytes of a file tell its kind, not its name. Columns of JSON stay JSON, and columns of
delimited text stay text, so that no value is changed on its way.
"""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import ibis
import ibis.expr.types as ir
import pyarrow as pa

from sigma_jax.data import database

CONTROLS = re.compile(rb"[\x80-\x9f]")  # in latin-1; letters and marks in cp1252
PEEK_BYTES = 1 << 20  # of the start of a file, which tells its kind
KINDS = ("text", "json", "python", "parquet")
_DELIMITERS = ("\t", "::", ";", "|", ",")
# Headers of RecBole's atomic files: user_id:token, rating:float, title:token_seq.
_ATOMIC = re.compile(r"(.+):(?:token|float)(?:_seq)?")
_REMEDY = "correct it, or say delimiter, quote, header or encoding in the mapping"
_RAGGED = re.compile(r"Line: (\d+).*Expected Number of Columns: (\d+) Found: (\d+)", re.DOTALL)
_LINE = re.compile(r"Line: (\d+)")


def open_bytes(path: str) -> Any:
    """The file or URL `path`, opened to read bytes, unpacked if it is .gz or .zst."""
    if not path.endswith(".zst"):
        return fsspec.open(path, "rb", compression="infer").open()
    packed = fsspec.open(path, "rb").open()
    return pa.CompressedInputStream(pa.PythonFile(packed, mode="r"), "zstd")


def first_lines(path: str, encoding: str) -> list[str]:
    """The complete lines at the start of a file, at most PEEK_BYTES of them.

    Raises:
      ValueError: the file is not text in `encoding`.
    """
    with open_bytes(path) as file:
        start = file.read(PEEK_BYTES)
        is_whole = not file.read(1)
    if not is_whole:
        start = start[: start.rfind(b"\n") + 1] or start
    try:
        text = start.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = start.count(b"\n", 0, error.start) + 1
        raise ValueError(_not_text(path, encoding, line)) from error
    return [line.removesuffix("\r") for line in text.split("\n") if line.strip()]


def _not_text(path: str, encoding: str, line: int) -> str:
    other = "cp1252" if encoding != "cp1252" else "latin-1"
    return (
        f"{path}: line {line} is not text in {encoding}; set encoding in the mapping, such as "
        f"{other}, or save the file as UTF-8."
    )


def line_of_wrong_bytes(path: str, encoding: str) -> int | None:
    """The first line that is not text in `encoding`; None if there is none, or in UTF-16.

    Bytes 0x80 to 0x9f are control characters in latin-1, which no text has.
    """
    if encoding == "utf-16":
        return None
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            if encoding == "latin-1" and CONTROLS.search(line):
                return number
            try:
                line.decode(encoding)
            except UnicodeDecodeError:
                return number
    return None


def _as_utf8(con: ibis.BaseBackend, path: str, encoding: str) -> str:
    """Path of a copy of `path` in UTF-8. ValueError names a line that is not in `encoding`."""
    target = database.scratch_file(con, "csv")
    with open_bytes(path) as file, open(target, "wb") as copy:
        for number, line in enumerate(file, 1):
            try:
                copy.write(line.decode(encoding).encode())
            except UnicodeDecodeError as error:
                raise ValueError(_not_text(path, encoding, number)) from error
    return str(target)


def find_kind(path: str, encoding: str = "utf-8") -> str:
    """The kind of a file, one of KINDS, by its first bytes."""
    with open_bytes(path) as file:
        if file.read(4) == b"PAR1":
            return "parquet"
    lines = first_lines(path, encoding)
    if not lines or not lines[0].lstrip().startswith(("{", "[")):
        return "text"
    try:
        json.loads(lines[0])
    except ValueError:
        try:
            return "python" if isinstance(ast.literal_eval(lines[0]), dict) else "json"
        except (ValueError, SyntaxError):
            return "json"
    return "json"


def guess_delimiter(line: str) -> str:
    """The delimiter of the first line of a file."""
    counts = {delimiter: line.count(delimiter) for delimiter in _DELIMITERS}
    for delimiter in ("\t", "::"):  # not part of any name
        if counts[delimiter]:
            return delimiter
    return max((",", ";", "|"), key=lambda delimiter: counts[delimiter])


def quote_of(delimiter: str, given: str | None = None) -> str:
    """The character that encloses fields: `given`, or `"` in the files of spreadsheets."""
    if given is not None:
        return given
    return '"' if delimiter in (",", ";") else ""


def split_line(line: str, delimiter: str, quote: str) -> list[str]:
    """The fields of one line."""
    if not quote:
        return line.split(delimiter)
    return next(csv.reader([line], delimiter=delimiter, quotechar=quote))


def column_names(fields: Sequence[str]) -> list[str]:
    """The names in a header, without the types of RecBole's atomic files.

    A name that is missing, as of the index of a pandas table, becomes column_1.
    """
    atomic = [_ATOMIC.fullmatch(field.strip()) for field in fields]
    if all(atomic):
        return [found[1] for found in atomic]
    return [field.strip().lstrip("#") or f"column_{n + 1}" for n, field in enumerate(fields)]


def is_plain_csv(path: str) -> bool:
    """Whether the strict reader of CSV takes a file of text: by its name and its delimiter."""
    name = path.lower().removesuffix(".gz").removesuffix(".zst")
    lines = first_lines(path, "utf-8") if name.endswith((".csv", ".txt")) else []
    return bool(lines) and guess_delimiter(lines[0]) in (",", ";")


def open_text(
    con: ibis.BaseBackend,
    path: str,
    delimiter: str,
    quote: str | None,
    encoding: str,
    header: Sequence[str],
) -> ir.Table:
    """The delimited text `path` as a table of texts. An empty field is null.

    Args:
      delimiter: "" takes that of the first line.
      quote: None takes that of the delimiter.
      header: the names of the columns of a file without a header; () reads the first line.

    Raises:
      ValueError: the file is empty, a name occurs twice, or `header` has another length.
    """
    lines = first_lines(path, encoding)
    if not lines:
        raise ValueError(f"{path} is empty; add rows, or take it out of the mapping.")
    delimiter = delimiter or guess_delimiter(lines[0])
    quote = quote_of(delimiter, quote)
    fields = split_line(lines[0], delimiter, quote)
    names = list(header) or column_names(fields)
    if len(names) != len(fields):
        raise ValueError(
            f"{path}: line 1 has {len(fields)} fields at the delimiter {delimiter!r}, but header "
            f"names {len(names)}; correct header or delimiter in the mapping."
        )
    lowered = [name.lower() for name in names]  # DuckDB does not tell them apart
    for name in names:
        if lowered.count(name.lower()) > 1:
            raise ValueError(
                f"{path}: the column {name!r} occurs twice; name each column once in header."
            )
    source, read_as = path, encoding
    if encoding == "cp1252":  # DuckDB cannot read it
        source, read_as = _as_utf8(con, path, encoding), "utf-8"
    try:
        table = con.read_csv(
            source,
            columns=dict.fromkeys(names, "VARCHAR"),
            header=not header,
            delim=delimiter,
            quote=quote,
            escape=quote,
            encoding=read_as,
            auto_detect=False,
            null_padding=False,
        )
        # Reads every field once, so that a bad line is named here, with its file.
        con.to_pyarrow(table.agg(**{name: table[name].count() for name in names}))
        return table
    except duckdb.Error as error:
        if re.search("encod|unicode", str(error)) and (line := line_of_wrong_bytes(path, encoding)):
            raise ValueError(_not_text(path, encoding, line)) from error
        raise ValueError(f"{path}: {_text_error(error)}; {_REMEDY}.") from error


def _text_error(error: duckdb.Error) -> str:
    """The complaint of DuckDB about a line of delimited text, on one line."""
    text = str(error)
    if found := _RAGGED.search(text):
        return f"line {found[1]} has {found[3]} fields, but the file has {found[2]} columns"
    line = _LINE.search(text)
    reason = next((part for part in text.splitlines() if part and not _LINE.search(part)), text)
    return f"line {line[1]} cannot be read ({reason[:200]})" if line else database.first_line(error)


def open_json(con: ibis.BaseBackend, path: str, wanted: Sequence[str] | None) -> ir.Table:
    """The JSON lines (or one JSON array) `path` as a table whose columns are all JSON.

    Args:
      wanted: columns that have to be found, however late in the file; None takes all.
    """
    try:
        names = _json_names(con, path, "20480") if wanted is not None else []
        if wanted is None or not set(wanted) <= set(names):
            names = _json_names(con, path, "-1")
        table = con.read_json(path, columns=dict.fromkeys(names, "JSON"))
        con.to_pyarrow(table.count())  # parses every line, as above
        return table
    except duckdb.Error as error:
        where = _bad_json_line(path)
        reason = f"line {where} is not JSON" if where else database.first_line(error)
        raise ValueError(f"{path}: {reason}; write one JSON object a line.") from error


def _bad_json_line(path: str) -> int | None:
    """The first line that is not JSON; DuckDB counts from where a thread began."""
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            try:
                json.loads(line.strip() or b"{}")
            except ValueError:
                return number
    return None


def _json_names(con: ibis.BaseBackend, path: str, sample: str) -> list[str]:
    """The keys of the objects in the first `sample` rows; of all rows with -1."""
    quoted = path.replace("'", "''")
    query = f"DESCRIBE SELECT * FROM read_json('{quoted}', maximum_depth=1, sample_size={sample})"
    return [row[0] for row in con.raw_sql(query).fetchall()]


def python_rows(path: str, encoding: str) -> Iterator[dict]:
    """The objects of a file whose lines are Python literals: {'price': 4.99, 'is_new': True}.

    Raises:
      ValueError: a line is no such literal.
    """
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = ast.literal_eval(line.decode(encoding))
            except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
                raise ValueError(
                    f"{path}: line {number} is no Python literal; correct or delete it."
                ) from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}: line {number} is no object; correct or delete it.")
            yield row


def python_to_json(path: str, encoding: str, target: Path) -> None:
    """Writes the Python literals of `path` as JSON lines into `target`, a line at a time."""
    with open(target, "w", encoding="utf-8") as file:
        for row in python_rows(path, encoding):
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
