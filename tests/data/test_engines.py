"""Every engine makes the same artifact: byte for byte on Spark, as SQL for BigQuery."""

import dataclasses
import shutil

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_histories import histories_of, plain_data, random_users

from sigma_jax.configs.data import data_fields
from sigma_jax.data import counts, database, oddities, sources, splits
from sigma_jax.data.config import DataConfig, PairsConfig, TextConfig
from sigma_jax.data.engines import bigquery, dialect, spark
from sigma_jax.data.links import pairs, queries
from sigma_jax.data.tables import Checker, as_text, date_seconds, unix_seconds
from sigma_jax.data.text import item_texts, user_texts
from sigma_jax.histories import training_rows
from sigma_jax.prepare import prepare
from sigma_jax.reranking.history import ease
from sigma_jax.reranking.history.covisitation import count_covisits, covisits_of
from sigma_jax.reranking.history.relations import Relations
from sigma_jax.reranking.trending import TrendingCounts
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.schema import PreparedData


@pytest.fixture(scope="module")
def con(tmp_path_factory):
    with database.open_database(tmp_path_factory.mktemp("duck"), "500MB", 1) as con:
        yield con


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """A Spark inside this machine, set for many small steps."""
    pyspark = pytest.importorskip("pyspark.sql")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    builder = pyspark.SparkSession.builder.master("local[2]")
    for name, value in {
        "spark.driver.memory": "1g",
        "spark.driver.host": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.adaptive.enabled": "false",
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("warehouse")),
    }.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    yield session
    session.stop()


def odd_tables() -> dict[str, list[dict]]:
    """The tiny shop with texts and numbers that engines write in different ways."""
    from conftest import tiny_tables

    tables = tiny_tables()
    odd = ['5" nails', "a\\b", "tab\there", "\vform\ffeed", "Straße  №5 ", "日本 茶 ", "a\x01b"]
    prices = (1e-5, 0.25, 3.0, 12_345_678.5, 1e9, 2.0**40, 99.99)
    for row, item in enumerate(tables["items"]):
        item["note"], item["weight"] = odd[row % 7], prices[row % 7]
    return tables


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["leave_last_session_out", "by_time"])
def test_spark_makes_the_files_of_duckdb(kind, session, tmp_path, tiny_config, monkeypatch):
    del session
    monkeypatch.setattr(splits, "RANGE_ROWS", 17)  # ids are numbered in several ranges
    monkeypatch.setattr(database, "BATCH_ROWS", 50)
    tables = odd_tables()
    if kind == "by_time":
        for row in tables["interactions"]:
            del row["session_id"]
        for row in tables["searches"]:
            row["timestamp"] = 1_680_000_000
    from conftest import write_tables

    write_tables(tmp_path / "tables", tables)
    pq.write_table(pa.Table.from_pylist(tables["items"]), tmp_path / "tables" / "items.parquet")
    made = {}
    for engine in ("duckdb", "spark"):
        (tmp_path / engine).mkdir()
        changes = {"engine": engine, "spark.master": "local[2]", "counts": True}
        changes |= {"split.kind": kind, "split.session_gap_seconds": 7_200}
        config = tiny_config(tmp_path / "tables", text_encoder="", **changes)
        prepare(config, 0, tmp_path / engine)
        made[engine] = {
            str(path.relative_to(tmp_path / engine)): path.read_bytes()
            for path in (tmp_path / engine).rglob("*")
            if path.is_file()
        }
    assert set(made["duckdb"]) == set(made["spark"])
    assert [
        name for name, content in made["duckdb"].items() if made["spark"][name] != content
    ] == []
    assert "counts/known/covisits-00000.parquet" in made["spark"]


@pytest.mark.slow
@pytest.mark.nightly
def test_rows_of_parts_are_numbered_in_the_order_of_their_paths(session, tmp_path):
    del session
    folder = tmp_path / "rows.parquet"
    folder.mkdir()
    for part in (1, 0, 2):
        rows = pa.table({"a": [f"{part}-{row}" for row in range(3 + part)]})
        pq.write_table(rows, folder / f"part-{part}.parquet")
    with spark.open_spark(str(tmp_path / "db"), "local[2]", "1GB", 1) as con:
        found = database.rows(con, spark.read_parquet(con, str(folder)).order_by("source_row"))
        assert [row["source_row"] for row in found] == list(range(12))
        assert [row["a"] for row in found][:4] == ["0-0", "0-1", "0-2", "1-0"]
    assert not list((tmp_path / "db").iterdir())  # nothing is left behind
    with (
        pytest.raises(ValueError, match=r"^the data cannot be prepared by Spark.*no_such"),
        spark.open_spark(str(tmp_path / "db"), "local[2]", "1GB", 1) as con,
    ):
        con.sql("SELECT no_such FROM range(3)")


MAPPED = """
items: {file: items/*.parquet, columns: {item_id: id, title: name, tags: tags, added: added}}
interactions: {file: log.csv, columns: {user_id: who, item_id: id, timestamp: at}}
"""
RENAMED = {"columns.item_id": "id", "columns.user_id": "who", "columns.timestamp": "at"}


def odd_files(folder, has_large_numbers: bool):
    """Items as a folder of Parquet parts, a log as CSV with times of many forms, users as JSON."""
    (folder / "items").mkdir(parents=True)
    added = np.array([[-5_000_000_001, 3], [7 * 10**18, 1_700_000_000_123_456_789]])
    for part, times in enumerate(added):
        rows = {
            "id": pa.array([1.0, 2.5]) if part else pa.array([7.0, 1e-5]),
            "name": [" 2.0 ", "null"] if part else ["\x0b\tcup  b ", None],
            "tags": [["a", "b"], []] if part else [None, [" c "]],
            "paths": [[["Home", "Tea"], ["Gifts"]], [["Home"]]],
            "added": pa.array(times, pa.timestamp("ns")),
        }
        if has_large_numbers:  # Spark has no such type
            rows["stock"] = pa.array([2 * part, 2**63 + 5], pa.uint64())
        pq.write_table(pa.table(rows), folder / "items" / f"part {part}.parquet")
    times = ["2024-5-1 2:30", "20240501T023000.7+0530", "2024/05/01", " 1714530600123 "]
    times += ["1714530600999999999", "2024-05-01T23:59:59,5 -23:59", "1.7e9", "-5.5"]
    ids = ["1", "7", "0.00001", "2.5"] * 2
    lines = [f'u{n % 2},{ids[n]},"{time}"' for n, time in enumerate(times)]
    (folder / "log.csv").write_text("\n".join(["who,id,at", *lines]) + "\n")
    (folder / "interactions.csv").write_bytes((folder / "log.csv").read_bytes())
    users = ['{"who": "U0", "town": {"a": 1}}', '{"who": "u1", "town": "NULL"}']
    (folder / "users.jsonl").write_text("\n".join(users))
    return folder


def checked(config, folder) -> dict:
    """What the checks make of the tables of `config`: rows, texts, notes, parts."""
    with database.open_engine(config, folder) as con:
        source = sources.read(con, config)
        checker = Checker(con, source, config.unknown_items, config.text.max_chars)
        items, users = checker.items(), checker.users()
        log = checker.interactions(items, ())
        texts = item_texts(items, config.text)
        return {
            "items": database.rows(con, texts.order_by("source_row")),
            "log": database.rows(con, log.order_by("source_row")),
            "notes": [*source.notes, *checker.notes, *oddities.missing_words(con, "items", items)],
            "left out": oddities.not_for_text(con, items),
            "users": []
            if users is None
            else oddities.user_notes(con, ("users", "log"), users, log),
            "parts": source.parts,
        }


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("way", ["mapped", "renamed", "handed over"])
def test_spark_reads_and_checks_files_as_duckdb_does(way, session, tmp_path, tiny_config):
    del session
    folder = odd_files(tmp_path / "files", way == "handed over")
    if way == "mapped":
        (folder / "mapping.yaml").write_text(MAPPED)
        (folder / "users.jsonl").unlink()
    changes = {"text_encoder": ""} | ({} if way == "mapped" else RENAMED)
    duck, on_spark = (
        tiny_config(folder, engine=engine, **{"spark.master": "local[2]"}, **changes)
        for engine in ("duckdb", "spark")
    )
    expected = checked(duck, tmp_path / "duckdb")
    assert len(expected["log"]) == 8 and len({row["time"] for row in expected["log"]}) == 6
    assert expected["notes"] and (way == "mapped" or expected["users"])
    assert checked(on_spark, tmp_path / "spark") == expected
    part = pq.read_table(folder / "items" / "part 1.parquet")
    part = part.set_column(0, "id", pa.array([2.5, 7.0]))
    pq.write_table(part, folder / "items" / "part 1.parquet")
    for config in (duck, on_spark):
        with pytest.raises(ValueError, match="item_id='7' is in row 1"):
            checked(config, tmp_path / f"{config.engine} again")


def test_memory_that_is_no_size_is_one_line(tmp_path):
    pytest.importorskip("pyspark")
    with (
        pytest.raises(ValueError, match=r"^data.memory_limit='much' is no size"),
        spark.open_spark(str(tmp_path), "local[2]", "much", 1),
    ):
        pass


def values(con, given: list, expression) -> list:
    table = ibis.memtable(pa.table({"a": given}))
    return con.to_pyarrow(table.select(b=expression(table["a"])))["b"].to_pylist()


def test_texts_of_numbers_have_no_exponent(con):
    given = [2.5, 100.0, -3.0, 0.0, 1e-5, 12_345_678.5, 2.0**40, 0.001, 1e-13]
    expected = ["2.5", "100.0", "-3.0", "0.0", "0.00001", "12345678.5", "1099511627776.0"]
    assert values(con, given, dialect.text_of_number) == [*expected, "0.001", "0.0"]


def test_blanks_are_those_of_every_engine(con):
    given = ["\t a  b\v\n", "fvv", " \f\v", ""]
    assert values(con, given, dialect.trimmed) == ["a  b", "fvv", "", ""]
    assert values(con, given, dialect.one_line) == ["a b", "fvv", "", ""]
    assert values(con, given, dialect.is_blank) == [False, False, True, True]


@pytest.mark.parametrize("separator", [" > ", "|", ".", "\\", "^", "]["])
def test_the_last_level_follows_the_last_separator(con, separator):
    given = ["Tea", separator.join(("Home", "Kitchen", "Tea")), f"Tea\nHome{separator}a b"]
    given += [f"Home{separator}Tea{separator}", f"Home{separator}Tea {separator}{separator}"]
    found = values(con, given, lambda path: dialect.last_level(path, separator))
    assert found == ["Tea", "Tea", "a b", "Tea", "Tea"]


def test_lists_in_texts_are_joined(con):
    lists = {
        '["Home","Tea"]': "Home > Tea",
        '["Home", "Tea, green"]': "Home > Tea, green",
        '["Tea"]': "Tea",
        "['Home', 'Tea, green']": "Home > Tea, green",
        """["Men's", 'Shoes']""": "Men's > Shoes",
        "[['Home', 'Tea'], ['Gifts']]": "Home > Tea",
        '[["Tea"]]': "Tea",
    }
    others = [
        "Tea",
        '["a\\"b"]',
        "['a\\\\'b']",
        "[]",
        "[1]",
        "[Tea]",
        "['Tea",
        "[['Tea']",
        "['a' 'b']",
    ]
    found = values(con, [*lists, *others], lambda text: dialect.joined_list(text, " > "))
    assert found == [*lists.values(), *others]


def test_ranges_do_not_change_numbers(con, monkeypatch):
    ids = [f"{n}" for n in np.random.default_rng(0).permutation(500)]
    rows = database.save(con, "ids", ibis.memtable(pa.table({"id": ids})))
    rows = rows.mutate(length=rows["id"].length())
    expected = sorted(ids, key=lambda text: (len(text), text))
    for size in (1_000, 40):
        monkeypatch.setattr(splits, "RANGE_ROWS", size)
        found = splits.number_rows(con, f"numbered_{size}", rows, "number", ("length", "id"))
        ordered = con.to_pyarrow(found.order_by("number"))
        assert ordered["number"].to_pylist() == list(range(500))
        assert ordered["id"].to_pylist() == expected


@pytest.mark.parametrize("share", [0.1, 0.5, 0.87])
def test_the_time_of_a_share_is_the_quantile(con, share):
    times = np.random.default_rng(1).integers(1_600_000_000, 1_600_900_000, 333)
    events = ibis.memtable(pa.table({"time": times}))
    assert splits.time_of_share(con, events, share) == pytest.approx(np.quantile(times, share))


def test_prepared_counts_are_those_that_a_stage_would_make(
    tables_folder, tmp_path, tiny_config, monkeypatch
):
    monkeypatch.setattr(counts, "MAX_EASE_ITEMS", 20)  # fewer items than users: a Gram matrix
    monkeypatch.setattr(ease, "MAX_EASE_ITEMS", 20)
    prepare(tiny_config(tables_folder, counts=True, text_encoder=""), 0, tmp_path)
    data = PreparedData.load(tmp_path)
    assert data.counts == tmp_path / "counts" / "training"
    for prepared in (data, data.with_validation()):
        now = dataclasses.replace(prepared, counts=None)
        raw = count_covisits(now.histories, len(now.catalogue))
        assert raw.nnz > 0 and (covisits_of(prepared) != raw).nnz == 0
        hours, again = TrendingCounts.make(prepared), TrendingCounts.make(now)
        for field in ("item", "time", "number"):
            np.testing.assert_array_equal(getattr(hours, field), getattr(again, field))
        weights, expected = (ease.fit_ease(each, 10).toarray() for each in (prepared, now))
        assert (expected > 0).any()
        np.testing.assert_allclose(weights, expected, atol=1e-5)
        vectors = np.eye(len(now.catalogue), dtype=np.float32)
        relations, expected = (Relations.make(each, vectors, 3) for each in (prepared, now))
        for name in ("covisitation", "reverse_covisitation"):
            found, same = getattr(relations, name), getattr(expected, name)
            assert same.nnz and (found != same).nnz == 0


@pytest.mark.parametrize("range_rows", [10, 10_000])
@pytest.mark.parametrize("count", [1, 3])
def test_stored_covisits_are_the_strongest_of_each_item(tmp_path, monkeypatch, count, range_rows):
    monkeypatch.setattr(counts, "COVISITS_PER_ITEM", (count, count))
    monkeypatch.setattr(counts, "RANGE_ROWS", range_rows)
    histories = plain_data(histories_of(random_users(baskets=True))).histories
    with counts.training_table(histories) as (duck, events):
        all_rows = duck.to_pyarrow(counts.covisits(events)).to_pylist()
        counts.save_counts(duck, events, tmp_path / "counts")
    popularity = np.bincount(histories.item[training_rows(histories)], minlength=30)
    for name, own, other in (
        ("covisits", "item", "other"),
        ("reverse_covisits", "other", "item"),
    ):
        order = sorted(
            all_rows,
            key=lambda row: (-row["weight"] / np.sqrt(popularity[row[other]] + 5.0), row[other]),
        )
        groups: dict = {}
        for row in order:
            groups.setdefault(row[own], []).append((row[own], row[other], row["weight"]))
        expected = sorted(entry for group in groups.values() for entry in group[:count])
        columns = counts.read_counts(tmp_path / "counts", name, ("item", "other", "weight"))
        assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected
        assert 0 < len(expected) < len(all_rows)


def test_fewer_covisits_of_an_item_are_stored_where_items_are_many(tmp_path, monkeypatch):
    monkeypatch.setattr(counts, "COVISITS_PER_ITEM", (2, 1_000))
    monkeypatch.setattr(counts, "MOST_COVISITS", 100)
    histories = plain_data(histories_of(random_users(baskets=True))).histories
    with counts.training_table(histories) as (duck, events):
        counts.save_counts(duck, events, tmp_path / "counts")
    items = len(np.unique(histories.item[training_rows(histories)]))
    item, _ = counts.read_counts(tmp_path / "counts", "covisits", ("item", "other"))
    assert np.bincount(item).max() == 100 // items > 2


def test_ranges_do_not_change_the_pairs_of_users(tmp_path, monkeypatch):
    histories = plain_data(histories_of(random_users(baskets=True))).histories
    columns = "item", "other", "users"
    found = []
    for rows in (20, 10_000):
        monkeypatch.setattr(counts, "RANGE_ROWS", rows)
        folder = tmp_path / str(rows)
        with counts.training_table(histories) as (duck, events):
            counts.save_counts(duck, events, folder)
        found.append([a.tolist() for a in counts.read_counts(folder, "gram", columns)])
    assert len(list((tmp_path / "20").glob("gram-*"))) > 3
    assert found[0] == found[1]
    of_items = {name: set() for name in range(30)}
    starts, ends = histories.offsets[:-1], histories.valid_start
    for user, (start, end) in enumerate(zip(starts, ends, strict=True)):
        for item in histories.item[start:end].tolist():
            of_items[item].add(user)
    for item, other, users in zip(*found[0], strict=True):
        assert users == len(of_items[item] & of_items[other])


EVENTS = ibis.table(
    {"user": "int32", "session": "int32", "place": "int32", "item": "int32", "time": "int64"},
    "events",
)
LOG = ibis.table(
    {
        "user": "int32",
        "item": "int32",
        "time": "int64",
        "source_row": "int64",
        "session_id": "string",
    },
    "log",
)
ITEMS = ibis.table(
    {
        "item_id": "string",
        "source_row": "int64",
        "title": "string",
        "category": "string",
        "tags": "array<string>",
        "price": "float64",
        "stock": "int64",
    },
    "items",
)


def split(kind: str):
    config = to_dataclass(DataConfig, data_fields("files")).split
    return dataclasses.replace(config, kind=kind, session_gap_seconds=60)


def portable_expressions() -> dict:
    """Name -> an expression of each step of the preparation over tables of no engine."""
    config = to_dataclass(DataConfig, data_fields("files"))
    settings: PairsConfig = config.pairs
    text: TextConfig = config.text
    given = ibis.table({"a": "string", "b": "float64", "c": "timestamp('UTC')"}, "given")
    frequent = ibis.table({"item": "int32", "popularity": "int64"}, "frequent")
    counted = ibis.table({"user": "int32", "rows": "int64", "valid_rows": "int64"}, "counted")
    clicks = ibis.table({"query": "string", "item_id": "string"}, "searches")
    numbered = ibis.table({"item_id": "string", "item": "int32"}, "numbered")
    session_pairs = pairs._session_pairs(EVENTS, 3, 1)
    popularity = ibis.table({"item": "int32", "interactions": "int64"}, "popularity")
    return {
        "ids": given.select(a=as_text(given["a"]), b=as_text(given["b"])),
        "times": given.select(a=unix_seconds(given["a"]), b=unix_seconds(given["c"])),
        "days": given.select(a=date_seconds(given["a"]), b=date_seconds(given["b"])),
        "blank": given.filter(dialect.is_blank(given["a"])),
        "wrong ids": given.select(
            **{f"a{n}": is_so for n, (is_so, _) in enumerate(oddities.wrong_ids(given["a"]))}
        ),
        "odd ids": given.aggregate(**oddities.id_counts(given, "a")),
        "lists in texts": given.select(a=dialect.joined_list(given["a"], " > ")),
        "item texts": item_texts(ITEMS, text),
        "profiles": user_texts(ITEMS.rename(user_id="item_id"), text),
        "sessions by id": splits.with_sessions(None, LOG, split("by_time"))[0],
        "sessions by gap": splits.with_sessions(None, LOG.drop("session_id"), split("by_time"))[0],
        "single": splits.with_sessions(None, LOG, split("leave_one_out"))[0],
        "row counts": splits.count_rows(None, EVENTS, split("leave_last_session_out")),
        "training": splits.training_events(EVENTS, counted),
        "frequent": splits.frequent_items(EVENTS, "item", 3),
        "session pairs": pairs._best_partners(session_pairs, frequent, settings),
        "window pairs": pairs._window_pairs(pairs._neighbours(EVENTS, settings), 3, 1),
        "clicks": queries.clicks_by_popularity(clicks, numbered, EVENTS),
        "covisits": counts.covisits(EVENTS),
        "strongest": counts.strongest_covisits(
            counts.covisits_of_items(counts.with_borders(EVENTS), 2, 7), popularity, "back", 5
        ),
        "hourly": counts.hourly(EVENTS),
        "gram": counts.gram_of_items(counts.users_of_most_common(EVENTS, 5), 2, 7),
    }


@pytest.mark.parametrize("name", portable_expressions())
def test_expressions_compile_for_bigquery(name):
    text = bigquery.compile_sql(portable_expressions()[name])
    assert text.startswith(("SELECT", "WITH"))
