"""New rows are checked against the known log, and numbered as it is."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import START
from small_histories import histories_of

from sigma_jax.configs.data import BASE
from sigma_jax.data import database
from sigma_jax.data.config import ColumnsConfig
from sigma_jax.data.sources.added import PLAIN, AddedFiles
from sigma_jax.refreshing.rows import LogSettings, NewItems, NoNewRowsError, is_known, read_rows
from sigma_jax.runtime.artifacts import Recipe, read_manifest, write_artifact
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.schema import DAY
from sigma_jax.serving.catalogue_update import read_items_as

LATER = START + 400 * DAY
NO_ITEMS = {name: pa.array([], pa.string()) for name in ("item_id", "text", "title", "category")}


@pytest.fixture(scope="module")
def log(data_config, tmp_path_factory):
    """The settings of the prepared shop, by a manifest like that of a workdir."""
    folder = tmp_path_factory.mktemp("log")
    metrics = {"sessions_hold_several_items": True}
    write_artifact(folder, "data", Recipe({"data": data_config}, {}, 0), lambda _: metrics)
    return LogSettings.of(read_manifest(folder, "data"))


@pytest.fixture
def read(prepared, log, tmp_path):
    """The function read(rows, items, late_rows): NewRows of a file with these rows."""

    def read(rows, items=NO_ITEMS, late_rows="error", unknown_items="error", added=PLAIN):
        path, scratch = tmp_path / "new.jsonl", Path(tempfile.mkdtemp(dir=tmp_path))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        new = NewItems.of(pa.table(items), prepared.catalogue)
        with database.open_database(scratch, "200MB", 1) as con:
            policies = late_rows, unknown_items, added
            return read_rows(con, str(path), new, prepared, log, *policies)

    return read


def row(user="u03", item="i005", time=LATER, session="s"):
    return {"user_id": user, "item_id": item, "timestamp": time, "session_id": session}


def known_row(prepared, user=3):
    """An interaction of the log as its file has it."""
    first = int(prepared.histories.offsets[user])
    item = prepared.catalogue.ids([int(prepared.histories.item[first])])[0]
    return row(f"u{user:02d}", item, int(prepared.histories.time[first]), "s03-00")


def renamed(**changes):
    """Files whose columns have some other names."""
    fields = BASE["columns"] | changes
    return AddedFiles(columns=to_dataclass(ColumnsConfig, fields, "columns"))


def test_new_rows_may_have_other_names_of_columns(read):
    rows = [row("u03", "i005", LATER), row("u03", "i004", LATER)]
    expected = read(rows)
    names = {"item_id": "article_id", "timestamp": "when"}
    other = [{names.get(name, name): value for name, value in one.items()} for one in rows]
    found = read(other, added=renamed(**names))
    assert found.item.tolist() == expected.item.tolist() == [4, 5]
    assert found.time.tolist() == expected.time.tolist()
    with pytest.raises(ValueError, match=r"column 'item_id' is missing \(found: .*article_id"):
        read(other)
    own = BASE["columns"]["interactions"] | {"item_id": "articleid"}
    with pytest.raises(ValueError, match=r"columns.interactions.item_id names; .*article_id"):
        read(other, added=renamed(interactions=own))


def test_new_items_may_have_other_names_of_columns(log, tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps({"sku": "7", "title": "tea", "category": "drinks"}) + "\n")
    kinds = {"title": False, "category": False}
    names = renamed(items={"item_id": "sku"})
    found = read_items_as(str(path), log.text, kinds, names).to_pylist()
    assert found[0]["item_id"] == "7" and found[0]["title"] == "tea"
    with pytest.raises(ValueError, match="column 'item_id' is missing"):
        read_items_as(str(path), log.text, kinds)


def test_users_items_and_sessions_get_the_numbers_that_follow(read, prepared):
    items = NO_ITEMS | {name: ["new1", "new0"] for name in NO_ITEMS}
    rows = [
        row("u03", "i005", LATER + 100, "b"),
        row("zz", "new0", LATER + 5, "c"),
        row("u03", "new1", LATER, "a"),
        row("z", "i001", LATER, "d"),
        row("u03", "i004", LATER + 130, "b"),
    ]
    new = read(rows, items)
    users = prepared.histories.num_users
    third = prepared.users.find("u03")
    assert new.user_ids == ["z", "zz"]
    assert new.user.tolist() == [third] * 3 + [users, users + 1]
    assert new.session.tolist() == [0, 1, 1, 0, 0]
    assert new.time.tolist() == [LATER, LATER + 100, LATER + 100, LATER, LATER + 5]
    assert new.item.tolist() == [60, 4, 5, 1, 61]
    assert new.counts["new_users"] == 2 and new.counts["new_items"] == 2


def test_known_rows_are_dropped_and_counted(read, prepared):
    new = read([known_row(prepared), row()])
    assert new.counts["known_rows"] == 1 and new.counts["rows"] == 1
    with pytest.raises(NoNewRowsError, match=r"no row after the known log \(1 rows are known alr"):
        read([known_row(prepared)])
    late = known_row(prepared) | {"item_id": "i059"}
    with pytest.raises(NoNewRowsError, match=r"\(1 rows are known already, 1 come too late\), so"):
        read([known_row(prepared), late], late_rows="drop")


def test_a_row_from_before_the_end_is_refused_by_its_row_or_dropped(read, prepared):
    late = known_row(prepared) | {"item_id": "i059"}
    with pytest.raises(ValueError, match=rf"row 2: timestamp={late['timestamp']} .* is before"):
        read([row(), late])
    new = read([row(), late], late_rows="drop")
    assert new.counts["late_rows"] == 1 and new.counts["rows"] == 1


def test_rows_that_do_not_fit_the_first_log_are_refused(read):
    with pytest.raises(ValueError, match=r"item_id='nope' is not in .* --config.unknown_items=dr"):
        read([row(item="nope")])
    dropped = read([row(item="nope"), row()], unknown_items="drop")
    assert dropped.counts["rows_of_unknown_items"] == 1 and dropped.counts["rows"] == 1
    without = row()
    del without["session_id"]
    with pytest.raises(ValueError, match=r"column 'session_id' is missing .* the first log has it"):
        read([without])
    with pytest.raises(ValueError, match=r"row 1: timestamp='soon' is not a time"):
        read([row(time="soon")])


def test_known_items_are_counted_and_those_with_another_text_too(prepared):
    text = prepared.catalogue.texts([7])[0]
    table = pa.table(
        {
            "item_id": ["i007", "i008", "new"],
            "text": [text, "other", "other"],
            "title": ["a", "b", "c"],
            "category": ["A", "B", "C"],
        }
    )
    items = NewItems.of(table, prepared.catalogue)
    assert (items.known, items.changed) == (2, 1)
    assert items.items["item_id"].to_pylist() == ["new"] and items.places.tolist() == [2]


def test_an_interaction_is_known_by_its_session_or_by_its_time():
    """Sessions [4 7] at 0, [9] at 1, [4] at 2 of one user."""
    histories = histories_of([[[1], [2], [3]], [[4, 7], [9], [4]]])
    user, item = np.array([1, 1, 1, 1, 0, 5]), np.array([7, 9, 4, 7, 7, 7])
    time = np.array([0, 1, 5, 5, 0, 0])
    by_session = is_known(histories, user, item, time, True)
    assert by_session.tolist() == [True, True, True, False, False, False]
    by_time = is_known(histories, user, item, time, False)
    assert by_time.tolist() == [True, True, False, False, False, False]
