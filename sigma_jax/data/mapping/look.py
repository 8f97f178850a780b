"""First rows of foreign files: what they are, and the columns that they have."""

from __future__ import annotations

import ast
import codecs
import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sigma_jax.data.mapping import opening
from sigma_jax.data.mapping.roles import ITEM, SESSION, USER, is_id_of
from sigma_jax.data.times import unix_time

MAX_ROWS = 5_000  # of a file that are looked at
MAX_VALUES = 5_000_000  # of a column that the first rows leave open
MAX_PARTS = 8  # of a folder that are looked at, if all are of one shape
MAX_DEPTH = 3  # of folders
_MAX_PIECES = 64  # of PEEK_BYTES of a text, in which its encoding is looked for
_MAX_WHOLE = 64 << 20  # bytes of a JSON file that is one array
_NOT_TABLES = (".npy", ".yaml", ".yml", ".md", ".pdf", ".html", ".png", ".jpg")
_PACKED = (".zip", ".tar", ".tgz", ".7z", ".rar")
_NOT_CP1252 = frozenset(b"\x81\x8d\x8f\x90\x9d")
LIST = " | "  # between the elements of a list


@dataclasses.dataclass(frozen=True)
class FileLook:
    """The first rows of the files of one shape, column by column, as texts; "" where empty.

    Worked example: the row {"user": 7, "events": [{"item": 3}, {"item": 5}], "at": {"city": "x"}}
    has columns user ["7"] and at.city ["x"], and nested events: {events.item: ["3", "5"]}.

    A file that is one object around a list, {"products": [{"id": 1}, {"id": 2}]}, has wrapper
    "products" and the column products.id ["1", "2"].
    """

    folder: Path
    names: tuple[str, ...]  # of the files, in `folder`
    size: int  # bytes of all files
    kind: str  # one of opening.KINDS
    delimiter: str  # of text
    encoding: str  # of text
    has_header: bool
    wrapper: str  # "": rows are those of the file
    columns: dict[str, list[str]]
    nested: dict[str, dict[str, list[str]]]  # column of lists of objects -> columns inside

    def plain_name(self, column: str) -> str:
        """The name of a column without the wrapper around it."""
        return column.removeprefix(f"{self.wrapper}.") if self.wrapper else column

    @property
    def file(self) -> str | list[str]:
        """The key `file` of a section: a name, a list, or a glob for a whole folder."""
        if len(self.names) == 1:
            return self.names[0]
        paths = [Path(name) for name in self.names]
        depth, suffix = len(paths[0].parts), "".join(paths[0].suffixes)
        pattern = "/".join((paths[0].parts[0], *"*" * (depth - 2), f"*{suffix}"))
        if depth > 1 and {str(p.relative_to(self.folder)) for p in self.folder.glob(pattern)} == {
            *self.names
        }:
            return pattern
        return list(self.names)


def look_at_folder(folder: Path) -> tuple[list[FileLook], list[str]]:
    """The files in and below `folder`, those of one shape together, and why others are left out."""
    looks: list[FileLook] = []
    left_out = []
    parts: dict[tuple[Path, str], list[int]] = {}  # of a folder below: places in `looks`
    for path in _files(folder, folder, left_out):
        name = str(path.relative_to(folder))
        if reason := _reason(path):
            left_out.append(f"{name}: {reason}")
            continue
        seen = parts.setdefault((path.parent, path.suffix), [])
        if path.parent != folder and len(seen) >= MAX_PARTS and len(set(seen)) == 1:
            looks[seen[0]] = _with_part(looks[seen[0]], name, path.stat().st_size)
            continue
        try:
            found = dataclasses.replace(look_at_file(path), folder=folder, names=(name,))
        except (ValueError, OSError) as error:
            left_out.append(f"{name}: {str(error).splitlines()[0]}")
            continue
        like = next((k for k, look in enumerate(looks) if _is_alike(look, found)), None)
        seen.append(len(looks) if like is None else like)
        if like is None:
            looks.append(found)
        else:
            looks[like] = _together(looks[like], found)
    return looks, left_out


def _files(folder: Path, top: Path, left_out: list[str]) -> list[Path]:
    """The files of `folder` and of those in it, without hidden ones."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or (folder != top and path.name.startswith("_")):
            continue
        if not path.is_dir():
            found.append(path)
            continue
        inside = []
        if len(path.relative_to(top).parts) <= MAX_DEPTH and not path.name.startswith("_"):
            inside = _files(path, top, left_out)
        if not inside:
            left_out.append(f"{path.relative_to(top)}: a folder without tables")
        found += inside
    return found


def _reason(path: Path) -> str:
    """The reason to leave a file out by its name; "" if there is none."""
    if path.suffix in _PACKED:
        return "unpack it first"
    if path.suffix in _NOT_TABLES or path.name.lower().startswith(("readme", "license")):
        return "no table by its name"
    return ""


def _with_part(look: FileLook, name: str, size: int) -> FileLook:
    return dataclasses.replace(look, names=(*look.names, name), size=look.size + size)


def _is_alike(one: FileLook, other: FileLook) -> bool:
    if one.kind != other.kind or set(one.columns) != set(other.columns):
        return False
    if one.encoding != other.encoding or one.wrapper != other.wrapper:
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
    file = (path.parent, (path.name,), size, kind)
    if kind == "text":
        delimiter, has_header, columns = _look_at_text(name, encoding)
        return FileLook(*file, delimiter, encoding, has_header, "", columns, {})
    if kind == "parquet":
        batch = next(pq.ParquetFile(path).iter_batches(batch_size=MAX_ROWS), None)
        rows = batch.to_pylist() if batch is not None else []
    else:
        rows = _objects(path, kind, encoding)
    wrapper = _wrapper(rows) if kind == "json" else ""
    if wrapper:
        rows = [row for row in dict(_fields(rows[0]))[wrapper][:MAX_ROWS] if isinstance(row, dict)]
    columns, nested = _flatten(rows, f"{wrapper}." if wrapper else "")
    return FileLook(*file, "", encoding, True, wrapper, columns, nested)


def _wrapper(rows: Sequence[dict]) -> str:
    """The list that a file of one object is about; "" if the object is a row itself."""
    if len(rows) != 1:
        return ""
    fields = dict(_fields(rows[0]))
    lists = {
        name: len(value)
        for name, value in fields.items()
        if isinstance(value, list) and value and isinstance(value[0], dict)
    }
    is_row = any(is_id_of(name, USER | ITEM | SESSION) for name in fields if name not in lists)
    return "" if is_row or not lists else max(lists, key=lists.__getitem__)


def _encoding(path: str) -> str:
    """The encoding of a text by its first bytes; utf-8 of a file that is no text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_utf8, seen = True, set[int]()
    with opening.open_bytes(path) as file:
        for number in range(_MAX_PIECES):
            piece = file.read(opening.PEEK_BYTES)
            if not number and piece[:2] in (b"\xff\xfe", b"\xfe\xff"):
                return "utf-16"
            if not piece or (not number and piece[:4] == b"PAR1"):
                break
            if is_utf8:
                try:
                    decoder.decode(piece)
                    continue
                except UnicodeDecodeError:
                    is_utf8 = False
            seen |= set(piece)
    if is_utf8:
        return "utf-8"
    has_controls = bool(opening.CONTROLS.search(bytes(seen)))
    return "cp1252" if has_controls and not seen & _NOT_CP1252 else "latin-1"


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


def many_values(look: FileLook, column: str) -> Iterator[str]:
    """The first MAX_VALUES values of a column of delimited text with a header."""
    yield from itertools.islice(_values(look, column), MAX_VALUES)


def _values(look: FileLook, column: str) -> Iterator[str]:
    if look.kind != "text" or not look.has_header:
        return
    place = list(look.columns).index(column)
    quote = opening.quote_of(look.delimiter)
    for name in look.names:
        with opening.open_bytes(str(look.folder / name)) as file:
            lines = (line.decode(look.encoding, "replace").rstrip("\r\n") for line in file)
            next(lines, None)
            for line in lines:
                if len(fields := opening.split_line(line, look.delimiter, quote)) > place:
                    yield fields[place].strip()


def _objects(path: Path, kind: str, encoding: str) -> list[dict]:
    """The first objects of a file of JSON or of Python literals."""
    is_short = kind == "json" and path.stat().st_size < _MAX_WHOLE
    if is_short:
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
            if is_short and number == 1 and (whole := _one_object(path)):
                return [whole]
            raise ValueError(f"line {number} is not one object") from error
        if isinstance(row, dict):
            rows.append(row)
    if not rows:
        raise ValueError("it holds no objects")
    return rows


def _one_object(path: Path) -> dict | None:
    """The object that a file of JSON is, on many lines; None if it is none."""
    with opening.open_bytes(str(path)) as file:
        try:
            found = json.loads(file.read())
        except ValueError:
            return None
    return found if isinstance(found, dict) else None


def _flatten(
    rows: Sequence[dict], start: str
) -> tuple[dict[str, list[str]], dict[str, dict[str, list[str]]]]:
    """Columns, and columns inside lists of objects, as of FileLook; names begin with `start`."""
    columns: dict[str, list[str]] = {}
    nested: dict[str, dict[str, list[str]]] = {}
    for number, row in enumerate(rows):
        for field, value in _fields(row):
            name = start + field
            if isinstance(value, list) and value and isinstance(value[0], dict):
                inside = nested.setdefault(name, {})
                for element in filter(lambda part: isinstance(part, dict), value):
                    for field, inner in _fields(element):
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


def _fields(row: dict, start: str = "", depth: int = MAX_DEPTH) -> list[tuple[str, Any]]:
    """The fields of an object; those of an object inside it by dotted names."""
    found: list[tuple[str, Any]] = []
    for name, value in row.items():
        if isinstance(value, dict) and depth > 1:
            found += _fields(value, f"{start}{name}.", depth - 1)
        else:
            found.append((f"{start}{name}", value))
    return found


def _text(value: Any) -> str:
    if isinstance(value, list):
        return LIST.join(_text(part) for part in value)
    return "" if value is None else str(value)
