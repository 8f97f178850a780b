"""Composed instructions: what they keep, what they change, and on what they depend."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from sigma_jax.schema import TASKS, Knowledge
from sigma_jax.tasks.composition import (
    CARRIERS,
    THING,
    composed_instructions,
    with_typing_error,
)
from sigma_jax.tasks.constraints import usable_slot_values
from sigma_jax.tasks.instructions import NAMING, SLOTS, TRAIN_WORDINGS, render, slot_value_texts


def composed(shop, dropout=0.0, variants=4, seed=1):
    """task name, slot value -> sentences."""
    found = composed_instructions(shop, TRAIN_WORDINGS, variants, dropout, seed)
    return {(TASKS[task], value): sentences for task, value, sentences in found}


def test_every_usable_slot_value_has_sentences(shop):
    found = composed(shop)
    for task in TASKS:
        values = [value for name, value in found if name == task]
        assert values == usable_slot_values(shop, task).tolist()
    assert all(found.values())


def test_sentences_are_wordings_and_carriers_around_the_thing(shop, monkeypatch):
    monkeypatch.setattr("sigma_jax.tasks.composition.TYPING_ERRORS", 0)
    for (task, value), sentences in composed(shop).items():
        wordings = TRAIN_WORDINGS[task]
        if task not in SLOTS:
            assert sentences[: len(wordings)] == list(wordings)
            continue
        text = slot_value_texts(shop, task)[value]
        plain = {render(task, text, wording) for wording in wordings}
        of_task = plain | {wording.replace(" ?", "?") for wording in plain}
        of_all = {carrier.replace(THING, text).lower() for carrier in CARRIERS}
        assert set(sentences) <= of_task | of_all
        assert set(sentences) & of_task
        assert bool(set(sentences) - of_task) == (task in NAMING)
        assert task in NAMING or plain <= set(sentences)  # a theme has all its wordings


def test_a_category_has_the_strongest_texts_of_its_knowledge(shop):
    texts = pa.array(["i bake", "my oven is cold", "we bake bread", "nothing"])
    none, category = np.full(4, -1, np.int32), np.array([1, 2, 1, -1], np.int32)
    knowledge = Knowledge(texts, none, category, np.ones(4, np.float32), None)
    plain, found = (
        composed(dataclasses.replace(shop, knowledge=known), variants=1)
        for known in (None, knowledge)
    )
    for key, sentences in found.items():
        more = {("Category", 1): ["i bake"], ("Category", 2): ["my oven is cold"]}.get(key, [])
        assert sentences == plain[key] + more


def test_dropout_changes_the_words_around_and_keeps_most(shop, monkeypatch):
    monkeypatch.setattr("sigma_jax.tasks.composition.TYPING_ERRORS", 0)
    plain, changed = (composed(shop, dropout, 30)["Category", 1] for dropout in (0.0, 0.5))
    text = slot_value_texts(shop, "Category")[1]
    assert all(text in sentence for sentence in plain)
    assert all(any(word in sentence for word in text.split()) for sentence in changed)
    assert len(set(changed) - set(plain)) > len(changed) / 2


def test_a_slot_value_has_the_same_sentences_whatever_else_there_is(shop):
    first, again, other = (composed(shop, 0.3, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("text", ["tea", "a b c", ""])
def test_short_words_have_no_typing_errors(text):
    assert with_typing_error(text, np.random.default_rng(0)) == text


def test_a_typing_error_changes_one_place_of_a_long_word():
    rng, found = np.random.default_rng(0), set()
    for _ in range(200):
        found.add(with_typing_error("my chocolate", rng))
    assert all(text.startswith("my c") and abs(len(text) - 12) <= 1 for text in found)
    assert {"my hcocolate"}.isdisjoint(found) and len(found) > 10


def test_a_task_without_slot_values_has_no_sentences(shop):
    bare = dataclasses.replace(shop, themes=None, queries=None)
    tasks = {task for task, _ in composed(bare)}
    assert tasks == set(TASKS) - {"Query", "Season", "Holiday"}
