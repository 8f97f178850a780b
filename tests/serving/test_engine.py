"""An export answers as the workdir does, and never with what is not there."""

import dataclasses
import json
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_export import new_items, one, users_of, write_rows

from sigma_jax.evaluation.evaluator import make_generator
from sigma_jax.generation import generator as generate
from sigma_jax.generation import rank
from sigma_jax.recommend import one_request, recommend_all
from sigma_jax.recommender.trained import generation_config, load_recommender
from sigma_jax.reranking import trending as trends
from sigma_jax.schema import DAY, Requests
from sigma_jax.serving.bundle import Bundle
from sigma_jax.serving.catalogue_update import add_items, read_items, set_active
from sigma_jax.serving.engine import Answering, Living
from sigma_jax.serving.requests import read_users

BEAMS = 8


@pytest.fixture(scope="module")
def answering(exported) -> Answering:
    return Answering.of(Bundle.open(exported), "", "recommend something", beams=BEAMS)


def test_an_export_answers_as_the_workdir_does(trained, data, answering, tmp_path):
    rows = users_of(data, 12)
    path = write_rows(tmp_path / "users.jsonl", rows)
    asked = one(read_users(str(path), answering.reading, 100))
    found = answering.recommend(asked, 20)
    recommender = load_recommender(trained[1], data)
    generator = make_generator(recommender, generation_config(recommender.config, BEAMS, 32))
    each = [one_request(data, row["user_id"], row["instruction"]) for row in rows]
    names = [field.name for field in dataclasses.fields(Requests)[:-1]]
    requests = Requests(
        *(np.concatenate([getattr(request, name) for request in each]) for name in names),
        [row["instruction"] for row in rows],
    )
    choice = recommender.choice(generator, requests, data)
    [expected] = generator.variants(recommender.prompts(requests, data), 20, [choice])
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)


def test_rows_come_in_order_whatever_the_batch_and_the_file(data, answering, tmp_path):
    rows = users_of(data, 7)
    rows[3] = {"user_id": rows[3]["user_id"]}  # nothing known of him
    path = write_rows(tmp_path / "users.jsonl", rows)
    outputs = []
    for number, suffix in enumerate((".jsonl", ".parquet")):
        output = tmp_path / f"found{number}{suffix}"
        assert recommend_all(answering, str(path), output, 5, True) == (7, 0)
        outputs.append(output)
    lines = [json.loads(line) for line in outputs[0].read_text().splitlines()]
    assert [line["user_id"] for line in lines] == [row["user_id"] for row in rows]
    assert lines[3]["instruction"] == "recommend something" and len(lines[3]["items"]) == 5
    for line, other in zip(lines, pq.read_table(outputs[1]).to_pylist(), strict=True):
        assert [item["item_id"] for item in line["items"]] == [
            item["item_id"] for item in other["items"]
        ]
    alone = [
        one(read_users(str(write_rows(tmp_path / "one.jsonl", [row])), answering.reading, 9))
        for row in rows
    ]
    for line, asked in zip(lines, alone, strict=True):
        items = answering.recommend(asked, 5).items[0]
        assert answering.version.catalogue.ids(items) == [i["item_id"] for i in line["items"]]


def test_an_answer_does_not_depend_on_the_days_of_others(data, answering, tmp_path, monkeypatch):
    """Requests in the midst of the log, where memory is for two days."""
    rows = users_of(data, 12)
    for row in rows:
        row["history"] = row["history"][: len(row["history"]) // 2]
        row["timestamp"] = row["history"][-1]["timestamp"] + DAY
    path = write_rows(tmp_path / "users.jsonl", rows)
    asked = one(read_users(str(path), answering.reading, 100))
    expected = answering.recommend(asked, 20)
    monkeypatch.setattr(
        trends, "MOST_ENTRIES", 2 * answering.version.room * len(trends.TRENDING_FEATURES)
    )
    found = answering.recommend(asked, 20)
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-3)
    with monkeypatch.context() as patch:  # the days make a difference
        patch.setattr(
            trends.TrendingCounts, "together", lambda self, times: [np.arange(len(times))]
        )
        other = answering.recommend(asked, 20)
    assert np.abs(other.log_probs - expected.log_probs).max() > 1e-2


def test_what_is_seen_removed_or_not_allowed_never_comes(data, exported, answering, tmp_path):
    path = write_rows(tmp_path / "users.jsonl", users_of(data, 6))
    asked = one(read_users(str(path), answering.reading, 100))
    every = len(answering.version)
    is_allowed = np.arange(every) % 3 == 0
    found = answering.recommend(asked, every, is_allowed=is_allowed)
    for row in found.items:
        assert set(row[row >= 0]) == set(np.flatnonzero(is_allowed))
    unseen = answering.recommend(asked, every, keeps_seen=False)
    for number, row in enumerate(unseen.items):
        ends = asked.requests.history_end[number]
        seen = asked.histories.before(number, ends)
        assert set(row[row >= 0]) == set(range(every)) - set(seen)
    removed = answering.version.catalogue.ids(np.arange(10))
    without = set_active(answering.version, removed, False)
    generator = answering.generator
    other = dataclasses.replace(
        answering, version=without, active=generator.subset(without.is_active)
    )
    for row in other.recommend(asked, every).items:
        assert set(row[row >= 0]) == set(range(10, every))


def test_a_swap_compiles_nothing_and_mixes_nothing(own, data, tmp_path):
    """Requests of many threads while the catalogue changes: each answer is of one version."""
    living = Living(own, "recommend something", beams=BEAMS)
    bundle = Bundle.open(own)
    path = write_rows(tmp_path / "users.jsonl", users_of(data, 8))
    asked = one(read_users(str(path), living.now.reading, 100))
    count = len(living.now.version)
    living.now.recommend(asked, count + 1)
    programs = (generate.search_beams, rank.rank, generate._answer)
    compiled = [program._cache_size() for program in programs]
    first = living.now.version
    gone = first.catalogue.ids(np.arange(5))
    items = read_items(str(write_rows(tmp_path / "new.jsonl", new_items(1))), bundle)
    grown = add_items(bundle, first, items, {})
    name = bundle.add_version(set_active(grown, gone, False), "five out, one in")
    answers, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            now = living.now
            answers.append((now.name, now.recommend(asked, count + 1).items))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    bundle.activate(name)
    assert living.refresh() and not living.refresh()
    last = living.now.recommend(asked, count + 1).items
    stop.set()
    for thread in threads:
        thread.join()
    answers.append((name, last))
    expected = {"0001": set(range(count)), name: set(range(5, count + 1))}
    assert {answer[0] for answer in answers} == expected.keys()
    for version, found in answers:
        for row in found:
            assert set(row[row >= 0]) == expected[version]
    assert [program._cache_size() for program in programs] == compiled


def test_no_request_waits_for_programs_of_a_catalogue_that_outgrew_its_room(own, data, tmp_path):
    living, rows = Living(own, "recommend something", beams=BEAMS), users_of(data, 3)
    programs = (generate.search_beams, rank.rank, generate._answer)
    bundle, before = Bundle.open(own), living.now.version
    many = new_items(len(before))
    items = read_items(str(write_rows(tmp_path / "new.jsonl", many)), bundle)
    bundle.activate(bundle.add_version(add_items(bundle, before, items, {}), "twice as many"))
    living.recommend(rows)
    living.recommend(rows[:1])
    counts = [sum(program._cache_size() for program in programs)]
    assert living.refresh()
    counts.append(sum(program._cache_size() for program in programs))
    new = [{**row, "history": [*row["history"], many[0]["item_id"]]} for row in rows]
    for asked in (rows, rows[:1]):
        assert living.recommend(asked)[0]["version"] == living.now.name
    counts.append(sum(program._cache_size() for program in programs))
    assert counts[0] < counts[1] == counts[2]
    living.recommend(new)
    bundle.activate("0001")
    assert living.refresh() and living.now.name == "0001"  # where many[0] is unknown


def test_rows_are_answered_as_the_command_does(own, data, tmp_path):
    living, rows = Living(own, "recommend something", beams=BEAMS), users_of(data, 3)
    output = tmp_path / "found.jsonl"
    path = str(write_rows(tmp_path / "users.jsonl", rows))
    recommend_all(living.now, path, output, 4, False)
    found = living.recommend(rows, 4, keeps_seen=False)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [[item["item_id"] for item in row["items"]] for row in found] == [
        [item["item_id"] for item in row["items"]] for row in lines
    ]
    assert [row["user_id"] for row in found] == [row["user_id"] for row in rows]
    every = living.recommend(rows[:1], 10**6)[0]["items"]
    assert len(every) == len(living.now.version)
    with pytest.raises(ValueError, match="requests: row 2: user_id is empty"):
        living.recommend([rows[0], {}])


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
            "unix seconds.",
        ),
        (
            {"user_id": "a", "history": [{"timestamp": 3}]},
            "row 2: an entry of history has no item_id; add it.",
        ),
    ],
)
def test_rows_that_cannot_be_answered_are_named_and_nothing_is_left(
    answering, tmp_path, row, message
):
    path = write_rows(tmp_path / "users.jsonl", [{"user_id": "fine"}, row])
    output = tmp_path / "found.jsonl"
    output.write_text("before")
    with pytest.raises(ValueError) as caught:
        recommend_all(answering, str(path), output, 5, True)
    assert str(caught.value) == f"{path}: {message}"
    assert output.read_text() == "before"
    assert not list(tmp_path.glob(".found*"))


def test_files_that_are_none_are_named(answering, tmp_path):
    with pytest.raises(ValueError, match="row 1: user_id is empty or missing"):
        recommend_all(
            answering,
            str(write_rows(tmp_path / "a.jsonl", [{"name": "x"}])),
            tmp_path / "found.jsonl",
            5,
            True,
        )
    with pytest.raises(ValueError, match=r"use a name that ends in \.jsonl or \.parquet"):
        recommend_all(answering, "users.jsonl", tmp_path / "found.txt", 5, True)
