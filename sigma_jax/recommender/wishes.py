"""Wishes that a vector cannot hold: what is excluded, several things at once, a price.

A sentence vector of "meat without beef" is near to beef. So the sentence is taken apart first:

    "meat without beef, please"   things ("meat please",), without ("beef",)
    "milk and bread"              things ("milk", "bread"): their lists take turns
    "tea under 5 dollars"         things ("tea",), most_price 5
    "cheap tea"                   things ("tea",), is_cheap: at most the median of the category

A phrase is taken out only if it names a thing: a category, query or theme has all its words, titles
of items have them, or the name of a category is near to it in meaning. Other sentences stay as they
are: "nothing everyone buys" excludes nothing. A text that is itself a thing ("salt and pepper", "no
salt crackers") stays whole.

Axes: n items, C categories, E dimensions of the sentence encoder.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from sigma_jax.encoders.instructions import InstructionEncoder
from sigma_jax.recommender.requests import DEFAULT_INSTRUCTION
from sigma_jax.reranking.lexical import item_words, words_of
from sigma_jax.schema import Catalogue, Links

MOST_THINGS = 4  # of one sentence
NAMES_CATEGORY = 0.5  # cosine from which a phrase names a category
MOST_CATEGORIES = 20_000  # whose names are encoded
TITLES_READ = 20_000  # of the most popular items, whose words name things too
PRICED_ITEMS = 200  # of a category, the most popular, that its median price is read from

# Words of some languages, each with the sense of the first.
_WITHOUT = (
    r"without|except(?: for)?|other than|anything but|but (?:no|not)|ohne|sans|sin|senza|zonder"
)
_NO = r"no|not|kein(?:en?)?"  # at the start of a part: "i have no tea" asks for tea
_AND = r"and|plus|und|et|y"
_CHEAP = r"cheap(?:er|est)?|inexpensive|affordable|low[- ]priced?|billige?[rn]?|günstige?[rn]?"
_UNDER = r"(?:under|below|less than|at most|up to|max(?:imum)?|cheaper than|unter|bis)"
_END = r"(?=\s+(?:for|with|please|but|to|in|at|on|when|because|für|bitte|pour)\b|[,.;:!?]|$)"
_EXCLUDED = re.compile(
    rf"(?:\b({_WITHOUT})|(?:^|(?<=[,.;:!?])\s*|(?<=\band\s))({_NO}))\s+(.+?){_END}", re.IGNORECASE
)
_SEVERAL = re.compile(rf"\s*(?:[,;&+]|\b(?:{_AND})\b)\s*", re.IGNORECASE)
_EITHER = re.compile(rf"\s*(?:[,;&+]|\b(?:{_AND}|or|nor|oder|ou|o)\b)\s*", re.IGNORECASE)
_CHEAPLY = re.compile(rf"\b(?:{_CHEAP})\b", re.IGNORECASE)
_LIMIT = re.compile(
    rf"\b{_UNDER}\s+[$€£]?\s*(\d+(?:[.,]\d+)?)\s*(?:[$€£]|dollars?|euros?|pounds?)?(?!\s*\w)",
    re.IGNORECASE,
)
# A number, with groups of thousands or without: 12.99, 1,234.50, 1.234,50, 1 234,50.
_NUMBER = re.compile(r"\d{1,3}(?:[ \u00a0\u202f'.,]\d{3})+(?:[.,]\d+)?(?!\d)|\d+(?:[.,]\d+)?")
# An item with one of these words may lack what it names: "no salt added", "sugar free".
LACKING = frozenset({"no", "free", "without", "less", "non", "zero"})


@dataclasses.dataclass(frozen=True)
class Wish:
    """An instruction taken apart."""

    things: tuple[str, ...]  # instructions; the lists of several take turns
    without: tuple[str, ...] = ()  # phrases of things to leave out
    most_price: float | None = None
    is_cheap: bool = False  # at most the median price of its category

    @property
    def is_filtered(self) -> bool:
        """Whether some items are left out."""
        return bool(self.without) or self.is_cheap or self.most_price is not None


class WishReader:
    """Takes instructions apart, and tells which items a wish leaves out."""

    def __init__(
        self,
        catalogue: Catalogue,
        things: Iterable[str],
        around: Iterable[str],
        encoder: InstructionEncoder | None,
    ):
        """Args:
        things: queries and themes; categories are known from the catalogue.
        around: the texts around the things in the wordings of instructions.
        encoder: None where words alone are compared.
        """
        self.catalogue, self._encoder = catalogue, encoder
        names = [*catalogue.categories.to_pylist(), *things]
        self._things = {words for name in names if (words := stems_of(name))}
        self._having: dict[str, set[tuple[str, ...]]] = {}
        for words in self._things:
            for word in words:
                self._having.setdefault(word, set()).add(words)
        counts = Counter(word for text in around for word in stems_of(text))
        self._filling = {
            word for word, count in counts.items() if count >= len(self._having.get(word, ()))
        }
        self._medians: dict[int, float] = {}

    def read(self, text: str) -> Wish:
        """The wish of an instruction; the instruction itself where nothing is to be taken apart."""
        if self._is_thing(stems_of(text)):
            return Wish((text,))
        rest, without = self._excluded(text)
        rest, price, is_cheap = self._priced(rest)
        things = self._several(rest)
        if rest != text and not any(self._content(thing) for thing in things):
            things = (DEFAULT_INSTRUCTION,)
        return Wish(things, without, price, is_cheap)

    def is_unwanted(self, wish: Wish, items: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Whether the wish leaves each item out. Item -1 is not left out."""
        unwanted = np.zeros(len(items), bool)
        if not wish.is_filtered:
            return unwanted
        rows = np.flatnonzero(items >= 0)
        found = items[rows]
        texts = self.catalogue.texts(found)
        if wish.without:
            of_items = [{stem(word) for word in item_words(text)} for text in texts]
            for phrase in wish.without:
                unwanted[rows] |= self._has_phrase(phrase, wish, found, of_items)
        if wish.most_price is not None:
            unwanted[rows] |= ~(prices_of(texts) <= wish.most_price)
        if wish.is_cheap:
            unwanted[rows] |= prices_of(texts) > self._median_prices(found)
        return unwanted

    def _has_phrase(
        self, phrase: str, wish: Wish, items: np.ndarray, of_items: Sequence[set[str]]
    ) -> Bool[np.ndarray, " n"]:
        """Whether each item has the words of `phrase`; if none has, by the nearest category."""
        words = set(self._content(phrase))
        lacking = LACKING - words
        has_words = np.array([words <= own and not own & lacking for own in of_items], bool)
        if has_words.any():
            return has_words
        category = self._nearest_category(phrase)
        if category is None or category in map(self._nearest_category, wish.things):
            return np.zeros(len(items), bool)
        return np.asarray(self.catalogue.category)[items] == category

    def _excluded(self, text: str) -> tuple[str, tuple[str, ...]]:
        """(`text` without the phrases that it excludes, these phrases)."""
        found: list[str] = []

        def cut(match: re.Match[str]) -> str:
            sign, phrase = match[1] or match[2], match[3]
            if text[: match.start()].rstrip().lower().endswith("nothing"):
                return match[0]
            if self._is_part_of_thing(text, sign):
                return match[0]
            phrases = [part for part in _EITHER.split(phrase) if part]
            if not phrases or not all(map(self._names_thing, phrases)):
                return match[0]
            found.extend(phrases)
            return ""

        rest = _EXCLUDED.sub(cut, text)
        return (_tidied(rest) if found else text), tuple(found)

    def _priced(self, text: str) -> tuple[str, float | None, bool]:
        """(`text` without its wish for a price, the highest price, whether it asks for cheap)."""
        if not self._has_prices:
            return text, None, False
        price, rest = None, text
        if limit := _LIMIT.search(rest):
            price = float(limit[1].replace(",", "."))
            rest = rest[: limit.start()] + rest[limit.end() :]
        is_cheap = bool(_CHEAPLY.search(rest)) and not self._is_part_of_thing(text, "cheap")
        rest = _CHEAPLY.sub("", rest) if is_cheap else rest
        return (_tidied(rest) if rest != text else text), price, is_cheap

    def _several(self, text: str) -> tuple[str, ...]:
        """The parts of a sentence that names several things; otherwise the sentence."""
        parts = [part for part in _SEVERAL.split(text) if part]
        if not 1 < len(parts) <= MOST_THINGS or not all(map(self._is_in_thing, parts)):
            return (text,)
        contents = [self._content(part) for part in parts]
        filling = [
            len(stems_of(part)) - len(words) for part, words in zip(parts, contents, strict=True)
        ]
        if max(filling[1:]) > 1:  # "and i need help" is no list
            return (text,)
        for left, right in itertools.pairwise(contents):
            if self._having.get(left[-1], set()) & self._having.get(right[0], set()):
                return (text,)  # one thing has both words
        return tuple(parts)

    def _content(self, text: str) -> tuple[str, ...]:
        """The words of a text without those that only surround things."""
        return tuple(word for word in stems_of(text) if word not in self._filling)

    def _is_thing(self, words: tuple[str, ...]) -> bool:
        return words in self._things

    def _is_part_of_thing(self, text: str, sign: str) -> bool:
        """Whether a thing of the text, all of its words, holds the words `sign`."""
        words = stems_of(text)
        starts = range(len(words))
        parts = {words[start:end] for start in starts for end in range(start + 1, len(words) + 1)}
        return any(set(stems_of(sign)) <= set(part) for part in parts & self._things)

    def _is_in_thing(self, phrase: str) -> bool:
        """Whether one thing has all words of a phrase."""
        having = [self._having.get(word, set()) for word in self._content(phrase)]
        return bool(having) and bool(set.intersection(*having))

    def _names_thing(self, phrase: str) -> bool:
        """Whether things or titles have the words of a phrase, or a category is near to it."""
        content = self._content(phrase)
        if not content:
            return False
        if self._is_in_thing(phrase) or self._title_words.issuperset(content):
            return True
        return self._nearest_category(phrase) is not None

    def _nearest_category(self, phrase: str) -> int | None:
        """The category whose name is nearest to a phrase; None if none is near."""
        vectors = self._category_vectors
        if vectors is None:
            return None
        content = " ".join(word for word in words_of(phrase) if stem(word) not in self._filling)
        cosines = vectors @ self._encoder([content])[0]
        nearest = int(np.argmax(cosines))
        return nearest if cosines[nearest] >= NAMES_CATEGORY else None

    @functools.cached_property
    def _category_vectors(self) -> Float32[np.ndarray, "C E"] | None:
        names = self.catalogue.categories.to_pylist()
        if self._encoder is None or not 0 < len(names) <= MOST_CATEGORIES:
            return None
        return self._encoder.grounded(self._encoder.encoder.encode_items(names))

    @functools.cached_property
    def _title_words(self) -> frozenset[str]:
        popular = np.argsort(-np.asarray(self.catalogue.popularity), kind="stable")[:TITLES_READ]
        titles = self.catalogue.titles(popular)
        return frozenset(word for title in titles for word in stems_of(title))

    @functools.cached_property
    def _has_prices(self) -> bool:
        some = np.linspace(0, len(self.catalogue) - 1, min(100, len(self.catalogue))).astype(int)
        return bool(np.isfinite(prices_of(self.catalogue.texts(some))).any())

    @functools.cached_property
    def _items_of_categories(self) -> Links:
        return self.catalogue.items_of_categories()

    def _median_prices(self, items: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The median price of each item's category; infinity where it is not known."""
        categories = np.asarray(self.catalogue.category)[items].tolist()
        for category in set(categories) - self._medians.keys():
            known = np.zeros(0)
            if category >= 0:
                rows = self._items_of_categories.of(category)[:PRICED_ITEMS]
                prices = prices_of(self.catalogue.texts(rows))
                known = prices[np.isfinite(prices)]
            self._medians[category] = float(np.median(known)) if len(known) else np.inf
        return np.array([self._medians[category] for category in categories])


def prices_of(texts: Sequence[str]) -> Float[np.ndarray, " n"]:
    """The price in each item's JSON text: the first field named like "price"; NaN without one."""
    return np.array([_price_of(json.loads(text)) for text in texts], float)


def _price_of(fields: dict[str, object]) -> float:
    for name, value in fields.items():
        if "price" in name.lower() and (number := _NUMBER.search(str(value))):
            return _number_of(number[0])
    return float("nan")


def _number_of(text: str) -> float:
    """The number of a text in the form _NUMBER.

    The last mark is the decimal one, unless it occurs twice or is a comma before three digits.

    Worked example: 1,234.50 -> 1234.5; 1.234,50 -> 1234.5; 12,5 -> 12.5; 1,234 -> 1234; 1.234 ->
    1.234.
    """
    text = re.sub(r"[ \u00a0\u202f']", "", text)
    marks = re.findall(r"[.,]", text)
    if not marks:
        return float(text)
    whole, rest = text.rsplit(marks[-1], 1)
    is_group = len(marks) > 1 if marks[0] == marks[-1] else False
    if is_group or (marks == [","] and len(rest) == 3):
        return float(re.sub(r"[.,]", "", text))
    return float(f"{re.sub(r'[.,]', '', whole)}.{rest}")


def stems_of(text: str) -> tuple[str, ...]:
    """The stems of the distinct words of a text, in their order."""
    return tuple(dict.fromkeys(stem(word) for word in words_of(text)))


def stem(word: str) -> str:
    """A word without the ending of a plural: berries -> berry, dishes -> dish, nuts -> nut."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ses", "xes", "zes", "ches", "shes")):
        return word[:-2]
    is_plural = len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is"))
    return word[:-1] if is_plural else word


def _tidied(text: str) -> str:
    """A text without double spaces, and without punctuation that stands alone."""
    return re.sub(r"\s+([,.;:!?])", r"\1", re.sub(r"\s{2,}", " ", text)).strip(" ,;:.")
