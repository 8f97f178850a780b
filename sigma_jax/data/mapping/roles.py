"""Guesses what a column of a foreign file is, from its name and its first values.

The words are those of any shop, library or player. A guess is shown to a person, who corrects it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime

from sigma_jax.data.mapping.look import is_number
from sigma_jax.data.times import unix_time

USER = frozenset(
    "user customer visitor member client reviewer household buyer shopper account person "
    "subscriber listener viewer reader player username author uid cust consumer".split()
)
ITEM = frozenset(
    "item product article movie film asin sku business book isbn track song artist album aid game "
    "app video clip news recipe restaurant hotel listing goods offer content course job anime "
    "place poi venue podcast show iid pid document merchandise prod".split()
)
SESSION = frozenset("session basket order transaction visit cart invoice trip receipt".split())
EVENT = frozenset("event action behavior behaviour type interaction".split())
CATEGORY = frozenset("category categories categoryid department aisle".split())
# Of a category where no column has a word of CATEGORY.
GROUP = frozenset("group section genre subcategory family kind type class division range".split())
_TIME = frozenset(
    "timestamp time date day datetime ts at when dat posted created purchased".split()
)
_ID_ENDS = frozenset("id key code no nr number sha hash uuid".split())
_PRIVATE = frozenset("name email mail phone url address friends password photo image".split())
# Formats of days that are no ISO 8601. The first that fits all values is taken.
_FORMATS = (
    "%d.%m.%Y",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%m %d, %Y",
    "%b %d, %Y",
    "%B %d, %Y",
    "Posted %B %d, %Y.",
    "%a %b %d %H:%M:%S +0000 %Y",
)
_SIZES = {  # unit -> the smallest and the largest number of it that is a time since 1990
    "seconds": (6e8, 4.2e9),
    "milliseconds": (6e11, 4.2e12),
    "microseconds": (6e14, 4.2e15),
    "nanoseconds": (6e17, 4.2e18),
}


def words(name: str) -> list[str]:
    """The words of a column's name, lower case: parentAsin and parent_asin -> parent, asin.

    An id that is part of a word becomes a word: visitorid -> visitor, id.
    """
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.rpartition(".")[2])
    found = re.findall(r"[a-z]+", name.lower())
    split = []
    for word in found:
        stem = word.removesuffix("id")
        is_joined = stem != word and stem in USER | ITEM | SESSION
        split += [stem, "id"] if is_joined else [word]
    return split


def is_id_of(name: str, kind: frozenset[str]) -> bool:
    """Whether a column of this name holds ids of a kind, such as USER."""
    found = words(name)
    if not set(found) & kind:
        return False
    return len(found) == 1 or found[-1] in _ID_ENDS or found[-1] in ("asin", "sku", "isbn")


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


def time_of(name: str, values: Sequence[str], has_name: bool) -> str | None:
    """How the values of a column are times: a unit, a format, or "" for ISO 8601.

    None: they are no times. Numbers need a name that says so, if the file has names.
    """
    given = [value for value in values if value]
    if not given:
        return None
    if all(is_number(value) for value in given):
        if has_name and not has_word(name, _TIME):
            return None
        numbers = [float(value) for value in given]
        for unit, (smallest, largest) in _SIZES.items():
            if all(smallest <= number <= largest for number in numbers):
                return unit
        if all(re.fullmatch(r"(19|20)\d\d[01]\d[0-3]\d", value) for value in given):
            return ""
        is_day = words(name) == ["day"] and all(0 <= number < 1e5 for number in numbers)
        return "days" if is_day else None
    try:
        for value in given:
            unix_time(value, name)
        return ""
    except ValueError:
        return next((form for form in _FORMATS if _fit(form, given)), None)


def _fit(form: str, values: Sequence[str]) -> bool:
    try:
        for value in values:
            datetime.strptime(value, form)
    except ValueError:
        return False
    return True
