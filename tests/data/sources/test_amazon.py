"""Amazon files: the order of interactions, optional times, texts and vectors."""

import json

import numpy as np
import pytest

from sigma_jax.configs.data import data_fields
from sigma_jax.data.config import DataConfig
from sigma_jax.prepare import prepare
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.schema import DAY, PreparedData

INTER = {"0": [3, 1, 2, 0], "1": [0, 2, 1], "10": [2, 0, 3], "9": [1, 3, 2]}
ITEMS = {
    "0": {"title": "Zero", "categories": [["Beauty", "Nails", "Polish"]], "asin": "X"},
    "1": {"title": "One", "categories": ["Beauty", "Hair"]},
    "2": {"title": "Two", "categories": "Tools, Small,Saws", "brand": "B"},
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "Tiny.inter.json").write_text(json.dumps(INTER))
    return tmp_path


def run(folder, **changes):
    fields = data_fields("amazon")
    fields.path = str(folder)
    fields.threads = 1
    fields.text_tokenizer.vocab_size = 300
    fields.update(changes)
    out = folder / "out"
    out.mkdir()
    card = prepare(to_dataclass(DataConfig, fields), 0, out)
    return PreparedData.load(out), card


def test_lists_of_items_are_enough_and_keep_their_order(folder):
    data, card = run(folder)
    assert data.catalogue.ids(np.arange(4)) == ["0", "1", "2", "3"]
    assert data.users.table["user_id"].to_pylist() == ["0", "1", "9", "10"]
    histories = data.histories
    for user, name in enumerate(("0", "1", "9", "10")):
        start, end = histories.offsets[user], histories.offsets[user + 1]
        assert histories.item[start:end].tolist() == INTER[name]
        assert (histories.valid_start[user], histories.test_start[user]) == (end - 2, end - 1)
    assert card["unavailable"]["Season"] == "interactions have no times"
    assert set(card["unavailable"]) >= {"Query", "Category", "Season", "Holiday"}


def test_interactions_of_one_day_keep_the_order_of_the_file(folder):
    times = {user: [DAY * 15_000] * len(items) for user, items in INTER.items()}
    (folder / "Tiny.time.json").write_text(json.dumps(times))
    data, _ = run(folder)
    assert data.histories.item[:4].tolist() == INTER["0"]
    assert set(data.histories.time.tolist()) == {DAY * 15_000}


def test_category_paths_are_read_from_all_three_forms(folder):
    (folder / "Tiny.item.json").write_text(json.dumps(ITEMS))
    data, _ = run(folder)
    first, _, third, fourth = (json.loads(t) for t in data.catalogue.texts(np.arange(4)))
    assert first == {"title": "Zero", "categories": "Beauty > Nails > Polish"}
    assert third == {"title": "Two", "brand": "B", "categories": "Tools, Small > Saws"}
    assert fourth == {"id": "3"}
    names = data.catalogue.categories.to_pylist()
    found = [names[row] if row >= 0 else None for row in data.catalogue.category]
    assert found == ["Polish", "Hair", "Saws", None]
    assert set(data.queries.texts.to_pylist()) == {"polish", "hair", "saws"}


def test_id_vectors_are_used_only_if_configured(folder):
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.save(folder / "Tiny.cf32.npy", vectors)
    assert run(folder)[0].id_vectors is None
    (folder / "out").rename(folder / "before")
    np.testing.assert_array_equal(run(folder, use_id_vectors=True)[0].id_vectors, vectors)


def test_times_that_do_not_match_are_named(folder):
    (folder / "Tiny.time.json").write_text(json.dumps(INTER | {"1": [5]}))
    with pytest.raises(ValueError, match=r"Tiny.time.json: user '1' has 1 times for 3 items"):
        run(folder)


@pytest.mark.parametrize("text", ["[1, 2]", "{", '{"0": ["a"]}'])
def test_damaged_file_is_named(folder, text):
    (folder / "Tiny.inter.json").write_text(text)
    with pytest.raises(ValueError, match=r"Tiny.inter.json.*save it as one JSON object") as caught:
        run(folder)
    assert "\n" not in str(caught.value)


def test_folder_without_the_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"data.path='.*' holds 0 NAME.inter.json files; set"):
        run(tmp_path)


def test_split_by_time_without_times_is_refused(folder):
    with pytest.raises(ValueError, match=r"by_time' needs times, but .*Tiny.inter.json has none"):
        run(folder, split={"kind": "by_time"})


def test_clicks_of_composed_queries_do_not_depend_on_held_out_items(folder):
    """The last two items of every user are swapped; queries and pairs do not change."""
    (folder / "Tiny.item.json").write_text(json.dumps(ITEMS))
    run(folder)
    (folder / "out").rename(folder / "before")
    swapped = {user: items[:-2] + items[-1:] + items[-2:-1] for user, items in INTER.items()}
    swapped["0"] = [3, 1, 1, 1]
    (folder / "Tiny.inter.json").write_text(json.dumps(swapped))
    run(folder)
    for name in ("queries.arrow", "query_items.targets.npy", "pairs_search.arrow"):
        assert (folder / "out" / name).read_bytes() == (folder / "before" / name).read_bytes()
