"""200 mutations of a good table: each is read right, or refused with its file and the place.

A mutation changes records (drop, duplicate, retype, reorder) and then the bytes of their file
(re-encode, cut, damage). Python's csv and json and pyarrow say what is right: not our readers.
"""

import csv
import gzip
import io
import json
import math
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sigma_jax.data import readers

COUNT = 200
PLACE = ("line", "row", "column", "key", "cannot be read", "has no rows")


def good_table(rng):
    """Records with what real tables hold: zeros, blanks, quotes, line breaks, large numbers."""
    odd = ["007", " x", 'say "hi"', "a,b", "a;b", "x\ny", "é☕", "NULL", "1,5", "nan", "", "12.0"]
    return [
        {
            "user_id": rng.choice(["u1", "u2", "007"]),
            "item_id": rng.choice([7, 2**53 + 1, 12]),
            "timestamp": 1_700_000_000 + row,
            "title": rng.choice(odd),
            "price": rng.choice([1.5, 2.0, 12.99]),
        }
        for row in range(rng.randrange(1, 8))
    ]


def drop(rng, rows):
    if rng.random() < 0.5:
        return rows[: rng.randrange(1, len(rows) + 1)]
    name = rng.choice(list(rows[0]))
    return [{key: value for key, value in row.items() if key != name} for row in rows]


def duplicate(rng, rows):
    return rows + [dict(row) for row in rng.choices(rows, k=3)]


def reorder(rng, rows):
    names = rng.sample(list(rows[0]), len(rows[0]))
    return rng.sample([{name: row[name] for name in names} for row in rows], len(rows))


def retype(rng, rows):
    """One column gets another type in all rows or in one."""
    name = rng.choice(list(rows[0]))
    change = rng.choice([str, lambda v: None, lambda v: True, lambda v: 2**53 + 1, lambda v: 0.5])
    chosen = {rng.randrange(len(rows))} if rng.random() < 0.5 else set(range(len(rows)))
    return [
        row | ({name: change(row[name])} if at in chosen else {}) for at, row in enumerate(rows)
    ]


def same(rng, rows):
    return rows


def as_csv(rng, rows):
    text, delimiter, end = io.StringIO(), rng.choice(",;\t|"), rng.choice(["\n", "\r\n", "\r"])
    # Python leaves a \n in a value unquoted where lines end with \r.
    quoting = csv.QUOTE_ALL if end == "\r" else rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerow(rows[0])
    writer.writerows([shown(value) for value in row.values()] for row in rows)
    return text.getvalue().encode()


def as_json(rng, rows):
    if rng.random() < 0.3:
        return json.dumps(rows, indent=rng.choice([None, 1])).encode()
    return "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in rows).encode()


def as_parquet(rng, rows):
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if len({type(value) for value in values if value is not None}) > 1:
            values = [shown(value) for value in values]
        columns[name] = values
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def keep(rng, content):
    return content


def compress(rng, content):
    return (
        gzip.compress(content) if rng.random() < 0.5 else pa.compress(content, "zstd").to_pybytes()
    )


def encode(rng, content):
    return content.decode().encode(rng.choice(["utf-16", "utf-8-sig", "utf-32", "utf-16-le"]))


def latin(rng, content):
    return content.decode().encode("latin-1", "replace")


def cut(rng, content):
    return content[: rng.randrange(len(content))]


def damage(rng, content):
    """One byte more: a quote, a delimiter, a line end, a NUL, half a character."""
    at = rng.randrange(len(content))
    return (
        content[:at] + rng.choice([b'"', b",", b"\n", b"\r", b"\0", b"\xe9", b"}"]) + content[at:]
    )


def twice(rng, content):
    return content + content


def wider_twice(rng, content):
    """A second export behind the first, with a column more."""
    lines = content.decode().splitlines(keepends=True)
    return (content.decode() + lines[0].replace("user_id", "channel,user_id")).encode()


def shown(value):
    """A value as the text that a reader or a user would write; None if there is none."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    return str(value)


def right_rows(kind, content):
    """The rows of a file by other programs; None if they are wrong in any way."""
    try:
        if kind == "parquet":
            return pq.read_table(io.BytesIO(content)).to_pylist()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        elif content[:4] == b"\x28\xb5\x2f\xfd":
            content = pa.CompressedInputStream(pa.BufferReader(content), "zstd").read()
        marks = {b"\xff\xfe\0\0": "utf-32", b"\xff\xfe": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
        text = content.decode(next((e for m, e in marks.items() if content.startswith(m)), "utf-8"))
        if "\0" in text:
            return None
        return _csv_rows(text) if kind == "csv" else _json_rows(text)
    except (ValueError, OSError, EOFError, csv.Error, pa.ArrowException):
        return None


def _csv_rows(text):
    first = text.lstrip("\r\n").splitlines()[0] if text.strip() else ""
    delimiter = max(",;\t|", key=first.count)
    records = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records = [record for record in records if record]
    if not records or any(len(record) != len(records[0]) for record in records):
        return None
    if len(records[0]) == 1 and "\n" in text and re.search(r"\r(?!\n)", text):
        return None  # a return may be a line end or a part of a value
    names = [name.strip() for name in records[0]]
    if len({name.lower() for name in names if name}) != len([name for name in names if name]):
        return None
    return [
        {name: value for name, value in zip(names, record, strict=True) if name}
        for record in records[1:]
    ]


def _json_rows(text):
    if text.lstrip()[:1] == "[":
        rows = json.loads(text)
    else:
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    if not rows or not all(isinstance(row, dict) for row in rows):
        return None
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]


WRITERS = {"csv": as_csv, "jsonl": as_json, "parquet": as_parquet}
CHANGES = (same, drop, duplicate, reorder, retype)
BYTES = {
    "csv": (keep, compress, encode, latin, cut, damage, damage, twice, wider_twice),
    "jsonl": (keep, compress, encode, latin, cut, damage, damage, twice),
    "parquet": (keep, keep, cut),
}


@pytest.mark.parametrize("seed", range(COUNT))
def test_a_mutation_is_read_right_or_refused_with_its_place(tmp_path, con, seed):
    rng = random.Random(seed)
    kind = rng.choice(["csv", "csv", "jsonl", "jsonl", "parquet"])
    rows = good_table(rng)
    for change in rng.choices(CHANGES, k=2):
        rows = change(rng, rows)
    on_bytes = rng.choice(BYTES[kind])
    content = on_bytes(rng, WRITERS[kind](rng, rows))
    path = tmp_path / f"t.{kind}"
    path.write_bytes(content)
    wanted = right_rows(kind, content)
    if on_bytes in (keep, compress):
        assert wanted is not None  # the mutation is readable, by other programs too
    try:
        found = con.to_pyarrow(readers.open_table(con, str(path)).table).to_pylist()
    except ValueError as error:
        message = str(error)
        assert message.startswith(str(path)) and "\n" not in message
        assert any(word in message.removeprefix(str(path)) for word in PLACE), message
        assert wanted is None, message
        return
    assert wanted is not None, found
    shown_rows = [
        [{name: shown(v) for name, v in row.items()} for row in t] for t in (found, wanted)
    ]
    assert shown_rows[0] == shown_rows[1]
