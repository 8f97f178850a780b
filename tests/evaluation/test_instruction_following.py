"""Whether instructions are followed, on a catalogue small enough to count by hand.

Items 0..5: categories a a a b b c, taken 9 7 5 3 1 0 times. Theme 0 (on) has items 3 4 0, theme 1
(off) item 5. One user, whose history is item 0.
"""

import numpy as np
import pyarrow as pa
import pytest

from sigma_jax.evaluation import instruction_following as f
from sigma_jax.schema import (
    TASKS,
    Catalogue,
    Histories,
    Links,
    PreparedData,
    Requests,
    Themes,
    Users,
)
from sigma_jax.tasks import instructions

HOLIDAY, LONGTAIL, NONE = TASKS.index("Holiday"), TASKS.index("Longtail"), -1


@pytest.fixture
def data(tmp_path):
    names = [f"item {i}" for i in range(6)]
    table = pa.table({"item_id": names, "text": names, "title": names})
    category = np.array([0, 0, 0, 1, 1, 2], np.int32)
    catalogue = Catalogue(table, category, pa.array(list("abc")), np.array([9, 7, 5, 3, 1, 0]))
    two = np.arange(2)
    histories = Histories(
        np.array([0, 3], np.int32), two, two.astype(np.int32), np.array([0, 2]), two[1:], two[1:]
    )
    links = Links.from_edges(np.array([0, 0, 0, 1]), np.array([3, 4, 0, 5]), 2)
    on = np.array([0], np.int64)
    themes = Themes(
        pa.array(["Easter", "Halloween"]), pa.array(["holiday"] * 2), links, on, on, on + 9
    )
    users = Users(pa.table({"user_id": ["0"]}))
    return PreparedData(tmp_path, catalogue, histories, users, None, themes, {}, None, None, None)


@pytest.fixture
def requests():
    task = np.array([TASKS.index("JustForYou"), LONGTAIL, HOLIDAY], np.int32)
    slot_value = np.array([NONE, NONE, 0], np.int32)
    zeros = np.zeros(3, np.int32)
    words = ["for me", "rare things", "something for easter"]
    return Requests(zeros, zeros + np.int64(1), task, slot_value, zeros + 3, words)


def test_sets_ask_the_same_users_for_other_things(data, requests):
    sets = f.request_variants(requests, data, 10, instructions.TRAIN_PHRASINGS)
    assert {name: rows.tolist() for name, (rows, _) in sets.items()} == {
        "asked": [1, 2],
        "unasked": [1, 2],
        "out of season": [2],
        "combined": [2],
    }
    assert sets["asked"][1].instruction == ["rare things", "something for easter"]
    assert set(sets["unasked"][1].instruction) <= set(instructions.TRAIN_PHRASINGS["JustForYou"])
    [off] = sets["out of season"][1].instruction
    assert "halloween" in off and sets["out of season"][1].slot_value.tolist() == [1]
    [both] = sets["combined"][1].instruction
    assert both == "something for easter under the category b"
    assert requests.instruction[2] == "something for easter"  # left as it was


def test_without_themes_there_are_two_sets(data, requests):
    rows = requests.take(np.array([0, 1]))
    assert list(f.request_variants(rows, data, 10, instructions.TRAIN_PHRASINGS)) == [
        "asked",
        "unasked",
    ]


def test_figures_are_those_counted_by_hand(data, requests):
    sets = f.request_variants(requests, data, 10, instructions.TRAIN_PHRASINGS)
    lists = {
        "asked": [[4, 5, -1, -1], [3, 4, 0, 1]],
        "unasked": [[0, 1, 2, -1], [0, 1, 2, 3]],
        "out of season": [[5, 0, 1, -1]],
        "combined": [[3, 0, 1, 2]],
    }
    lists = {name: np.array(rows, np.int32) for name, rows in lists.items()}
    found = f.instruction_following(lists, sets, data)

    def mean(task, name, figure):
        return found[task][name][figure]["mean"]

    assert "fits" not in found["Longtail"]["asked"]  # nothing is demanded of an item
    # Shares of the catalogue taken less often: 5/6 4/6 3/6 2/6 1/6 0.
    assert mean("Longtail", "asked", "popularity") == pytest.approx((1 / 6 + 0) / 2)
    assert mean("Longtail", "unasked", "popularity") == pytest.approx((5 + 4 + 3) / 18)
    assert mean("Longtail", "asked", "new category") == 1.0  # the user knows category a
    assert mean("Longtail", "asked", "overlap") == 0.0
    assert mean("Holiday", "asked", "fits") == 1.0  # all three items of Easter
    assert mean("Holiday", "unasked", "fits") == pytest.approx(2 / 3)
    assert mean("Holiday", "asked", "overlap") == 0.75
    assert mean("Holiday", "unasked", "overlap") == 1.0
    assert mean("Holiday", "out of season", "fits") == 1.0  # there is only item 5
    assert mean("Holiday", "combined", "fits") == 0.5  # item 3 of the two of Easter and category b
    assert mean("Holiday", "asked", "new category") == 0.5
