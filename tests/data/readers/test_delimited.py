"""CSV is read as RFC 4180 says, or refused with row and line; Python's csv is the measure."""

import csv
import gzip
import io

import pyarrow as pa
import pytest

from sigma_jax.data.readers import bytes as reader_bytes

WANTED = [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]
READ = {
    "commas": "a,b\n1,x\n2,y\n",
    "semicolons": "a;b\n1;x\n2;y\n",
    "tabs": "a\tb\n1\tx\n2\ty\n",
    "bars": "a|b\n1|x\n2|y\n",
    "no end of the last line": "a,b\n1,x\n2,y",
    "windows": "a,b\r\n1,x\r\n2,y\r\n",
    "windows without the last end": "a,b\r\n1,x\r\n2,y",
    "old mac": "a,b\r1,x\r2,y\r",
    "mixed ends": "a,b\r\n1,x\n2,y\r\n",
    "doubled returns": "a,b\r\r\n1,x\r\r\n2,y\r\r\n",
    "blank lines": "\na,b\n\n1,x\n\n2,y\n\n",
    "quotes": '"a","b"\n"1","x"\n"2","y"\n',
    "byte order mark": "\ufeffa,b\n1,x\n2,y\n",
    "byte order mark and quotes": '\ufeff"a","b"\n"1","x"\n2,y\n',
    "blanks around names": "a , b\n1,x\n2,y\n",
    "index of pandas": ",a,b\n0,1,x\n1,2,y\n",
    "index of pandas, read and written again": "Unnamed: 0,a,b\n0,1,x\n1,2,y\n",
    "a last column without a name": "a,b,\n1,x,\n2,y,\n",
}


@pytest.mark.parametrize("name", READ)
def test_forms_of_one_table_are_the_same(tmp_path, read, name):
    path = tmp_path / "t.csv"
    path.write_bytes(READ[name].encode())
    assert read(path) == WANTED


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le", "utf-32"])
def test_a_byte_order_mark_names_the_encoding(tmp_path, read, encoding):
    path = tmp_path / "t.csv"
    mark = "\ufeff" if encoding.endswith("e") else ""
    path.write_bytes((mark + "a,b\n1,é☕\n").encode(encoding))
    assert read(path) == [{"a": "1", "b": "é☕"}]


@pytest.mark.parametrize("suffix", [".csv.gz", ".tsv.zst", ".CSV"])
def test_compressed_files_are_read_by_their_first_bytes(tmp_path, read, suffix):
    path, content = tmp_path / f"t{suffix}", b"a,b\n1,x\n2,y\n"
    if suffix.endswith("gz"):
        content = gzip.compress(content)
    elif suffix.endswith("zst"):
        content = pa.compress(content, "zstd", asbytes=True)
    path.write_bytes(content)
    assert read(path) == WANTED


VALUES = {
    "zeros": "007",
    "above 2^53": "9007199254740993",
    "blanks": " x ",
    "line break": "x\ny",
    "windows line break": "x\r\ny",
    "quote": 'say "hi"',
    "delimiter": "x,y",
    "inch": '15" pan',
    "backslash": "\\",
    "number of France": "1 234,50",
    "thousands": "1,234.50",
    "word": "NULL",
    "truth": "True",
    "long": "long " * 500_000,
    "emoji": "☕",
}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", VALUES)
def test_values_are_read_as_they_stand(tmp_path, read, name, end):
    with open(tmp_path / "t.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator=end).writerows([["a", "b"], [VALUES[name], "1"]])
    assert read(tmp_path / "t.csv") == [{"a": VALUES[name], "b": "1"}]


@pytest.mark.parametrize("name", ["b\nc", "\nb"])
def test_a_name_may_have_a_line_break(tmp_path, read, name):
    (tmp_path / "t.csv").write_bytes(f'a,"{name}"\r\n1,x\r\n'.encode())
    assert read(tmp_path / "t.csv") == [{"a": "1", name.strip(): "x"}]


def test_a_quote_inside_an_unquoted_value_is_a_character(tmp_path, read):
    (tmp_path / "t.tsv").write_text('a\tb\n15" pan\tx"y"\n')
    assert read(tmp_path / "t.tsv") == [{"a": '15" pan', "b": 'x"y"'}]


REFUSED = {
    "more fields": ("a,b\n1,x\n2,y,z\n", ": row 2 (line 3) has 3 fields, but the header has 2"),
    "fewer fields": ("a,b\n\n1,x\n2\n", ": row 2 (line 4) has 1 fields, but the header has 2"),
    "a longer header": ("a,b\n1,x\na,b,c\n", "it looks like a second header: split the file there"),
    "line after a line break": ('a,b\n"1\n1",x\n2,y,z\n', ": row 2 (line 4) has 3 fields"),
    "quote that stays open": ('a,b\n1,x\n2,"y\n3,z\n', ": row 2 (line 3): a quote is opened"),
    "text after a quote": ('a,b\n1,"x"y\n', ": row 1 (line 2): text follows a closing quote"),
    "backslash quotes": ('a,b\n1,"x \\"y\\""\n', "double the quotes inside a value"),
    "repeated name": ("a,b,a\n1,x,2\n", ": line 1: the columns 1 and 3 have the names 'a' and 'a'"),
    "names that differ in case": ("a,A\n1,x\n", "have the names 'a' and 'A'; rename or remove"),
    "nothing": ("", " has no rows: it is empty; add rows"),
    "blank lines only": ("\n\n", " has no rows: it is empty; add rows"),
    "NUL": ("a,b\n1,x\n2,\0y\n", ": line 3 holds a NUL byte"),
    "lone return in one column": ("a\n1\r2\n3\n", "some lines end with a carriage return alone"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_irregular_files_are_refused_with_the_line(tmp_path, refused, name):
    text, part = REFUSED[name]
    (tmp_path / "t.csv").write_bytes(text.encode())
    assert part in refused(tmp_path / "t.csv")


def test_latin_1_is_refused_with_line_and_byte(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(reader_bytes, "BLOCK_BYTES", 4)  # the line is counted over blocks
    (tmp_path / "t.csv").write_bytes("a,b\n1,x\n2,é\n".encode("latin-1"))
    assert " cannot be read (line 3: byte 0xe9 is not utf-8); save it as UTF-8." in refused(
        tmp_path / "t.csv"
    )


def test_utf_16_without_a_mark_is_named(tmp_path, refused):
    (tmp_path / "t.csv").write_bytes("a,b\n1,x\n".encode("utf-16-le"))
    assert "UTF-16 without a byte order mark" in refused(tmp_path / "t.csv")


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_compressed_file_that_is_cut_off_is_refused(tmp_path, refused, suffix):
    text = "".join(f"{row},{row * 7919 % 1013}\n" for row in range(2000)).encode()
    whole = gzip.compress(text) if suffix == "gz" else pa.compress(text, "zstd", asbytes=True)
    (tmp_path / f"t.csv.{suffix}").write_bytes(whole[:-50])
    refused(tmp_path / f"t.csv.{suffix}")


def test_an_unread_index_is_noted(tmp_path, notes):
    (tmp_path / "t.csv").write_text(",a\n0,x\n")
    assert "column 1 has no name and is not read" in notes(tmp_path / "t.csv")[0]


@pytest.mark.parametrize("block_bytes", [1, 7, 1 << 24])
def test_the_size_of_a_block_changes_nothing(tmp_path, read, monkeypatch, block_bytes):
    monkeypatch.setattr(reader_bytes, "BLOCK_BYTES", block_bytes)
    for end in ("\r\n", "\n", "\r"):
        text = end.join(['a,"b"', '1,"x"', f'"{end},""☕",', "é,x"])
        (tmp_path / "t.csv").write_bytes(text.encode())
        _, *rows = csv.reader(io.StringIO(text, newline=""))
        found = [[row["a"], row["b"] or ""] for row in read(tmp_path / "t.csv")]
        assert found == rows
