"""First rows of foreign files: what they are, and the columns that they have."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sigma_jax.data.mapping import opening
from sigma_jax.data.times import unix_time

MAX_ROWS = 5_000  # of a file that are looked at
_MAX_WHOLE = 64 << 20  # bytes of a JSON file that is one array
_NOT_TABLES = (".npy", ".yaml", ".yml", ".md", ".pdf", ".html", ".png", ".jpg")
_PACKED = (".zip", ".tar", ".tgz", ".7z", ".rar")
LIST = " | "  # between the elements of a list


@dataclasses.dataclass(frozen=True)
class FileLook:
    """The first rows of the files of one shape, column by column, as texts; "" where empty.

    Worked example: the row {"user": 7, "events": [{"item": 3}, {"item": 5}], "at": {"city": "x"}}
    has columns user ["7"] and at.city ["x"], and nested events: {events.item: ["3", "5"]}.
    """

    names: tuple[str, ...]  # of the files
    size: int  # bytes of all files
    kind: str  # one of opening.KINDS
    delimiter: str  # of text
    encoding: str  # of text
    has_header: bool
    columns: dict[str, list[str]]
    nested: dict[str, dict[str, list[str]]]  # column of lists of objects -> columns inside


def look_at_folder(folder: Path) -> tuple[list[FileLook], list[str]]:
    """The files in `folder`, those of one shape together, and why others are left out."""
    looks: list[FileLook] = []
    left_out = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            left_out.append(f"{path.name}: a folder; inspect it by itself")
            continue
        if path.suffix in _PACKED:
            left_out.append(f"{path.name}: unpack it first")
            continue
        if path.suffix in _NOT_TABLES or path.name.lower().startswith(("readme", "license")):
            left_out.append(f"{path.name}: no table by its name")
            continue
        try:
            found = look_at_file(path)
        except (ValueError, OSError) as error:
            left_out.append(f"{path.name}: {str(error).splitlines()[0]}")
            continue
        like = next((k for k, look in enumerate(looks) if _is_alike(look, found)), None)
        if like is None:
            looks.append(found)
        else:
            looks[like] = _together(looks[like], found)
    return looks, left_out


def _is_alike(one: FileLook, other: FileLook) -> bool:
    if one.kind != other.kind or set(one.columns) != set(other.columns):
        return False
    if not (one.has_header and other.has_header):
        names = [name.rstrip("0123456789._-") for name in (one.names[0], other.names[0])]
        return names[0] == names[1]
    return len(one.columns) + len(one.nested) > 2  # two columns, such as id and name, prove little


def _together(one: FileLook, other: FileLook) -> FileLook:
    columns = {name: values + other.columns[name] for name, values in one.columns.items()}
    return dataclasses.replace(
        one, names=one.names + other.names, size=one.size + other.size, columns=columns
    )


def look_at_file(path: Path) -> FileLook:
    """The first rows of one file. ValueError if it is no table."""
    size, name = path.stat().st_size, str(path)
    encoding = _encoding(name)
    kind = opening.find_kind(name, encoding)
    if kind == "text":
        delimiter, has_header, columns = _look_at_text(name, encoding)
        return FileLook((path.name,), size, kind, delimiter, encoding, has_header, columns, {})
    if kind == "parquet":
        batch = next(pq.ParquetFile(path).iter_batches(batch_size=MAX_ROWS), None)
        rows = batch.to_pylist() if batch is not None else []
    else:
        rows = _objects(path, kind, encoding)
    columns, nested = _flatten(rows)
    return FileLook((path.name,), size, kind, "", encoding, True, columns, nested)


def _encoding(path: str) -> str:
    with opening.open_bytes(path) as file:
        start = file.read(opening.PEEK_BYTES)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if start[:4] == b"PAR1":
        return "utf-8"
    # A look may end inside a character, which is at most four bytes.
    for end in range(len(start), max(len(start) - 4, -1), -1):
        try:
            start[:end].decode("utf-8")
            return "utf-8"
        except UnicodeDecodeError:
            continue
    return "latin-1"


def _look_at_text(path: str, encoding: str) -> tuple[str, bool, dict[str, list[str]]]:
    lines = opening.first_lines(path, encoding)[: MAX_ROWS + 1]
    if not lines:
        raise ValueError("it is empty")
    delimiter = opening.guess_delimiter(lines[0])
    quote = opening.quote_of(delimiter)
    if delimiter not in lines[0]:
        raise ValueError("its first line has no delimiter")
    rows = [opening.split_line(line, delimiter, quote) for line in lines]
    has_header = looks_like_header(rows[0])
    width = len(rows[0])
    names = [f"column_{n + 1}" for n in range(width)]
    if has_header:
        names = opening.column_names(rows.pop(0))
    # A field with a line break inside is cut here; its row is left out of the look.
    rows = [row for row in rows if len(row) == width]
    return (
        delimiter,
        has_header,
        {name: [row[n].strip() for row in rows] for n, name in enumerate(names)},
    )


def looks_like_header(fields: Sequence[str]) -> bool:
    """Whether the fields of a first line are names: none is a number, a time, or empty.

    The first may be empty, as in the tables of pandas.
    """
    fields = [field.strip().strip('"') for field in fields]
    if any(not field for field in fields[1:]) or len(set(fields)) < len(fields):
        return False
    return not any(is_number(field) or _is_time(field) for field in fields)


def is_number(text: str) -> bool:
    """Whether `text` is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_time(text: str) -> bool:
    try:
        unix_time(text, "")
        return True
    except ValueError:
        return False


def _objects(path: Path, kind: str, encoding: str) -> list[dict]:
    """The first objects of a file of JSON or of Python literals."""
    if kind == "json" and path.stat().st_size < _MAX_WHOLE:
        with opening.open_bytes(str(path)) as file:
            start = file.read(1)
            if start == b"[":
                found = json.loads(start + file.read())
                return [row for row in found[:MAX_ROWS] if isinstance(row, dict)]
    parse = json.loads if kind == "json" else ast.literal_eval
    rows = []
    for number, line in enumerate(opening.first_lines(str(path), encoding)[:MAX_ROWS], 1):
        try:
            row = parse(line)
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"line {number} is not one object") from error
        if isinstance(row, dict):
            rows.append(row)
    if not rows:
        raise ValueError("it holds no objects")
    return rows


def _flatten(rows: Sequence[dict]) -> tuple[dict[str, list[str]], dict[str, dict[str, list[str]]]]:
    """Columns, and columns inside lists of objects, as of FileLook."""
    columns: dict[str, list[str]] = {}
    nested: dict[str, dict[str, list[str]]] = {}
    for number, row in enumerate(rows):
        for name, value in _fields(row):
            if isinstance(value, list) and value and isinstance(value[0], dict):
                inside = nested.setdefault(name, {})
                for element in value:
                    for field, inner in element.items():
                        inside.setdefault(f"{name}.{field}", []).append(_text(inner))
                continue
            values = columns.setdefault(name, [])
            values += [""] * (number - len(values))
            values.append(_text(value))
    for values in columns.values():
        values += [""] * (len(rows) - len(values))
    for name in nested:
        columns.pop(name, None)  # empty lists elsewhere
    return columns, nested


def _fields(row: dict) -> list[tuple[str, Any]]:
    """The fields of an object; those of an object inside it by dotted names."""
    found: list[tuple[str, Any]] = []
    for name, value in row.items():
        if isinstance(value, dict):
            found += [(f"{name}.{field}", inner) for field, inner in value.items()]
        else:
            found.append((str(name), value))
    return found


def _text(value: Any) -> str:
    if isinstance(value, list):
        return LIST.join(_text(part) for part in value)
    return "" if value is None else str(value)
