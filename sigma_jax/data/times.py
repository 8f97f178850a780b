"""Times in unix seconds, UTC. The same rules hold for tables (Ibis) and for requests (Python).

| given | example | read as |
|---|---|---|
| ISO 8601, a date or a timestamp | 2024-05-01 12:30:00 | that time; UTC where it names no zone |
| number below 1e11, or its text | 1714566600 | seconds (1e11 seconds is the year 5138) |
| number from 1e11, 1e14, 1e17 | 1714566600000 | milliseconds, microseconds, nanoseconds |
| whole number in DAYS | 20240501 | that day, from 00:00 |

Fractions of a second are dropped. `data/tables.py` reads a column of days as seconds if the column
holds other numbers too; it also reads a text column of years (2024) as the first days of the years.
"""

from __future__ import annotations

import decimal
import math
from datetime import UTC, date, datetime
from typing import Any

DAYS = (19_000_101, 21_001_231)  # yyyymmdd: the first and the last number that is a day
YEARS = (1_900, 2_100)
# (smallest size, units in a second) of nanoseconds, microseconds and milliseconds, largest first.
SCALES = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
NOT_A_TIME = "is not a time; use ISO 8601 (2024-05-01 12:30:00) or unix seconds"


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


def _parsed(text: str) -> float | datetime:
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text)


def _seconds(value: Any) -> int:
    if isinstance(value, int | float | decimal.Decimal):
        number = float(value)
        if not (DAYS[0] <= number <= DAYS[1] and number == int(number)):
            scales = (units for smallest, units in SCALES if abs(number) >= smallest)
            return math.floor(number / next(scales, 1))
        value = datetime.strptime(str(int(number)), "%Y%m%d")
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    return math.floor((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp())
