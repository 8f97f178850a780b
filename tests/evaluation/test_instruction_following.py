"""Instruction following, on a catalogue that is small enough to count by hand.

Items 0..5 have categories a a a b b c and 9 7 5 3 1 0 interactions. Theme 0 is active and has
items 3 4 0. Theme 1 is not active and has item 5. The only user has item 0 in the history.
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


def test_variants_ask_for_other_things_for_the_same_users(data, requests):
    variants = f.request_variants(requests, data, 10, instructions.TRAIN_WORDINGS)
    assert {name: rows.tolist() for name, (rows, _) in variants.items()} == {
        "instruction": [1, 2],
        "no instruction": [1, 2],
        "out of season": [2],
        "combined": [2],
    }
    assert variants["instruction"][1].instruction == ["rare things", "something for easter"]
    assert set(variants["no instruction"][1].instruction) <= set(
        instructions.TRAIN_WORDINGS["JustForYou"]
    )
    [off] = variants["out of season"][1].instruction
    assert "halloween" in off and variants["out of season"][1].slot_value.tolist() == [1]
    [both] = variants["combined"][1].instruction
    assert both == "something for easter under the category b"
    assert requests.instruction[2] == "something for easter"  # left as it was


def test_without_themed_requests_there_are_two_variants(data, requests):
    rows = requests.take(np.array([0, 1]))
    assert list(f.request_variants(rows, data, 10, instructions.TRAIN_WORDINGS)) == [
        "instruction",
        "no instruction",
    ]


def test_metrics_equal_those_counted_by_hand(data, requests):
    variants = f.request_variants(requests, data, 10, instructions.TRAIN_WORDINGS)
    lists = {
        "instruction": [[4, 5, -1, -1], [3, 4, 0, 1]],
        "no instruction": [[0, 1, 2, -1], [0, 1, 2, 3]],
        "out of season": [[5, 0, 1, -1]],
        "combined": [[3, 0, 1, 2]],
    }
    lists = {name: np.array(rows, np.int32) for name, rows in lists.items()}
    results = f.instruction_following(lists, variants, data)

    def mean(task, variant, metric):
        return results[task][variant][f"{metric}@10"]["mean"]

    assert "constraint@10" not in results["Longtail"]["instruction"]  # Longtail has none
    # Shares of the catalogue with fewer interactions: 5/6 4/6 3/6 2/6 1/6 0.
    assert mean("Longtail", "instruction", "popularity") == pytest.approx((1 / 6 + 0) / 2)
    assert mean("Longtail", "no instruction", "popularity") == pytest.approx((5 + 4 + 3) / 18)
    assert mean("Longtail", "instruction", "new_category") == 1.0  # the user knows category a
    assert mean("Longtail", "instruction", "overlap") == 0.0
    assert mean("Holiday", "instruction", "constraint") == 1.0  # all three items of Easter
    assert mean("Holiday", "no instruction", "constraint") == pytest.approx(2 / 3)
    assert mean("Holiday", "instruction", "overlap") == 0.75
    assert mean("Holiday", "no instruction", "overlap") == 1.0
    assert mean("Holiday", "out of season", "constraint") == 1.0  # there is only item 5
    assert (
        mean("Holiday", "combined", "constraint") == 0.5
    )  # item 3 of the two of Easter and category b
    assert mean("Holiday", "instruction", "new_category") == 0.5
