"""Rows of a file become requests: RequestParser."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_export import only

from sigma_jax.data.config import TextConfig
from sigma_jax.recommender import requests
from sigma_jax.recommender.requests import Event, ItemIndex, RequestParser, sessions_of
from sigma_jax.schema import DAY, Catalogue

TEXT = TextConfig((), "", "", " > ", 100)


def request_parser(**changes) -> RequestParser:
    names = [f"i{number}" for number in range(9)]
    table = pa.table({"item_id": names, "text": names, "title": names})
    catalogue = Catalogue(table, np.zeros(9, np.int32), pa.array(["a"]), np.ones(9, np.int64))
    fields = dict(
        item_index=ItemIndex(catalogue),
        text=TEXT,
        has_instructions=True,
        default_instruction="anything",
        now=5 * DAY,
        has_sessions=True,
        session_gap=0,
        known=None,
    )
    return RequestParser(**fields | changes)


def read(path, text: str, **changes):
    path.write_text(text, encoding="utf-8")
    [batch] = request_parser(**changes).read(str(path), 100)
    return batch


def histories(batch) -> list[tuple[list[int], list[int], list[int]]]:
    """Items, times and sessions of each row, up to its request."""
    names = ("item", "time", "session")
    ranges = zip(batch.histories.offsets, batch.requests.history_end, strict=False)
    return [
        tuple(getattr(batch.histories, name)[start:end].tolist() for name in names)
        for start, end in ranges
    ]


def request_times(batch) -> list[int]:
    return batch.histories.time[batch.requests.history_end].tolist()


def test_items_with_the_same_hash_are_distinguished(monkeypatch):
    monkeypatch.setattr(requests, "hash", lambda name: len(name), raising=False)
    index = request_parser().item_index
    assert [index(f"i{number}", "here") for number in range(9)] == list(range(9))
    for unknown in ("i9", "i", "i10"):
        with pytest.raises(ValueError, match=f"here: item '{unknown}' is not in the catalogue"):
            index(unknown, "here")


def test_plain_ids_keep_their_order_and_are_a_session_each(tmp_path):
    batch = read(tmp_path / "u.jsonl", '{"user_id": 7, "history": ["i3", "i1", "i3"]}\n')
    assert batch.users.table["user_id"].to_pylist() == ["7"]
    assert histories(batch) == [([3, 1, 3], [5 * DAY] * 3, [0, 1, 2])]
    assert request_times(batch) == [6 * DAY]


def test_csv_holds_json_and_profiles_are_the_other_columns(tmp_path):
    text = 'user_id,town,history,instruction\n007,Ulm,"[""i1""]",tea\nx,,,\n'
    batch = read(tmp_path / "u.csv", text)
    assert batch.users.table["user_id"].to_pylist() == ["007", "x"]
    assert batch.users.table["profile"].to_pylist() == ['{"town": "Ulm"}', ""]
    assert batch.requests.instruction == ["tea", "anything"]
    assert [row[0] for row in histories(batch)] == [[1], []]


def test_values_of_any_type_are_read_as_they_stand(tmp_path):
    rows = (
        '{"user_id": 7, "age": 30, "score": 2.5, "history": ["i3", {"item_id": "i1"}]}\n'
        '{"user_id": "x", "age": "old", "tags": ["a", "b"], "instruction": 5, "history": null}\n'
        '{"user_id": 8.0, "history": [{"item_id": "i2", "timestamp": "1970-01-05"}, '
        '{"item_id": "i4", "timestamp": 86400}], "instruction": "tea"}\n'
    )
    batch = read(tmp_path / "u.jsonl", rows)
    assert batch.users.table["user_id"].to_pylist() == ["7", "x", "8"]
    assert batch.users.table["profile"].to_pylist() == [
        '{"age": 30, "score": 2.5}',
        '{"age": "old", "tags": "a, b"}',
        "",
    ]
    assert batch.requests.instruction == ["anything", "5", "tea"]
    assert [row[0] for row in histories(batch)] == [[3, 1], [], [4, 2]]
    without = read(tmp_path / "u.jsonl", rows, has_instructions=False)
    assert without.requests.instruction == ["", "", ""]


def test_parquet_holds_lists_and_numbers(tmp_path):
    table = pa.table(
        {
            "user_id": [1.0, 2.0],
            "history": [[{"item_id": "i5", "timestamp": 9.0}], None],
            "city": ["Ulm", None],
        }
    )
    pq.write_table(table, tmp_path / "u.parquet")
    [batch] = request_parser().read(str(tmp_path / "u.parquet"), 10)
    assert batch.users.table["user_id"].to_pylist() == ["1", "2"]
    assert histories(batch) == [([5], [9], [0]), ([], [], [])]
    assert batch.users.table["profile"].to_pylist() == ['{"city": "Ulm"}', ""]


def test_a_gap_joins_events_by_their_own_times_only(tmp_path):
    rows = '{"user_id": "a", "history": ["i3", "i1", "i3"]}\n'
    assert histories(read(tmp_path / "u.jsonl", rows, session_gap=60))[0][0] == [3, 1, 3]
    near_now = 5 * DAY - 10  # the other event has no time of its own
    rows = f'{{"user_id": "a", "history": [{{"item_id": "i3", "timestamp": {near_now}}}, "i1"]}}\n'
    assert histories(read(tmp_path / "u.jsonl", rows, session_gap=60))[0][2] == [0, 1]
    rows = (
        '{"user_id": "a", "history": [{"item_id": "i3", "timestamp": 10}, '
        '{"item_id": "i1", "timestamp": 50}, {"item_id": "i2", "timestamp": 500}]}\n'
    )
    assert histories(read(tmp_path / "u.jsonl", rows, session_gap=60))[0] == (
        [1, 3, 2],
        [10, 10, 500],
        [0, 0, 1],
    )


def test_blank_lines_and_nan_count_as_missing(tmp_path):
    text = '{"user_id": 1, "timestamp": NaN, "instruction": NaN}\n\n \n{"user_id": 2}\n\n'
    batch = read(tmp_path / "u.jsonl", text)
    assert batch.users.table["user_id"].to_pylist() == ["1", "2"]
    assert batch.requests.instruction == ["anything"] * 2
    path = tmp_path / "u.parquet"
    pq.write_table(pa.table({"user_id": [1.0, 2.0], "instruction": [np.nan, 5.0]}), path)
    [batch] = request_parser().read(str(path), 100)
    assert batch.users.table["user_id"].to_pylist() == ["1", "2"]
    assert batch.requests.instruction == ["anything", "5"]


def test_events_without_a_session_stay_out_of_named_ones_between_them():
    events = [Event(1, 0, None), Event(2, 5, "s"), Event(3, 10, None), Event(4, 100, None)]
    assert sessions_of(events, 60) == [(0, [1, 3]), (5, [2]), (100, [4])]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("u.jsonl", "[1]\n", "line 1 is no JSON object"),
        ("u.jsonl", '{"user_id": 1}\n\n{\n', "line 3: "),
        ("u.jsonl", '{"user_id": "a", "town": "\\ud800"}\n', "row 1: it holds '\\ud800', which is"),
        ("u.jsonl", '{"user_id": Infinity}\n', "row 1: user_id is empty or missing"),
        ("u.jsonl", '{"user_id": "a", "history": [NaN]}', "row 1: an entry of history has no item"),
        ("u.txt", "a", "ends in '.txt'"),
        ("u.parquet", "a", "cannot be read"),
        (
            "u.jsonl",
            '{"user_id": "a", "timestamp": 5, "history": [{"item_id": "i1", "timestamp": 9}]}',
            "is before the end of its history",
        ),
    ],
)
def test_files_and_times_that_cannot_be_read_are_named(tmp_path, name, text, message):
    with pytest.raises(ValueError) as caught:
        read(tmp_path / name, text)
    assert message in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_sessions_are_sorted_and_without_repeats():
    events = [Event(4, 9, "a"), Event(3, 8, "a"), Event(4, 9, "a"), Event(7, 5, None)]
    assert sessions_of(events, 0) == [(5, [7]), (8, [3, 4])]
    close = [Event(1, 0, None), Event(2, 50, None), Event(1, 101, None), Event(1, 300, None)]
    assert sessions_of(close, 60) == [(0, [1, 2]), (300, [1])]  # each within 60 of the one before
    assert sessions_of(close, 0) == [(0, [1]), (50, [2]), (101, [1]), (300, [1])]


def test_the_time_of_a_request_is_the_row_s_or_a_day_after_the_log_and_the_history(tmp_path):
    rows = (
        '{"user_id": "a", "timestamp": "1970-01-03", "history": []}\n'
        '{"user_id": "b", "history": [{"item_id": "i1", "timestamp": 864000}]}\n'
    )
    assert request_times(read(tmp_path / "u.jsonl", rows)) == [2 * DAY, 11 * DAY]
    without = '{"user_id": "b", "history": ["i1"]}\n'
    assert request_times(read(tmp_path / "v.jsonl", without, now=0)) == [0]


@pytest.mark.parametrize("history", ['"not json"', '"{}"', "[null]"])
def test_a_history_that_is_no_list_is_named(tmp_path, history):
    with pytest.raises(ValueError, match=r"row 1: .*history"):
        read(tmp_path / "u.jsonl", f'{{"user_id": "a", "history": {history}}}\n')


def test_a_known_user_gets_the_stored_history_and_profile(shop, tmp_path):
    parser = request_parser(item_index=ItemIndex(shop.catalogue), known=shop)
    rows = slice(shop.histories.offsets[3], shop.histories.offsets[4])
    names = ("item", "time", "session")
    stored = tuple(getattr(shop.histories, name)[rows].tolist() for name in names)
    profile = shop.users.table["profile"][3].as_py()
    assert stored[0] and profile
    batch = parser.parse(
        [
            {"user_id": "u3", "instruction": "tea"},
            {"user_id": "u3", "town": "Ulm"},
            {"user_id": "u3", "history": []},
            {"user_id": "u3", "history": ["item 5"]},
            {"user_id": "stranger"},
        ]
    )
    none = ([], [], [])
    assert histories(batch) == [stored, stored, none, ([5], [5 * DAY], [0]), none]
    profiles = batch.users.table["profile"].to_pylist()
    assert profiles == [profile, '{"town": "Ulm"}', "", "", ""]
    assert batch.requests.instruction == ["tea", *["anything"] * 4]
    last = max(*stored[1], 5 * DAY)
    assert request_times(batch) == [last + DAY] * 2 + [6 * DAY] * 3
    path = tmp_path / "u.csv"
    path.write_text("user_id,history\nu3,\n")
    assert histories(only(parser.read(str(path), 9))) == [stored]


def test_without_known_data_every_user_is_a_stranger(shop):
    parser = request_parser(item_index=ItemIndex(shop.catalogue))
    assert histories(parser.parse([{"user_id": "u3"}])) == [([], [], [])]
