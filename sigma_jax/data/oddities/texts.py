"""Notes on columns of text, and the columns of items that say nothing in words."""

from __future__ import annotations

from collections.abc import Sequence

import ibis
import ibis.expr.types as ir

from sigma_jax.data import database
from sigma_jax.data.engines.dialect import is_list, trimmed

# Texts that programs write for "no value", in lower case.
MISSING = (
    *("nan", "null", "none", "n/a", "<na>", "nat", "undefined", "na", "nil", r"\n", "-"),
    *("(null)", "(none)", "(not set)", "(blank)"),
    *("#n/a", "#ref!", "#value!", "#name?", "#div/0!", "#num!"),  # of spreadsheets
)
# Shares of the values of a column that make it a column of addresses or of encoded bytes.
_TYPICAL, _ENCODED_CHARS = 0.9, 200
_ADDRESS = r"^\s*([a-z0-9+.-]+://\S+|www\.\S+|data:[a-z]+/\S+)\s*$"
# The pattern of a damage, and its words.
_DAMAGES = {
    "twice": ("[\u00c2\u00c3\u00e2][\u0080-\u00bf\u20ac]", "are UTF-8 that was encoded twice"),
    "lost": ("\ufffd", "hold U+FFFD, the mark of a lost character"),
    "entity": ("&(amp|lt|gt|quot|apos|nbsp|#[0-9]{2,5});", "hold signs of HTML"),
}
_REMEDIES = {
    "twice": "decode them once more",
    "lost": "export them again as UTF-8",
    "entity": "write the signs themselves",
}
# Signs between the levels of category paths; blanks around them are ignored.
_SEPARATORS = (">", "/", "|", "\u00bb", "->", "\u203a", "::")
_MOST = 0.5  # share of the paths with a sign that makes it the separator
_LIST = r"^[\[{].*[\]}]$"


def missing_words(con: ibis.BaseBackend, file: str, table: ir.Table) -> list[str]:
    """Notes on columns of text that hold words such as NULL, which are read as text."""
    names = [name for name in table.columns if table[name].type().is_string()]
    counts = {
        f"n{place}": table.count(where=trimmed(table[name]).lower().isin(MISSING))
        for place, name in enumerate(names)
    }
    if not counts:
        return []
    found = database.rows(con, table.aggregate(**counts))[0]
    return [
        f"{file}: {found[f'n{place}']} values of {name} are words such as NULL or nan, which are "
        "read as text; leave such values empty"
        for place, name in enumerate(names)
        if found[f"n{place}"]
    ]


def not_for_text(con: ibis.BaseBackend, items: ir.Table) -> dict[str, str]:
    """The columns of `items` that say nothing in words, each with the reason."""
    left_out, checked = {}, []
    for name in items.columns:
        kind = items[name].type()
        if kind.is_binary():
            left_out[name] = "holds bytes"
        elif kind.is_string() or kind.is_array():
            checked.append(name)
    counts = {}
    for place, name in enumerate(checked):
        value, kind = items[name], items[name].type()
        is_nested_list = kind.is_array() and not kind.value_type.is_string()
        if is_nested_list:
            continue
        if kind.is_array():
            value = (value.length() > 0).ifelse(value[0], ibis.null("string"))
        value = trimmed(value).nullif("")
        is_json = value.re_search(r"^[\[{]") & value.contains("://")
        counts |= {
            f"all{place}": value.count(),
            f"address{place}": items.count(where=value.lower().re_search(_ADDRESS) | is_json),
            f"encoded{place}": items.count(
                where=(value.length() >= _ENCODED_CHARS) & ~value.re_search(r"\s")
            ),
        }
    found = database.rows(con, items.aggregate(**counts))[0] if counts else {}
    for place, name in enumerate(checked):
        filled = found.get(f"all{place}", 0)
        if filled and found[f"address{place}"] >= _TYPICAL * filled:
            left_out[name] = "holds web addresses"
        elif filled and found[f"encoded{place}"] >= _TYPICAL * filled:
            left_out[name] = "holds encoded bytes"
    return left_out


def damaged_texts(con: ibis.BaseBackend, file: str, table: ir.Table) -> list[str]:
    """Notes on columns of text that were decoded wrongly, or hold signs of HTML."""
    names = [name for name in table.columns if table[name].type().is_string()]
    counts = {}
    for place, name in enumerate(names):
        for damage, (pattern, _) in _DAMAGES.items():
            is_so = table[name].re_search(pattern)
            counts[f"{damage}{place}"] = table.count(where=is_so)
            counts[f"{damage}{place}_example"] = table[name].min(where=is_so)
    found = database.rows(con, table.aggregate(**counts))[0] if counts else {}
    return [
        f"{file}: {found[f'{damage}{place}']} values of {name} {words}, such as "
        f"{found[f'{damage}{place}_example'][:60]!r}; {_REMEDIES[damage]}"
        for place, name in enumerate(names)
        for damage, (_, words) in _DAMAGES.items()
        if found[f"{damage}{place}"]
    ]


def separator_notes(
    con: ibis.BaseBackend, file: str, items: ir.Table, columns: Sequence[str], separator: str
) -> list[str]:
    """Notes on category paths (text) that have another separator, or are lists in no known form."""
    notes = []
    for name in columns:
        path = trimmed(items[name]).nullif("")
        is_other = ~path.contains(separator) if separator else path.notnull()
        signs = [sign for sign in _SEPARATORS if sign != separator]
        found = {f"n{place}": is_other & path.contains(sign) for place, sign in enumerate(signs)}
        found["lists"] = path.re_search(_LIST) & ~is_list(path)
        counts = {key: items.count(where=is_so) for key, is_so in found.items()}
        counts |= {f"{key}_example": path.min(where=is_so) for key, is_so in found.items()}
        row = database.rows(con, items.aggregate(total=path.count(), **counts))[0]
        if row["lists"]:
            notes.append(
                f"{file}: {row['lists']} values of {name} look like lists, such as "
                f"{row['lists_example'][:60]!r}, and are read as one name; write lists of "
                'quoted texts, such as ["Home", "Tea"]'
            )
        best = max(range(len(signs)), key=lambda place: (row[f"n{place}"], len(signs[place])))
        if not row["lists"] and row[f"n{best}"] > _MOST * row["total"]:
            notes.append(
                f"{file}: {row[f'n{best}']} of {row['total']} values of {name} have "
                f"{signs[best]!r}, such as {row[f'n{best}_example'][:60]!r}; if it stands between "
                f"levels, set --config.data.text.category_separator={signs[best]!r}"
            )
    return notes
