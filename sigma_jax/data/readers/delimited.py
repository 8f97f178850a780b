r"""CSV and its relatives (RFC 4180): names and delimiter come from the first line.

Every record must have as many fields as the first. `_plain_shape` certifies a regular file at the
speed of NumPy, and DuckDB reads it as it is. Another file goes through Python's strict reader,
which names the line of an error, or writes a regular copy that DuckDB reads.

| given | read as |
|---|---|
| delimiter | that of `,` `;` tab `\|` which the first line has most of |
| line ends | \n, \r\n and \r, also mixed; blank lines are skipped |
| a quote inside an unquoted value | a character, as in 15" |
| blanks around a name | removed; blanks around a value stay |
| a column without a name | not read, with a note: it is often the index of pandas |
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable, Iterator

import ibis
import numpy as np

from sigma_jax.data import database
from sigma_jax.data.readers.bytes import TextFile, open_text
from sigma_jax.data.readers.part import Part, name_of, quoted

DELIMITERS = (",", ";", "\t", "|")
MAX_RECORD_BYTES = 1 << 26
_DUCKDB_LINE_BYTES = 2_000_000  # longer lines need larger buffers
_QUOTE, _NEWLINE, _RETURN = b'"\n\r'


@dataclasses.dataclass(frozen=True)
class _Shape:
    """The facts of a regular file that DuckDB needs."""

    num_rows: int  # without the header
    longest: int  # bytes of the longest record
    has_returns: bool  # lines end with \r\n
    has_line_breaks: bool  # inside quotes


def read(con: ibis.BaseBackend, path: str) -> Part:
    """The file at `path`; all columns are text, so that an id of 007 does not become 7.

    Raises:
      ValueError: a record has another number of fields than the header, a quote is wrong, or the
        file is no UTF-8. The message names row and line.
    """
    text = open_text(path)
    is_first_line, names, delimiter = _header(text)
    shape = None
    # DuckDB loses all rows after a header of several lines.
    if is_first_line and text.encoding in ("utf-8", "utf-8-sig"):
        shape = _plain_shape(text.blocks(), ord(delimiter), len(names))
    file, compression = path, text.compression
    if shape is None:
        file = str(database.scratch_file(con, "csv"))
        shape = _rewrite(text, delimiter, names, file)
        compression, delimiter = None, ","
    unnamed = [place for place, name in enumerate(names, 1) if _is_index(name)]
    shown = {place: name for place, name in enumerate(names, 1) if place not in unnamed}
    note = f"{path}: column {{}} has no name and is not read; it looks like the index of a table"
    return Part(
        path=path,
        file=file,
        num_rows=shape.num_rows,
        source=_source(names, delimiter, compression, shape),
        columns=tuple((name, "VARCHAR", name_of(f"c{place}")) for place, name in shown.items()),
        notes=tuple(note.format(place) for place in unnamed),
    )


def _header(text: TextFile) -> tuple[bool, list[str], str]:
    """Whether the first line is the first record, its names, and the delimiter.

    ValueError for repeated names.
    """
    lines = text.lines()
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    number, line = next(numbered, (0, ""))
    if not number:
        raise ValueError(f"{text.path} has no rows: it is empty; add rows, or remove the file.")
    outside = "".join(line.split('"')[::2])
    delimiter = max(DELIMITERS, key=outside.count)
    reader = csv.reader(_chained(line, lines), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader)]
    except csv.Error as error:
        raise ValueError(
            f"{text.path}: line {number}: the names of the columns cannot be read ({error}); "
            "correct the quotes."
        ) from error
    places: dict[str, int] = {}
    for place, name in enumerate(names, 1):
        if name and places.setdefault(name.casefold(), place) != place:
            raise ValueError(
                f"{text.path}: line {number}: the columns {places[name.casefold()]} and {place} "
                f"have the names {names[places[name.casefold()] - 1]!r} and {name!r}; rename or "
                "remove one."
            )
    return number == reader.line_num == 1, names, delimiter


def _chained(first: str, rest: Iterable[str]) -> Iterator[str]:
    yield first
    yield from rest


def _is_index(name: str) -> bool:
    """Whether pandas wrote the column for the index of a table."""
    return not name or name.startswith("Unnamed: ")


def _source(names: list[str], delimiter: str, compression: str | None, shape: _Shape) -> str:
    """The FROM clause for a regular file. Columns are c1, c2, ..."""
    columns = ", ".join(f"'c{place}': 'VARCHAR'" for place in range(1, len(names) + 1))
    options = {
        "columns": f"{{{columns}}}",
        "delim": quoted(delimiter),
        "quote": "'\"'",
        "escape": "'\"'",
        "header": "true",
        "auto_detect": "false",
        "strict_mode": "true",
        "null_padding": "false",
        "compression": quoted(compression or "none"),
        "parallel": "false" if shape.has_line_breaks else "true",
    }
    if shape.longest >= _DUCKDB_LINE_BYTES:
        options |= {
            "max_line_size": str(2 * shape.longest),
            "buffer_size": str(32 * shape.longest),
        }
    shown = ", ".join(f"{name} = {value}" for name, value in options.items())
    return f"read_csv({{files}}, {shown})"


def _plain_shape(blocks: Iterable[bytes], delimiter: int, width: int) -> _Shape | None:
    """The shape of a regular file: RFC 4180, one kind of line end, `width` fields everywhere.

    None if the file may be irregular, or a record is longer than MAX_RECORD_BYTES.
    """
    rest, records, longest, ends, breaks = b"", 0, 0, set(), False
    for block in _with_last_line_end(blocks):
        data = rest + block
        piece = _whole_records(data)
        rest = data[len(piece) :]
        if len(rest) > MAX_RECORD_BYTES:
            return None
        if not piece:
            continue
        found = _shape_of(piece, delimiter, width)
        if found is None:
            return None
        records += found.num_rows
        longest = max(longest, found.longest)
        breaks |= found.has_line_breaks
        ends.add(found.has_returns)
    if rest or len(ends) != 1:
        return None
    return _Shape(records - 1, longest, ends.pop(), breaks)


def _with_last_line_end(blocks: Iterable[bytes]) -> Iterator[bytes]:
    r"""`blocks`, and at the end of the file the line end that may be missing there."""
    end, last, has_return = b"\n", b"", None
    for block in blocks:
        if has_return is None and b"\n" in block:
            has_return = block[: block.index(b"\n")].endswith(b"\r")
        last = block
        yield block
    if not last.endswith(b"\n"):
        yield b"\r" + end if has_return else end


def _whole_records(data: bytes) -> bytes:
    """The start of `data` up to its last line end outside quotes."""
    codes = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(codes == _NEWLINE)
    quotes = np.flatnonzero(codes == _QUOTE)
    ends = ends[np.searchsorted(quotes, ends) % 2 == 0]
    return data[: ends[-1] + 1] if len(ends) else b""


def _shape_of(data: bytes, delimiter: int, width: int) -> _Shape | None:
    """The shape of whole records; None if they are irregular. `num_rows` counts all records."""
    codes = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(codes == _QUOTE)

    def outside(code: int) -> np.ndarray:
        places = np.flatnonzero(codes == code)
        return places[np.searchsorted(quotes, places) % 2 == 0] if len(quotes) else places

    ends, returns, delimiters = outside(_NEWLINE), outside(_RETURN), outside(delimiter)
    if (np.diff(np.searchsorted(delimiters, ends), prepend=0) != width - 1).any():
        return None
    if len(returns) and (len(returns) != len(ends) or (returns + 1 != ends).any()):
        return None
    lengths = np.diff(ends, prepend=-1)
    if width == 1 and lengths.min() <= (2 if len(returns) else 1):  # a blank line
        return None
    opening, closing = quotes[0::2], quotes[1::2]
    before = np.concatenate([[_NEWLINE], codes])[opening]
    after = codes[closing + 1]
    if not (
        np.isin(before, (_NEWLINE, delimiter, _QUOTE)).all()
        and np.isin(after, (_NEWLINE, _RETURN, delimiter, _QUOTE)).all()
    ):
        return None
    has_breaks = bool(len(quotes)) and len(ends) < int((codes == _NEWLINE).sum())
    return _Shape(len(ends), int(lengths.max()), bool(len(returns)), has_breaks)


def _rewrite(text: TextFile, delimiter: str, names: list[str], target: str) -> _Shape:
    """Writes the records of an irregular file as regular CSV with commas. Returns its shape.

    Raises:
      ValueError: a record breaks a rule; the message names its row and line.
    """
    longest, row = 0, -1  # the header is row 0
    lines = _one_kind_of_end(text) if len(names) == 1 else text.lines()
    csv.field_size_limit(MAX_RECORD_BYTES)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    with open(target, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        while True:
            start = reader.line_num + 1
            try:
                record = next(reader, None)
            except csv.Error as error:
                raise ValueError(_wrong_quotes(text.path, row + 1, start, error)) from error
            if record is None:
                break
            if not record:  # a blank line
                continue
            row += 1
            if len(record) != len(names):
                raise ValueError(_ragged(text.path, row, start, record, names))
            if not row:
                record = [f"c{place}" for place in range(1, len(names) + 1)]
            longest = max(longest, writer.writerow(record))
    return _Shape(row, 4 * longest, False, True)


def _one_kind_of_end(text: TextFile) -> Iterator[str]:
    r"""The lines of a file. ValueError if some end with \r alone: are they lines or values?"""
    kinds = set()
    for number, line in enumerate(text.lines(), 1):
        if line.endswith(("\r", "\n")):
            kinds.add(line.endswith("\r"))
        if len(kinds) > 1:
            raise ValueError(
                f"{text.path}: line {number}: some lines end with a carriage return alone; save "
                "the file with one kind of line end."
            )
        yield line


def _ragged(path: str, row: int, line: int, record: list[str], names: list[str]) -> str:
    shown = ", ".join(record)[:80]
    remedy = "correct the line, or put values with the delimiter into quotes"
    if len(set(record) & set(names)) >= min(2, len(names)):
        remedy = "it looks like a second header: split the file there"
    return (
        f"{path}: row {row} (line {line}) has {len(record)} fields, but the header has "
        f"{len(names)} ({', '.join(names)[:80]}); found {shown!r}; {remedy}."
    )


def _wrong_quotes(path: str, row: int, line: int, error: csv.Error) -> str:
    found = str(error)
    problem, remedy = f"the line cannot be read ({found})", "correct the line"
    if "unexpected end" in found:
        problem, remedy = "a quote is opened and never closed", "close it or remove it"
    elif "field larger" in found:
        problem = f"a value is longer than {MAX_RECORD_BYTES} bytes"
        remedy = "close the quote that opens it, or shorten the value"
    elif "expected after" in found:
        problem, remedy = "text follows a closing quote", "double the quotes inside a value"
    return f"{path}: row {row} (line {line}): {problem}; {remedy}."
