"""Parquet: types of every kind are read right, or refused with the column."""

import datetime
import decimal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

INNER = pa.struct([("x", pa.int64())])
TYPES = {
    "whole numbers": (pa.array([2**53 + 1, None]), [2**53 + 1, None]),
    "unsigned": (pa.array([2**64 - 1], pa.uint64()), [2**64 - 1]),
    "floats": (pa.array([2.5, None]), [2.5, None]),
    "decimal": (
        pa.array([decimal.Decimal("7.50")], pa.decimal128(10, 2)),
        [decimal.Decimal("7.50")],
    ),
    "dictionary": (pa.array(["x", "y", "x"]).dictionary_encode(), ["x", "y", "x"]),
    "large text": (pa.array(["x"], pa.large_string()), ["x"]),
    "text in bytes": (pa.array(["é".encode(), None], pa.binary()), ["é", None]),
    "bytes": (pa.array([b"\xff\xd8"], pa.binary()), [b"\xff\xd8"]),
    "truth": (pa.array([True, None]), [True, None]),
    "list": (pa.array([["x"], []]), [["x"], []]),
    "struct": (pa.array([{"x": 1}, None], INNER), ['{"x":1}', None]),
    "list of structs": (pa.array([[{"x": 1}]], pa.list_(INNER)), ['[{"x":1}]']),
    "map": (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), ['{"k":1}']),
    "day": (pa.array([datetime.date(2024, 5, 1)]), [datetime.date(2024, 5, 1)]),
    "null": (pa.nulls(2), [None, None]),
}


@pytest.mark.parametrize("name", TYPES)
def test_types_are_read(tmp_path, read, name):
    array, wanted = TYPES[name]
    pq.write_table(pa.table({"a": array}), tmp_path / "t.parquet")
    assert [row["a"] for row in read(tmp_path / "t.parquet")] == wanted


def test_the_index_of_pandas_is_not_read(tmp_path, read, notes):
    table = pd.DataFrame({"a": [2, 3]}, index=[5, 1])
    table.to_parquet(tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet") == [{"a": 2}, {"a": 3}]
    assert "'__index_level_0__' is the index of pandas" in notes(tmp_path / "t.parquet")[0]


def test_an_index_with_a_name_is_a_column(tmp_path, read):
    pd.DataFrame({"a": [1]}, index=pd.Index(["x"], name="item_id")).to_parquet(
        tmp_path / "t.parquet"
    )
    assert read(tmp_path / "t.parquet") == [{"a": 1, "item_id": "x"}]


@pytest.mark.parametrize("names", [["a", "A"], ["s", "S"]])
def test_names_that_differ_in_case_are_refused(tmp_path, refused, names):
    columns = [pa.array([{"x": 1}], INNER), pa.array([1])]
    pq.write_table(pa.Table.from_arrays(columns, names), tmp_path / "t.parquet")
    assert f"the columns {names[0]!r} and {names[1]!r}" in refused(tmp_path / "t.parquet")


def test_equal_names_inside_other_columns_are_no_fault(tmp_path, read):
    nested = pa.array([{"a": {"X": 1}}], pa.struct([("a", pa.struct([("X", pa.int64())]))]))
    pq.write_table(pa.table({"s": nested, "A": [1], "x": [2]}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet") == [{"s": '{"a":{"X":1}}', "A": 1, "x": 2}]


@pytest.mark.parametrize("keep", [0, 4, 100, -10])
def test_a_damaged_file_is_refused(tmp_path, refused, keep):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": list(range(1000))}), path)
    path.write_bytes(path.read_bytes()[:keep])
    assert "cannot be read" in refused(path)


def test_a_pointer_of_git_lfs_is_named(tmp_path, refused):
    (tmp_path / "t.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    assert "it is a pointer of Git LFS" in refused(tmp_path / "t.parquet")
