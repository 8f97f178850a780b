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
| a first line such as `sep=;` | the delimiter: Excel writes it |
| a quoted value with line breaks | a value, unless all its lines look like records: refused |
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Iterable, Iterator

import ibis
import numpy as np

from sigma_jax.data import database
from sigma_jax.data.readers.bytes import TextFile, open_text
from sigma_jax.data.readers.part import Part, name_of, quoted

DELIMITERS = (",", ";", "\t", "|")
MAX_RECORD_BYTES = 1 << 26
_DUCKDB_LINE_BYTES = 2_000_000  # longer lines need larger buffers
_QUOTE, _NEWLINE, _RETURN, _BLANK = b'"\n\r '
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_SAMPLE = 1_000  # records on one line that tell what records look like
_SUSPECTS = 1_000  # records on several lines that are looked at


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
    first_line, last_line, names, delimiter = _header(text)
    shape = None
    # DuckDB loses all rows after a header of several lines.
    if first_line == last_line == 1 and text.encoding.startswith("utf-8") and not text.is_padded:
        shape = _plain_shape(text.blocks(), ord(delimiter), len(names))
    file, compression = path, text.compression
    if shape is None:
        file = str(database.scratch_file(con, "csv"))
        shape = _Rewriter(text, delimiter, names).write(file, first_line)
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
        has_header=True,
    )


def _header(text: TextFile) -> tuple[int, int, list[str], str]:
    """The first and the last line of the header, its names, and the delimiter.

    ValueError for repeated names.
    """
    lines = text.lines()
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    number, line = next(numbered, (0, ""))
    if not number:
        raise ValueError(f"{text.path} has no rows: it is empty; add rows, or remove the file.")
    said = _SEPARATOR_LINE.fullmatch(line)
    if said:
        number, line = next(numbered, (number, line))
    _check_is_delimited(text.path, number, line)
    outside = "".join(line.split('"')[::2])
    delimiter = said[1] if said else max(DELIMITERS, key=outside.count)
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
    return number, number + reader.line_num - 1, names, delimiter


def _check_is_delimited(path: str, number: int, line: str) -> None:
    """ValueError if the first line of a file is that of another kind of text."""
    found = None
    if re.match(r'\s*(\{\s*"|\[\s*[\[{]|[\[{]\s*$)', line):
        found = "JSON; give the file the suffix .jsonl, or .json"
    elif re.match(r"\s*<(!doctype|html|\?xml)", line, re.IGNORECASE):
        found = "a page of the web; download the file itself"
    if found:
        raise ValueError(f"{path}: line {number} looks like {found}.")


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
    if has_breaks and _may_hold_records(codes, ends, delimiter, width):
        return None
    return _Shape(len(ends), int(lengths.max()), bool(len(returns)), has_breaks)


def _may_hold_records(codes: np.ndarray, ends: np.ndarray, delimiter: int, width: int) -> bool:
    """Whether each line of some record has the delimiters of a whole record.

    A delimiter before a blank does not count: it is the comma of a sentence.
    """
    if width == 1:
        return False
    places = np.flatnonzero(codes == delimiter)
    places = places[codes[places + 1] != _BLANK]  # a delimiter is never the last byte
    lines = np.flatnonzero(codes == _NEWLINE)
    is_whole = np.diff(np.searchsorted(places, lines), prepend=0) == width - 1
    first = np.concatenate([[0], np.searchsorted(lines, ends)[:-1] + 1])  # line of each record
    sizes = np.diff(np.concatenate([first, [len(lines)]]))
    return bool((np.logical_and.reduceat(is_whole, first) & (sizes > 1)).any())


class _Rewriter:
    """Writes the records of an irregular file as regular CSV with commas."""

    def __init__(self, text: TextFile, delimiter: str, names: list[str]):
        self.text, self.delimiter, self.names = text, delimiter, names
        self._lines: list[str] = []  # of the record that is read
        self._sample: list[list[str]] = []
        self._suspects: list[tuple[int, int, list[list[str]]]] = []

    def write(self, target: str, first_line: int) -> _Shape:
        """Writes the file `target`. Returns its shape.

        Args:
          first_line: of the header.

        Raises:
          ValueError: a record breaks a rule; the message names its row and line.
        """
        longest, row = 0, -1  # the header is row 0
        csv.field_size_limit(MAX_RECORD_BYTES)
        reader = csv.reader(self._remembered(first_line), delimiter=self.delimiter, strict=True)
        with open(target, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
            while True:
                start = reader.line_num + first_line
                self._lines.clear()
                try:
                    record = next(reader, None)
                except csv.Error as error:
                    message = _wrong_quotes(self.text.path, row + 1, start, error, self._lines)
                    raise ValueError(message) from error
                if record is None:
                    break
                if not record:  # a blank line
                    continue
                row += 1
                if len(record) != len(self.names):
                    raise ValueError(_ragged(self.text.path, row, start, record, self.names))
                if row:
                    self._look_at(row, start)
                else:
                    record = [f"c{place}" for place in range(1, len(self.names) + 1)]
                longest = max(longest, writer.writerow(record))
        self._check_suspects()
        return _Shape(row, 4 * longest, False, True)

    def _remembered(self, first_line: int) -> Iterator[str]:
        """The lines from the header on; those of one record are kept in memory."""
        lines = _one_kind_of_end(self.text) if len(self.names) == 1 else self.text.lines()
        for number, line in enumerate(lines, 1):
            if number >= first_line:
                self._lines.append(line)
                yield line

    def _look_at(self, row: int, line: int) -> None:
        """Keeps a record of one line as an example, and one whose lines look like records."""
        width = len(self.names)
        if len(self._lines) == 1:
            fields = self._lines[0].split(self.delimiter)
            if len(self._sample) < _SAMPLE and len(fields) == width:
                self._sample.append(fields)
        elif width > 1 and len(self._suspects) < _SUSPECTS:
            records = [text.split(self.delimiter) for text in self._lines]
            is_sentence = any(field.startswith(" ") for record in records for field in record[1:])
            if not is_sentence and all(len(record) == width for record in records):
                self._suspects.append((row, line, records))

    def _check_suspects(self) -> None:
        """ValueError for a value whose lines are records: two quotes stand around whole rows."""
        columns = [
            {_signature(field) for field in fields} for fields in zip(*self._sample, strict=True)
        ]
        fixed = [place for place, known in enumerate(columns) if known == {"9"}]
        for row, line, records in self._suspects:
            inner = [[_signature(field) for field in record] for record in records[1:]]
            if not self._sample:
                is_alike = self.delimiter == "\t"  # no sentence has tabs
            else:
                is_alike = all(
                    record[0] in columns[0] and all(record[place] == "9" for place in fixed)
                    for record in inner
                )
            if is_alike:
                raise ValueError(
                    f"{self.text.path}: row {row} (line {line}): a quoted value holds "
                    f"{len(inner)} lines that look like rows; remove the quotes in the lines "
                    f"{line} and {line + len(inner)}, or save the file as Parquet if it is one "
                    "value."
                )


def _signature(field: str) -> str:
    """The form of a value: 9 for digits, x for letters, x9 for both, other signs as they are.

    Worked example: SKU-07 -> x-9, u12 -> x9.
    """

    def form(word: re.Match) -> str:
        has_digit, has_letter = (bool(re.search(p, word[0])) for p in ("[0-9]", "[^0-9]"))
        return "x" * has_letter + "9" * has_digit

    return re.sub(r"\w+", form, field.strip('"\r\n'))


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
    if len(record) == len(names) + 1 and not record[-1]:
        remedy = "the line ends with a delimiter, but the header does not: remove it, or add a name"
    elif len(record) + 1 == len(names) and not names[-1]:
        remedy = "the header ends with a delimiter, but the line does not: remove it in the header"
    elif any(value.endswith("\\") for value in record):
        remedy = "a backslash stands before a delimiter: put the value into quotes instead"
    elif any("\n" in value for value in record):
        remedy = "a quoted value goes on over several lines: remove the quotes if they are stray"
    elif len(set(record) & set(names)) >= min(2, len(names)):
        remedy = "it looks like a second header: split the file there"
    return (
        f"{path}: row {row} (line {line}) has {len(record)} fields, but the header has "
        f"{len(names)} ({', '.join(names)[:80]}); found {shown!r}; {remedy}."
    )


def _wrong_quotes(path: str, row: int, line: int, error: csv.Error, lines: list[str]) -> str:
    found = str(error)
    problem, remedy = f"the line cannot be read ({found})", "correct the line"
    if "unexpected end" in found:
        problem, remedy = "a quote is opened and never closed", "close it or remove it"
    elif "field larger" in found:
        problem = f"a value is longer than {MAX_RECORD_BYTES} bytes"
        remedy = "close the quote that opens it, or shorten the value"
    elif "expected after" in found:
        problem, remedy = "text follows a closing quote", "double the quotes inside a value"
        if any('\\"' in text for text in lines):
            problem = "a backslash stands before a quote, which does not escape it"
    return f"{path}: row {row} (line {line}): {problem}; {remedy}."
