"""Histories and their targets follow the worked examples, in any order of a basket."""

import dataclasses
import json

import numpy as np
import pytest

from sigma_jax.histories import count_training_rows
from sigma_jax.prepare import prepare
from sigma_jax.schema import PreparedData

T0 = 1_700_000_000


def prepare_rows(folder, tiny_config, rows, **changes):
    """PreparedData of interactions (user, item, time, session or None) over items a..h."""
    out = folder / "out"
    out.mkdir(parents=True)
    names = ("user_id", "item_id", "timestamp", "session_id")
    events = [{n: v for n, v in zip(names, row, strict=False) if v is not None} for row in rows]
    items = [{"item_id": name, "title": f"thing {name}"} for name in "abcdefgh"]
    for name, table in (("items", items), ("interactions", events)):
        lines = "".join(json.dumps(row) + "\n" for row in table)
        (folder / f"{name}.jsonl").write_text(lines)
    prepare(tiny_config(folder, **changes), 0, out)
    return PreparedData.load(out)


def letters(data, rows):
    return "".join("abcdefgh"[item] for item in data.histories.item[rows])


BASKETS = [
    ("u", "a", T0, "x"),
    ("u", "b", T0, "x"),
    ("u", "c", T0 + 10, "y"),
    ("u", "d", T0 + 20, "z"),
    ("u", "e", T0 + 20, "z"),
]


def test_last_session_is_the_test_target_and_the_one_before_it_validation(tmp_path, tiny_config):
    """The worked example of schema.Histories."""
    histories = prepare_rows(tmp_path, tiny_config, BASKETS).histories
    assert histories.session.tolist() == [0, 0, 1, 2, 2]
    assert histories.offsets.tolist() == [0, 5]
    assert histories.valid_start.tolist() == [2]
    assert histories.test_start.tolist() == [3]
    assert histories.session_end(3, 0) == 5


@pytest.mark.slow
@pytest.mark.nightly
def test_the_order_of_rows_in_the_file_changes_no_output(tmp_path, tiny_config, tables_folder):
    """All files are equal, byte by byte, after the rows of the table are shuffled.

    The data card alone differs: it has the checksum of the table.
    """
    import pyarrow.parquet as pq

    found = []
    for name in ("given", "shuffled"):
        folder, out = tmp_path / name, tmp_path / f"{name}-out"
        folder.mkdir()
        out.mkdir()
        for path in tables_folder.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        table = pq.read_table(tables_folder / "interactions.parquet")
        if name == "shuffled":
            table = table.take(np.random.default_rng(0).permutation(len(table)))
        pq.write_table(table, folder / "interactions.parquet")
        prepare(tiny_config(folder), 0, out)
        found.append({p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()})
    assert [name for name in found[0] if found[0][name] != found[1][name]] == ["card.md"]


def test_repeats_of_an_item_in_a_basket_count_once(tmp_path, tiny_config):
    data = prepare_rows(tmp_path, tiny_config, BASKETS + [("u", "a", T0, "x")] * 3)
    assert letters(data, slice(None)) == "abcde"


def test_sessions_of_other_users_may_have_the_same_id(tmp_path, tiny_config):
    rows = [("u", "a", T0, "x"), ("v", "b", T0 + 5, "x")]
    data = prepare_rows(tmp_path, tiny_config, rows)
    assert data.histories.offsets.tolist() == [0, 1, 2]


def test_leave_one_out_keeps_the_order_of_the_file_for_equal_times(tmp_path, tiny_config):
    rows = [("u", item, T0, None) for item in "hbgac"] + [("u", "d", T0 - 1, None)]
    data = prepare_rows(tmp_path, tiny_config, rows, **{"split.kind": "leave_one_out"})
    assert letters(data, slice(None)) == "dhbgac"
    assert data.histories.session.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.histories.valid_start.tolist() == [4]
    assert data.histories.test_start.tolist() == [5]


def test_leave_one_out_takes_every_interaction_of_a_basket_as_a_session(tmp_path, tiny_config):
    data = prepare_rows(tmp_path, tiny_config, BASKETS, **{"split.kind": "leave_one_out"})
    assert data.histories.session.tolist() == [0, 1, 2, 3, 4]
    assert data.histories.test_start.tolist() == [4]


@pytest.mark.parametrize("kind", ["leave_one_out", "leave_last_session_out"])
def test_user_with_two_sessions_is_all_training(tmp_path, tiny_config, kind):
    rows = [("u", "a", T0, None), ("u", "b", T0 + 1, None)]
    histories = prepare_rows(tmp_path, tiny_config, rows, **{"split.kind": kind}).histories
    assert histories.valid_start.tolist() == histories.test_start.tolist() == [2]
    assert not len(histories.valid_users()) and not len(histories.test_users())


def test_gaps_in_time_separate_sessions_without_ids(tmp_path, tiny_config):
    times = (0, 50, 100, 161, 300, 300)
    rows = [("u", item, T0 + time, None) for item, time in zip("abcdef", times, strict=True)]
    data = prepare_rows(tmp_path, tiny_config, rows, **{"split.session_gap_seconds": 60})
    assert data.histories.session.tolist() == [0, 0, 0, 1, 2, 2]


BY_TIME = {
    "split.kind": "by_time",
    "split.valid_from": "2023-11-20",
    "split.test_from": "2023-12-01",
}
NOV_15, NOV_21, NOV_25, DEC_2, DEC_9 = (
    f"2023-{day}" for day in ("11-15", "11-21", "11-25", "12-02", "12-09")
)


def test_by_time_takes_the_first_session_from_each_date_on(tmp_path, tiny_config):
    days = (NOV_15, NOV_21, NOV_25, DEC_2, DEC_9)
    rows = [("u", item, day, day) for item, day in zip("abcde", days, strict=True)]
    rows.append(("u", "f", DEC_2, DEC_2))
    histories = prepare_rows(tmp_path, tiny_config, rows, **BY_TIME).histories
    assert histories.valid_start.tolist() == [1]
    assert histories.test_start.tolist() == [3]
    assert histories.session_end(3, 0) == 5


def test_by_time_training_rows_are_before_valid_from(tmp_path, tiny_config):
    rows = [
        ("only test", "a", NOV_15, None),
        ("only test", "b", DEC_2, None),
        ("only validation", "c", NOV_15, None),
        ("only validation", "d", NOV_21, None),
        ("only training", "e", NOV_15, None),
        ("only later", "f", DEC_9, None),
    ]
    data = prepare_rows(tmp_path, tiny_config, rows, **BY_TIME)
    row = data.users.row
    histories = data.histories
    valid_from = 1_700_438_400  # 2023-11-20
    for user in range(histories.num_users):
        training = slice(histories.offsets[user], histories.valid_start[user])
        assert (histories.time[training] < valid_from).all()
    assert histories.valid_users().tolist() == [row("only validation")]
    assert set(histories.test_users()) == {row("only test"), row("only later")}
    assert data.catalogue.popularity.tolist() == [1, 0, 1, 0, 1, 0, 0, 0]


def test_by_time_takes_shares_of_the_interactions(tmp_path, tiny_config):
    rows = [("u", "a", T0 + row, f"s{row}") for row in range(100)]
    shares = {"split.kind": "by_time", "split.valid_from": "0.8", "split.test_from": "0.9"}
    histories = prepare_rows(tmp_path, tiny_config, rows, **shares).histories
    assert abs(int(histories.valid_start[0]) - 80) <= 1
    assert abs(int(histories.test_start[0]) - 90) <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split.valid_from": "1.5"}, r"data.split.valid_from='1.5' is neither a share"),
        ({"split.test_from": "soon"}, r"data.split.test_from='soon' is neither a share"),
        ({"split.test_from": "2023-11-01"}, r"is not before test_from='2023-11-01'"),
    ],
)
def test_wrong_dates_of_a_split_are_named(tmp_path, tiny_config, change, message):
    with pytest.raises(ValueError, match=message):
        prepare_rows(tmp_path, tiny_config, BASKETS, **BY_TIME | change)


def test_users_are_in_the_order_of_their_ids_and_may_have_no_rows(prepared):
    ids = prepared.users.table["user_id"].to_pylist()
    newcomer = prepared.users.row("newcomer")
    offsets = prepared.histories.offsets
    assert ids[:3] == ["u00", "u01", "u02"]
    assert offsets[newcomer] == offsets[newcomer + 1]
    assert prepared.users.profiles([newcomer]) == ['{"age": "30-39", "town": "warm"}']


def test_cold_items_keep_their_targets_and_lose_their_training_rows(tmp_path, tiny_config):
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user}", "abcdefgh"[rng.integers(8)], T0 + 10 * k, None)
        for user in range(30)
        for k in range(3 + user % 5)
    ]
    settings = {"split.kind": "leave_one_out", "pairs.heldout_share": 0.0}
    full = prepare_rows(tmp_path / "full", tiny_config, rows, **settings)
    settings |= {"split.cold_share": 0.3}
    data = prepare_rows(tmp_path / "cold", tiny_config, rows, **settings)
    cold = np.flatnonzero(np.asarray(data.catalogue.popularity) == 0)
    assert len(cold) == 2
    for user in range(30):
        before, after = (
            letters(d, slice(d.histories.offsets[user], d.histories.valid_start[user]))
            for d in (full, data)
        )
        assert after == "".join(letter for letter in before if letter not in letters_of(cold))
        targets = [
            letters(d, slice(d.histories.valid_start[user], d.histories.offsets[user + 1]))
            for d in (full, data)
        ]
        assert targets[0] == targets[1]
        tests = [h.offsets[user + 1] - h.test_start[user] for h in (full.histories, data.histories)]
        assert tests[0] == tests[1] == 1


def letters_of(cold) -> str:
    """The names of items, by their numbers."""
    return "".join("abcdefgh"[item] for item in cold)


def test_every_field_of_histories_equals_a_plain_loop(prepared, tables_folder):
    import pyarrow.parquet as pq

    rows = pq.read_table(tables_folder / "interactions.parquet").to_pylist()
    users: dict[str, dict] = {}
    for row in rows:
        session = users.setdefault(row["user_id"], {}).setdefault(
            row["session_id"], [row["timestamp"], set()]
        )
        session[0] = min(session[0], row["timestamp"])
        session[1].add(int(row["item_id"][1:]))
    histories = prepared.histories
    for user_id, sessions in users.items():
        user = prepared.users.row(user_id)
        start, end = histories.offsets[user], histories.offsets[user + 1]
        ordered = sorted((time, name, sorted(items)) for name, (time, items) in sessions.items())
        want = [(item, time, k) for k, (time, _, items) in enumerate(ordered) for item in items]
        columns = (histories.item, histories.time, histories.session)
        rows = list(zip(*(column[start:end].tolist() for column in columns), strict=True))
        assert rows == want
        sizes = [len(items) for _, _, items in ordered]
        assert histories.valid_start[user] - start == sum(sizes[:-2])
        assert histories.test_start[user] - start == sum(sizes[:-1])
    assert {field.name for field in dataclasses.fields(histories)} == {
        "item",
        "time",
        "session",
        "offsets",
        "valid_start",
        "test_start",
    }


def test_interactions_of_targets_do_not_keep_an_item_in_the_catalogue(tmp_path, tiny_config):
    """c is a validation target twice, e a test target three times; neither is in training."""
    users = {"u": "abce", "v": "abce", "w": "bafe"}
    rows = [
        (user, item, T0 + 100 * place)
        for user, items in users.items()
        for place, item in enumerate(items)
    ]
    data = prepare_rows(tmp_path, tiny_config, rows, min_item_count=2)
    assert data.catalogue.ids(np.arange(len(data.catalogue))) == ["a", "b"]
    # Two sessions of a user are left, so nobody has a target.
    assert (data.histories.test_start == data.histories.offsets[1:]).all()


@pytest.mark.parametrize("kind", ["leave_one_out", "leave_last_session_out", "by_time"])
def test_every_item_has_enough_training_interactions(tmp_path, tiny_config, kind):
    """Also where dropped items leave a user with other last sessions."""
    rng = np.random.default_rng(3)
    rows = [
        (f"u{user}", "abcdefgh"[min(int(rng.geometric(0.3)) - 1, 7)], T0 + 1000 * place + user)
        for user in range(12)
        for place in range(int(rng.integers(3, 8)))
    ]
    changes = {"split.kind": kind, "split.valid_from": "0.6", "split.test_from": "0.8"}
    data = prepare_rows(tmp_path, tiny_config, rows, min_item_count=5, **changes)
    counts = count_training_rows(data)
    assert 2 < len(counts) < 8 and counts.min() >= 5


def test_too_large_a_count_is_refused(tmp_path, tiny_config):
    with pytest.raises(ValueError, match=r"no item has data.min_item_count=9 training interactio"):
        prepare_rows(tmp_path, tiny_config, BASKETS, min_item_count=9)
