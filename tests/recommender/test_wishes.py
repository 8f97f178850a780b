"""Instructions taken apart: exclusions, several things, prices; and the lists for them."""

import json

import numpy as np
import pyarrow as pa
import pytest

from sigma_jax.recommender.ranking import Recommendations
from sigma_jax.recommender.requests import DEFAULT_INSTRUCTION
from sigma_jax.recommender.wish_lists import in_turns, recommend_wishes
from sigma_jax.recommender.wishes import Wish, WishReader, prices_of, stem, stems_of
from sigma_jax.schema import Catalogue, Histories, RequestBatch, Requests, Users

CATEGORIES = ("Beef", "Poultry", "Teas", "Macaroni & Cheese", "Bread", "Soft Drinks")
ITEMS = (  # title, category, price
    ("ground beef", 0, 9.0),
    ("beef steak", 0, 20.0),
    ("chicken wings", 1, 5.0),
    ("turkey", 1, 7.0),
    ("green tea", 2, 2.0),
    ("black tea", 2, 4.0),
    ("herbal tea no caffeine", 2, 6.0),
    ("bread without salt", 4, 3.0),
    ("lemonade", 5, None),
)
THINGS = ("milk", "new year", "no salt crackers", "caffeine", "salt", "steak")
AROUND = ("i need please", "i have no at home", "what do i need for me", "i need help")


def catalogue(has_prices=True):
    texts = [
        json.dumps({"title": title} | ({"price": price} if has_prices and price else {}))
        for title, _, price in ITEMS
    ]
    ids = [str(n) for n in range(len(ITEMS))]
    table = pa.table({"item_id": ids, "text": texts, "title": [item[0] for item in ITEMS]})
    category = np.array([item[1] for item in ITEMS], np.int32)
    popularity = np.arange(len(ITEMS))[::-1].astype(np.int64)
    return Catalogue(table, category, pa.array(CATEGORIES), popularity)


class Meaning:
    """An InstructionEncoder for which "soda" means soft drinks."""

    def __init__(self):
        self.encoder = self
        self.vectors = np.eye(len(CATEGORIES) + 1, dtype=np.float32)

    def encode_items(self, names):
        return self.vectors[: len(names)]

    def grounded(self, vectors):
        return vectors

    def __call__(self, texts):
        return self.vectors[[5 if "soda" in text else len(CATEGORIES) for text in texts]]


@pytest.fixture
def reader():
    return WishReader(catalogue(), THINGS, AROUND, Meaning())


@pytest.mark.parametrize(
    "text, things, without",
    [
        ("meat without beef", ["meat"], ["beef"]),
        ("tea, but no caffeine please", ["tea, please"], ["caffeine"]),
        ("no milk for me", [DEFAULT_INSTRUCTION], ["milk"]),
        ("meat except beef or poultry", ["meat"], ["beef", "poultry"]),
        ("drinks without soda", ["drinks"], ["soda"]),
        ("Fleisch ohne beef", ["Fleisch"], ["beef"]),
        # Nothing is excluded:
        ("i have no milk at home", ["i have no milk at home"], []),
        ("nothing but tea", ["nothing but tea"], []),
        ("no bestsellers please", ["no bestsellers please"], []),
        ("no salt crackers", ["no salt crackers"], []),
        ("i need no salt crackers please", ["i need no salt crackers please"], []),
        ("do not forget", ["do not forget"], []),
        # Several things:
        ("milk and bread", ["milk", "bread"], []),
        ("i need milk, tea and bread", ["i need milk", "tea", "bread"], []),
        ("steak and bread without salt", ["steak", "bread"], ["salt"]),
        ("macaroni and cheese", ["macaroni and cheese"], []),
        ("macaroni & cheese", ["macaroni & cheese"], []),
        ("milk and i need help", ["milk and i need help"], []),
        ("me and my wife", ["me and my wife"], []),
    ],
)
def test_sentences(reader, text, things, without):
    assert reader.read(text) == Wish(tuple(things), tuple(without))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("cheap tea", Wish(("tea",), is_cheap=True)),
        ("tea under $5.50", Wish(("tea",), most_price=5.5)),
        ("affordable tea for less than 3 euros", Wish(("tea for",), (), 3.0, True)),
        ("tea under 5 years", Wish(("tea under 5 years",))),
    ],
)
def test_prices_are_read_where_items_have_them(reader, text, expected):
    assert reader.read(text) == expected
    assert WishReader(catalogue(False), THINGS, AROUND, None).read(text) == Wish((text,))


def unwanted(reader, text):
    items = np.array([*range(len(ITEMS)), -1])
    return np.flatnonzero(reader.is_unwanted(reader.read(text), items)).tolist()


def test_items_that_a_wish_leaves_out(reader):
    assert unwanted(reader, "meat without beef") == [0, 1]
    assert unwanted(reader, "meat without beef or poultry") == [0, 1]  # no title says poultry
    assert unwanted(reader, "tea without black") == [5]  # a word of titles alone
    assert unwanted(reader, "tea without haste") == []
    assert unwanted(reader, "tea without caffeine") == []  # the item that names it lacks it
    assert unwanted(reader, "bread without steak") == [1]
    assert unwanted(reader, "drinks without soda") == [8]  # by meaning
    assert unwanted(reader, "soda without soda") == []  # the category that is asked for
    assert unwanted(reader, "meat under 6 dollars") == [0, 1, 3, 8]  # 8 has no price
    assert unwanted(reader, "cheap tea") == [1, 3, 6]  # above the median of their category
    assert unwanted(reader, "tea") == []


def test_prices_of_texts():
    texts = ['{"list price": "$12,50"}', '{"price": 3}', '{"title": "5"}', '{"price": "call us"}']
    np.testing.assert_array_equal(prices_of(texts), [12.5, 3, np.nan, np.nan])


@pytest.mark.parametrize(
    "text, price",
    [
        ("1,234.50", 1234.5),
        ("1.234,50 EUR", 1234.5),
        ("1 234,50", 1234.5),
        ("1'234.50", 1234.5),
        ("1,234", 1234),
        ("1,234,567", 1234567),
        ("1.234", 1.234),
        ("12,99", 12.99),
        ("$5 - $9", 5),
        ("12345.678", 12345.678),
    ],
)
def test_a_price_may_have_groups_of_thousands(text, price):
    np.testing.assert_array_equal(prices_of([json.dumps({"price": text})]), [price])


def test_stems():
    words = ("berries", "dishes", "boxes", "nuts", "glass", "citrus", "gas", "ties")
    expected = ["berry", "dish", "box", "nut", "glass", "citrus", "gas", "tie"]
    assert [stem(word) for word in words] == expected
    assert stems_of("Nuts and a nut") == ("nut", "and", "a")


def test_lists_take_turns_without_items_twice():
    first, second = np.array([7, 8, 5]), np.array([7, 9, 8])
    lists = [(0, first, np.arange(3)), (1, second, np.arange(3))]
    assert in_turns(lists, 9) == [(0, 0), (1, 1), (0, 1), (0, 2)]
    assert in_turns(lists, 2) == [(0, 0), (1, 1)]
    assert in_turns([(0, first, np.array([2]))], 5) == [(0, 2)]


ORDERS = {"meat": [0, 2, 1, 3], "milk": [4, 5, 6], "bread": [7, 4, 8]}


class Answers:
    """Answers every request with the items of ORDERS."""

    def __init__(self):
        self.asked = []

    def __call__(self, batch, count):
        texts = batch.requests.instruction
        self.asked.append((list(texts), count))
        items = np.full((len(texts), count), -1)
        for row, text in enumerate(texts):
            order = ORDERS.get(text, [3, 2, 1])[:count]
            items[row, : len(order)] = order
        values = np.where(items >= 0, -items.astype(np.float32), -np.inf)
        of_request = batch.requests.user.astype(np.float32)
        beams, tasks = np.where(items >= 0, items + 100, -1), of_request[:, None]
        return Recommendations(
            items, values, values - 1, beams, values - 2, of_request, of_request, tasks
        )


def batch_of(texts):
    count = len(texts)
    none = np.full(count, -1, np.int32)
    user, ends = np.arange(count, dtype=np.int32), np.zeros(count, np.int64)
    users = Users(pa.table({"user_id": list(map(str, user)), "profile": [""] * count}))
    requests = Requests(user, ends, none, none, none, list(texts))
    return RequestBatch(requests, Histories.empty(), users)


def test_answers_to_wishes_stand_in_the_order_of_the_requests(reader):
    texts = ["anything", "meat without beef", "milk and bread", "others"]
    recommend = Answers()
    found = recommend_wishes(batch_of(texts), reader, recommend, 3, len(ITEMS))
    assert recommend.asked == [(["anything", "others"], 3), (["meat", "milk", "bread"], 9)]
    expected = [[3, 2, 1], [2, 3, -1], [4, 7, 5], [3, 2, 1]]
    np.testing.assert_array_equal(found.items, expected)
    items = np.array(expected)
    values = np.where(items >= 0, -items.astype(np.float32), -np.inf)
    np.testing.assert_array_equal(found.log_probs, values)
    np.testing.assert_array_equal(found.beam_scores, values - 1)
    np.testing.assert_array_equal(found.cosines, values - 2)
    np.testing.assert_array_equal(found.beams, np.where(items >= 0, items + 100, -1))
    np.testing.assert_array_equal(found.sigma, [0, 1, 2, 3])
    np.testing.assert_array_equal(found.tasks[:, 0], [0, 1, 2, 3])


def test_plain_instructions_are_asked_once_and_as_they_stand(reader):
    recommend = Answers()
    recommend_wishes(batch_of(["anything", "meat"]), reader, recommend, 2, len(ITEMS))
    recommend_wishes(batch_of(["milk and bread"]), reader, recommend, 2, len(ITEMS))
    assert recommend.asked == [(["anything", "meat"], 2), (["milk", "bread"], 2)]
