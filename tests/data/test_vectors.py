"""Item vectors: which file is used, joined tables, and texts through a sentence encoder."""

import numpy as np
import pytest

from sigma_jax.data import sentences
from sigma_jax.data.vectors import item_vectors, join_vectors


def save(folder, name, rows, width=3):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    vectors = np.random.default_rng(len(name)).normal(size=(rows, width)).astype(np.float32)
    np.save(folder / name, vectors)
    return vectors


def test_vectors_of_the_user_replace_those_of_a_stage(tmp_path):
    made = save(tmp_path, "grounding/text_vectors.npy", 5)
    ids = save(tmp_path, "teacher/id_vectors.npy", 5)
    found = item_vectors(tmp_path, 5)
    np.testing.assert_array_equal(found["text"], made)
    np.testing.assert_array_equal(found["id"], ids)
    assert set(found) == {"text", "id"}
    given = save(tmp_path, "data/text_vectors.npy", 5, width=7)
    np.testing.assert_array_equal(item_vectors(tmp_path)["text"], given)


def test_vectors_of_another_catalogue_are_refused(tmp_path):
    save(tmp_path, "grounding/text_vectors.npy", 5)
    save(tmp_path, "teacher/id_vectors.npy", 4)
    with pytest.raises(ValueError, match=r"has 4 id vectors for 5 items; delete"):
        item_vectors(tmp_path)
    with pytest.raises(ValueError, match=r"has 5 text vectors for 6 items; delete"):
        item_vectors(tmp_path, 6)


def test_joined_vectors_are_unit_rows_side_by_side():
    left, right = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[2.0], [-5.0]])
    joined = join_vectors({"text": left, "id": right})
    assert joined.shape == (2, 3) and len(joined) == 2
    np.testing.assert_allclose(joined[np.array([0, 1])], [[0.6, 0.8, 1], [0, 0, -1]])
    np.testing.assert_allclose(joined[1:], [[0, 0, -1]])
    assert join_vectors({"text": left}) is left
    assert join_vectors({}) is None


def test_an_encoder_gets_sentences_and_returns_a_vector_for_each_item(
    prepared, tmp_path, monkeypatch
):
    monkeypatch.setattr(sentences, "ITEMS_AT_ONCE", 7)  # not a divisor of the items
    encoded = []

    def encode(texts):
        encoded.extend(texts)
        return np.array([[len(text), 1.0] for text in texts])

    width = sentences.save_text_vectors(encode, prepared.catalogue, tmp_path)
    vectors = np.load(tmp_path / "text_vectors.npy")
    assert width == 2 and vectors.shape == (len(prepared.catalogue), 2)
    assert vectors[:, 0].tolist() == [len(text) for text in encoded]
    assert sentences.sentence('{"title": "Soap", "price": 2}') == "Soap. 2"
    assert not any("{" in text for text in encoded)
