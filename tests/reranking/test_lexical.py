"""Promises of sigma_jax/reranking/lexical.py, against a comparison word by word."""

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
SLOT_VALUES = ["peanut butter", "butter", "oil for frying", "dairy", "salt", "sugar"]
AROUND = ["find for me", "surprise me", "anything for me", "oil my wheels"]
INSTRUCTIONS = [
    "find peanut butter for me",
    "BUTTER!",
    "for 250",
    "surprise me",
    "salt, oil",
    "for oil",
]


def table() -> LexicalTable:
    """The table of TEXTS."""
    return LexicalTable.make([json.dumps(text) for text in TEXTS], SLOT_VALUES, AROUND)


def features(words: LexicalTable, instructions) -> np.ndarray:
    """[N, I]: lexical_match of every item."""
    inputs = InstructionInputs(None, jnp.asarray(words.word_numbers(instructions)))
    scorer = InstructionScorer.make(inputs, words.arrays())
    items = np.arange(words.of_items.shape[1])[None].repeat(len(instructions), axis=0)
    scores = scorer.scores(items, None)
    assert not scores[..., 0].any()
    return np.asarray(scores[..., 1])


def naive(instructions) -> np.ndarray:
    """`features` of TEXTS by a plain loop."""
    items = [set(item_words(json.dumps(text))) for text in TEXTS]
    out = np.zeros((len(instructions), len(items)))
    for row, text in enumerate(instructions):
        surest = 0.0
        for word in words_of(text):
            having = [word in words for words in items]
            a = sum((word in words_of(text)) / len(words_of(text)) for text in SLOT_VALUES)
            b = sum(word in words_of(around) for around in AROUND) / len(AROUND) * len(SLOT_VALUES)
            if any(having) and a:
                trust = a / (a + b + 1)
                surest = max(surest, trust)
                out[row] += np.array(having) * trust * np.log(len(items) / sum(having))
        if out[row].any():
            out[row] = (out[row] / out[row].max() - 1) * surest
    return out


def test_items_with_the_rarest_words_come_first():
    found = features(table(), INSTRUCTIONS)
    np.testing.assert_allclose(found, naive(INSTRUCTIONS), atol=1e-6)
    assert found[0].argmax() == 0 and found[0, 0] == 0  # the only one with both
    assert found[0].argmin() == 3
    np.testing.assert_array_equal(found[3], 0)  # no slot value has its words


def test_a_rare_word_that_nobody_asks_for_counts_less_than_a_common_one():
    texts = ['{"t": "milk"}'] * 4 + ['{"t": "tea"}'] * 56 + ['{"t": "tomatoes on the vine"}']
    slot_values = ["milk", "fresh milk", "tea", "tomatoes on the vine"]
    words = LexicalTable.make(texts, slot_values, ["what goes with it"])
    found = features(words, ["milk on sale"])[0]
    assert (found[:4] == 0).all() and (found[4:60] < -0.5).all() and -0.5 < found[60] < -0.2


def test_trust_follows_the_share_of_a_word_in_slot_values():
    words = table()
    trust = {word: words.trust[number] for word, number in words.numbers.items()}
    assert set(trust) == {"peanut", "butter", "oil", "for", "frying", "dairy", "salt"}
    assert trust["butter"] == pytest.approx(1.5 / 2.5) and trust["salt"] == pytest.approx(1 / 2)
    assert trust["for"] == pytest.approx((1 / 3) / (1 / 3 + 3 + 1))  # half of AROUND has it
    assert features(words, ["for"]).min() == pytest.approx(-trust["for"])


def test_a_word_of_every_item_has_no_weight():
    words = LexicalTable.make(['{"a": "shop milk"}', '{"a": "shop tea"}'], ["shop tea"], [])
    found = features(words, ["shop", "shop tea"])
    np.testing.assert_allclose(found, [[0, 0], [-1 / 3, 0]], atol=1e-6)


def test_item_words_are_those_of_all_values_but_not_of_field_names():
    assert item_words(json.dumps(TEXTS[2])) == ["peanut", "oil", "for", "frying", "spain"]
    assert item_words(json.dumps(TEXTS[3])) == ["salt"]


@pytest.mark.parametrize(
    "text, words",
    [
        ("Crème brûlée, crème & STRASSE", ["creme", "brulee", "strasse"]),
        ("cre\u0300me", ["creme"]),  # another encoding of the same text
        ("\uff2d\uff29\uff2c\uff2b ice_cream", ["milk", "ice", "cream"]),  # full width
        ("绿茶", ["绿", "茶"]),
        ("दूध", ["दध"]),
        ("", []),
    ],
)
def test_words_are_equal_in_every_spelling(text, words):
    assert words_of(text) == words


@pytest.mark.parametrize("first", [0, 1, 3])
def test_an_extended_table_equals_the_table_of_all_items(first):
    """The first table has spare capacity for items, words and words of an item."""
    texts = [json.dumps(text) for text in TEXTS]
    before = LexicalTable.make(texts[:first], SLOT_VALUES, AROUND).with_capacity(9, 12, 8)
    extended, whole = before.extended(first, texts[first:], SLOT_VALUES, AROUND), table()
    assert extended.numbers == whole.numbers
    np.testing.assert_array_equal(extended.trust, whole.trust)
    np.testing.assert_array_equal(extended.weights, whole.weights)
    size = len(whole.of_items)
    np.testing.assert_array_equal(extended.of_items[:size], whole.of_items)
    assert (extended.of_items[size:] == len(whole.numbers)).all()


def test_the_first_words_of_a_long_text_are_kept():
    text = " ".join(f"w{number}" for number in range(MAX_ITEM_WORDS + 5))
    words = LexicalTable.make([json.dumps({"text": text}), '{"text": "w1"}'], [text], [])
    assert f"w{MAX_ITEM_WORDS - 1}" in words.numbers and f"w{MAX_ITEM_WORDS}" not in words.numbers
    assert words.of_items.shape == (MAX_ITEM_WORDS, 2)


def test_a_catalogue_without_words_matches_nothing():
    words = LexicalTable.make(['{"text": "!"}', '{"text": null}'], ["anything"], [])
    np.testing.assert_array_equal(features(words, ["anything", ""]), np.zeros((2, 2)))
