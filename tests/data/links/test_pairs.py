"""Pairs, queries and themes equal a plain loop and depend on training rows only."""

import dataclasses
import datetime
import itertools
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sigma_jax.data.links import pairs
from sigma_jax.data.links.themes import MIN_SIGMAS, SHRINKAGE, calendar
from sigma_jax.prepare import prepare
from sigma_jax.schema import DAY, VIEWS, PreparedData

TRAINING_FILES = (
    "item_popularity.npy",
    "theme_items.offsets.npy",
    "theme_items.targets.npy",
    "themes.arrow",
    "query_items.targets.npy",
    "queries.arrow",
    *(f"pairs_{view}.arrow" for view in VIEWS),
)


def test_held_out_rows_change_no_file_of_training(tables_folder, tiny_config, tmp_path):
    """The items of the last two sessions of every user are replaced."""
    for path in tables_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    table = pq.read_table(tables_folder / "interactions.parquet")
    rows = table.to_pylist()
    last = {}
    for row in rows:
        last.setdefault(row["user_id"], set()).add((row["timestamp"], row["session_id"]))
    heldout = {user: {name for _, name in sorted(found)[-2:]} for user, found in last.items()}
    swapped = [
        row | {"item_id": f"i{(int(row['item_id'][1:]) * 7 + 31) % 60:03d}"}
        if row["session_id"] in heldout[row["user_id"]]
        else row
        for row in rows
    ]
    assert swapped != rows
    pq.write_table(type(table).from_pylist(swapped), tmp_path / "interactions.parquet")
    outputs = []
    for folder in (tables_folder, tmp_path):
        out = tmp_path / f"out{len(outputs)}"
        out.mkdir()
        prepare(tiny_config(folder), 0, out)
        outputs.append(out)
    one, two = ((out / "history_item.npy").read_bytes() for out in outputs)
    assert one != two
    for name in TRAINING_FILES:
        assert (outputs[0] / name).read_bytes() == (outputs[1] / name).read_bytes(), name


def training_sessions(data):
    histories = data.histories
    for user in range(histories.num_users):
        found = {}
        for row in range(histories.offsets[user], histories.valid_start[user]):
            found.setdefault(int(histories.session[row]), set()).add(int(histories.item[row]))
        yield from found.values()


def test_popularity_counts_training_rows(prepared):
    counts = np.zeros(len(prepared.catalogue), np.int64)
    for session in training_sessions(prepared):
        counts[sorted(session)] += 1
    np.testing.assert_array_equal(prepared.catalogue.popularity, counts)


def test_co_occurrence_equals_a_plain_loop(prepared, data_config):
    settings = data_config.pairs
    count = {}
    for session in training_sessions(prepared):
        for left, right in itertools.permutations(session, 2):
            count[left, right] = count.get((left, right), 0) + 1
    want = set()
    popularity = prepared.catalogue.popularity
    for left in range(len(prepared.catalogue)):
        scored = [
            (-math.floor(number / math.sqrt(popularity[right]) * 1e9), right)
            for (first, right), number in count.items()
            if first == left and number >= settings.min_count
        ]
        for _, right in sorted(scored)[: settings.per_item]:
            want.add((min(left, right), max(left, right)))
    view = prepared.pairs["co_occurrence"]
    assert set(zip(view.left.tolist(), view.right.tolist(), strict=True)) == want


def test_slices_of_the_join_change_nothing(prepared, data_config, tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "PAIRS_AT_ONCE", 500)
    prepare(data_config, 0, tmp_path)
    name = "pairs_co_occurrence.arrow"
    assert (tmp_path / name).read_bytes() == (prepared.folder / name).read_bytes()


def test_single_item_sessions_pair_within_the_window(tables_folder, tiny_config, tmp_path):
    changes = {"split.kind": "leave_one_out", "pairs.window": 2, "pairs.min_count": 1}
    prepare(tiny_config(tables_folder, **changes, **{"pairs.per_item": 60}), 0, tmp_path)
    data = PreparedData.load(tmp_path)
    histories, want = data.histories, set()
    for user in range(histories.num_users):
        items = histories.before(user, histories.valid_start[user]).tolist()
        for place, left in enumerate(items):
            for right in items[place + 1 : place + 3]:
                if left != right:
                    want.add((min(left, right), max(left, right)))
    view = data.pairs["co_occurrence"]
    assert set(zip(view.left.tolist(), view.right.tolist(), strict=True)) == want


def test_visual_pairs_are_the_nearest_neighbours(prepared, data_config):
    vectors = np.asarray(prepared.visual_vectors, np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    want = set()
    for left, row in enumerate(cosine):
        for right in np.argsort(-row)[: data_config.pairs.per_item]:
            if row[right] >= data_config.pairs.min_cosine:
                want.add((min(left, int(right)), max(left, int(right))))
    view = prepared.pairs["visual"]
    assert set(zip(view.left.tolist(), view.right.tolist(), strict=True)) == want


def test_visual_cells_find_most_neighbours_and_pair_no_item_with_itself(data_config, monkeypatch):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, 16))
    vectors = (centres[rng.integers(0, 20, 2000)] + 0.1 * rng.normal(size=(2000, 16))).astype("f4")
    exact = pairs.visual_pairs(vectors, data_config.pairs, 0)
    monkeypatch.setattr(pairs, "VISUAL_CELL", 300)
    cells = pairs.visual_pairs(vectors, data_config.pairs, 0)
    keys = [set(zip(v.left.tolist(), v.right.tolist(), strict=True)) for v in (exact, cells)]
    assert len(keys[0] & keys[1]) > 0.6 * len(keys[0])
    assert all(left != right for left, right in keys[1])


def test_zero_vectors_have_no_visual_pairs(data_config):
    vectors = np.zeros((5, 3), np.float32)
    assert pairs.visual_pairs(vectors, data_config.pairs, 0) is None


def test_no_item_is_its_own_partner_and_no_pair_occurs_twice(prepared):
    assert set(prepared.pairs) == set(VIEWS)
    for view in prepared.pairs.values():
        keys = list(zip(view.left.tolist(), view.right.tolist(), strict=True))
        assert len(set(keys)) == len(keys)
        if view.left_texts is None:
            assert all(left < right for left, right in keys)
        else:
            assert view.left.max() < len(view.left_texts)


@pytest.mark.parametrize("view", ["co_occurrence", "theme"])
def test_max_pairs_bounds_a_view(prepared, data_config, tmp_path, view):
    settings = dataclasses.replace(data_config.pairs, max_pairs=20)
    prepare(dataclasses.replace(data_config, pairs=settings), 0, tmp_path)
    assert len(PreparedData.load(tmp_path).pairs[view].left) == 20


def test_held_out_pairs_have_their_share_and_are_the_same_in_any_order():
    left, right = np.divmod(np.arange(100_000), 300)
    is_heldout = pairs.is_heldout(left, right, 0.05)
    assert abs(is_heldout.mean() - 0.05) < 0.003
    reverse = pairs.is_heldout(left[::-1], right[::-1], 0.05)
    np.testing.assert_array_equal(is_heldout[::-1], reverse)
    assert not pairs.is_heldout(left, right, 0.0).any()


def test_items_of_a_query_are_ordered_by_clicks(prepared):
    queries = prepared.queries
    texts = queries.texts.to_pylist()
    # Candles are the items 3, 9, ..., 57 and have 60 - row clicks.
    assert queries.items.of(texts.index("candles")).tolist() == list(range(3, 60, 6))
    assert len(set(texts)) == len(texts)


def test_searches_after_their_users_target_are_dropped(tables_folder, tiny_config, tmp_path):
    for path in tables_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    row = {"query": "tea", "item_id": "i000", "clicks": 1, "user_id": "u00"}
    rows = [row | {"timestamp": 1_600_000_000}]
    rows += [row | {"query": "later", "item_id": "i006", "timestamp": 1_704_000_000}]
    (tmp_path / "searches.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    out.mkdir()
    prepare(tiny_config(tmp_path), 0, out)
    assert PreparedData.load(out).queries.texts.to_pylist() == ["tea"]


def test_searches_with_float_user_ids_are_dropped_after_the_target(tiny_config, tmp_path):
    """Pandas writes integers with a gap as float64 to Parquet, so 7.0 is user 7."""
    (tmp_path / "items.csv").write_text("item_id,title\na,tea\nb,soap\n")
    lines = [f"7,{item},{1000 * time + 10**9}" for time, item in enumerate("abab")]
    text = "\n".join(["user_id,item_id,timestamp", *lines])
    (tmp_path / "interactions.csv").write_text(text + "\n")
    searches = {
        "query": ["early", "late", "anyone"],
        "item_id": ["a", "a", "b"],
        "user_id": [7.0, 7.0, None],
        "timestamp": [10**9, 10**9 + 2000, 10**9 + 5000],
    }
    pq.write_table(pa.table(searches), tmp_path / "searches.parquet")
    out = tmp_path / "out"
    out.mkdir()
    prepare(tiny_config(tmp_path), 0, out)
    assert PreparedData.load(out).queries.texts.to_pylist() == ["anyone", "early"]


def test_searches_without_clicks_are_dropped(tables_folder, tiny_config, tmp_path):
    for path in tables_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    rows = [("tea", "i000", 2), ("tea", "i006", 0), ("soap", "i002", 0)]
    lines = [
        json.dumps(dict(zip(("query", "item_id", "clicks"), row, strict=True))) for row in rows
    ]
    (tmp_path / "searches.jsonl").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    out.mkdir()
    prepare(tiny_config(tmp_path), 0, out)
    queries = PreparedData.load(out).queries
    assert queries.texts.to_pylist() == ["tea"]
    assert queries.items.of(0).tolist() == [0]


def test_given_items_of_a_theme_come_first_and_trends_have_no_others(prepared):
    themes = prepared.themes
    names = themes.names.to_pylist()
    christmas = themes.items.of(names.index("Christmas")).tolist()
    assert set(christmas[:10]) == set(range(3, 60, 6))
    assert set(themes.items.of(names.index("bath week"))) == {2, 8, 14, 20, 26}
    assert dict(zip(names, themes.kinds.to_pylist(), strict=True))["Christmas"] == "holiday"


def test_spring_has_the_items_that_sell_in_spring(prepared):
    """Garden items (4, 10, ...) sell in March to May."""
    names = prepared.themes.names.to_pylist()
    spring = prepared.themes.items.of(names.index("spring"))
    assert len(spring) and (spring % 6 == 4).all()


def test_lift_equals_a_plain_loop(prepared, data_config):
    settings = data_config.themes
    histories, themes = prepared.histories, prepared.themes
    row = themes.names.to_pylist().index("spring")
    spans = [
        (themes.period_start[k], themes.period_end[k])
        for k in np.flatnonzero(themes.period_theme == row)
    ]
    inside, total = np.zeros((2, len(prepared.catalogue)))
    for user in range(histories.num_users):
        for event in range(histories.offsets[user], histories.valid_start[user]):
            item, time = histories.item[event], histories.time[event]
            total[item] += 1
            inside[item] += any(start <= time < end for start, end in spans)
    share = inside.sum() / total.sum()
    lift = (inside + SHRINKAGE * share) / (total + SHRINKAGE) / share
    expected = total * share
    sigmas = (inside - expected) / np.sqrt(expected * (1 - share) + 1e-9)
    kept = (inside >= settings.min_count) & (lift >= settings.min_lift)
    kept &= sigmas >= MIN_SIGMAS
    want = sorted(np.flatnonzero(kept), key=lambda item: (-round(lift[item], 6), item))
    assert themes.items.of(row).tolist() == want


def test_calendar_has_holidays_and_seasons_at_the_right_time(data_config):
    rows = calendar(data_config.themes, 1_672_531_200, 1_703_980_800)  # 2023
    found = {(name, kind) for name, kind, _, _ in rows}
    for name in ("Christmas", "Easter", "Halloween", "Thanksgiving", "Valentine's Day"):
        assert (name, "holiday") in found
    ends = {end for name, _, _, end in rows if name == "Christmas"}
    assert 1_703_548_800 in ends  # 2023-12-26 00:00
    winter = [(start, end) for name, _, start, end in rows if name == "winter"]
    assert all(89 <= (end - start) / DAY <= 91 for start, end in winter)
    settings = dataclasses.replace(data_config.themes, hemisphere="south")
    south = calendar(settings, 1_672_531_200, 1_703_980_800)
    months = {name: {_month(s) for n, _, s, _ in south if n == name} for name in ("winter", "fall")}
    assert months == {"winter": {6}, "fall": {3}}


def test_calendar_continues_for_a_year_after_the_last_interaction(data_config):
    """Requests come after training, and shopping for New Year begins in December."""
    last = 1_703_980_800  # 2023-12-31
    starts = {}
    for name, _, start, _ in calendar(data_config.themes, 1_672_531_200, last):
        starts.setdefault(name, []).append(start)
    assert any(last - 14 * DAY <= start <= last for start in starts["New Year"])
    for name in ("summer", "Easter", "Halloween"):
        assert max(starts[name]) > last
    assert max(map(max, starts.values())) <= last + 366 * DAY


def _month(seconds: int) -> int:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).month


def test_unknown_country_is_named(data_config, tmp_path):
    settings = dataclasses.replace(data_config.themes, country="Atlantis")
    with pytest.raises(ValueError, match=r"data.themes.country='Atlantis' is unknown"):
        prepare(dataclasses.replace(data_config, themes=settings), 0, tmp_path)


def test_catalogue_of_one_item_has_no_visual_pairs(data_config):
    assert pairs.visual_pairs(np.ones((1, 3), np.float32), data_config.pairs, 0) is None
