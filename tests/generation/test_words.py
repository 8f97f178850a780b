"""The words of an instruction in the items' texts, against a comparison word by word."""

import json

import jax.numpy as jnp
import numpy as np

from sigma_jax.generation.told import ItemWords, words_of_all
from sigma_jax.generation.words import MOST_OF_ITEM, WordTable, item_words, words_of

TEXTS = [
    {"title": "Peanut butter, crunchy", "category": "spreads"},
    {"title": "Butter", "category": "dairy", "size": 250},
    {"title": "Peanut oil for frying", "tags": ["oil", {"of": "Spain"}]},
    {"title": "Salt", "category": None},
]
SAID = ["find peanut butter for me", "BUTTER!", "for 250", "surprise me", "salt, oil"]
UNSAID = ["find for me", "surprise me"]


def table() -> WordTable:
    return WordTable.make([json.dumps(text) for text in TEXTS], UNSAID)


def features(words: WordTable, said) -> np.ndarray:
    item_words = ItemWords(jnp.asarray(words.rarity), jnp.asarray(words.of_items))
    return np.asarray(words_of_all(jnp.asarray(words.of(said)), item_words))


def naive(said) -> np.ndarray:
    unsaid = {word for sentence in UNSAID for word in words_of(sentence)}
    items = [set(item_words(json.dumps(text))) - unsaid for text in TEXTS]
    out = np.zeros((len(said), len(items)))
    for row, text in enumerate(said):
        for word in set(words_of(text)) - unsaid:
            having = [word in words for words in items]
            if any(having):
                out[row] += np.array(having) * np.log(len(items) / sum(having))
        if out[row].any():
            out[row] = out[row] / out[row].max() - 1
    return out


def test_items_with_the_rarest_of_the_words_come_first():
    found = features(table(), SAID)
    np.testing.assert_allclose(found, naive(SAID), atol=1e-6)
    assert found[0].argmax() == 0 and found[0, 0] == 0  # the only one with both
    np.testing.assert_array_equal(found[3], 0)  # no word of it asks for anything
    assert found[2].tolist() == [-1, 0, -1, -1]  # "for" of the item stands in wordings too


def test_a_word_of_every_item_tells_nothing():
    words = WordTable.make(['{"a": "shop milk"}', '{"a": "shop tea"}'])
    np.testing.assert_array_equal(features(words, ["shop", "shop tea"]), [[0, 0], [-1, 0]])


def test_words_are_of_the_values_wherever_they_stand():
    assert item_words(json.dumps(TEXTS[2])) == ["peanut", "oil", "for", "frying", "spain"]
    assert item_words(json.dumps(TEXTS[3])) == ["salt"]
    assert words_of("Crème brûlée, crème & 茶") == ["crème", "brûlée", "茶"]


def test_a_long_text_is_read_from_its_beginning():
    text = " ".join(f"w{number}" for number in range(MOST_OF_ITEM + 5))
    words = WordTable.make([json.dumps({"text": text}), '{"text": "w1"}'])
    assert f"w{MOST_OF_ITEM - 1}" in words.numbers and f"w{MOST_OF_ITEM}" not in words.numbers
    assert words.of_items.shape == (MOST_OF_ITEM, 2)


def test_a_catalogue_without_words_matches_nothing():
    words = WordTable.make(['{"text": "!"}', '{"text": null}'])
    np.testing.assert_array_equal(features(words, ["anything", ""]), np.zeros((2, 2)))


def test_a_few_more_words_keep_the_shapes():
    some, more = ([f'{{"t": "a{n}"}}' for n in range(count)] for count in (9, 12))
    assert WordTable.make(some).rarity.shape == WordTable.make(more).rarity.shape
    assert table().of(["peanut butter oil"]).shape == table().of(["salt peanut oil dairy"]).shape
