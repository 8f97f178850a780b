"""Promises of sigma_jax/language_model/ask.py and endpoint.py, against a recorded endpoint."""

import pytest
from recorded_endpoint import Recorded, chat, good

from sigma_jax.language_model import ask
from sigma_jax.language_model.ask import Prices, ask_questions
from sigma_jax.language_model.questions import Question

NAMES = [f"kind {number}" for number in range(12)]
QUESTIONS = [Question(f"about {name}", (name,), None, 5) for name in NAMES]


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr("sigma_jax.language_model.endpoint.RETRIES", 0)
    server = Recorded()
    yield server
    server.close()


def test_all_questions_are_asked_once_and_counted(recorded, tmp_path):
    kept, prices = tmp_path / "kept.jsonl", Prices(prompt=10, reply=100)
    outcome = ask_questions(QUESTIONS, recorded.model(parallel=4), kept, prices)
    assert sorted(recorded.asked) == sorted(question.prompt for question in QUESTIONS)
    assert [row["category"] for row in outcome.rows] == [name for name in NAMES for _ in "ab"]
    assert (outcome.asked, outcome.known, outcome.nonsense) == (12, 0, 0)
    assert (outcome.prompt_tokens, outcome.reply_tokens) == (1200, 240)
    assert outcome.cost == pytest.approx((1200 * 10 + 240 * 100) / 1e6)
    again = ask_questions(QUESTIONS, recorded.model(), kept, prices)
    assert len(recorded.asked) == 12 and again.rows == outcome.rows
    assert (again.asked, again.known, again.cost) == (0, 12, 0)
    ask_questions(QUESTIONS[:1], recorded.model("other"), kept)  # another model is asked anew
    assert len(recorded.asked) == 13


@pytest.mark.parametrize("kind", ["error", "no protocol", "no JSON"])
def test_an_endpoint_that_stops_ends_the_run_and_loses_nothing(recorded, tmp_path, kind):
    bad = {
        "error": (503, {"error": {"message": "overloaded"}}),
        "no protocol": (200, {"hello": 1}),
        "no JSON": (200, b"<html>welcome</html>"),
    }[kind]
    recorded.answer = lambda number, text: good(text) if number <= 5 else bad
    kept = tmp_path / "kept.jsonl"
    outcome = ask_questions(QUESTIONS, recorded.model(), kept)
    assert outcome.stopped and "\n" not in outcome.stopped
    assert outcome.asked == 5 and len(outcome.rows) == 10
    assert len(recorded.asked) == 5 + ask.FAILURES
    recorded.answer = lambda number, text: good(text)
    rest = ask_questions(QUESTIONS, recorded.model(), kept)
    assert (rest.known, rest.asked, rest.stopped) == (5, 7, "")
    assert len(rest.rows) == 24


def test_a_busy_endpoint_is_asked_again(recorded, tmp_path, monkeypatch):
    monkeypatch.setattr("sigma_jax.language_model.endpoint.RETRIES", 2)
    busy = (429, {"error": {"message": "slow down"}})
    recorded.answer = lambda number, text: busy if number == 1 else good(text)
    outcome = ask_questions(QUESTIONS[:1], recorded.model(), tmp_path / "kept.jsonl")
    assert outcome.asked == 1 and len(recorded.asked) == 2


def test_an_endpoint_that_cannot_be_reached_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("sigma_jax.language_model.endpoint.RETRIES", 0)
    server = Recorded()
    server.close()
    outcome = ask_questions(QUESTIONS, server.model(), tmp_path / "kept.jsonl")
    assert "onnection" in outcome.stopped and outcome.asked == 0


def test_nonsense_is_counted_not_kept_and_ends_the_run(recorded, tmp_path):
    kept = tmp_path / "kept.jsonl"
    recorded.answer = lambda number, text: chat("!!! 42") if number == 1 else good(text)
    outcome = ask_questions(QUESTIONS, recorded.model(), kept)
    assert (outcome.asked, outcome.nonsense, outcome.stopped) == (12, 1, "")
    again = ask_questions(QUESTIONS, recorded.model(), kept)
    assert (again.asked, again.known, again.nonsense) == (1, 11, 0)
    recorded.answer = lambda number, text: chat("{}")
    nothing = ask_questions(QUESTIONS, recorded.model("mad"), kept)
    assert nothing.nonsense == ask.NONSENSE and "'{}'" in nothing.stopped


def test_a_half_written_line_is_no_reply(recorded, tmp_path):
    kept = tmp_path / "kept.jsonl"
    ask_questions(QUESTIONS[:3], recorded.model(), kept)
    kept.write_text(kept.read_text()[:-20])  # killed while it wrote
    outcome = ask_questions(QUESTIONS[:3], recorded.model(), kept)
    assert (outcome.known, outcome.asked) == (2, 1)
    assert ask_questions(QUESTIONS[:3], recorded.model(), kept).known == 3


def test_a_run_stops_before_it_costs_too_much(recorded, tmp_path):
    prices = Prices(prompt=10_000, reply=0, most=3.5)  # a question costs 1
    outcome = ask_questions(QUESTIONS, recorded.model(), tmp_path / "kept.jsonl", prices)
    assert outcome.asked == 3 and "3.5" in outcome.stopped


def test_requests_keep_their_distance(recorded, tmp_path):
    model = recorded.model(parallel=4, requests_per_minute=600)
    ask_questions(QUESTIONS[:6], model, tmp_path / "kept.jsonl")
    first, *_, last = sorted(recorded.times)
    assert last - first >= 5 * 0.1 - 0.02


def test_two_commands_do_not_write_one_file(recorded, tmp_path):
    kept = tmp_path / "kept.jsonl"
    message = []

    def answer(number, text):
        try:
            ask_questions(QUESTIONS, recorded.model(), kept)
        except ValueError as error:
            message.append(str(error))
        return good(text)

    recorded.answer = answer
    ask_questions(QUESTIONS[:1], recorded.model(), kept)
    assert "another command is writing" in message[0]
