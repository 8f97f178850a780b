"""An export answers as its workdir does, and a new version goes live while requests run."""

import dataclasses
import json
import sys
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_export import new_items, only, users_of, write_rows

from sigma_jax.generation import generator
from sigma_jax.recommend import recommend_file
from sigma_jax.recommender import ranking
from sigma_jax.recommender.recommender import Recommender, RecommendOptions
from sigma_jax.recommender.workdir import load_workdir
from sigma_jax.reranking import instruction
from sigma_jax.reranking import trending as trends
from sigma_jax.schema import DAY
from sigma_jax.serving import engine as module
from sigma_jax.serving.bundle import Bundle
from sigma_jax.serving.catalogue_update import add_items, read_items, set_active
from sigma_jax.serving.engine import CatalogueSnapshot, RecommendationEngine, SnapshotSettings

BEAMS = 8  # codes of the one level that is generated, so that all items are found
SETTINGS = SnapshotSettings("recommend something", beams=BEAMS)
PROGRAMS = (
    generator.search_beams,
    generator._search,
    ranking.rank,
    instruction.answer_instructions,
)


def compiled() -> list[int]:
    """How often each of PROGRAMS was compiled."""
    return [program._cache_size() for program in PROGRAMS]


@pytest.fixture(scope="module")
def snapshot(exported) -> CatalogueSnapshot:
    return CatalogueSnapshot.load(Bundle.open(exported), settings=SETTINGS)


@pytest.mark.slow
def test_an_export_answers_as_the_workdir_does(trained, data, snapshot, tmp_path):
    rows = users_of(data, 12)
    path = write_rows(tmp_path / "users.jsonl", rows)
    options = RecommendOptions(20)
    answer = snapshot.recommend(only(snapshot.parser.read(str(path), 100)), options)
    opened = load_workdir(trained[1], BEAMS)
    stored = [{name: row[name] for name in ("user_id", "instruction")} for row in rows]
    expected = opened.recommender.recommend(opened.parser.parse(stored), options)
    np.testing.assert_array_equal(answer.items, expected.items)
    np.testing.assert_allclose(answer.log_probs, expected.log_probs, atol=1e-5)


def test_a_ranker_that_the_export_was_not_made_for_is_refused(exported, snapshot):
    own = snapshot.recommender.generator.config
    assert own.ranker == "three_step" and snapshot.version.trie.depth == 1
    other = SnapshotSettings(generation=dataclasses.replace(own, ranker="exhaustive"))
    with pytest.raises(ValueError, match=r'ranker="exhaustive", but the export was made'):
        CatalogueSnapshot.load(Bundle.open(exported), settings=other)


@pytest.mark.slow
def test_rows_keep_their_order_for_any_batch_and_file(data, snapshot, tmp_path):
    rows = users_of(data, 7)
    rows[3] = {"user_id": rows[3]["user_id"]}  # no history, no profile, no instruction
    path = write_rows(tmp_path / "users.jsonl", rows)
    outputs = []
    for number, suffix in enumerate((".jsonl", ".parquet")):
        output = tmp_path / f"found{number}{suffix}"
        assert recommend_file(snapshot, str(path), output, RecommendOptions(5)) == (7, 0)
        outputs.append(output)
    answers = [json.loads(line) for line in outputs[0].read_text().splitlines()]
    assert [answer["user_id"] for answer in answers] == [row["user_id"] for row in rows]
    assert answers[3]["instruction"] == "recommend something" and len(answers[3]["items"]) == 5
    for answer, other in zip(answers, pq.read_table(outputs[1]).to_pylist(), strict=True):
        assert [item["item_id"] for item in answer["items"]] == [
            item["item_id"] for item in other["items"]
        ]
    for answer, row in zip(answers, rows, strict=True):  # each request alone
        path = write_rows(tmp_path / "one.jsonl", [row])
        batch = only(snapshot.parser.read(str(path), 9))
        items = snapshot.recommend(batch, RecommendOptions(5)).items[0]
        assert snapshot.version.catalogue.ids(items) == [i["item_id"] for i in answer["items"]]


@pytest.mark.slow
def test_an_answer_does_not_depend_on_the_days_of_others(data, snapshot, tmp_path, monkeypatch):
    """The requests lie in the middle of the log, and memory holds two days."""
    rows = users_of(data, 12)
    for row in rows:
        row["history"] = row["history"][: len(row["history"]) // 2]
        row["timestamp"] = row["history"][-1]["timestamp"] + DAY
    path = write_rows(tmp_path / "users.jsonl", rows)
    batch, options = only(snapshot.parser.read(str(path), 100)), RecommendOptions(20)
    expected = snapshot.recommend(batch, options)
    monkeypatch.setattr(
        trends, "MAX_ENTRIES", 2 * snapshot.version.capacity * len(trends.TRENDING_FEATURES)
    )
    answer = snapshot.recommend(batch, options)
    np.testing.assert_array_equal(answer.items, expected.items)
    np.testing.assert_allclose(answer.log_probs, expected.log_probs, atol=1e-3)
    with monkeypatch.context() as patch:  # the days make a difference
        patch.setattr(
            trends.TrendingCounts, "together", lambda self, times: [np.arange(len(times))]
        )
        other = snapshot.recommend(batch, options)
    assert np.abs(other.log_probs - expected.log_probs).max() > 1e-2


@pytest.mark.slow
def test_seen_removed_and_forbidden_items_are_never_recommended(data, snapshot, tmp_path):
    path = write_rows(tmp_path / "users.jsonl", users_of(data, 6))
    batch = only(snapshot.parser.read(str(path), 100))
    count = len(snapshot.version)
    is_allowed = np.arange(count) % 3 == 0
    answer = snapshot.recommend(batch, RecommendOptions(count), is_allowed=is_allowed)
    for row in answer.items:
        assert set(row[row >= 0]) == set(np.flatnonzero(is_allowed))
    unseen = snapshot.recommend(batch, RecommendOptions(count, exclude_seen=True))
    for number, row in enumerate(unseen.items):
        seen = batch.histories.before(number, batch.requests.history_end[number])
        assert set(row[row >= 0]) == set(range(count)) - set(seen)
    removed = snapshot.version.catalogue.ids(np.arange(10))
    without = set_active(snapshot.version, removed, False)
    own = snapshot.recommender
    recommender = Recommender(
        own.parts,
        own.generator.config,
        without.trie,
        np.asarray(without.fused),
        without.is_active,
    )
    other = dataclasses.replace(snapshot, version=without, recommender=recommender)
    for row in other.recommend(batch, RecommendOptions(count)).items:
        assert set(row[row >= 0]) == set(range(10, count))


def test_beams_for_less_work_share_all_arrays(data, snapshot):
    batch = snapshot.parser.parse(users_of(data, 2))
    small = snapshot.recommender.at_load(0.25)
    assert small.generator.config.num_beams == 2
    assert small.generator.index is snapshot.recommender.generator.index
    assert small._ranker._lexical_arrays is snapshot.recommender._ranker._lexical_arrays
    assert small._ranker.generator is small.generator
    assert small.recommend(batch).beams.max() <= 1


def test_threads_get_the_profiles_of_their_own_requests(data, snapshot):
    """Batches without histories differ by their profiles alone."""
    rows = [{**row, "history": []} for row in users_of(data, 2)]
    batches = [snapshot.parser.parse([{**row, "instruction": "tea"}]) for row in rows]
    expected = [snapshot.recommender.prompts(batch).tokens for batch in batches]
    assert not np.array_equal(*expected)
    wrong, interval = [], sys.getswitchinterval()

    def ask(number: int) -> None:
        for _ in range(200):
            tokens = snapshot.recommender.prompts(batches[number]).tokens
            if not np.array_equal(tokens, expected[number]):
                wrong.append(number)

    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=ask, args=(number,)) for number in (0, 1, 0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_a_new_version_compiles_nothing_and_no_answer_mixes_two(export_copy, data, tmp_path):
    """Threads send requests while the catalogue changes."""
    engine = RecommendationEngine(export_copy, SETTINGS)
    bundle = Bundle.open(export_copy)
    path = write_rows(tmp_path / "users.jsonl", users_of(data, 8))
    batch = only(engine.current.parser.read(str(path), 100))
    first = engine.current.version
    count = len(first)
    options = RecommendOptions(count + 1)
    engine.current.recommend(batch, options)
    before = compiled()
    removed = first.catalogue.ids(np.arange(5))
    items = read_items(str(write_rows(tmp_path / "new.jsonl", new_items(1))), bundle)
    grown = add_items(bundle, first, items, {})
    name = bundle.add_version(set_active(grown, removed, False), "five out, one in")
    answers, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            current = engine.current
            answers.append((current.name, current.recommend(batch, options).items))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    bundle.activate(name)
    assert engine.refresh() and not engine.refresh()
    last = engine.current.recommend(batch, options).items
    stop.set()
    for thread in threads:
        thread.join()
    answers.append((name, last))
    expected = {"0001": set(range(count)), name: set(range(5, count + 1))}
    assert {answer[0] for answer in answers} == expected.keys()
    for version, items in answers:
        for row in items:
            assert set(row[row >= 0]) == expected[version]
    assert compiled() == before


@pytest.mark.slow
def test_no_request_waits_for_the_compilation_of_a_larger_version(export_copy, data, tmp_path):
    engine, rows = RecommendationEngine(export_copy, SETTINGS), users_of(data, 3)
    bundle, before = Bundle.open(export_copy), engine.current.version
    many = new_items(len(before))
    items = read_items(str(write_rows(tmp_path / "new.jsonl", many)), bundle)
    bundle.activate(bundle.add_version(add_items(bundle, before, items, {}), "twice as many"))
    engine.recommend(rows)
    engine.recommend(rows[:1])
    counts = [sum(compiled())]
    assert engine.refresh()
    counts.append(sum(compiled()))
    new = [{**row, "history": [*row["history"], many[0]["item_id"]]} for row in rows]
    for some in (rows, rows[:1]):
        assert engine.recommend(some)[0]["version"] == engine.current.name
    counts.append(sum(compiled()))
    assert counts[0] < counts[1] == counts[2]
    engine.recommend(new)
    bundle.activate("0001")
    assert engine.refresh() and engine.current.name == "0001"  # it does not know many[0]


@pytest.mark.slow
def test_rows_are_answered_as_the_command_does(export_copy, data, tmp_path):
    engine, rows = RecommendationEngine(export_copy, SETTINGS), users_of(data, 3)
    output, options = tmp_path / "found.jsonl", RecommendOptions(4, exclude_seen=True)
    path = str(write_rows(tmp_path / "users.jsonl", rows))
    recommend_file(engine.current, path, output, options)
    answers = engine.recommend(rows, options)
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [[item["item_id"] for item in row["items"]] for row in answers] == [
        [item["item_id"] for item in row["items"]] for row in written
    ]
    assert [row["user_id"] for row in answers] == [row["user_id"] for row in rows]
    every = engine.recommend(rows[:1], RecommendOptions(10**6))[0]["items"]
    assert len(every) == len(engine.current.version)
    with pytest.raises(ValueError, match="requests: row 2: user_id is empty"):
        engine.recommend([rows[0], {}])


@pytest.mark.parametrize(
    "row, message",
    [
        ({"user_id": " "}, "row 2: user_id is empty or missing; fill it or delete the row."),
        (
            {"user_id": "a", "history": ["i001", "gone"]},
            "row 2: item 'gone' is not in the catalogue; leave it out or add it with "
            "`python -m sigma_jax.catalogue add`.",
        ),
        (
            {"user_id": "a", "history": [{"item_id": "i001", "timestamp": "yesterday"}]},
            "row 2: timestamp='yesterday' is not a time; use ISO 8601 (2024-05-01 12:30:00) or "
            "unix seconds, from 1900 to 2100.",
        ),
        (
            {"user_id": "a", "history": [{"timestamp": 3}]},
            "row 2: an entry of history has no item_id; add it.",
        ),
    ],
)
def test_rows_that_cannot_be_answered_are_named_and_nothing_is_written(
    snapshot, tmp_path, row, message
):
    path = write_rows(tmp_path / "users.jsonl", [{"user_id": "fine"}, row])
    output = tmp_path / "found.jsonl"
    output.write_text("before")
    with pytest.raises(ValueError) as caught:
        recommend_file(snapshot, str(path), output, RecommendOptions(5))
    assert str(caught.value) == f"{path}: {message}"
    assert output.read_text() == "before"
    assert not list(tmp_path.glob(".found*"))


def test_files_that_cannot_be_read_or_written_are_named(snapshot, tmp_path):
    options = RecommendOptions(5)
    with pytest.raises(ValueError, match="row 1: user_id is empty or missing"):
        path = write_rows(tmp_path / "a.jsonl", [{"name": "x"}])
        recommend_file(snapshot, str(path), tmp_path / "found.jsonl", options)
    with pytest.raises(ValueError, match=r"use a name that ends in \.jsonl or \.parquet"):
        recommend_file(snapshot, "users.jsonl", tmp_path / "found.txt", options)


def test_too_many_programs_are_let_go_before_another_version(
    export_copy, data, tmp_path, monkeypatch
):
    """Linux ends a process whose programs need too many memory maps."""
    engine, rows = RecommendationEngine(export_copy, SETTINGS), users_of(data, 3)
    expected = [answer["items"] for answer in engine.recommend(rows)]
    bundle = Bundle.open(export_copy)
    bundle.add_version(engine.current.version, "the same")
    bundle.activate("0002")
    monkeypatch.setattr(module, "share_of_maps", lambda: 0.99)
    assert compiled() != [0] * len(PROGRAMS) and engine.refresh()
    assert compiled() == [0] * len(PROGRAMS)  # nor is a recent request answered ahead
    assert [answer["items"] for answer in engine.recommend(rows)] == expected
