"""An error of DuckDB becomes one line that names the setting or the table to change."""

import json

import pytest

from sigma_jax.data import database
from sigma_jax.prepare import prepare


@pytest.mark.parametrize("read", [database.rows, lambda *query: list(database.batches(*query))])
def test_failure_of_a_step_is_one_line(tmp_path, read):
    with (
        pytest.raises(
            ValueError, match=r"^the data cannot be prepared \(.*'x'.*\); correct"
        ) as caught,
        database.open_database(tmp_path, "300MB", 1) as con,
    ):
        cast = "SELECT CAST(if(i = 250000, 'x', '1') AS INT) AS a FROM range(500000) t(i)"
        read(con, con.sql(cast))
    assert "\n" not in str(caught.value)


def test_out_of_memory_names_the_limit_and_not_the_file(tmp_path, tiny_config):
    item = {"item_id": "a", "title": "tea"}
    (tmp_path / "items.jsonl").write_text(json.dumps(item) + "\n")
    event = {"user_id": "u", "item_id": "a", "timestamp": 1_700_000_000}
    (tmp_path / "interactions.jsonl").write_text(json.dumps(event) + "\n")
    with pytest.raises(ValueError, match=r"^data.memory_limit='1MB' is too little") as caught:
        prepare(tiny_config(tmp_path, memory_limit="1MB"), 0, tmp_path)
    assert "\n" not in str(caught.value)


def test_out_of_memory_at_a_commit_names_the_limit(tmp_path):
    with (
        pytest.raises(ValueError, match=r"^data.memory_limit='8MB' is too little"),
        database.open_database(tmp_path, "8MB", 1) as con,
        database.errors_of_file("items.csv", "save it once more"),
    ):
        rows = con.sql(
            "SELECT repeat('x', 2000) || i AS a, list(i) OVER () AS b FROM range(3000) t(i)"
        )
        database.save(con, "large", rows)
