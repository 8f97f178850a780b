"""Expressions whose result is the same in every engine.

Engines differ in blanks, in patterns, in the text of numbers and in JSON. The rest of the package
uses these expressions for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import ibis
import ibis.expr.types as ir

Edge = TypeVar("Edge")
# Ibis would write these characters into a literal, where Spark reads \v and \f as v and f.
_BLANK = r"[\s\x0b]"
BYTE_ORDER_MARK = "\ufeff"
# Characters of a pattern's class that are not seen, or look like a plain blank.
INVISIBLE = "\u00a0\u00ad\u2007\u200b-\u200f\u202f\u2060\ufeff"
PLAIN = (1e-3, 1e7)  # from .. to: numbers that all engines write without an exponent
WHOLE = 1e15  # whole numbers below it are exact


def trimmed(text: ir.StringValue) -> ir.StringValue:
    """`text` without blanks at its ends."""
    return text.re_replace(f"^{_BLANK}+|{_BLANK}+$", "")


def one_line(text: ir.StringValue) -> ir.StringValue:
    """`text` without blanks at its ends, with one space for other runs of blanks."""
    return trimmed(text).re_replace(f"{_BLANK}+", " ")


def visible(text: ir.StringValue) -> ir.StringValue:
    """`text` without hidden characters, and without blanks at its ends."""
    return trimmed(text.re_replace(f"[{INVISIBLE}]", ""))


def floor_divided(number: ir.IntegerValue, units: int) -> ir.FloatingValue:
    """number / units, rounded down: whole, and exact where a float of `number` would be rounded."""
    # Without its rest the number divides without a fraction; Ibis divides in floats.
    rest = ((number % units) + units) % units
    return ((number - rest) / units).round()


def is_blank(text: ir.StringValue) -> ir.BooleanValue:
    """Whether `text` has no character but blanks."""
    return ~text.re_search(r"[^\s\x0b]")


def last_level(path: ir.StringValue, separator: str) -> ir.StringValue:
    """The last level of a category path.

    Levels without a name at the end do not count.

    Worked example: separator " > ": Home > Tea -> Tea, Home > Tea > -> Tea.
    """
    if not separator:
        return path
    if separator.strip():  # "Home > Tea > " ends with Tea
        path = path.re_replace(f"({_BLANK}*{_literal(separator.strip())}{_BLANK}*)+$", "")
    # Not a split: Spark takes a separator as a pattern, so that "|" would split everywhere.
    return path.re_replace(f"(?s)^.*{_literal(separator)}", "")


# A quoted text of a list in JSON, or as Python prints it. Texts with escapes are left alone.
_QUOTED = """("[^"\\\\]*"|'[^'"\\\\]*')"""
_QUOTED_LIST = rf"\[{_QUOTED}( ?, ?{_QUOTED})*\]"


def is_list(text: ir.StringValue) -> ir.BooleanValue:
    """Whether `text` is a list of texts, or of such lists, as JSON or Python prints it."""
    return text.re_search(rf"^({_QUOTED_LIST}|\[{_QUOTED_LIST}( ?, ?{_QUOTED_LIST})*\])$")


def joined_list(text: ir.StringValue, separator: str) -> ir.StringValue:
    """The texts of a list in a text, joined; of several lists the first. Other texts as they are.

    Worked examples: separator " > ": ["Home", "Tea"] -> Home > Tea. [['Home'], ['Gifts']] -> Home.
    """
    first = text.re_extract(rf"^\[?({_QUOTED_LIST})", 1)
    names = first.substr(2, first.length() - 4)
    names = names.re_replace("""["'] ?, ?["']""", '","')
    return is_list(text).ifelse(names.replace('","', separator), text)


def _literal(text: str) -> str:
    """A pattern that matches `text`, without escapes of letters."""
    return "".join(f"[{c}]" if c in "|.*+?(){}$-" else re.escape(c) for c in text)


def last_edge(
    edges: Sequence[Edge], is_before: Callable[[Edge], ir.BooleanValue]
) -> ir.IntegerValue:
    """The number of the last of the ascending `edges` that is not after the row; -1: none is.

    Worked example: edges [10, 20], is_before(edge) = time < edge. Time 9 gives -1, 10 gives 0 and
    25 gives 1.

    Args:
      is_before: whether the row comes before an edge.
    """

    def search(first: int, end: int) -> ir.IntegerValue:  # a binary search, as one expression
        if first == end:
            return ibis.literal(first - 1, "int32")
        middle = (first + end) // 2
        return is_before(edges[middle]).ifelse(search(first, middle), search(middle + 1, end))

    return search(0, len(edges))


def json_string(text: ir.StringValue) -> ir.StringValue:
    """`text` as a JSON string, quoted and escaped."""
    # {"t":"..."} without its first five characters and the last one
    whole = ibis.struct({"t": text}).cast("json").cast("string")
    return whole.substr(5, whole.length() - 6)


def text_of_number(number: ir.FloatingValue) -> ir.StringValue:
    """The decimal digits of a float: 2.5, 100.0, 0.00001. Never an exponent below 1e15."""
    size = number.abs()
    whole = number.try_cast("int64").cast("string") + ".0"
    return ibis.cases(
        ((size < WHOLE) & (number == number.floor()), whole),
        ((size >= PLAIN[0]) & (size < PLAIN[1]), number.cast("string")),
        (size < PLAIN[0], _fixed(number, 12)),
        (size < WHOLE, _fixed(number, 2)),
        else_=number.cast("string"),
    )


def _fixed(number: ir.FloatingValue, places: int) -> ir.StringValue:
    digits = number.try_cast(f"decimal(38, {places})").cast("string").re_replace("0+$", "")
    return digits.re_replace("[.]$", ".0")
