"""Times in unix seconds, UTC. The same rules hold for tables (Ibis) and for requests (Python).

| given | example | read as |
|---|---|---|
| ISO 8601, a date or a timestamp | 2024-05-01 12:30:00 | that time; UTC where it names no zone |
| the same with `/`, without seconds, without `-` and `:` | 2024/5/1 12:30 | that time |
| number below 1e11, or its text | 1714566600 | seconds (1e11 seconds is the year 5138) |
| number from 1e11, 1e14, 1e17 | 1714566600000 | milliseconds, microseconds, nanoseconds |
| whole number in DAYS | 20240501 | that day, from 00:00 |
| whole number in MINUTES | 202405011230 | refused: in milliseconds it would be a time of 1976 |

Zones are Z, UTC, GMT and offsets such as +02:00. Times before 1900 and after 2100 are refused: they
stand for "no time" or have another unit. Fractions of a second are dropped. `data/tables.py` reads
a column of days as seconds if the column holds other numbers too; it also reads a text column of
years (2024) as the first days of the years.
"""

from __future__ import annotations

import decimal
import math
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

DAYS = (19_000_101, 21_001_231)  # yyyymmdd: the first and the last number that is a day
YEARS = (1_900, 2_100)
MINUTES = (190_001_010_000, 210_012_312_359)  # yyyymmddHHMM: the same of minutes
LARGEST = 9 * 10**18  # no larger number is a time in any unit; it fits 64 bits with room to spare
# (smallest size, units in a second) of nanoseconds, microseconds and milliseconds, largest first.
SCALES = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
FIRST, LAST = -2_208_988_800, 4_133_980_799  # 1900-01-01 to 2100-12-31, in unix seconds
NOT_A_TIME = "is not a time; use ISO 8601 (2024-05-01 12:30:00) or unix seconds, from 1900 to 2100"
# Texts of times: year, month, day, hour, minute, second, fraction, zone. Other forms are refused:
# 05/01/2024 is a day in May or in January. The pattern is read by Python and by RE2.
_ZONE = r" ?([Zz]|UTC|GMT|[+-][0-9]{2}(?::?[0-9]{2})?)?"
ISO = (
    r"([0-9]{4})[-/]([0-9]{1,2})[-/]([0-9]{1,2})"
    r"(?:[Tt ]([0-9]{1,2}):([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]+))?)?)?" + _ZONE
)
BASIC_ISO = (
    r"([0-9]{4})([0-9]{2})([0-9]{2})"
    r"[Tt]([0-9]{2})([0-9]{2})(?:([0-9]{2})(?:[.,]([0-9]+))?)?" + _ZONE
)


def unix_time(value: Any, where: str) -> int:
    """Unix seconds of a number, a date or a text.

    Args:
      value: int, float, Decimal, date, datetime, or a text of one of these.
      where: the place of `value`, such as file and row; the error begins with it.

    Raises:
      ValueError: `value` is not a time.
    """
    try:
        return _seconds(_parsed(value.strip()) if isinstance(value, str) else value)
    except (ValueError, TypeError, OverflowError, AttributeError):
        raise ValueError(f"{where}: timestamp={value!r} {NOT_A_TIME}.") from None


def is_unix_time(seconds: int) -> bool:
    """Whether `unix_time` reads a number as unix seconds, and not as a day or another unit."""
    is_day = DAYS[0] <= seconds <= DAYS[1]
    return FIRST <= seconds <= LAST and not is_day


def _parsed(text: str) -> int | float | datetime:
    for form in (ISO, BASIC_ISO):
        if match := re.fullmatch(form, text):
            return _iso_time(match.groups())
    try:
        return int(text)
    except ValueError:
        return float(text)


def _iso_time(groups: Sequence[str | None]) -> datetime:
    """The time of the groups of ISO. ValueError if there is no such day or hour."""
    year, month, day, hour, minute, second = (int(group or 0) for group in groups[:6])
    zone, offset = groups[7] or "Z", timedelta()
    if zone[0] in "+-":
        offset = timedelta(hours=int(zone[1:3]), minutes=int(zone[3:].strip(":") or 0))
        offset = -offset if zone[0] == "-" else offset
    return datetime(year, month, day, hour, minute, second, tzinfo=timezone(offset))


def _seconds(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, int | float | decimal.Decimal):
        number = math.floor(value)  # a float would round nanoseconds to a multiple of 256
        if not (DAYS[0] <= number <= DAYS[1] and value == number):
            if _is_minute(number):
                raise ValueError
            scales = (int(units) for smallest, units in SCALES if abs(number) >= smallest)
            return _in_range(number // next(scales, 1))
        value = datetime.strptime(str(number), "%Y%m%d")
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    aware = value if value.tzinfo else value.replace(tzinfo=UTC)
    return _in_range((aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1))


def _is_minute(number: int) -> bool:
    """Whether a number reads as yyyymmddHHMM."""
    month, day = number // 1_000_000 % 100, number // 10_000 % 100
    is_clock = number // 100 % 100 < 24 and number % 100 < 60
    return MINUTES[0] <= number <= MINUTES[1] and 1 <= month <= 12 and 1 <= day <= 31 and is_clock


def _in_range(seconds: int) -> int:
    if not FIRST <= seconds <= LAST:
        raise ValueError
    return seconds
