"""A bad input is refused in one line: the file, the row or column, the value, the remedy."""

import dataclasses
import decimal
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sigma_jax.data import readers
from sigma_jax.prepare import prepare
from sigma_jax.schema import PreparedData

ITEMS = [{"item_id": name, "title": f"thing {name}", "category": "A > B"} for name in "abcd"]
EVENTS = [
    {"user_id": user, "item_id": item, "timestamp": 1_700_000_000 + 1000 * row}
    for user in ("u1", "u2")
    for row, item in enumerate("abcda")
]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run(folder, tiny_config, **changes):
    out = folder / "out"
    out.mkdir()
    card = prepare(tiny_config(folder, **changes), 0, out)
    return PreparedData.load(out), card


@pytest.fixture
def folder(tmp_path):
    write_jsonl(tmp_path / "items.jsonl", ITEMS)
    write_jsonl(tmp_path / "interactions.jsonl", EVENTS)
    return tmp_path


def changed(rows, row, **fields):
    rows = [dict(entry) for entry in rows]
    rows[row].update(fields)
    return rows


def without(rows, field):
    return [{name: value for name, value in row.items() if name != field} for row in rows]


@pytest.mark.parametrize("form", ["550E8400-E29B-41D4-A716-44665544000{}", "10:2{}", "2024-1-{}"])
def test_ids_are_not_converted(tmp_path, tiny_config, form):
    """DuckDB would take them for UUIDs, times or days."""
    ids = dict(zip("abcd", map(form.format, range(1, 5)), strict=True))
    for name, rows in (("items", ITEMS), ("interactions", EVENTS)):
        rows = [row | {"item_id": ids[row["item_id"]]} for row in rows]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    data, _ = run(tmp_path, tiny_config)
    assert sorted(data.catalogue.ids(np.arange(4))) == list(ids.values())


BAD_TABLES = {
    "missing column": (
        "interactions",
        without(EVENTS, "timestamp"),
        ("interactions.jsonl", "'timestamp' is missing", "rename or add it"),
    ),
    "duplicate item": (
        "items",
        ITEMS + ITEMS[1:2],
        ("items.jsonl: row 5", "item_id='b' is in row 2", "keep one row"),
    ),
    "null item": ("items", changed(ITEMS, 2, item_id=None), ("items.jsonl: row 3", "item_id=None")),
    "blank user": (
        "interactions",
        changed(EVENTS, 3, user_id=" "),
        ("interactions.jsonl: row 4", "user_id=' ' is empty", "delete the row"),
    ),
    "unknown item": (
        "interactions",
        changed(EVENTS, 6, item_id="zz"),
        ("interactions.jsonl: row 7", "item_id='zz' is not in items", "unknown_items=drop"),
    ),
    "unparsable time": (
        "interactions",
        changed(EVENTS, 1, timestamp="tomorrow"),
        ("interactions.jsonl: row 2", "timestamp='tomorrow' is not a time", "ISO 8601"),
    ),
    "unknown item in searches": (
        "searches",
        [{"query": "x", "item_id": "zz", "clicks": 1}],
        ("searches.jsonl: row 1", "item_id='zz' is not in items"),
    ),
    "clicks that are no number": (
        "searches",
        [{"query": "x", "item_id": "a", "clicks": "many"}],
        ("searches.jsonl: row 1", "clicks='many' is not a count"),
    ),
    "clicks that are too many": (
        "searches",
        [{"query": "x", "item_id": "a", "clicks": "1e400"}],
        ("searches.jsonl: row 1", "clicks='1e400' is not a count"),
    ),
    "empty query": (
        "searches",
        [{"query": "", "item_id": "a", "clicks": 2}],
        ("searches.jsonl: row 1", "query='' is empty"),
    ),
    "unknown kind of theme": (
        "themes",
        [{"theme": "sale", "kind": "event", "item_id": "a"}],
        ("themes.jsonl: row 1", "kind='event' is unknown", "season, holiday, trend"),
    ),
    "unknown item in themes": (
        "themes",
        [{"theme": "sale", "kind": "trend", "item_id": "zz"}],
        ("themes.jsonl: row 1", "item_id='zz' is not in items"),
    ),
    "theme that ends before it starts": (
        "themes",
        [{"theme": "sale", "kind": "trend", "start": "2024-02-01", "end": "2024-01-01"}],
        ("themes.jsonl: row 1", "end='2024-01-01' is not after start"),
    ),
    "empty saying": (
        "knowledge",
        [{"text": " ", "item_id": "a"}],
        ("knowledge.jsonl: row 1", "text='' is empty"),
    ),
    "saying of nothing": (
        "knowledge",
        [{"text": "x", "item_id": "a"}, {"text": "y", "item_id": "", "category": " "}],
        ("knowledge.jsonl: row 2", "item_id=None is empty, and so is the category"),
    ),
    "unknown item in knowledge": (
        "knowledge",
        [{"text": "x", "item_id": "zz"}],
        ("knowledge.jsonl: row 1", "item_id='zz' is not in items"),
    ),
    "weight that is no number": (
        "knowledge",
        [{"text": "x", "item_id": "a", "weight": "high"}],
        ("knowledge.jsonl: row 1", "weight='high' is not a weight", "above 0"),
    ),
    "weight of 0": (
        "knowledge",
        [{"text": "x", "item_id": "a", "weight": 0}],
        ("knowledge.jsonl: row 1", "weight='0' is not a weight"),
    ),
    "second header": (
        "users",
        [{"user_id": "u1", "town": "x"}, {"town": "user_id", "user_id": "town"}],
        ("users.jsonl: row 2", "user_id='town' is a name of a column", "split the file there"),
    ),
    "time of the year 1": (
        "interactions",
        changed(EVENTS, 2, timestamp="0001-01-01"),
        ("interactions.jsonl: row 3", "timestamp='0001-01-01' is not a time", "from 1900 to 2100"),
    ),
    "time of the year 9999": (
        "interactions",
        changed(EVENTS, 2, timestamp="9999-12-31"),
        ("interactions.jsonl: row 3", "timestamp='9999-12-31' is not a time"),
    ),
    "list as id": (
        "interactions",
        [row | {"user_id": ["u"]} for row in EVENTS],
        ("interactions.jsonl", "column 'user_id' holds array", "no ids"),
    ),
    "list as time": (
        "interactions",
        [row | {"timestamp": [1]} for row in EVENTS],
        ("interactions.jsonl: row 1", "is not a time"),
    ),
    "id that is NaN": (
        "interactions",
        [row | {"user_id": float("nan") if at == 4 else at % 2} for at, row in enumerate(EVENTS)],
        ("interactions.jsonl: row 5", "user_id=nan is no id", "fill it or delete the row"),
    ),
    "id that a float rounds": (
        "interactions",
        [row | {"user_id": 2.0**53} for row in EVENTS],
        ("interactions.jsonl: row 1", "is a float that may stand for several ids"),
    ),
    "empty time": (
        "interactions",
        changed(EVENTS, 2, timestamp=" "),
        ("interactions.jsonl: row 3", "timestamp=' ' is empty; fill it or delete the row"),
    ),
    "time of yyyymmddHHMM": (
        "interactions",
        [row | {"timestamp": 202405011230} for row in EVENTS],
        ("interactions.jsonl: row 1", "timestamp=202405011230 is not a time"),
    ),
    "object as id": (
        "interactions",
        [row | {"item_id": {"$oid": row["item_id"]}} for row in EVENTS],
        ("row 1: item_id='{", "is an object, no id", "mapping with item_id: item_id.$oid."),
    ),
    "list among ids": (
        "interactions",
        changed(EVENTS, 3, user_id=["u1"]),
        ("row 4: user_id='[\"u1\"]' is a list, no id; write a row for each of its values",),
    ),
    "id that a spreadsheet rounded": (
        "interactions",
        changed(EVENTS, 4, user_id="8.41235E+11"),
        ("row 5: user_id='8.41235E+11' is a number that a spreadsheet has rounded",),
    ),
    "byte order mark in an id": (
        "interactions",
        changed(EVENTS, 4, user_id="\ufeffu1"),
        ("row 5: user_id='\\ufeffu1' holds a byte order mark", "split the file there"),
    ),
    "second header in other letters": (
        "users",
        [{"user_id": "u1", "town": "x"}, {"user_id": "\ufeffUSER_ID ", "town": " Town"}],
        ("users.jsonl: row 2", "is a name of a column", "split the file there"),
    ),
    "name in other letters": (
        "interactions",
        [{"Time stamp" if key == "timestamp" else key: row[key] for key in row} for row in EVENTS],
        (
            "'timestamp' is missing",
            "did you mean 'Time stamp'? --config.data.columns.timestamp='Time stamp' takes it",
        ),
    ),
    "unknown item with a hidden character": (
        "interactions",
        changed(EVENTS, 6, item_id="a\u200b"),
        ("row 7: item_id='a\\u200b' is not in items", "but 'a' is: write both"),
    ),
    "blank after an id": (
        "interactions",
        changed(EVENTS, 6, item_id="a "),
        ("interactions.jsonl: row 7", "item_id='a ' is not in items", "but 'a' is: write both"),
    ),
    "a column with the name of ours": (
        "items",
        [row | {"source_row": 1} for row in ITEMS],
        ("items.jsonl", "'source_row'", "rename it"),
    ),
    "duplicate user": (
        "users",
        [{"user_id": "u1", "age": 3}, {"user_id": "u1", "age": 4}],
        ("users.jsonl: row 2", "user_id='u1' is in row 1"),
    ),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_table_is_refused_in_one_line(folder, tiny_config, name):
    table, rows, parts = BAD_TABLES[name]
    write_jsonl(folder / f"{table}.jsonl", rows)
    with pytest.raises(ValueError) as caught:
        run(folder, tiny_config)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


BAD_COLUMNS = {
    "infinity": (pa.array([2**63 - 1], pa.timestamp("us")), "row 1: timestamp='infinity' is not"),
    "before the year 1": (pa.array([-(2**62)], pa.timestamp("us")), "row 1: timestamp='"),
    "milliseconds": (
        pa.array([0, 2**60], pa.timestamp("ms")),
        "row 2: timestamp=1152921504606846976 (ms since 1970) is not a time",
    ),
    "whole numbers": (pa.array([2**64 - 1], pa.uint64()), "row 1: timestamp=18446744073709551615"),
    "smallest number": (pa.array([-(2**63)]), "row 1: timestamp=-9223372036854775808"),
    "floats of 32 bits": (
        pa.array([1.0, 1_714_566_600.0], pa.float32()),
        "row 2: timestamp=1714566656.0 is a float of 32 bits, which rounds times to minutes",
    ),
}


@pytest.mark.parametrize("name", BAD_COLUMNS)
def test_times_of_parquet_that_are_none_are_named(folder, tiny_config, name):
    column, message = BAD_COLUMNS[name]
    (folder / "interactions.jsonl").unlink()
    ids = ["u"] * len(column), ["a"] * len(column)
    table = pa.table({"user_id": ids[0], "item_id": ids[1], "timestamp": column})
    pq.write_table(table, folder / "interactions.parquet")
    with pytest.raises(ValueError) as caught:
        run(folder, tiny_config)
    assert f"interactions.parquet: {message}" in str(caught.value)


OPTIONAL = {
    "search without a time": (
        "searches",
        [
            {"query": "x", "item_id": "a", "user_id": "u1", "timestamp": given}
            for given in ("", None, "2023-11-14")
        ],
    ),
    "theme without a start": (
        "themes",
        [{"theme": "sale", "kind": " Trend", "item_id": "a", "start": "", "end": " "}],
    ),
}


@pytest.mark.parametrize("name", OPTIONAL)
def test_an_optional_value_may_be_empty(folder, tiny_config, name):
    table, rows = OPTIONAL[name]
    write_jsonl(folder / f"{table}.jsonl", rows)
    data, _ = run(folder, tiny_config)
    texts = data.queries.texts if table == "searches" else data.themes.names
    assert rows[0].get("query", "sale") in texts.to_pylist()


def test_a_bad_row_of_a_part_is_named_with_its_part(folder, tiny_config):
    (folder / "interactions.jsonl").unlink()
    (folder / "interactions").mkdir()
    write_jsonl(folder / "interactions" / "0.jsonl", EVENTS[:4])
    write_jsonl(folder / "interactions" / "1.jsonl", changed(EVENTS[4:], 2, timestamp="tomorrow"))
    with pytest.raises(ValueError, match=r"interactions/1.jsonl: row 3: timestamp='tomorrow'"):
        run(folder, tiny_config)


def test_rows_that_the_engine_loses_are_an_error(folder, tiny_config, monkeypatch):
    """DuckDB 1.5 reads no row of a CSV whose line ends are declared wrongly, without an error."""
    opened = readers.open_table

    def lost(con, path):
        table = opened(con, path)
        return dataclasses.replace(table, table=table.table.limit(3))

    monkeypatch.setattr(readers, "open_table", lost)
    with pytest.raises(ValueError, match=r"items.jsonl has 4 rows, but 3 are read; save it"):
        run(folder, tiny_config)


IDS = {
    "whole floats": (pa.array([0.0, 1.0, 2.0, 3.0]), ["0", "1", "2", "3"]),
    "other floats": (pa.array([0.5, 1.0, 2.0, 3.0]), ["0.5", "1", "2", "3"]),
    "above 2^53": (pa.array([2**53 + row for row in range(4)]), [str(2**53 + n) for n in range(4)]),
    "decimals": (
        pa.array([decimal.Decimal(row) for row in range(4)], pa.decimal128(20, 3)),
        ["0", "1", "2", "3"],
    ),
    "decimals with zeros": (
        pa.array([decimal.Decimal(n) / 2 for n in range(4)], pa.decimal128(20, 3)),
        ["0", "0.5", "1", "1.5"],
    ),
    "bytes": (pa.array([b"a", b"b", b"c", "é".encode()], pa.binary()), ["a", "b", "c", "é"]),
    "dictionary": (pa.array(["a", "b", "c", "d"]).dictionary_encode(), ["a", "b", "c", "d"]),
}


@pytest.mark.parametrize("name", IDS)
def test_ids_of_parquet_are_text_without_rounding(folder, tiny_config, name):
    column, wanted = IDS[name]
    (folder / "items.jsonl").unlink()
    pq.write_table(pa.table({"item_id": column, "title": list("abcd")}), folder / "items.parquet")
    event = {"user_id": "u", "item_id": wanted[1], "timestamp": 1_700_000_000}
    write_jsonl(folder / "interactions.jsonl", [event])
    data, _ = run(folder, tiny_config)
    assert data.catalogue.ids(np.arange(4)) == wanted
    assert data.histories.item.tolist() == [1]


@pytest.mark.parametrize("ids", [["8", "10", "9", "11"], ["s8", "s10", "s9", "s11"]])
def test_sessions_of_one_time_have_the_order_of_their_numbers(folder, tiny_config, ids):
    rows = [
        {"user_id": "u", "item_id": item, "timestamp": "2024-05-01", "session_id": session}
        for item, session in zip("abcd", ids, strict=True)
    ]
    write_jsonl(folder / "interactions.jsonl", rows)
    data, _ = run(folder, tiny_config)
    assert data.catalogue.ids(data.histories.item) == ["a", "c", "b", "d"]


def test_by_time_needs_times_that_differ(folder, tiny_config):
    write_jsonl(folder / "interactions.jsonl", [row | {"timestamp": 5} for row in EVENTS])
    with pytest.raises(ValueError, match=r"all interactions have the time 5; use .*leave_one_out"):
        run(folder, tiny_config, **{"split.kind": "by_time"})


def test_missing_table_is_named(folder, tiny_config):
    (folder / "interactions.jsonl").unlink()
    with pytest.raises(ValueError, match=r"no interactions.parquet, interactions.csv or"):
        run(folder, tiny_config)


def test_missing_folder_is_named(folder, tiny_config):
    with pytest.raises(ValueError, match=r"data.path='.*nowhere' is not a folder; set --config"):
        run(folder, tiny_config, path=str(folder / "nowhere"))


def test_unsupported_file_is_named(folder, tiny_config):
    with pytest.raises(ValueError, match=r"items.xlsx: this kind of file is not supported; use"):
        run(folder, tiny_config, **{"files.items": "items.xlsx"})


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_empty_table_is_named(folder, tiny_config, suffix):
    (folder / "items.jsonl").unlink()
    if suffix == "csv":
        (folder / "items.csv").write_text("item_id,title\n")
    else:
        table = pa.table({"item_id": pa.array([], pa.string())})
        pq.write_table(table, folder / "items.parquet")
    with pytest.raises(ValueError, match=rf"items.{suffix} has no rows"):
        run(folder, tiny_config)


def test_empty_file_is_named(folder, tiny_config):
    (folder / "items.jsonl").unlink()
    (folder / "items.csv").write_text("")
    with pytest.raises(ValueError, match=r"items.csv"):
        run(folder, tiny_config)


def test_file_that_is_not_utf8_is_named(folder, tiny_config):
    (folder / "items.jsonl").unlink()
    text = "item_id,title\n" + "".join(f"{name},Café\n" for name in "abcd")
    (folder / "items.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"items.csv cannot be read \(.*; save it as UTF-8"
    ) as caught:
        run(folder, tiny_config)
    assert "\n" not in str(caught.value)


def test_damaged_parquet_is_named(folder, tiny_config):
    (folder / "items.jsonl").unlink()
    (folder / "items.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"items.parquet cannot be read"):
        run(folder, tiny_config)


def test_unknown_items_are_dropped_and_counted_if_configured(folder, tiny_config):
    write_jsonl(folder / "interactions.jsonl", changed(EVENTS, 6, item_id="zz"))
    data, card = run(folder, tiny_config, unknown_items="drop")
    assert card["dropped_rows"] == {"interactions": 1}
    assert len(data.histories.item) == len(EVENTS) - 1


TIMES = {
    "seconds": 1_700_000_000,
    "milliseconds": 1_700_000_000_123,
    "text of seconds": "1700000000",
    "iso": "2023-11-14T22:13:20Z",
    "iso without zone is UTC": "2023-11-14 22:13:20",
    "iso of another zone": "2023-11-15T00:13:20+02:00",
}


@pytest.mark.parametrize("name", TIMES)
def test_times_are_unix_seconds(folder, tiny_config, name):
    rows = [{"user_id": "u", "item_id": "a", "timestamp": TIMES[name]}]
    write_jsonl(folder / "interactions.jsonl", rows)
    data, _ = run(folder, tiny_config)
    assert data.histories.time.tolist() == [1_700_000_000]


DAYS = {
    "number": ([20240501, 20231231], [1_714_521_600, 1_703_980_800]),
    "text": (["20240501", "2023-12-31"], [1_714_521_600, 1_703_980_800]),
    "year as text": (["2024", "20231231"], [1_704_067_200, 1_703_980_800]),
    "number that counts from 0": ([20240501, 30000000], [20_240_501, 30_000_000]),
    "number that is no day": ([20240501, 20240230], [20_240_501, 20_240_230]),
    "text that counts from 0": (["2024", "7"], [2024, 7]),
    "small number": ([2024, 7], [2024, 7]),
}


@pytest.mark.parametrize("name", DAYS)
def test_days_and_years_are_dates_unless_the_column_counts_seconds(folder, tiny_config, name):
    given, want = DAYS[name]
    rows = [{"user_id": f"u{row}", "item_id": "a", "timestamp": t} for row, t in enumerate(given)]
    write_jsonl(folder / "interactions.jsonl", rows)
    data, _ = run(folder, tiny_config)
    assert data.histories.time.tolist() == want


def test_dates_and_timestamps_of_parquet_are_times(folder, tiny_config):
    (folder / "interactions.jsonl").unlink()
    table = pa.table(
        {
            "user_id": ["u"],
            "item_id": ["a"],
            "timestamp": pa.array([1_700_000_000_000_000], pa.timestamp("us")),
        }
    )
    pq.write_table(table, folder / "interactions.parquet")
    data, _ = run(folder, tiny_config)
    assert data.histories.time.tolist() == [1_700_000_000]


def test_ids_of_csv_keep_their_zeros(folder, tiny_config):
    (folder / "items.jsonl").unlink()
    (folder / "items.csv").write_text("item_id,title\n007,bond\n7,dwarfs\n")
    rows = [{"user_id": "u", "item_id": "007", "timestamp": 1_700_000_000}]
    write_jsonl(folder / "interactions.jsonl", rows)
    data, _ = run(folder, tiny_config)
    assert data.catalogue.ids(np.array([0, 1])) == ["007", "7"]
    assert data.histories.item.tolist() == [0]


def test_text_of_a_megabyte_is_truncated_and_counted(folder, tiny_config):
    write_jsonl(folder / "items.jsonl", changed(ITEMS, 1, title="long " * 220_000))
    data, card = run(folder, tiny_config, **{"text.max_chars": 500})
    assert card["items_with_truncated_text"] == 1
    assert max(map(len, data.catalogue.texts(np.arange(4)))) < 600
    assert max(map(len, data.catalogue.titles(np.arange(4)))) <= 120


def bad_vectors(vectors):
    nan = vectors.copy()
    nan[2, 1] = np.nan
    return {
        "NaN": (nan, r"id_vectors.npy: row 3: the vector has NaN or infinity; replace"),
        "too few": (vectors[:3], r"id_vectors.npy: 3 vectors for 4 items; save one for each row"),
        "one dimension": (vectors[:, 0], r"id_vectors.npy: shape \(4,\)"),
        "strings": (vectors.astype(str), r"id_vectors.npy: shape \(4, 3\), type <U"),
    }


@pytest.mark.parametrize("name", ["NaN", "too few", "one dimension", "strings"])
def test_bad_vectors_are_named(folder, tiny_config, name):
    array, message = bad_vectors(np.arange(12, dtype=np.float32).reshape(4, 3))[name]
    np.save(folder / "id_vectors.npy", array)
    with pytest.raises(ValueError, match=message):
        run(folder, tiny_config)


def test_vectors_of_parquet_are_put_in_the_order_of_items(folder, tiny_config):
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    table = pa.table({"item_id": list("dcba"), "vector": list(vectors[::-1])})
    pq.write_table(table, folder / "visual_vectors.parquet")
    data, _ = run(folder, tiny_config)
    np.testing.assert_array_equal(data.visual_vectors, vectors)


def test_vectors_with_float_ids_are_read_from_a_file_named_as_a_table(folder, tiny_config):
    """7.0 is item 7. The file is called items, which is also the name of a table."""
    vectors = np.arange(8, dtype=np.float32).reshape(4, 2)
    write_jsonl(folder / "items.jsonl", [row | {"item_id": n} for n, row in enumerate(ITEMS)])
    rows = [row | {"item_id": "abcd".index(row["item_id"])} for row in EVENTS]
    write_jsonl(folder / "interactions.jsonl", rows)
    (folder / "looks").mkdir()
    table = pa.table({"item_id": [0.0, 1.0, 2.0, 3.0], "vector": list(vectors)})
    pq.write_table(table, folder / "looks" / "items.parquet")
    data, _ = run(folder, tiny_config, **{"files.visual_vectors": "looks/items.parquet"})
    np.testing.assert_array_equal(data.visual_vectors, vectors)


def test_item_without_vector_is_named(folder, tiny_config):
    table = pa.table({"item_id": ["a", "b"], "vector": [[1.0, 2.0], [3.0, 4.0]]})
    pq.write_table(table, folder / "id_vectors.parquet")
    with pytest.raises(ValueError, match=r"item_id='c' and 1 more items have no vector; add them"):
        run(folder, tiny_config)


def test_vectors_of_two_widths_are_named(folder, tiny_config):
    table = pa.table({"item_id": list("abcd"), "vector": [[1.0, 2.0]] * 3 + [[3.0]]})
    pq.write_table(table, folder / "id_vectors.parquet")
    with pytest.raises(ValueError, match=r"item_id='d' has a vector of 1 numbers, others have 2"):
        run(folder, tiny_config)


def test_vectors_of_dropped_items_are_dropped(folder, tiny_config):
    """b has no interaction; the last two of each user are targets."""
    rows = [row | {"item_id": "acda"[n % 4]} for n, row in enumerate(EVENTS)]
    write_jsonl(folder / "interactions.jsonl", rows)
    np.save(folder / "id_vectors.npy", np.arange(8, dtype=np.float64).reshape(4, 2))
    data, _ = run(folder, tiny_config, min_item_count=1)
    assert data.catalogue.ids(np.arange(3)) == ["a", "c", "d"]
    np.testing.assert_array_equal(data.id_vectors, [[0, 1], [4, 5], [6, 7]])


def test_object_store_urls_are_read(folder, tiny_config):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for name in ("items", "interactions"):
        memory.pipe(f"/shop/{name}.jsonl", (folder / f"{name}.jsonl").read_bytes())
    data, _ = run(folder, tiny_config, path="memory://shop")
    assert len(data.catalogue) == 4


def test_interactions_of_other_events_are_dropped(folder, tiny_config):
    rows = [row | {"event": "buy" if row["user_id"] == "u1" else "view"} for row in EVENTS]
    write_jsonl(folder / "interactions.jsonl", rows)
    data, _ = run(folder, tiny_config, events=("buy",))
    assert data.histories.num_users == 1


def test_same_folder_twice_gives_the_same_bytes(tables_folder, tiny_config, tmp_path):
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        prepare(tiny_config(tables_folder, threads=2), 0, tmp_path / name)
        found = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        files.append({str(p.relative_to(tmp_path / name)): p.read_bytes() for p in found})
    assert files[0].keys() == files[1].keys()
    assert [name for name in files[0] if files[0][name] != files[1][name]] == []
