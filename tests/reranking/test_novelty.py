"""Novelty: known instructions have others like them in training, novel ones have none."""

import numpy as np
import pytest

from sigma_jax.data.vectors import unit_rows
from sigma_jax.reranking.novelty import Novelty
from sigma_jax.schema import TASKS

GROUPS, EACH, WIDTH = 40, 6, 32


@pytest.fixture(scope="module")
def instructions():
    """Vectors around a direction for each group, and a function that draws more of them."""
    rng = np.random.default_rng(0)
    centres = unit_rows(rng.normal(size=(2 * GROUPS, WIDTH)))

    def draw(groups):
        return unit_rows(centres[groups] + 0.1 * rng.normal(size=(len(groups), WIDTH)))

    return draw


def texts(groups):
    """A sentence for each group, with a word of its own."""
    return [f"show me thing{group} please" for group in groups]


@pytest.fixture(scope="module")
def fitted(instructions):
    group = np.repeat(np.arange(GROUPS), EACH)
    task = np.where(group % 2 == 0, TASKS.index("Query"), TASKS.index("JustForYou"))
    things = [f"thing{number}" for number in range(GROUPS)]
    return Novelty.fit(texts(group), instructions(group), group, task, things)


def test_instructions_of_known_groups_are_known_and_others_are_novel(fitted, instructions):
    known, novel = np.arange(GROUPS), np.arange(GROUPS, 2 * GROUPS)
    assert fitted(texts(known), instructions(known)).max() < 0.2
    assert fitted(texts(novel), instructions(novel)).min() > 0.8


def test_only_an_instruction_near_to_those_that_name_things_is_novel(fitted, instructions):
    """Groups with even numbers name things."""
    groups = np.repeat(np.arange(GROUPS), 2)
    between = unit_rows(instructions(groups) + 0.8 * instructions(groups + GROUPS))
    new_words = ["have gizmos 4 sale"] * len(groups)
    assert (fitted(new_words, between) > 0.5).mean() > 0.9
    is_novel = fitted.compare(new_words, between)[1]
    assert is_novel[groups % 2 == 0].mean() > 0.8 and is_novel[groups % 2 == 1].mean() < 0.1
    assert not fitted.compare(texts(groups), instructions(groups))[1].any()


def test_unknown_words_make_an_instruction_more_novel(fitted, instructions):
    vectors = instructions(np.arange(3))
    known = fitted(["show me thing0"] * 3, vectors)
    assert (fitted(["show me gizmos"] * 3, vectors) > known + 0.05).all()
    assert ((fitted([""] * 3, vectors) >= 0) & (fitted([""] * 3, vectors) <= 1)).all()


def test_an_instruction_that_holds_a_thing_of_training_is_less_novel(fitted, instructions):
    vectors = instructions(np.arange(3))
    with_thing, without = ["have thing0 4 sale"] * 3, ["have gizmos 4 sale"] * 3
    words = fitted(["have show 4 sale"] * 3, vectors)  # a known word, but no thing
    assert (fitted(with_thing, vectors) < words - 0.05).all()
    assert (words < fitted(without, vectors)).all()


def test_novelty_falls_with_the_nearest_instruction_whatever_the_size_of_a_piece(
    fitted, instructions, monkeypatch
):
    queries = instructions(np.arange(2 * GROUPS))
    same = ["show me thing0"] * len(queries)
    found = fitted(same, queries)
    nearest = (queries @ fitted.vectors.astype(np.float32).T).max(axis=1)
    assert (np.diff(found[np.argsort(nearest)]) <= 1e-6).all()
    monkeypatch.setattr("sigma_jax.reranking.novelty.COSINES_AT_ONCE", 7 * len(queries))
    np.testing.assert_allclose(fitted(same, queries), found, atol=1e-6)


def test_a_loaded_novelty_equals_the_saved_one(fitted, instructions, tmp_path):
    assert Novelty.load(tmp_path) is None
    fitted.save(tmp_path)
    asked = texts(np.arange(5)), instructions(np.arange(5))
    np.testing.assert_array_equal(Novelty.load(tmp_path)(*asked), fitted(*asked))
    (tmp_path / "instruction_vectors.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match="damaged"):
        Novelty.load(tmp_path)


def test_the_nearest_instructions_tell_the_task(fitted, instructions):
    groups = np.arange(GROUPS)
    scores, _ = fitted.compare(texts(groups), instructions(groups))
    expected = np.where(groups % 2 == 0, TASKS.index("Query"), TASKS.index("JustForYou"))
    assert scores.shape == (GROUPS, len(TASKS))
    assert (scores.argmax(axis=1) == expected).mean() > 0.9
