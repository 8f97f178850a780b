"""Wordings: each task has several, none is both trained and held out, slots stand alone."""

import dataclasses
import re

import numpy as np
import pyarrow as pa
import pytest

from sigma_jax.schema import TASKS
from sigma_jax.tasks.instructions import (
    HELDOUT_WORDINGS,
    SLOTS,
    TRAIN_WORDINGS,
    all_sentences,
    available_tasks,
    clean,
    render,
    split_at_slot,
)


def test_trained_and_held_out_wordings_are_disjoint():
    for task in TASKS:
        trained, heldout = set(TRAIN_WORDINGS[task]), set(HELDOUT_WORDINGS[task])
        assert len(trained) >= 6 and len(heldout) >= 2
        assert not trained & heldout
    assert set(TRAIN_WORDINGS) == set(HELDOUT_WORDINGS) == set(TASKS)


def test_no_wording_belongs_to_two_tasks_without_a_slot():
    """Season and Holiday may share wordings: their theme tells them apart."""
    without_slot = [
        wording
        for wordings in (TRAIN_WORDINGS, HELDOUT_WORDINGS)
        for task in TASKS
        if task not in SLOTS
        for wording in wordings[task]
    ]
    assert len(without_slot) == len(set(without_slot))


def test_slots_stand_between_spaces():
    """Otherwise the tokens of the parts would differ from the tokens of the sentence."""
    for wordings in (TRAIN_WORDINGS, HELDOUT_WORDINGS):
        for task, texts in wordings.items():
            for text in texts:
                slots = re.findall(r"\{\w+\}", text)
                assert slots == ([SLOTS[task]] if task in SLOTS else [])
                assert text == clean(text)
                if slots:
                    assert re.search(r" \{\w+\}( |$)", text), text


def test_render_fills_the_slot_as_a_person_would_write():
    assert render("Query", "  Winter\nBOOTS ", "find {query} for me") == "find winter boots for me"
    assert render("Discover", None, "something new") == "something new"
    with pytest.raises(ValueError, match="Category needs a category"):
        render("Category", None, "show {category}")


def test_split_at_slot_worked_examples():
    assert split_at_slot("Query", "find {query} for me") == ("find", " for me")
    assert split_at_slot("Query", "find {query}") == ("find", "")
    assert split_at_slot("Discover", "something new") == ("something new", "")


def test_sentences_for_the_tokenizer_name_no_slot():
    sentences = all_sentences()
    assert not any("{" in sentence for sentence in sentences)
    assert "where can i get" in " ".join(sentences)


def test_tasks_without_targets_in_the_data_have_a_reason(shop):
    assert set(available_tasks(shop)) == set(TASKS)
    assert not any(available_tasks(shop).values())
    poor = dataclasses.replace(
        shop,
        queries=None,
        themes=dataclasses.replace(shop.themes, kinds=pa.array(["season"] * 4)),
        catalogue=dataclasses.replace(
            shop.catalogue, category=np.full(40, -1), popularity=np.ones(40, np.int64)
        ),
    )
    reasons = available_tasks(poor)
    assert {task for task, reason in reasons.items() if reason is None} == {"JustForYou", "Season"}
    assert "no searches" in reasons["Query"] and "holiday" in reasons["Holiday"]
    assert available_tasks(dataclasses.replace(poor, themes=None))["Season"]
