"""The words of an instruction in the items' texts, against a comparison word by word."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.reranking.instruction import InstructionInputs, InstructionScorer
from sigma_jax.reranking.lexical import MAX_ITEM_WORDS, LexicalTable, item_words, words_of

TEXTS = [
    {"title": "Peanut butter, crunchy", "category": "spreads"},
    {"title": "Butter", "category": "dairy", "size": 250},
    {"title": "Peanut oil for frying", "tags": ["oil", {"of": "Spain"}]},
    {"title": "Salt", "category": None},
]
RELATIONS = ["peanut butter", "butter", "oil for frying", "dairy", "salt", "sugar"]
AROUND = ["find for me", "surprise me", "anything for me", "oil my wheels"]
SAID = ["find peanut butter for me", "BUTTER!", "for 250", "surprise me", "salt, oil", "for oil"]


def table() -> LexicalTable:
    return LexicalTable.make([json.dumps(text) for text in TEXTS], RELATIONS, AROUND)


def features(words: LexicalTable, said) -> np.ndarray:
    inputs = InstructionInputs(None, jnp.asarray(words.word_numbers(said)))
    scorer = InstructionScorer.make(inputs, words.arrays())
    every = np.arange(words.of_items.shape[1])[None].repeat(len(said), axis=0)
    scores = scorer.scores(every, np.zeros((*every.shape, 1)))
    assert not scores[..., 0].any()
    return np.asarray(scores[..., 1])


def naive(said) -> np.ndarray:
    items = [set(item_words(json.dumps(text))) for text in TEXTS]
    out = np.zeros((len(said), len(items)))
    for row, text in enumerate(said):
        surest = 0.0
        for word in words_of(text):
            having = [word in words for words in items]
            a = sum((word in words_of(text)) / len(words_of(text)) for text in RELATIONS)
            b = sum(word in words_of(around) for around in AROUND) / len(AROUND) * len(RELATIONS)
            if any(having) and a:
                trust = a / (a + b + 1)
                surest = max(surest, trust)
                out[row] += np.array(having) * trust * np.log(len(items) / sum(having))
        if out[row].any():
            out[row] = (out[row] / out[row].max() - 1) * surest
    return out


def test_items_with_the_rarest_of_the_words_come_first():
    found = features(table(), SAID)
    np.testing.assert_allclose(found, naive(SAID), atol=1e-6)
    assert found[0].argmax() == 0 and found[0, 0] == 0  # the only one with both
    assert found[0].argmin() == 3
    np.testing.assert_array_equal(found[3], 0)  # no word of it asks for anything


def test_a_rare_word_that_nobody_asks_for_does_not_outdo_a_common_one():
    texts = ['{"t": "milk"}'] * 4 + ['{"t": "tea"}'] * 56 + ['{"t": "tomatoes on the vine"}']
    asked = ["milk", "fresh milk", "tea", "tomatoes on the vine"]
    words = LexicalTable.make(texts, asked, ["what goes with it"])
    found = features(words, ["milk on sale"])[0]
    assert (found[:4] == 0).all() and (found[4:60] < -0.5).all() and -0.5 < found[60] < -0.2


def test_words_are_trusted_as_much_as_they_ask():
    words = table()
    trust = {word: words.trust[number] for word, number in words.numbers.items()}
    assert set(trust) == {"peanut", "butter", "oil", "for", "frying", "dairy", "salt"}
    assert trust["butter"] == pytest.approx(1.5 / 2.5) and trust["salt"] == pytest.approx(1 / 2)
    assert trust["for"] == pytest.approx((1 / 3) / (1 / 3 + 3 + 1))  # in half of what stands around
    assert features(words, ["for"]).min() == pytest.approx(-trust["for"])


def test_a_word_of_every_item_tells_nothing():
    words = LexicalTable.make(['{"a": "shop milk"}', '{"a": "shop tea"}'], ["shop tea"], [])
    found = features(words, ["shop", "shop tea"])
    np.testing.assert_allclose(found, [[0, 0], [-1 / 3, 0]], atol=1e-6)


def test_words_are_of_the_values_wherever_they_stand():
    assert item_words(json.dumps(TEXTS[2])) == ["peanut", "oil", "for", "frying", "spain"]
    assert item_words(json.dumps(TEXTS[3])) == ["salt"]


@pytest.mark.parametrize(
    "text, words",
    [
        ("Crème brûlée, crème & STRASSE", ["creme", "brulee", "strasse"]),
        ("cre\u0300me", ["creme"]),  # another encoding of the same
        ("\uff2d\uff29\uff2c\uff2b ice_cream", ["milk", "ice", "cream"]),  # full width
        ("绿茶", ["绿", "茶"]),
        ("दूध", ["दध"]),
        ("", []),
    ],
)
def test_words_are_alike_however_they_are_written(text, words):
    assert words_of(text) == words


@pytest.mark.parametrize("first", [0, 1, 3])
def test_items_behind_others_are_read_alone(first):
    """The same as all read at once; there is room for more items, words and words of an item."""
    texts = [json.dumps(text) for text in TEXTS]
    before = LexicalTable.make(texts[:first], RELATIONS, AROUND).with_capacity(9, 12, 8)
    grown, every = before.extended(first, texts[first:], RELATIONS, AROUND), table()
    assert grown.numbers == every.numbers
    np.testing.assert_array_equal(grown.trust, every.trust)
    np.testing.assert_array_equal(grown.weights, every.weights)
    size = len(every.of_items)
    np.testing.assert_array_equal(grown.of_items[:size], every.of_items)
    assert (grown.of_items[size:] == len(every.numbers)).all()


def test_a_long_text_is_read_from_its_beginning():
    text = " ".join(f"w{number}" for number in range(MAX_ITEM_WORDS + 5))
    words = LexicalTable.make([json.dumps({"text": text}), '{"text": "w1"}'], [text], [])
    assert f"w{MAX_ITEM_WORDS - 1}" in words.numbers and f"w{MAX_ITEM_WORDS}" not in words.numbers
    assert words.of_items.shape == (MAX_ITEM_WORDS, 2)


def test_a_catalogue_without_words_matches_nothing():
    words = LexicalTable.make(['{"text": "!"}', '{"text": null}'], ["anything"], [])
    np.testing.assert_array_equal(features(words, ["anything", ""]), np.zeros((2, 2)))
