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
    "the delimiter of Excel": "sep=;\r\na;b\r\n1;x\r\n2;y\r\n",
    "the delimiter of Excel after a blank line": '\n"sep=,"\na,b\n1,x\n2,y\n',
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


LOG = "user,item,time,event\n" + "".join(f"u{n},i{n},17000{n},buy\n" for n in range(9))
SWALLOWED = {
    "rows of a log": (
        LOG + 'u1,a,17001,"view\nu1,b,17002,buy\nu1,c,17003,view"\nu1,d,17004,buy\n',
        ": row 10 (line 11): a quoted value holds 2 lines that look like rows; remove the quotes "
        "in the lines 11 and 13",
    ),
    "rows of items": (
        'id,title,category\na,A,"X\nb,B,Y\nc,C,Z"\nd,D,W\n',
        ": row 1 (line 2): a quoted value holds 2 lines",
    ),
    "rows that give other fields": (
        'id,title,category\na,A,"X\nb,B,Y\nc,C",Z\nd,D,W\n',
        ": row 1 (line 2) has 4 fields, but the header has 3",
    ),
    "two columns": ('id,title\nk1,"Best\nk2,of"\nk3,C\n', ": row 1 (line 2): a quoted value"),
    "tabs": ('id\ttitle\na\t"Best\nb\tof"\nc\tC\n', ": row 1 (line 2): a quoted value"),
    "tabs, in every row": ('id\ttitle\na\t"Best\nb\tof"\n', ": row 1 (line 2): a quoted value"),
    "windows": (
        LOG.replace("\n", "\r\n") + 'u1,a,17001,"view\r\nu1,b,17002,buy"\r\nu1,d,17004,buy\r\n',
        ": row 10 (line 11): a quoted value holds 1 lines",
    ),
    "an irregular file": (
        "\n" + LOG + 'u1,a,17001,"view\nu1,b,17002,buy"\nu1,d,17004,15" tv\n',
        ": row 10 (line 12): a quoted value holds 1 lines",
    ),
}


@pytest.mark.parametrize("name", SWALLOWED)
def test_quotes_around_whole_rows_are_refused(tmp_path, refused, name):
    text, part = SWALLOWED[name]
    (tmp_path / "t.csv").write_bytes(text.encode())
    assert part in refused(tmp_path / "t.csv")


HONEST = {
    "sentences": "Water, salt\nno sugar, no fat",
    "a list": "Sizes\nS,10\nM,12",
    "decimal commas": "1,5 kg\n2,5 kg",
    "lines": "one\ntwo\nthree",
    "an address": "Main Street 5\nBerlin,Germany",
}


@pytest.mark.parametrize("title", HONEST)
@pytest.mark.parametrize("names", [("id", "title"), ("id", "title", "price"), ("title", "id")])
def test_texts_of_several_lines_are_read(tmp_path, read, title, names):
    rows = [{"id": f"SKU-{n}", "title": HONEST[title], "price": "1"} for n in range(5)]
    rows = [{name: row[name] for name in names} for row in rows]
    rows.append({"id": "SKU-9", "title": "x", "price": "2"})
    rows[-1] = {name: rows[-1][name] for name in names}
    with open(tmp_path / "t.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    assert read(tmp_path / "t.csv") == rows


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
    "a delimiter at the end of lines": (
        "a,b\n1,x,\n2,y,\n",
        "the line ends with a delimiter, but the header does not",
    ),
    "a delimiter at the end of the header": (
        "a,b,\n1,x\n2,y\n",
        "the header ends with a delimiter, but the line does not",
    ),
    "a delimiter after a backslash": ("a,b\n1,x\\,y\n", "a backslash stands before a delimiter"),
    "a quote after a backslash": ('a,b\n1,"x \\"y\\""\n', "a backslash stands before a quote"),
    "JSON": ('{"a": 1, "b": "x"}\n', ": line 1 looks like JSON; give the file the suffix .jsonl"),
    "an array of JSON": ('[\n{"a": 1}]\n', ": line 1 looks like JSON"),
    "a page": ("<!DOCTYPE html>\n<html></html>\n", ": line 1 looks like a page of the web"),
    "a pointer": (
        "version https://git-lfs.github.com/spec/v1\noid x\n",
        "it is a pointer of Git LFS",
    ),
    "a ZIP archive": ("PK\3\4...", "it is a ZIP archive or a spreadsheet; unpack it"),
    "Parquet": ("PAR1...", "it is Parquet; give it the suffix .parquet"),
    "NUL at the end": ("a,b\n1,x\n\0\0\0", ": line 3 holds a NUL byte; the file was not written"),
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


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_zero_bytes_after_a_gzip_are_skipped(tmp_path, read, suffix):
    text = "a,b\n1,x\n2,y\n" if suffix == "csv" else '{"a":"1","b":"x"}\n{"a":"2","b":"y"}\n'
    (tmp_path / f"t.{suffix}.gz").write_bytes(gzip.compress(text.encode()) + bytes(512))
    assert read(tmp_path / f"t.{suffix}.gz") == WANTED
    (tmp_path / f"t.{suffix}.gz").write_bytes(gzip.compress(text.encode())[:-9] + bytes(512))
    with pytest.raises(ValueError, match="cannot be read"):
        read(tmp_path / f"t.{suffix}.gz")


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
