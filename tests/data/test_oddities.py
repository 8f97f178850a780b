"""Surprising properties are notes of the data card, with a count or an example."""

import json
import shutil
import time

import ibis
import pandas as pd
import pyarrow as pa
import pytest

from sigma_jax.data import card, database, oddities
from sigma_jax.prepare import number_tables, prepare

ITEMS = [{"item_id": name, "title": f"thing {name}"} for name in "abcd"]
EVENTS = [
    {"user_id": user, "item_id": item, "timestamp": 1_700_000_000 + row}
    for user in ("u1", "u2")
    for row, item in enumerate("abcd")
]


def write(folder, **tables):
    """Writes rows as JSON lines and DataFrames as Parquet."""
    for name, rows in {"items": ITEMS, "interactions": EVENTS, **tables}.items():
        if isinstance(rows, pd.DataFrame):
            rows.to_parquet(folder / f"{name}.parquet")
        else:
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(lines)


def checked(folder, tiny_config, **changes):
    """(notes, texts, categories) of the checked tables in `folder`."""
    with database.open_database(folder / "database", "300MB", 1) as con:
        tables = number_tables(con, tiny_config(folder, **changes), 0)
        items = database.rows(con, tables.items.order_by("item").select("text", "category"))
    shutil.rmtree(folder / "database")
    return tables.notes, [row["text"] for row in items], [row["category"] for row in items]


def with_times(*times):
    return [row | {"timestamp": given} for row, given in zip(EVENTS, times * 8, strict=False)]


WARNED = {
    "blanks": (
        {"interactions": [row | {"user_id": row["user_id"] + " "} for row in EVENTS]},
        "8 values of user_id have blanks around them, such as 'u1 '",
    ),
    "words": (
        {"interactions": [row | {"user_id": "NULL"} for row in EVENTS]},
        "8 values of user_id are the word 'NULL', which is taken for an id",
    ),
    "users of another form": (
        {"users": [{"user_id": "U1", "age": 3}, {"user_id": "u3", "age": 3}]},
        "0 of the 2 users of",
    ),
    "users that match nobody": ({"users": [{"user_id": "x", "age": 3}]}, "such as 'x' there and"),
    "future": (
        {"interactions": with_times(int(time.time()) + 90 * 86_400, 1_700_000_000)},
        "4 timestamps lie in the future",
    ),
    "past": ({"interactions": with_times(-5, 1_700_000_000)}, "4 timestamps lie before 1970"),
    "days of a spreadsheet": (
        {"interactions": with_times(45_000.5, 45_001)},
        "if they are days of a spreadsheet, write them as dates",
    ),
    "small numbers": ({"interactions": with_times(1, 2)}, "all timestamps lie in 1970"),
    "two units": (
        {"interactions": with_times(1_700_000_000, 1_700_000_000_000)},
        "several units by their size: 4 of milliseconds, 4 of seconds",
    ),
    "one item": (
        {"interactions": [row | {"item_id": "a"} for row in EVENTS]},
        "item_id='a' has 100 per cent of the interactions",
    ),
    "words in a column": (
        {"items": [row | {"brand": "NULL"} for row in ITEMS]},
        "4 values of brand are words such as NULL or nan",
    ),
    "several paths": (
        {"items": [row | {"categories": [["x", "y"], ["z"]]} for row in ITEMS]},
        "4 items have several paths in categories; the first is their category",
    ),
    "index of pandas": (
        {"interactions": pd.DataFrame(EVENTS, index=[5, 3, 1, 0, 2, 4, 6, 7])},
        "'__index_level_0__' is the index of pandas",
    ),
}


@pytest.mark.parametrize("name", WARNED)
def test_a_surprise_is_a_note(tmp_path, tiny_config, name):
    tables, part = WARNED[name]
    write(tmp_path, **tables)
    notes, *_ = checked(tmp_path, tiny_config)
    assert any(part in note for note in notes), notes


def test_good_tables_have_no_notes(tmp_path, tiny_config):
    write(tmp_path, users=[{"user_id": "u1", "age": 3}, {"user_id": "new", "age": 4}])
    assert checked(tmp_path, tiny_config)[0] == ()


def test_a_file_that_is_not_read_is_named(tmp_path, tiny_config):
    write(tmp_path)
    (tmp_path / "items.jsonl.gz").write_bytes(b"x")
    [note] = checked(tmp_path, tiny_config)[0]
    assert note.endswith(f"items.jsonl.gz is not read, because {tmp_path / 'items.jsonl'} is")


def test_notes_are_warnings_of_the_data_card(tmp_path, tiny_config):
    write(tmp_path, interactions=with_times(45_000.5, 45_001))
    (tmp_path / "out").mkdir()
    data_card = prepare(tiny_config(tmp_path), 0, tmp_path / "out")
    [note] = data_card["notes"]
    assert note in card.warnings(data_card)
    assert f"- {note}" in (tmp_path / "out" / card.FILE).read_text()


def test_the_first_category_path_counts(tmp_path, tiny_config):
    paths = [["Home", "Kitchen"], ["Gifts"]], [["Garden"]], [], None
    write(
        tmp_path,
        items=[row | {"categories": given} for row, given in zip(ITEMS, paths, strict=True)],
    )
    _, texts, categories = checked(tmp_path, tiny_config)
    assert categories == ["Kitchen", "Garden", None, None]
    assert json.loads(texts[0])["categories"] == "Home > Kitchen"


NOT_TEXT = {
    "addresses": (["https://x.example/1.jpg", "http://x.example/2.jpg", None], "web addresses"),
    "lists of addresses": ([["https://x.example/1.jpg"], [], None], "web addresses"),
    "objects with addresses": (['[{"hi_res":"https://x.example/1"}]', None, None], "web addresses"),
    "bytes": ([b"\xff\xd8", None, b"x"], "bytes"),
    "encoded bytes": (["QUJD" * 100, None, "QUJE" * 100], "encoded bytes"),
    "a text with an address": (["see https://x.example/1", "no", "none"], None),
    "few addresses": (["https://x.example/1", "words", "more words"], None),
    "long texts": (["word " * 100, "word", None], None),
    "numbers": ([1, 2, None], None),
}


@pytest.mark.parametrize("name", NOT_TEXT)
def test_columns_that_say_nothing_in_words_are_found(name):
    values, reason = NOT_TEXT[name]
    con = ibis.duckdb.connect()
    items = database.from_arrow(con, "items", pa.table({"a": values, "b": ["x", "y", "z"]}))
    assert oddities.not_for_text(con, items) == ({"a": f"holds {reason}"} if reason else {})


def test_addresses_are_no_part_of_texts_unless_they_are_named(tmp_path, tiny_config):
    write(
        tmp_path,
        items=[row | {"image": f"https://x.example/{row['item_id']}"} for row in ITEMS],
    )
    notes, texts, _ = checked(tmp_path, tiny_config)
    assert any("'image' holds web addresses and is no part" in note for note in notes)
    assert texts[0] == '{"title": "thing a"}'
    _, texts, _ = checked(tmp_path, tiny_config, **{"text.columns": ("image",)})
    assert texts[0] == '{"image": "https://x.example/a"}'
