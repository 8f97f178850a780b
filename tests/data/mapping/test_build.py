"""Mapping files: what is refused, and in which words; what the keys promise beyond the examples."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import tiny_config
from mapping_reading import read_tables
from mapping_shapes import lines

from sigma_jax.data import database, sources
from sigma_jax.data.mapping.opening import guess_delimiter
from sigma_jax.data.mapping.spec import KEYS, UNITS, read_mapping

ITEMS = "items: {file: goods.csv, columns: {item_id: id, title: label}}\n"
LOG = "interactions: {file: log.csv, columns: {user_id: who, item_id: id, timestamp: at}}\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "goods.csv").write_text(lines("id,label", "007,tea", "8,cup"))
    (folder / "log.csv").write_text(
        lines("who,id,at,kind", "u,007,1609459200,buy", "u,8,1609459260,view", "v,8,1609459320,")
    )
    return folder


def read(folder: Path, mapping: str, **changes) -> dict[str, list[dict]]:
    (folder / "mapping.yaml").write_text(mapping)
    return read_tables(folder, folder.parent, **changes)


def complaint(folder: Path, mapping: str, **changes) -> str:
    with pytest.raises(ValueError) as error:
        read(folder, mapping, **changes)
    message = str(error.value)
    assert "\n" not in message and message.endswith((".", "?", ")"))
    return message


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ("items: [1, 2\n", "mapping.yaml is not YAML"),
        ("", "mapping.yaml has no sections"),
        ("goods: {file: a.csv}\n", "mapping.yaml: 'goods' is not a table; did you mean '"),
        ("items: {fil: a.csv}\n", "items: key 'fil' is unknown; did you mean 'file'?"),
        ("items: {columns: {a: b}}\n", "items: file is missing"),
        ("items: {file: a.csv, columns: {a: no}}\n", "columns.a is False, not a text; put it in"),
        ("items: {file: a.csv, file: b.csv}\n", "key 'file' twice, line 1"),
        ("items: {file: a.csv, time: milisecond}\n", "did you mean 'milliseconds'?"),
        ("items: {file: a.csv, distinct: 1}\n", "distinct=1; use true or false"),
        ("items: {file: a.csv, encoding: cp437}\n", "use one of utf-8, utf-16, latin-1, cp1252"),
        ("items: {file: a.csv, time: FILL_IN}\n", "items.time is still FILL_IN; replace it there"),
        ("items: {file: FILL_IN}\n", "items.file is still FILL_IN"),
        ("items: {file: a.csv, join: {file: b.csv}}\n", "join[0]: by is missing"),
        ("items: {file: a.csv, pivot: {key: a, name: b}}\n", "items.pivot: value is missing"),
    ],
)
def test_wrong_mapping_is_refused_by_file_key_and_nearest_name(mapping, words):
    with pytest.raises(ValueError) as error:
        read_mapping(Path("mapping.yaml"), mapping)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        (ITEMS.replace("label", "lable") + LOG, "no column 'lable' (found: id, label); did you"),
        (ITEMS.replace("goods", "good") + LOG, "good.csv does not exist; did you mean 'goods.csv'"),
        (ITEMS, "has no section 'interactions'"),
        (ITEMS.replace("{file", "{header: [a], file") + LOG, "line 1 has 2 fields"),
        (ITEMS.replace("{file", "{explode: label, file") + LOG, "is a column of string, not of"),
        (ITEMS + LOG.replace("}}", "}, time: '%d.%m.%Y'}"), "row 1: timestamp='1609459200' is not"),
        (ITEMS + LOG.replace("}}", "}, keep: {knd: [buy]}}"), "no column 'knd'"),
        (ITEMS.replace("}}", "}, decimal_comma: [lable]}") + LOG, "decimal_comma names 'lable'"),
        (ITEMS + LOG.replace("{file", "{distinct: true, file"), "distinct needs a column item_id"),
        (
            ITEMS + LOG.replace("{file", "{join: {file: goods.csv, by: {who: id}}, file"),
            "no row agrees with",
        ),
        (
            ITEMS + LOG.replace("{file", "{join: {file: log.csv, by: id}, file"),
            "column 'who' is in",
        ),
        (
            ITEMS
            + LOG.replace("{file", "{join: {file: log.csv, by: id, columns: {k: kind}}, file"),
            "id='8' is in 2 rows; a join needs one row for each",
        ),
        (
            ITEMS.replace("{file", "{pivot: {key: id, name: id, value: label}, file") + LOG,
            "no row has id='label'",
        ),
        (
            ITEMS
            + LOG.replace("{file", "{elapsed: {user: who, order: kind, gap: at, unit: days}, file"),
            "row 1: kind='buy' is not a number",
        ),
    ],
)
def test_file_that_is_not_as_the_mapping_says_is_refused(folder, mapping, words):
    assert words in complaint(folder, mapping)


def test_documentation_explains_every_key():
    page = (Path(__file__).parents[3] / "docs" / "own_data.md").read_text()
    assert not [key for key in KEYS if f"| `{key}` |" not in page]
    assert not [unit for unit in UNITS if f"`{unit}`" not in page]


def test_bad_line_is_named_by_file_and_number(folder):
    (folder / "log.dat").write_text("u::007::5\nu::8\n")
    mapping = ITEMS + "interactions: {file: log.dat, header: [user_id, item_id, timestamp]}\n"
    assert "log.dat: line 2 has 2 fields, but the file has 3 columns" in complaint(folder, mapping)
    (folder / "log.jsonl").write_text('{"who": "u", "id": "8", "at": 5}\n{"who": \n')
    message = complaint(folder, ITEMS + LOG.replace("log.csv", "log.jsonl"))
    assert "log.jsonl: line 2 is not JSON" in message
    (folder / "log.py").write_text("{'who': 'u', 'id': '8', 'at': 5}\n{'who': f()}\n")
    message = complaint(folder, ITEMS + LOG.replace("log.csv", "log.py"))
    assert "log.py: line 2 is no Python literal" in message


@pytest.mark.parametrize(
    ("encoding", "wrong"), [("utf-8", b"\xe9"), ("latin-1", b"\x93"), ("cp1252", b"\x81")]
)
def test_line_whose_bytes_do_not_fit_is_named(folder, encoding, wrong):
    rows = b"id,label\n" + b"8,cup\n" * 300_000 + b"7,a" + wrong + b"\n"  # behind the first look
    (folder / "goods.dat").write_bytes(rows)
    items = ITEMS.replace("goods.csv", f"goods.dat, encoding: {encoding}")
    assert f"goods.dat: line 300002 is not text in {encoding}" in complaint(folder, items + LOG)


def test_lists_inside_lists_become_rows_in_their_order(folder):
    rows = [{"who": f"u{n}", "at": n, "lines": [{"id": "8"}, {"id": "007"}]} for n in range(50)]
    (folder / "log.json").write_text(json.dumps({"orders": rows}, indent=1))
    mapping = ITEMS + "interactions: {file: log.json, explode: [orders, orders.lines], columns: "
    mapping += "{user_id: orders.who, item_id: orders.lines.id, timestamp: orders.at}}\n"
    found = read(folder, mapping)["interactions"]
    assert [(row["user_id"], row["item_id"]) for row in found] == [
        (f"u{n}", item) for n in range(50) for item in ("8", "007")
    ]


def test_log_without_times_is_noted(folder):
    (folder / "mapping.yaml").write_text(ITEMS + LOG.replace("}}", "}, time: none}"))
    with database.open_reader() as con:
        notes = sources.read(con, tiny_config(folder)).notes
    assert any("interactions.time is none, so no interaction has a time" in note for note in notes)


def test_rows_keep_the_order_of_the_files(folder):
    """Between equal times the order of rows decides; the engine returns them in any order."""
    ids = [str(n * 7_919 % 1_000) for n in range(3_000)]
    rows = [f"u{n % 7},{item},1609459200,k{n % 50}" for n, item in enumerate(ids)]
    (folder / "log.csv").write_text(lines("who,id,at,kind", *rows))
    (folder / "kinds.csv").write_text(lines("kind,name", *(f"k{n},n{n}" for n in range(50))))
    joined = LOG.replace("{file", "{join: {file: kinds.csv, by: kind}, file")
    found = read(
        folder, "items: {file: log.csv, distinct: true, columns: {item_id: id}}\n" + joined
    )
    assert [row["item_id"] for row in found["interactions"]] == ids
    assert [row["item_id"] for row in found["items"]] == list(dict.fromkeys(ids))


def test_distinct_keeps_a_column_of_any_name(folder):
    (folder / "shelves.csv").write_text(lines("id,place", "007,left", "007,right", "8,left"))
    mapping = "items: {file: shelves.csv, distinct: true, columns: {item_id: id, place: place}}\n"
    items = read(folder, mapping + LOG)["items"]
    assert items == [{"item_id": "007", "place": "left"}, {"item_id": "8", "place": "left"}]


def test_joined_rows_without_a_partner_stay_and_have_no_value(folder):
    (folder / "kinds.csv").write_text(lines("id,kind", "8,cups"))
    joined = "items: {file: goods.csv, join: {file: kinds.csv, by: id}, columns: "
    joined += "{item_id: id, category: kind}}\n"
    items = read(folder, joined + LOG)["items"]
    assert items == [{"item_id": "007", "category": None}, {"item_id": "8", "category": "cups"}]


def test_keep_any_leaves_out_empty_values_and_a_list_all_others(folder):
    for given, count in (("any", 2), ("[buy]", 1), ("[buy, view]", 2)):
        kept = LOG.replace("}}", f"}}, keep: {{kind: {given}}}}}")
        assert len(read(folder, ITEMS + kept)["interactions"]) == count
    kept = LOG.replace("}}", "}, keep: {at: [1609459260]}}")  # a number stands for its text
    assert [row["item_id"] for row in read(folder, ITEMS + kept)["interactions"]] == ["8"]


@pytest.mark.parametrize(
    ("time", "value", "seconds"),
    [
        ("seconds", "20240501", 20240501),  # not the first of May
        ("milliseconds", "1609459200999", 1609459200),
        ("microseconds", "1609459200000001", 1609459200),
        ("nanoseconds", "1609459199999999999", 1609459199),
        ("hours", "2", 7200),
        ("days", "18628", 1609459200),
        ("spreadsheet_days", "44197.5", 1609502400),
        ("spreadsheet_days", "44197,5", 1609502400),
        ("'%d/%m/%Y %H:%M'", "01/01/2021 00:01", 1609459260),
        ("'%d/%m/%Y %H:%M %z'", "01/01/2021 02:01 +02:00", 1609459260),
        ("'%a %b %d %H:%M:%S %z %Y'", "Thu Dec 31 16:01:00 -0800 2020", 1609459260),
    ],
)
def test_times_are_read_as_the_mapping_says(folder, time, value, seconds):
    (folder / "log.csv").write_text(lines("who;id;at", f"u;8;{value}"))
    found = read(folder, ITEMS + LOG.replace("}}", f"}}, time: {time}}}"))["interactions"]
    assert [row["time"] for row in found] == [seconds]


def test_day_and_clock_in_two_columns_are_one_time(folder):
    (folder / "log.csv").write_text(lines("who,id,day,clock", "u,8,2021-01-01,00:01:00"))
    found = read(folder, ITEMS + LOG.replace("at}", "[day, clock]}"))["interactions"]
    assert found[0]["time"] == 1609459260


def test_late_keys_large_ids_and_nested_fields_of_json(folder):
    """Keys that come after DuckDB's sample, and ids that no float can hold."""
    rows = [{"who": {"id": 2**60 + n}, "id": "8", "at": 5} for n in range(30_000)]
    rows[-1] = {"who": {"id": 2**60 - 1}, "id": "8", "at": {"sec": 7}, "late": {"a": ["x", "y"]}}
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mapping = ITEMS + "interactions: {file: log.jsonl, keep: {late: any}, columns: "
    mapping += "{user_id: who.id, item_id: id, timestamp: at.sec, session_id: late.a}}\n"
    found = read(folder, mapping)["interactions"]
    assert found == [{"user_id": str(2**60 - 1), "item_id": "8", "session_id": "x, y", "time": 7}]


def test_fields_that_begin_with_a_dollar_are_no_paths(folder):
    """Such as those of MongoDB's exports. An `at` of another form makes the column JSON."""
    rows = [{"who": "u", "thing": {"$oid": "8"}, "at": {"$date": 100 + n}} for n in range(3)]
    rows.append({"who": "u", "thing": "gone", "at": 5})
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mapping = ITEMS + "interactions: {file: log.jsonl, keep: {thing.$oid: any}, columns: "
    mapping += "{user_id: who, item_id: thing.$oid, timestamp: at.$date}}\n"
    found = read(folder, mapping)["interactions"]
    assert [(row["item_id"], row["time"]) for row in found] == [("8", 100 + n) for n in range(3)]


def test_files_of_a_glob_follow_in_order_and_must_be_of_one_shape(folder):
    header = "who,id,at,kind"
    (folder / "part_2.csv.gz").write_bytes(gzip.compress(f"{header}\nb,8,2,x\n".encode()))
    (folder / "part_1.csv").write_text(lines(header, "a,8,3,x"))
    mapping = ITEMS + LOG.replace("log.csv", '"part_*"')
    assert [row["user_id"] for row in read(folder, mapping)["interactions"]] == ["a", "b"]
    (folder / "part_3.csv").write_text(lines("who,id", "a,8"))
    assert "part_3.csv: column 'at' is missing" in complaint(folder, mapping)


def test_zstandard_and_parquet_with_lists_of_objects(folder):
    table = pa.table({"who": ["a", "b"], "seen": [[{"id": 8, "at": 5}, {"id": 7, "at": 6}], []]})
    pq.write_table(table, folder / "log.parquet")
    with pa.CompressedOutputStream(str(folder / "goods.csv.zst"), "zstd") as file:
        file.write(b"id,label\n8,cup\n7,tea\n")
    mapping = ITEMS.replace("goods.csv", "goods.csv.zst")
    mapping += "interactions: {file: log.parquet, explode: seen, columns: "
    mapping += "{user_id: who, item_id: seen.id, timestamp: seen.at}, time: days}\n"
    found = read(folder, mapping)["interactions"]
    assert [(row["user_id"], row["item_id"], row["time"]) for row in found] == [
        ("a", "8", 5 * 86_400),
        ("a", "7", 6 * 86_400),
    ]


def test_mapping_elsewhere_and_tables_beside_it(folder):
    (folder / "mine.yml").write_text(LOG)
    (folder / "items.csv").write_text(lines("item_id,title", "007,tea", "8,cup"))
    found = read_tables(folder, folder.parent, **{"files.mapping": "mine.yml"})
    assert [row["title"] for row in found["items"]] == ["tea", "cup"]
    assert len(found["interactions"]) == 3


@pytest.mark.parametrize(
    ("line", "delimiter"),
    [("a,b;c,d", ","), ("a;b", ";"), ("a::b::c", "::"), ("a\tb, c, d", "\t"), ("a|b", "|")],
)
def test_delimiter_of_the_first_line(line, delimiter):
    assert guess_delimiter(line) == delimiter


def test_columns_are_renamed_by_settings(folder):
    (folder / "items.csv").write_text((folder / "goods.csv").read_text())
    (folder / "interactions.csv").write_text((folder / "log.csv").read_text())
    names = {"columns.item_id": "id", "columns.user_id": "who", "columns.timestamp": "at"}
    found = read_tables(folder, folder.parent, **names)
    assert found["items"][0] == {"item_id": "007", "label": "tea"}
    assert found["interactions"][0]["user_id"] == "u"
    names = names | {"columns.item_id": "", "columns.interactions.item_id": "id"}
    with pytest.raises(ValueError, match=r"items.csv: column 'item_id' is missing"):
        read_tables(folder, folder.parent, **names)
    found = read_tables(folder, folder.parent, **names | {"columns.items.item_id": "id"})
    assert found["interactions"][1]["item_id"] == "8"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"columns.item_id": "idd"}, "no column 'idd' .*columns.item_id names; did you mean 'id'"),
        ({"columns.items.item_id": "lable"}, "items.csv: no column 'lable' .*mean 'label'"),
        ({"columns.users.user_id": "who"}, "columns.users is set, but there is no table users"),
    ],
)
def test_unknown_column_in_a_setting_is_refused(folder, names, words):
    (folder / "items.csv").write_text((folder / "goods.csv").read_text())
    (folder / "interactions.csv").write_text((folder / "log.csv").read_text())
    with pytest.raises(ValueError, match=words):
        read_tables(folder, folder.parent, **names)
