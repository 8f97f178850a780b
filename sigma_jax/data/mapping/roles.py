"""Guesses what a column of a foreign file is, from its name and its first values.

The words are those of any shop, library or player. A guess is shown to a person, who corrects it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

USER = frozenset(
    "user customer visitor member client reviewer household buyer shopper account person "
    "subscriber listener viewer reader player username author uid cust consumer guest purchaser "
    "patron contact login loyalty card cookie device".split()
)
ITEM = frozenset(
    "item product article movie film asin sku business book isbn track song artist album aid game "
    "app video clip news recipe restaurant hotel listing goods offer content course job anime "
    "place poi venue podcast show iid pid document merchandise prod stock lineitem variant barcode "
    "ean upc gtin mpn plu".split()
)
SESSION = frozenset(
    "session basket order transaction visit cart invoice trip receipt checkout ticket purchase "
    "booking".split()
)
EVENT = frozenset("event action behavior behaviour type interaction".split())
CATEGORY = frozenset("category categories categoryid department aisle".split())
# Of a category where no column has a word of CATEGORY.
GROUP = frozenset("group section genre subcategory family kind type class division range".split())
_ID_ENDS = frozenset("id key code no nr number sha hash uuid".split())
_CODES = frozenset("asin sku isbn barcode ean upc gtin mpn plu".split())  # ids of goods
# Words of ids only beside another word: a column `stock` counts what is there.
_NEED_END = frozenset("stock variant content card contact loyalty device cookie".split())
_MAIL = frozenset("email mail".split())
_PRIVATE = frozenset("name email mail phone url address friends password photo image".split())


def words(name: str) -> list[str]:
    """The words of a column's name, lower case: parentAsin and parent_asin -> parent, asin.

    An id that is part of a word becomes a word: visitorid -> visitor, id. A field `id` is one of
    the object around it: lines.product.id -> product, id.
    """
    *outer, own = name.split(".")
    found = _words(own)
    if outer and found and set(found) <= _ID_ENDS:
        found = [_singular(word) for word in _words(outer[-1])] + found
    return found


def _words(text: str) -> list[str]:
    text = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", text)
    split = []
    for word in re.findall(r"[a-z]+", text.lower()):
        ends = (end for end in sorted(_ID_ENDS, key=len) if word.endswith(end))
        end = next((end for end in ends if word.removesuffix(end) in USER | ITEM | SESSION), "")
        split += [word.removesuffix(end), end] if end else [word]
    return split


def _singular(word: str) -> str:
    stem = word.removesuffix("s")
    return stem if stem in USER | ITEM | SESSION else word


def is_id_of(name: str, kind: frozenset[str]) -> bool:
    """Whether a column of this name holds ids of a kind, such as USER."""
    found = words(name)
    if not set(found) & kind:
        return False
    if len(found) == 1:
        return found[0] not in _NEED_END
    return found[-1] in _ID_ENDS | _CODES


def is_part_id(name: str) -> bool:
    """Whether an id names a line of an order or a variant: a product has several."""
    found = set(words(name))
    return bool(found & (SESSION | {"line", "lineitem", "variant"})) and not found & _CODES


def is_name_of(name: str, kind: frozenset[str]) -> bool:
    """Whether a column of this name holds names of a kind, such as product_name of ITEM."""
    found = words(name)
    return bool(set(found) & kind) and found[-1] in ("name", "title", "description")


def is_mail(name: str) -> bool:
    """Whether a column of this name holds addresses of mail, which tell persons apart."""
    return has_word(name, _MAIL)


def is_id(name: str) -> bool:
    """Whether a column of this name holds ids or numbers of some kind."""
    found = words(name)
    return bool(found) and (found[-1] in _ID_ENDS or (found[-1].endswith("id") and len(found) == 1))


def has_word(name: str, kind: Iterable[str]) -> bool:
    """Whether one word of a column's name is one of `kind`."""
    return bool(set(words(name)) & set(kind))


def is_private(name: str) -> bool:
    """Whether a column of users names or reaches a person, which is no part of a profile."""
    return has_word(name, _PRIVATE)


def is_gap(name: str) -> bool:
    """Whether a column tells the time since the order before."""
    found = set(words(name))
    return "since" in found and bool(found & {"prior", "previous", "last"})


def is_unique(values: Sequence[str]) -> bool:
    """Whether values could be the ids of a table: none empty, none twice."""
    return bool(values) and "" not in values and len(set(values)) == len(values)
