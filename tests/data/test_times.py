"""Tables and requests read a time by the same rules."""

from datetime import UTC, date, datetime

import ibis
import pytest

from sigma_jax.data.tables import date_seconds, unix_seconds
from sigma_jax.data.times import DAYS, FIRST, LAST, SCALES, is_unix_time, unix_time
from sigma_jax.schema import DAY

EXAMPLES = [
    (60, 60),
    ("60", 60),
    (" 60 ", 60),
    ("6e1", 60),
    (1.7, 1),
    (-1.5, -2),
    (1_600_000_000_999, 1_600_000_000),
    (1_600_000_000_000_000, 1_600_000_000),
    (1_600_000_000_000_000_000, 1_600_000_000),
    (19_700_102, DAY),
    ("19700102", DAY),
    (DAYS[0], -25_567 * DAY),
    (DAYS[1], 47_846 * DAY),
    (DAYS[1] + 1, DAYS[1] + 1),
    *((int(smallest), int(smallest / units)) for smallest, units in SCALES),
    *((-int(smallest), -int(smallest / units)) for smallest, units in SCALES),
    (FIRST, FIRST),
    (LAST, LAST),
    # As a float this is 1,700,000,001 seconds.
    (1_700_000_000_999_999_999, 1_700_000_000),
    (202_413_011_230, 202_413_011),  # there is no month 13: milliseconds
    ("1700000000999999999", 1_700_000_000),
    (-1_700_000_000_000_000_001, -1_700_000_001),
    (date(1970, 1, 2), DAY),
    (datetime(1970, 1, 2, 0, 0, 1), DAY + 1),
    (datetime(1970, 1, 1, 0, 1, 0, 900_000, tzinfo=UTC), 60),
    ("1970-01-02", DAY),
    ("1970-01-01T00:01:00", 60),
    ("1970-01-01 00:01:00.9", 60),
    ("1969-12-31 23:59:58.5", -2),
    ("1970-01-01T00:01:00Z", 60),
    ("1970-01-01 01:01:00+01:00", 60),
    ("1970-01-01 00:01Z", 60),
    ("1970-01-01 00:01", 60),
    ("1970-01-01 00:01:00 UTC", 60),
    ("1970-01-01 00:01:00,9", 60),
    ("1970-01-01 00:01:00.123456789Z", 60),
    ("1969-12-31T19:01:00-0500", 60),
    ("1970-01-01T02:01:00 +02", 60),
    ("1970/1/2", DAY),
    ("1970/01/02 0:00", DAY),
    ("19700102T000001Z", DAY + 1),
    ("1900-01-01", FIRST),
    ("2100-12-31 23:59:59", LAST),
]
NOT_TIMES = ["", "tomorrow", "12:30", "inf", "nan", float("inf"), float("nan"), "2024-02-30"]
NOT_TIMES += ["0001-01-01", "9999-12-31", FIRST - 1, LAST + 1, 10**11 - 1, datetime(9999, 1, 1)]
NOT_TIMES += ["05/01/2024", "01.05.2024", "2024-05", "2024-05-01 24:00:00", "2024-05-01 12:60"]
NOT_TIMES += [1e20, "1e300", "20240501123000123456", -(2**63), 2**64 - 1]  # more than 64 bits
NOT_TIMES += [202405011230, "202405011230", 202405011230.0]  # yyyymmddHHMM, no milliseconds
NOT_TIMES += ["infinity", "epoch", "now", "1,700,000,000", "2024-05-01 12:30:00 CEST", True]


@pytest.fixture(scope="module")
def in_table():
    """A function: the seconds that a table has for a value, alone in its column."""
    con = ibis.duckdb.connect()
    con.raw_sql("SET TimeZone = 'UTC'")

    def seconds(value):
        row = con.create_table("row", ibis.memtable({"given": [value]}), overwrite=True)
        time = ibis.coalesce(date_seconds(row["given"]), unix_seconds(row["given"]))
        return con.to_pyarrow(row.select(time=time))["time"].to_pylist()[0]

    return seconds


@pytest.mark.parametrize("value, seconds", EXAMPLES)
def test_a_table_and_a_request_read_the_same_time(in_table, value, seconds):
    assert unix_time(value, "here") == seconds
    assert in_table(value) == seconds


@pytest.mark.parametrize("value", NOT_TIMES)
def test_a_table_and_a_request_refuse_the_same_values(in_table, value):
    assert in_table(value) is None
    with pytest.raises(ValueError, match=r"^here: timestamp=.* is not a time; use ISO 8601"):
        unix_time(value, "here")


def test_a_day_that_is_not_in_the_calendar_is_no_day(in_table):
    assert in_table(20_240_230) == 20_240_230  # seconds: it is no day
    with pytest.raises(ValueError, match="timestamp=20240230 is not a time"):
        unix_time(20_240_230, "here")


@pytest.mark.parametrize("seconds", [0, 5, -5, DAYS[0] - 1, DAYS[1] + 1, 1_714_566_600, LAST])
def test_unix_seconds_are_read_as_themselves(seconds):
    assert is_unix_time(seconds) and unix_time(seconds, "here") == seconds


@pytest.mark.parametrize("seconds", [20_240_501, 20_241_399, LAST + 1, 17_145_666_000, 10**12])
def test_days_and_other_units_are_no_unix_seconds(seconds):
    assert not is_unix_time(seconds)
