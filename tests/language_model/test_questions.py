"""Promises of sigma_jax/language_model/questions.py."""

import dataclasses

import pytest

from sigma_jax.language_model.questions import Question, distinct, questions_of, texts_of

SAYING = Question("?", ("Cat food",), None, 3)


def test_all_categories_and_themes_are_asked_about(prepared, monkeypatch):
    monkeypatch.setattr("sigma_jax.language_model.questions.CATEGORIES_AT_ONCE", 4)
    questions = list(questions_of(prepared, 7))
    names = prepared.catalogue.categories.to_pylist()
    themes = prepared.themes.names.to_pylist()
    sayings = [question for question in questions if question.theme is None]
    assert [question.categories for question in sayings] == [(name,) for name in names]
    for question, name in zip(sayings, names, strict=True):
        assert f'"{name}"' in question.prompt and "7 short" in question.prompt
        assert name.lower() in question.prompt.split("items:")[1]  # titles of its items
    asked = {(question.theme, question.categories) for question in questions[len(names) :]}
    assert asked == {
        (theme, part) for theme in themes for part in (tuple(names[:4]), tuple(names[4:]))
    }
    assert list(questions_of(prepared, 7)) == questions
    without = dataclasses.replace(prepared, themes=None)
    assert list(questions_of(without, 7)) == sayings


REPLIES = {
    "a JSON list": ('Sure! ["my cat is hungry", "a kitten  moved in"] Done.', 2),
    "a code block": ('```json\n["my cat is hungry",\n "a kitten moved in"]\n```', 2),
    "numbers": ("1. my cat is hungry\n2) a kitten moved in\n", 2),
    "dots and quotes": ('- "my cat is hungry",\n• “a kitten moved in”', 2),
    "a broken list": ('["my cat is hungry", "a kit', 0),
    "the category itself": ('["cat food", "a kitten moved in"]', 1),
    "equal texts": ('["a kitten moved in", "a kitten moved in"]', 1),
    "no texts": ('[1, null, {"a": 2}, "", "!!", "ab"]', 0),
    "too long": ('["' + "meow " * 60 + '", "a kitten moved in"]', 1),
    "control characters": ('["my cat\\u0000 is hungry", "a kitten moved in"]', 1),
    "too many": ('["aaa", "bbb", "ccc", "ddd"]', 3),
    "nothing": ("", 0),
}


@pytest.mark.parametrize("name", REPLIES)
def test_replies_become_rows_or_nothing(name):
    reply, count = REPLIES[name]
    rows = SAYING.rows(reply)
    assert len(rows) == count
    assert all(row["category"] == "Cat food" for row in rows)
    if count == 2:
        assert [row["text"] for row in rows] == ["my cat is hungry", "a kitten moved in"]


def test_a_theme_is_a_text_of_the_categories_that_are_named():
    question = Question("?", ("Candles", "Tea"), "Easter", 5)
    found = question.rows('["candles", "Eggs", "CANDLES", "Tea"]')
    assert found == [{"text": "Easter", "category": name} for name in ("Candles", "Tea")]
    assert question.rows("none of them") == []


def test_distinct_keeps_the_first_of_equal_rows():
    rows = [{"text": text, "category": c} for text, c in (("a", "x"), ("A", "x"), ("a", "y"))]
    assert distinct(rows) == [rows[0], rows[2]]
    assert texts_of('["one thing"]', "ONE THING") == []
