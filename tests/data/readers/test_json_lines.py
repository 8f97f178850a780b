"""JSON: every row counts, numbers keep their digits, a bad line is named."""

import gzip
import json

import pytest

BIG = 2**53 + 1


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def column(values):
    return lines({"a": value} for value in values)


READ = {
    "lines": (lines([{"a": 1}, {"a": 2}]), [1, 2]),
    "array": (json.dumps([{"a": 1}, {"a": 2}], indent=1), [1, 2]),
    "empty lines": ('\n{"a": 1}\n\n{"a": 2}\n', [1, 2]),
    "windows": ('{"a": 1}\r\n{"a": 2}', [1, 2]),
    "byte order mark": ('\ufeff{"a": 1}\n{"a": 2}', [1, 2]),
    "whole and other numbers": (column([1, 2.5]), [1.0, 2.5]),
    "null": (column([None, 1]), [None, 1]),
    "nothing but null": (column([None]), [None]),
    "truth": (column([True, False]), [True, False]),
    "above 2^53": (column([BIG, 2]), [BIG, 2]),
    "above 2^53 with a fraction": (column([BIG, 2.5, 2.0]), [str(BIG), "2.5", "2"]),
    "above 2^63": (column([2**63, 2]), [str(2**63), "2"]),
    "above 2^64": (column([10**30 + 1, -(2**63) - 1]), [str(10**30 + 1), str(-(2**63) - 1)]),
    "texts of numbers": (column(["007", 7]), ["007", "7"]),
    "floats and texts": (column([2.0, "2.0", 2.5, None]), ["2", "2.0", "2.5", None]),
    "truth and numbers": (column([True, 7]), ["true", "7"]),
    "days": (column(["2024-01-02", "12:30", "550E8400-E29B-41D4-A716-446655440000"]),)
    + (["2024-01-02", "12:30", "550E8400-E29B-41D4-A716-446655440000"],),
    "lists": (column([["x", "y"], [], None]), [["x", "y"], [], None]),
    "lists of lists": (column([[["x", "y"], ["z"]], []]), [[["x", "y"], ["z"]], []]),
    "objects": (column([{"x": 1, "X": 2}, {"y": [3]}]), ['{"x":1,"X":2}', '{"y":[3]}']),
    "lists of objects": (column([[{"x": 1}], []]), ['[{"x":1}]', "[]"]),
    "texts and lists": (column(["x", ["y"]]), ["x", '["y"]']),
    "escapes": (column(["x\ny", 'a"b', "é☕", "a\0b"]), ["x\ny", 'a"b', "é☕", "a\0b"]),
    "a comma at the end": ('{"a": 1,}\n', [1]),
}


@pytest.mark.parametrize("name", READ)
def test_values_keep_their_digits_and_kinds(tmp_path, read, name):
    text, wanted = READ[name]
    (tmp_path / "t.jsonl").write_text(text, encoding="utf-8")
    assert [row["a"] for row in read(tmp_path / "t.jsonl")] == wanted


def test_not_a_number_and_infinity_are_floats(tmp_path, read):
    (tmp_path / "t.jsonl").write_text(column([float("nan"), float("inf"), 1]))
    found = [row["a"] for row in read(tmp_path / "t.jsonl")]
    assert str(found) == "[nan, inf, 1.0]"


def test_keys_and_types_after_many_rows_count(tmp_path, read):
    """DuckDB looks at 20,480 rows unless it is told to look at all."""
    rows = [{"a": 5, "b": True}] * 20_500 + [{"a": 12.99, "b": 7, "c": "late"}]
    (tmp_path / "t.jsonl").write_text(lines(rows))
    found = read(tmp_path / "t.jsonl")
    assert found[0] == {"a": 5.0, "b": "true", "c": None}
    assert found[-1] == {"a": 12.99, "b": "7", "c": "late"}


@pytest.mark.parametrize("key", ["a/b", "a~b", 'a"b', "a.b", "$", "a'b", "é", "a b"])
def test_any_key_is_read(tmp_path, read, key):
    (tmp_path / "t.jsonl").write_text(lines([{key: 1, "x": 2}]))
    assert read(tmp_path / "t.jsonl") == [{key: 1, "x": 2}]


@pytest.mark.parametrize("name", ["t.json", "t.ndjson", "t.jsonl.gz"])
def test_usual_names_are_read(tmp_path, read, name):
    text = b'{"a": 1}\n'
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert read(tmp_path / name) == [{"a": 1}]


def test_utf_16_is_read(tmp_path, read):
    (tmp_path / "t.jsonl").write_bytes('{"a": "é"}\n'.encode("utf-16"))
    assert read(tmp_path / "t.jsonl") == [{"a": "é"}]


REFUSED = {
    "cut off": ('{"a": 1}\n{"a": 2}\n{"a":\n{"a": 4}\n', ": line 3 is not JSON (Expecting value"),
    "first line": ("a,b\n", ": line 1 is not JSON"),
    "after an empty line": ('{"a": 1}\n\n{"a"}\n', ": line 3 is not JSON"),
    "two objects in a line": ('{"a": 1} {"a": 2}\n', ": line 1 is not JSON (Extra data"),
    "half a character": ('{"a": "x"}\n{"a": "\\ud800"}\n', ": line 2 is not JSON"),
    "a number": ('{"a": 1}\n5\n', ": row 2 is ubigint, not an object"),
    "a list": ('{"a": 1}\n[1]\n', ": row 2 is array, not an object"),
    "null": ('{"a": 1}\nnull\n', ": row 2 is null, not an object"),
    "a key twice": ('{"a": 1}\n{"a": 1, "a": 2}\n', ": row 2 has the keys 'a' and 'a'"),
    "case in a row": ('{"Ab": 1, "aB": 2}\n', ": row 1 has the keys 'Ab' and 'aB'"),
    "case in two rows": ('{"Ab": 1}\n{"ab": 2}\n', ": the keys 'Ab' and 'ab' differ in case only"),
    "array cut off": ('[{"a": 1},\n{"a": ', ": the array is not JSON (Expecting value, line 2"),
    "array with a comma at the end": ('[{"a": 1},]', ": the array is not JSON ("),
    "nothing": ("", " has no rows"),
    "no keys": ("{}\n", " has no rows with a key"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_line_is_named(tmp_path, refused, name):
    text, part = REFUSED[name]
    (tmp_path / "t.jsonl").write_text(text)
    assert part in refused(tmp_path / "t.jsonl")


def test_latin_1_is_refused_with_its_line(tmp_path, refused):
    (tmp_path / "t.jsonl").write_bytes('{"a": "x"}\n{"a": "é"}\n'.encode("latin-1"))
    assert "line 2: byte 0xe9 is not utf-8" in refused(tmp_path / "t.jsonl")
