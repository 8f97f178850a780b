"""Finds the column of times in a foreign file, and how its values are written.

Formats are put together from the forms of a day and the clock behind it. Every format that fits all
values is a candidate: 05/01/2024 is a day in January or in May, and only other rows can tell.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from sigma_jax.data.mapping.roles import has_word, words
from sigma_jax.data.mapping.spec import FILL_IN, NO_TIME
from sigma_jax.data.mapping.values import DECIMAL_COMMA, THOUSANDS
from sigma_jax.data.times import unix_time

_NAMES = frozenset(
    "timestamp time date day datetime ts dt at when dat posted created purchased ordered".split()
)
# Times of a person's life, which are none of the log.
_LIFE = frozenset("birth birthday born dob registered registration signup joined".split())
_ORDERS = (("d", "m"), ("m", "d"))
_NUMERIC = tuple(
    f"%{first}{sign}%{second}{sign}%{year}"
    for sign, pairs in (("/", _ORDERS), ("-", _ORDERS), (".", _ORDERS[:1]))  # with dots: day first
    for first, second in pairs
    for year in ("Y", "y")
)
_DAYS = (
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%Y.%m.%d",
    *_NUMERIC,
    "%m %d, %Y",
    *(
        form.replace("%b", month)
        for form in ("%b %d, %Y", "%b %d %Y", "%d %b %Y", "%d-%b-%Y", "%d-%b-%y", "%d %b %y")
        for month in ("%b", "%B")
    ),
    "%a, %d %b %Y",
    "Posted %B %d, %Y.",
)
_WHOLE = ("%a %b %d %H:%M:%S %z %Y", "%a %b %d %H:%M:%S %Y")  # the clock stands inside
_CLOCK = re.compile(
    r"(?P<day>.*?[^ T,])(?P<gap>, |T| +)(?P<minutes>\d{1,2}:\d\d)(?P<seconds>:\d\d)?"
    r"(?P<fraction>\.\d+)?(?P<blank> *)(?P<half>[AaPp][Mm])?(?P<zone> ?[+-]\d\d:?\d\d)?"
)
_MAX_CHARS = 40  # of a time
_SIZES = {  # unit -> the smallest and the largest number of it that is a time since 1990
    "seconds": (6e8, 4.2e9),
    "milliseconds": (6e11, 4.2e12),
    "microseconds": (6e14, 4.2e15),
    "nanoseconds": (6e17, 4.2e18),
    "spreadsheet_days": (32_874, 73_051),
}


@dataclasses.dataclass(frozen=True)
class When:
    """A column of times, and each way in which its values may be written.

    A way is a unit, a format, or "" for ISO 8601. Several ways: other rows or a person must decide.
    None: the column is named like a time, but no known form fits.
    """

    column: str  # "": the file has no times
    ways: tuple[str, ...]

    @property
    def is_open(self) -> bool:
        """Whether a person must say how the times are written."""
        return bool(self.column) and len(self.ways) != 1

    @property
    def key(self) -> dict[str, str]:
        """The key `time` of a section; {} for ISO 8601."""
        if not self.column:
            return {"time": NO_TIME}
        if self.is_open:
            return {"time": FILL_IN}
        return {"time": self.ways[0]} if self.ways[0] else {}

    def question(self, values: Sequence[str]) -> list[str]:
        """Lines for a person who has to say how `values` are written; [] if that is known."""
        example = next(filter(None, values), "")
        if not self.is_open:
            return []
        if not self.ways:
            return [
                f"{self.column} is named like a time, but no known form fits {example!r}.",
                f"Write a format such as '%d/%m/%Y %H:%M' or a unit in place of {FILL_IN}, or none",
                "if this is no time: then rows count in the order of the file.",
            ]
        days = ({way: _day(value, way) for way in self.ways} for value in values if value)
        both = zip(filter(None, values), days, strict=False)
        example, day = next(
            ((value, day) for value, day in both if len(set(day.values())) > 1),
            (example, {way: _day(example, way) for way in self.ways}),
        )
        return [
            f"{example!r} has more than one meaning. Write one of these in place of {FILL_IN}:",
            *(f"  '{way}' if it is {day[way]}" for way in self.ways),
        ]


NOWHERE = When("", ())


def _day(value: str, way: str) -> str:
    return datetime.strptime(value, way).date().isoformat()


def find_time(columns: Mapping[str, Sequence[str]], has_header: bool, first: str = "") -> When:
    """The column of times; NOWHERE if there is none.

    Columns that can be read come before those that are only named like a time, and among those of
    a time's name the one with the fewest empty values.

    Args:
      columns: name -> values.
      first: columns whose names begin so come before the others.
    """

    def order(name: str) -> tuple[bool, bool, bool, int]:
        is_first = bool(first) and name.startswith(first)
        empty = columns[name].count("")
        return not is_first, has_word(name, _LIFE), not has_word(name, _NAMES), empty

    named = NOWHERE
    for name in sorted(columns, key=order):
        ways = ways_of(name, columns[name], has_header)
        if len(ways) > 1:
            ways = _as_beside(ways, [columns[other] for other in columns if other != name])
        if ways:
            return _finer(When(name, ways), columns, has_header)
        is_named = has_header and has_word(name, _NAMES) and not has_word(name, _LIFE)
        if is_named and any(columns[name]) and named is NOWHERE:
            named = When(name, ())
    return named


def _finer(when: When, columns: Mapping[str, Sequence[str]], has_header: bool) -> When:
    """The column with the clock of the same time, such as event_timestamp beside event_date."""
    if not has_header or _has_clock(columns[when.column]):
        return when
    for name, values in columns.items():
        is_same = name != when.column and words(name)[:-1] == words(when.column)[:-1]
        if is_same and "" not in values and has_word(name, _NAMES) and _has_clock(values):
            ways = ways_of(name, values, True)
            if len(ways) == 1:
                return When(name, ways)
    return when


def _has_clock(values: Sequence[str]) -> bool:
    """Whether values are more than days: a clock, or a number of seconds or less."""
    given = next(filter(None, values), "")
    return ":" in given or (given.isdigit() and len(given) > len("20240501"))


def decided(when: When, values: Iterable[str]) -> When:
    """`when` without the ways that do not fit one of `values`.

    A value that fits none of them is ignored here; the preparation names it.
    """
    ways, seen = when.ways, {""}
    for value in values:
        if len(ways) < 2:
            break
        if value not in seen:
            seen.add(value)
            ways = tuple(way for way in ways if fits(way, value)) or ways
    return When(when.column, ways)


def ways_of(name: str, values: Sequence[str], has_name: bool) -> tuple[str, ...]:
    """Each way in which the values of a column may be times, as in When; () if they are none.

    Numbers need a name that says so, if the file has names.
    """
    given = list(dict.fromkeys(value for value in values if value))
    if not given:
        return ()
    numbers = [to_number(value) for value in given]
    if all(number is not None for number in numbers):
        is_named = not has_name or has_word(name, _NAMES)
        return _ways_of_numbers(name, given, numbers) if is_named else ()
    try:
        for value in given:
            unix_time(value, name)
        return ("",)
    except ValueError:
        return _forms_of(given)


def _ways_of_numbers(name: str, given: Sequence[str], numbers: Sequence[float]) -> tuple[str, ...]:
    for unit, (smallest, largest) in _SIZES.items():
        if all(smallest <= number <= largest for number in numbers):
            return (unit,)
    if all(re.fullmatch(r"(19|20)\d\d[01]\d[0-3]\d", value) for value in given):
        return ("",)
    is_day = words(name) == ["day"] and all(0 <= number < 1e5 for number in numbers)
    return ("days",) if is_day else ()


def _forms_of(values: Sequence[str]) -> tuple[str, ...]:
    """The formats that fit all values, which are not empty."""
    first = values[0]
    if len(first) > _MAX_CHARS or not re.search(r"\d", first):
        return ()
    found = _CLOCK.fullmatch(first)
    clock = _clock_form(found) if found else ""
    forms = [day + clock for day in _DAYS] + list(_WHOLE)
    forms = [form for form in forms if fits(form, first)]
    forms = [form for form in forms if all(fits(form, value) for value in values)]
    # May is short and long.
    return tuple(form for form in forms if form.replace("%B", "%b") not in set(forms) - {form})


def _clock_form(found: re.Match[str]) -> str:
    """The format of what stands behind the day: ", 1:30 PM" -> ", %I:%M %p"."""
    gap = " " if found["gap"].isspace() else found["gap"]
    clock = "%I:%M" if found["half"] else "%H:%M"
    clock += ":%S" if found["seconds"] else ""
    clock += ".%f" if found["fraction"] else ""
    if found["half"]:
        clock += (" " if found["blank"] else "") + "%p"
    elif found["zone"] and found["blank"]:
        clock += " "
    if found["zone"]:
        clock += (" " if found["zone"].startswith(" ") else "") + "%z"
    return gap + clock


def fits(form: str, value: str) -> bool:
    """Whether `value` is a time in the format `form`."""
    try:
        datetime.strptime(value, form)
    except ValueError:
        return False
    return True


def _as_beside(ways: tuple[str, ...], others: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """`ways` in the order of day and month that another column of the file can only have."""
    orders = {way[:5] for way in ways}  # such as %d/%m
    for values in others:
        found = ways_of("", values, True)
        if len(found) == 1 and found[0][:5] in orders:
            return tuple(way for way in ways if way[:5] == found[0][:5])
    return ways


def to_number(text: str) -> float | None:
    """The number that `text` is, with a decimal point or a decimal comma; None for other texts.

    Worked example: 45413,5 -> 45413.5, but 45,413 may be a whole number with a separator: None.
    """
    if has_decimal_comma(text):
        text = text.replace(".", "").replace(",", ".")
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None


def has_decimal_comma(text: str) -> bool:
    """Whether `text` is a number with a decimal comma, such as 3,50 or 1.250,00."""
    return bool(re.search(DECIMAL_COMMA, text)) and not re.search(THOUSANDS, text)
