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


def test_vectors_of_an_encoder_are_read_with_their_head(tmp_path):
    save(tmp_path, "data/text_vectors.npy", 5)
    with_head = save(tmp_path, "grounding_head/text_vectors.npy", 5, width=6)
    np.testing.assert_array_equal(item_vectors(tmp_path)["text"], with_head)


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


def test_an_item_is_encoded_by_all_values_by_title_and_category_and_by_category(
    prepared, tmp_path, monkeypatch
):
    """Its vector is the mean of the three unit vectors, whatever the size of a piece."""
    monkeypatch.setattr(sentences, "ROWS_AT_ONCE", 7)  # not a divisor of the items
    encoded = []

    def encode(texts):
        encoded.extend(texts)
        return np.array([[len(text), 1.0, text.count("e")] for text in texts])

    width = sentences.save_text_vectors(encode, prepared.catalogue, tmp_path)
    vectors = np.load(tmp_path / "text_vectors.npy")
    catalogue = prepared.catalogue
    assert width == 3 and vectors.shape == (len(catalogue), 3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    text, title = (catalogue.table[name][5].as_py() for name in ("text", "title"))
    category = catalogue.categories[int(catalogue.category[5])].as_py()
    readings = [sentences.sentence(text), f"{title}, {category}", category]
    assert set(readings) <= set(encoded)
    total = sum(v / np.linalg.norm(v) for v in encode(readings))
    np.testing.assert_allclose(vectors[5], total / np.linalg.norm(total), atol=1e-5)
    assert sentences.sentence('{"title": "Soap", "price": 2}') == "Soap. 2"
    assert not any("{" in text for text in encoded)


def test_without_categories_the_values_alone_are_encoded():
    """An item without a category is read by its title instead."""

    def encode(texts):
        return np.array([[len(text), 1.0] for text in texts])

    texts, titles = ['{"a": "red tea"}', '{"a": "x"}'], ["Red tea", "X"]
    alone = sentences.text_vectors(encode, texts, titles, None)
    np.testing.assert_allclose(alone, [[7 / 50**0.5, 1 / 50**0.5], [0.5**0.5, 0.5**0.5]], atol=1e-6)
    both = sentences.text_vectors(encode, texts, titles, ["tea", None])
    np.testing.assert_allclose(both[1], alone[1], atol=1e-6)
    assert np.abs(both[0] - alone[0]).max() > 0.01
