"""Columns of times: their forms are found by all values, and what cannot be known is asked."""

import pytest

from sigma_jax.data.mapping.when import NOWHERE, When, decided, find_time, to_number, ways_of


@pytest.mark.parametrize(
    ("name", "values", "ways"),
    [
        ("timestamp", ["1609459200", ""], ("seconds",)),
        ("ts", ["1609459200278"], ("milliseconds",)),
        ("t_dat", ["2021-01-01"], ("",)),
        ("created_at", ["20210101"], ("",)),
        ("date", ["13/01/2021", "02/01/2021"], ("%d/%m/%Y",)),
        ("date", ["01/13/2021"], ("%m/%d/%Y",)),
        ("date", ["05/01/2021"], ("%d/%m/%Y", "%m/%d/%Y")),
        ("date", ["05-01-21"], ("%d-%m-%y", "%m-%d-%y")),
        ("date", ["25/01/21 7:05"], ("%d/%m/%y %H:%M",)),
        ("date", ["1/25/2021 7:05:09 pm", "1/2/2021 12:05:09 AM"], ("%m/%d/%Y %I:%M:%S %p",)),
        ("date", ["2021-05-01 01:30PM"], ("%Y-%m-%d %I:%M%p",)),
        ("date", ["01.02.2021, 10:00"], ("%d.%m.%Y, %H:%M",)),
        ("date", ["1.2.2021T10:00:00.250"], ("%d.%m.%YT%H:%M:%S.%f",)),
        ("date", ["1 May 2021", "2 Jun 2021"], ("%d %b %Y",)),
        ("date", ["1 May 2021", "2 June 2021"], ("%d %B %Y",)),
        ("date", ["2-MAY-21"], ("%d-%b-%y",)),
        ("date", ["25/01/2021 7:05 +02:00"], ("%d/%m/%Y %H:%M %z",)),
        ("date", ["1/25/2021 7:05 AM -0800"], ("%m/%d/%Y %I:%M %p %z",)),
        ("date", ["Tue Nov 17 11:37:35 -0800 2015"], ("%a %b %d %H:%M:%S %z %Y",)),
        ("date", ["25/01/2021", "soon"], ()),
        ("date", ["45413.5", "45414"], ("spreadsheet_days",)),
        ("date", ["45413,5", "45414"], ("spreadsheet_days",)),
        ("price", ["45413.5"], ()),
        ("DAY", ["1", "711"], ("days",)),
        ("price", ["1609459200"], ()),
        ("title", ["Rain"], ()),
        ("time", [""], ()),
    ],
)
def test_every_way_that_fits_all_values_is_found(name, values, ways):
    assert ways_of(name, values, True) == ways


def test_other_rows_and_other_columns_decide_between_day_and_month():
    both = ["05/01/2021", "06/02/2021"]
    open_question = find_time({"date": both}, True)
    assert open_question.is_open and open_question.key == {"time": "FILL_IN"}
    assert decided(open_question, ["", "07/02/2021", "no time", "12/25/2021"]).ways == ("%m/%d/%Y",)
    assert decided(open_question, both).is_open
    beside = find_time({"date": both, "shipped": ["25/01/2021 7:00", "01/02/2021 8:00"]}, True)
    assert beside == When("date", ("%d/%m/%Y",))
    assert find_time({"date": both, "shipped": ["25-01-2021", "01-02-2021"]}, True).is_open


def test_question_shows_a_value_whose_days_differ():
    lines = find_time({"date": ["05/05/2021", "05/01/2021"]}, True).question(
        ["05/05/2021", "05/01/2021"]
    )
    assert "'05/01/2021' has more than one meaning" in lines[0]
    assert "'%d/%m/%Y' if it is 2021-01-05" in lines[1]
    assert "'%m/%d/%Y' if it is 2021-05-01" in lines[2]


def test_full_columns_of_the_log_come_before_others():
    day, empty = ["2021-01-01", "2021-01-02"], ["2021-01-01", ""]
    columns = {"birth_date": day, "Paid at": empty, "made": day, "ts": day}
    assert find_time(columns, True).column == "ts"
    assert find_time({"Order Date": ["1. Mai", "2. Mai"], "made": day}, True).column == "made"
    clock = ["1714566600000000", "1714566600000001"]
    assert find_time({"event_date": day, "event_timestamp": clock}, True).column == (
        "event_timestamp"
    )
    assert find_time({"order_date": day, "changed_at": clock}, True).column == "order_date"
    assert find_time({"birthday": ["1. Mai"], "title": ["a"]}, True) == NOWHERE
    unknown = find_time({"Order Date": ["1. Mai", "2. Mai"]}, True)
    assert unknown == When("Order Date", ()) and unknown.key == {"time": "FILL_IN"}
    assert NOWHERE.key == {"time": "none"}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3,50", 3.5),
        ("1.250,5", 1250.5),
        ("-0,5", -0.5),
        ("3.5", 3.5),
        ("45,413", None),
        ("a", None),
    ],
)
def test_numbers_may_have_a_decimal_comma(text, number):
    assert to_number(text) == number
