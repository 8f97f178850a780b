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


def with_user(name):
    return [row | {"user_id": name} if row["user_id"] == "u2" else row for row in EVENTS]


ACCENTS = ["jos\u00e9", "jose\u0301"]
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
    "several words": (
        {
            "interactions": [
                r | {"user_id": w} for r, w in zip(EVENTS, [r"\N", "-"] * 4, strict=True)
            ]
        },
        r"8 values of user_id are words such as '-' and '\\N', taken for ids",
    ),
    "a number of a spreadsheet as id": (
        {"interactions": with_user("1E+05")},
        "4 values of user_id look like numbers of a spreadsheet, such as '1E+05'",
    ),
    "hidden characters": (
        {"interactions": with_user("u1\u200b")},
        r"4 values of user_id hold a character that is not seen, such as 'u1\u200b'",
    ),
    "a hidden difference": (
        {"interactions": EVENTS + with_user("u1\u00a0")},
        r"1 groups of user_id differ in capitals, blanks, hidden characters or .0 only, such as "
        r"'u1' and 'u1\xa0'",
    ),
    "items that differ in case": (
        {"items": [*ITEMS, {"item_id": "A", "title": "thing"}]},
        "1 groups of item_id differ in capitals",
    ),
    "one letter in two forms": (
        {"interactions": [r | {"user_id": u} for r, u in zip(EVENTS, ACCENTS * 4, strict=True)]},
        r"user_id has 'jos\xe9' and 'jose\u0301', which look the same",
    ),
    "some times in 1970": (
        {"interactions": with_times(0, 1_700_000_000)},
        "4 timestamps lie in 1970 and others later; programs write 0 for no time",
    ),
    "days among seconds": (
        {"interactions": with_times(20240501, 1_700_000_000)},
        "4 timestamps look like days such as 20240501, but are read as seconds of 1970",
    ),
    "ticks of another year": (
        {"interactions": with_times(133_590_402_000_000_000, 133_590_402_010_000_000)},
        "all timestamps lie before 1995, from 1974-03-27 to 1974-03-27",
    ),
    "rounded times": (
        {"interactions": with_times("1.70E+09", "1.71E+09")},
        "8 timestamps are rounded to a few digits",
    ),
    "one time": ({"interactions": with_times(1_700_000_000)}, "all timestamps are equal"),
    "repeats": (
        {"interactions": EVENTS + EVENTS[:3]},
        "3 rows are equal to another row in user, item, time and event",
    ),
    "one user": (
        {
            "interactions": [row | {"user_id": "0"} for row in EVENTS]
            + [EVENTS[0], EVENTS[0] | {"user_id": "u3"}]
        },
        "user_id='0' has 80 per cent of the interactions; if it stands for visitors",
    ),
    "users that hardly match": (
        {
            "users": [{"user_id": name, "age": 3} for name in ("u1", "x1", "x2")],
            "interactions": [row | {"user_id": f"u{n}"} for n, row in enumerate(EVENTS)],
        },
        "1 of the 3 users of",
    ),
    "searches by users of another form": (
        {"searches": [{"query": "x", "item_id": "a", "user_id": "U1", "timestamp": 1_700_000_000}]},
        "such as 'U1' there and",
    ),
    "text encoded twice": (
        {"items": [row | {"title": "Caf\u00c3\u00a9"} for row in ITEMS]},
        "4 values of title are UTF-8 that was encoded twice, such as 'Caf\u00c3\u00a9'",
    ),
    "lost characters": (
        {"items": [row | {"title": "Caf\ufffd"} for row in ITEMS]},
        "4 values of title hold U+FFFD",
    ),
    "signs of HTML": (
        {"items": [row | {"title": "Salt &amp; Pepper"} for row in ITEMS]},
        "4 values of title hold signs of HTML, such as 'Salt &amp; Pepper'",
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


SEPARATORS = {
    "/": ["Home/Tea", "Home/Toys", "Garden", None],
    "->": ["Home -> Tea", "Home -> Toys", "Garden", None],
    ">": ["Home>Tea", "Home>Toys", "Garden>Pots", "Garden"],
}


@pytest.mark.parametrize("sign", SEPARATORS)
def test_another_separator_of_category_paths_is_noted(tmp_path, tiny_config, sign):
    paths = zip(ITEMS, SEPARATORS[sign], strict=True)
    write(tmp_path, items=[row | {"category": path} for row, path in paths])
    [note] = checked(tmp_path, tiny_config)[0]
    assert f"values of category have {sign!r}" in note
    assert f"--config.data.text.category_separator={sign!r}" in note
    notes, _, categories = checked(tmp_path, tiny_config, **{"text.category_separator": sign})
    assert notes == () and {"Tea", "Toys"} & set(categories)


def test_a_few_signs_in_category_paths_are_no_separator(tmp_path, tiny_config):
    paths = ["Home > Tea/Coffee", "Home > Toys", "Men/Women", "Garden"]
    write(tmp_path, items=[r | {"category": p} for r, p in zip(ITEMS, paths, strict=True)])
    assert checked(tmp_path, tiny_config)[0] == ()


@pytest.mark.parametrize("given", ["[Home, Tea]", '{Home,"Tea, green"}'])
def test_a_list_in_no_known_form_is_noted(tmp_path, tiny_config, given):
    write(tmp_path, items=[row | {"category": given} for row in ITEMS])
    [note] = checked(tmp_path, tiny_config)[0]
    assert "4 values of category look like lists" in note and "write lists of" in note


def test_left_out_events_are_counted_by_name(tmp_path, tiny_config):
    kinds = ["view", "view ", "View", "buy", "buy", "4.0", "cart", None]
    write(tmp_path, interactions=[r | {"event": k} for r, k in zip(EVENTS, kinds, strict=True)])
    notes, *_ = checked(tmp_path, tiny_config, events=("view", "4", "sold"))
    kept = ": 7 rows are left out, because data.events does not list their event: 2 of 'buy', 1 of "
    assert any(kept in note for note in notes), notes
    for part in (
        "data.events lists 'view', but 1 rows have 'View', which are left out",
        "data.events lists '4', but 1 rows have '4.0', which are left out",
        "no row has the event 'sold' of data.events",
    ):
        assert any(part in note for note in notes), notes


def test_repeats_in_a_session_count_once_and_are_no_surprise(tmp_path, tiny_config):
    write(tmp_path, interactions=[row | {"session_id": "s"} for row in EVENTS + EVENTS[:3]])
    assert checked(tmp_path, tiny_config)[0] == ()


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
