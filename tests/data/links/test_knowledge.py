"""Promises of sigma_jax/data/links/knowledge.py, through the preparation of a small shop."""

import dataclasses
import json

import numpy as np

from sigma_jax.data.links.knowledge import items_of_knowledge
from sigma_jax.prepare import prepare
from sigma_jax.schema import Knowledge, PreparedData

ITEMS = [
    {"item_id": name, "title": f"thing {name}", "category": category}
    for name, category in (("a", "Cat  Food"), ("b", "Pain relief"), ("c", "Cat  Food"), ("d", ""))
]
EVENTS = [
    {"user_id": f"u{user}", "item_id": item, "timestamp": 1_700_000_000 + 1000 * row}
    for user in range(3)
    for row, item in enumerate("caccdbc")
]


def prepared(folder, tiny_config, knowledge, **changes):
    """The data and the data card of the shop with some rows of knowledge."""
    for name, rows in (("items", ITEMS), ("interactions", EVENTS), ("knowledge", knowledge)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    out = folder / "out"
    out.mkdir()
    card = prepare(tiny_config(folder, **changes), 0, out)
    return PreparedData.load(out), card


def test_rows_speak_of_items_and_categories_strongest_first(tmp_path, tiny_config):
    rows = [
        {"text": "my cat is hungry", "category": " cat food"},
        {"text": "my  head hurts", "category": "PAIN RELIEF", "weight": "0.5"},
        {"text": "the one in the red bag", "item_id": "a", "weight": 3},
        {"text": "no category", "item_id": "d", "category": "cat food"},
        {"text": "i want to fly", "category": "aeroplanes"},
    ]
    data, card = prepared(tmp_path, tiny_config, rows)
    known, names = data.knowledge, data.catalogue.categories.to_pylist()
    texts = ["the one in the red bag", "my cat is hungry", "no category", "my head hurts"]
    assert known.texts.to_pylist() == texts
    np.testing.assert_array_equal(known.weight, np.float32([3, 1, 1, 0.5]))
    ids = [data.catalogue.ids(np.array([item]))[0] if item >= 0 else None for item in known.item]
    assert ids == ["a", None, "d", None]
    categories = [names[number] if number >= 0 else None for number in known.category]
    assert categories[0] == categories[1] and categories[2] is None
    assert "cat" in categories[1].lower() and "pain" in categories[3].lower()
    assert known.of_category(known.category[1]) == texts[:2]
    assert card["knowledge"] == 4 and card["unmatched_knowledge"] == 1
    assert "1 rows of knowledge speak of" in (tmp_path / "out" / "card.md").read_text()
    # Two of them speak of their item alone, and the others of the most popular of the category.
    links = items_of_knowledge(known, data.catalogue, 1)
    spoken = [data.catalogue.ids(links.of(row)) for row in range(4)]
    assert spoken == [["a"], ["c"], ["d"], ["b"]]
    pairs = data.pairs["knowledge"]
    assert pairs.left_texts.to_pylist() == texts
    found = {
        (texts[a], data.catalogue.ids([b])[0]) for a, b in zip(pairs.left, pairs.right, strict=True)
    }
    assert ("my cat is hungry", "a") in found and ("my cat is hungry", "c") in found
    assert ("my head hurts", "b") in found and ("the one in the red bag", "c") not in found


def test_knowledge_of_nothing_in_the_catalogue_is_none(tmp_path, tiny_config):
    rows = [{"text": "i want to fly", "category": "aeroplanes"}]
    data, card = prepared(tmp_path, tiny_config, rows)
    assert data.knowledge is None and card["unmatched_knowledge"] == 1
    assert "knowledge" not in data.pairs


def test_loaded_knowledge_equals_the_saved_one(tmp_path, tiny_config):
    data, _ = prepared(tmp_path, tiny_config, [{"text": "meow", "category": "cat food"}])
    vectors = np.ones((1, 3), np.float32)
    assert data.knowledge.vectors is None
    with_vectors = dataclasses.replace(data.knowledge, vectors=vectors)
    with_vectors.save(tmp_path)
    loaded = Knowledge.load(tmp_path)
    assert loaded.texts.equals(data.knowledge.texts)
    for name in ("item", "category", "weight", "vectors"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(with_vectors, name))
    assert Knowledge.load(tmp_path / "none") is None
