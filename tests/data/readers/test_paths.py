"""Tables lie in files, folders of parts and globs; parts may differ in columns and types."""

import decimal
import gzip
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sigma_jax.data import readers


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_parts_are_read_in_the_order_of_their_names(tmp_path, read):
    for number in (2, 0, 1):
        write(tmp_path / "t" / f"part-{number}.csv", f"a\n{number}\n")
    write(tmp_path / "t" / "_SUCCESS", "")
    write(tmp_path / "t" / "part-3.csv", "")  # of an empty partition
    write(tmp_path / "t" / ".part-0.csv.crc", "x")
    assert [row["a"] for row in read(tmp_path / "t")] == ["0", "1", "2"]


def test_a_glob_takes_what_it_names(tmp_path, read):
    write(tmp_path / "log-1.csv", "a\n1\n")
    write(tmp_path / "log-2.csv", "a\n2\n")
    write(tmp_path / "other.csv", "a\n3\n")
    assert [row["a"] for row in read(tmp_path / "log-*.csv")] == ["1", "2"]


def test_columns_of_parts_are_found_by_name(tmp_path, read, notes):
    write(tmp_path / "t" / "0.csv", "a,b\n1,x\n")
    write(tmp_path / "t" / "1.csv", "b;a\ny;2\n")
    write(tmp_path / "t" / "2.csv", "a\n3\n")
    wanted = [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}, {"a": "3", "b": None}]
    assert read(tmp_path / "t") == wanted
    assert "column 'b' is missing in" in notes(tmp_path / "t")[0]


MIXED = {
    "whole numbers": ([2**53 + 1], pa.array([1], pa.int8()), [2**53 + 1, 1]),
    "a column with gaps": ([7], [8.0, None], [7.0, 8.0, None]),
    "large and with gaps": ([2**53 + 1], [8.0, None], [str(2**53 + 1), "8", None]),
    "numbers and texts": ([7], ["007"], ["7", "007"]),
    "floats and texts": ([7.0, 2.5], ["x"], ["7", "2.5", "x"]),
    "signed and unsigned": ([-1], pa.array([2**64 - 1], pa.uint64()), ["-1", str(2**64 - 1)]),
    "decimals of two scales": (
        pa.array([decimal.Decimal("7.00"), decimal.Decimal("70.50")], pa.decimal128(9, 2)),
        pa.array([decimal.Decimal(70)], pa.decimal128(9, 0)),
        ["7", "70.5", "70"],
    ),
    "decimals and texts": (
        pa.array([decimal.Decimal("7.0"), None], pa.decimal128(9, 1)),
        ["7"],
        ["7", None, "7"],
    ),
    "lists and texts": ([["x"]], ["y"], ['["x"]', "y"]),
}


@pytest.mark.parametrize("name", MIXED)
def test_types_of_parts_meet_without_rounding(tmp_path, read, name):
    first, second, wanted = MIXED[name]
    write_parquet(tmp_path / "t" / "0.parquet", a=first)
    write_parquet(tmp_path / "t" / "1.parquet", a=second)
    assert [row["a"] for row in read(tmp_path / "t")] == wanted


@pytest.mark.parametrize("text", ["u9,i1,1700\nu8,i2,1701\n", "u9,i1,1700\n"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_part_without_a_header_is_refused(tmp_path, read, text, place):
    parts = ["user,item,time\nu1,i1,1700\n"] * 2
    parts.insert(place, text)
    for number, part in enumerate(parts):
        write(tmp_path / "t" / "day=1" / f"{number}.csv", part)
    with pytest.raises(ValueError, match=rf"{place}.csv: line 1: no column of .*'[ui1709]+'; does"):
        read(tmp_path / "t")


def test_files_beside_the_parts_are_noted(tmp_path, read, notes):
    write(tmp_path / "t" / "0.csv", "a\n1\n")
    beside = ["README.md", "README.txt", "schema.json", "desktop.ini", "0.csv~", "0.csv.bak"]
    for name in beside:
        write(tmp_path / "t" / name, "hello")
    assert read(tmp_path / "t") == [{"a": "1"}]
    found = [note for note in notes(tmp_path / "t") if "is not read: it is no part" in note]
    assert len(found) == len(beside)


def test_equal_parts_are_noted(tmp_path, notes):
    write(tmp_path / "t" / "0.csv", "a\n1\n")
    write(tmp_path / "t" / "1.csv", "a\n2\n")
    assert notes(tmp_path / "t") == ()
    write(tmp_path / "t" / "0 (copy).csv", "a\n1\n")
    (tmp_path / "t" / "1.csv.gz").write_bytes(gzip.compress(b"a\n2\n"))
    copied, packed = sorted(notes(tmp_path / "t"), key=len)[::-1]
    assert "0 (copy).csv and " in copied and "have equal content and are both read" in copied
    assert packed.endswith("1.csv.gz are both read; remove one if they are one file")
    for day in "12":  # equal rows of two days are different rows
        write(tmp_path / "log" / f"day={day}" / "0.csv", "a\n1\n")
    assert notes(tmp_path / "log") == ()


def test_partitions_are_columns(tmp_path, read):
    write_parquet(tmp_path / "t" / "day=2024-05-01" / "shop=a%20b" / "0.parquet", a=[1])
    write_parquet(
        tmp_path / "t" / "day=2024-05-02" / "shop=__HIVE_DEFAULT_PARTITION__" / "0.parquet", a=[2]
    )
    assert read(tmp_path / "t") == [
        {"a": 1, "day": "2024-05-01", "shop": "a b"},
        {"a": 2, "day": "2024-05-02", "shop": None},
    ]


def test_links_are_followed_once(tmp_path, read):
    write(tmp_path / "real" / "0.csv", "a\n1\n")
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "t" / "loop").symlink_to(tmp_path / "t")
    (tmp_path / "t" / "gone.csv").symlink_to(tmp_path / "nowhere.csv")
    assert read(tmp_path / "t") == [{"a": "1"}]


def test_odd_names_of_folders_are_no_patterns(tmp_path, read):
    write(tmp_path / "shop [1]'s?" / "t.csv", "a\n1\n")
    assert read(tmp_path / "shop [1]'s?" / "t.csv") == [{"a": "1"}]


def test_files_of_several_kinds_are_refused(tmp_path, refused):
    write(tmp_path / "t" / "0.csv", "a\n1\n")
    write(tmp_path / "t" / "1.jsonl", '{"a": 1}\n')
    assert "holds files of several kinds (.csv, .jsonl); leave one kind" in refused(tmp_path / "t")


def test_columns_of_parts_that_differ_in_case_are_refused(tmp_path, read):
    write(tmp_path / "t" / "0.csv", "Ab\n1\n")
    write(tmp_path / "t" / "1.csv", "aB\n1\n")
    with pytest.raises(ValueError, match=r"0.csv and .*1.csv: the columns 'Ab' and 'aB' differ"):
        read(tmp_path / "t")


def test_an_empty_folder_is_refused(tmp_path, refused):
    (tmp_path / "t").mkdir()
    assert "holds no table" in refused(tmp_path / "t")


@pytest.mark.parametrize("name", ["t.xlsx", "t", "t.csv.bz2", "t.gz"])
def test_other_kinds_are_refused(tmp_path, refused, name):
    write(tmp_path / name, "a\n1\n")
    assert "this kind of file is not supported; use .parquet, .csv" in refused(tmp_path / name)


def test_a_table_is_found_by_its_name(tmp_path):
    def found():
        paths = readers.candidates(str(tmp_path), "items", readers.TABLE_SUFFIXES)
        return [os.path.basename(path) for path in paths]

    assert found() == []
    write(tmp_path / "items" / "part.csv", "")
    assert found() == ["items"]
    write(tmp_path / "items.jsonl.gz", "")
    assert found() == ["items.jsonl.gz", "items"]
    write(tmp_path / "items.CSV", "")
    assert found() == ["items.CSV", "items.jsonl.gz", "items"]
    write(tmp_path / "items.parquet" / "part-0.snappy.parquet", "")
    assert found() == ["items.parquet", "items.CSV", "items.jsonl.gz", "items"]


def test_urls_are_read_as_folders_are(tmp_path, con, read):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/parts/t/day=1/0.csv", b"a\n1\n")
    memory.pipe("/parts/t/day=2/1.csv", b"a;b\r\n2;x\n")
    assert read("memory://parts/t") == [
        {"a": "1", "day": "1", "b": None},
        {"a": "2", "day": "2", "b": "x"},
    ]
    assert readers.candidates("memory://parts", "t", readers.TABLE_SUFFIXES) == ["memory://parts/t"]
    memory.rm("/parts", recursive=True)
