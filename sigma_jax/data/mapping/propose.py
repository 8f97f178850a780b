"""Proposes a mapping for foreign files: which file is which table, and which column is which."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sigma_jax.data.mapping import roles
from sigma_jax.data.mapping.log import Log, files_with_key, find_log, is_named, is_same, users_file
from sigma_jax.data.mapping.look import LIST, FileLook, is_number, many_values
from sigma_jax.data.mapping.roles import is_id_of, is_unique
from sigma_jax.data.mapping.spec import ANY
from sigma_jax.data.mapping.when import When, decided, find_time, has_decimal_comma, to_number

MAX_PROPERTIES = 8  # of a long table that a proposal takes
_LONG_TEXT = 200  # characters; a column of longer values is no profile
_TITLES = ("title", "name")
_SORTABLE = ("", "seconds", "milliseconds", "microseconds", "nanoseconds")  # without a key `time`
# Words of columns that describe an item, where only the log tells the items.
_DESCRIBING = frozenset(
    "title description desc brand vendor manufacturer colour color genre".split()
)
_STEADY = 0.9  # share of the items whose rows agree on a column that describes them


@dataclasses.dataclass(frozen=True)
class Proposal:
    """The section of one table, and what a person needs to check it."""

    look: FileLook
    section: dict[str, Any]  # as in a mapping file
    samples: dict[str, list[str]]  # our name of a column -> some of its values
    unused: list[str]  # columns of the file that the section leaves out
    # Key of the section -> lines about it for a person; of an open question, what to write there.
    comments: dict[str, list[str]]


def propose(looks: Sequence[FileLook]) -> dict[str, Proposal]:
    """Table -> its proposed section; items and interactions, and users if they are found.

    Raises:
      ValueError: no file looks like a log of users and items.
    """
    log = find_log(looks)
    others = [look for look in looks if look is not log.look]
    items = _entity(others, log.item, roles.ITEM)
    if items is None:
        proposed_items = _items_of_log(log)
    else:
        proposed_items = _items(*items, [look for look in others if look is not items[0]])
        others.remove(items[0])
    proposals = {"items": proposed_items, "interactions": _interactions(log, looks)}
    others = [look for look in others if not any(map(roles.is_gap, look.columns))]
    users = _entity(others, log.user, roles.USER)
    is_person = users is not None and (not log.is_by_session or is_same(users[1], log.user))
    if users is not None and is_person and is_unique(users[0].columns[users[1]]):
        proposals["users"] = _users(*users)
    return proposals


def _entity(
    looks: Sequence[FileLook], key: str, kind: frozenset[str]
) -> tuple[FileLook, str] | None:
    """The file of items or users and its column of ids; None if there is none."""
    best, found = (), None
    for look in looks:
        own = _key(look, key, kind)
        if own is None:
            continue
        is_usable = is_unique(look.columns[own]) or bool(_long_columns(look))
        score = (
            is_usable,
            is_same(own, key),
            any(_is_title(name) for name in look.columns),
            is_named(look, kind),
            len(look.columns),
        )
        if score > best:
            best, found = score, (look, own)
    return found


def _key(look: FileLook, key: str, kind: frozenset[str]) -> str | None:
    """The column of ids in a file of items or users; None if it is no such file."""
    has_name = is_named(look, kind)
    if not look.has_header:
        first = next(iter(look.columns), None)
        return first if first and has_name and is_unique(look.columns[first]) else None
    found = [name for name in look.columns if is_same(name, key) and key]
    found += [name for name in look.columns if is_id_of(name, kind)]
    if has_name:
        found += [name for name in look.columns if look.plain_name(name).lower() == "id"]
    return min(found, key=lambda name: not is_unique(look.columns[name]), default=None)


def _is_title(name: str) -> bool:
    found = roles.words(name)
    return bool(found) and found[-1] in ("title", "name") and not {"type", "group"} & set(found)


def _long_columns(look: FileLook) -> dict[str, str] | None:
    """name, value and latest of a pivot, if each row of the file holds one property."""
    names = [name for name in look.columns if roles.has_word(name, ("property", "attribute"))]
    values = [name for name in look.columns if roles.words(name) == ["value"]]
    if not names or not values:
        return None
    when = find_time(look.columns, True)
    has_times = when.ways and when.ways[0] in _SORTABLE
    latest = {"latest": when.column} if has_times else {}
    return {"name": names[0], "value": values[0], **latest}


def _opening(look: FileLook, names: dict[str, str] | None = None) -> dict[str, Any]:
    """The keys that open the files of `look`.

    Args:
      names: column -> name, of a file without a header.
    """
    keys: dict[str, Any] = {"file": look.file}
    if look.kind == "text" and look.delimiter != ",":
        keys["delimiter"] = look.delimiter
    if look.encoding != "utf-8":
        keys["encoding"] = look.encoding
    if not look.has_header:
        keys["header"] = [(names or {}).get(name, name) for name in look.columns]
    return keys


def _exploded(explode: tuple[str, ...]) -> dict[str, Any]:
    """The key `explode` of a section: the lists around its rows."""
    if not explode:
        return {}
    return {"explode": explode[0] if len(explode) == 1 else list(explode)}


def _kept(names: Sequence[str], columns: dict[str, list[str]]) -> tuple[dict[str, Any], list[str]]:
    """The key `keep` for ids that are empty in some rows, and a line about each for a person."""
    counts = {name: columns[name].count("") for name in names if "" in columns.get(name, ())}
    if not counts:
        return {}, []
    lines = [
        f"{count} of the first {len(columns[name])} rows have no {name}: rows without it are left "
        "out"
        for name, count in counts.items()
    ]
    return {"keep": dict.fromkeys(counts, ANY)}, lines


def _with_decimal_commas(
    taken: dict[str, str | list[str]], columns: dict[str, list[str]]
) -> dict[str, Any]:
    """The key `decimal_comma` for columns of numbers such as 3,50."""
    found = []
    for ours, theirs in taken.items():
        given = list(filter(None, columns[theirs])) if isinstance(theirs, str) else []
        is_number = all(to_number(value) is not None for value in given)
        if is_number and any(map(has_decimal_comma, given)) and ours != "timestamp":
            found.append(ours)
    return {"decimal_comma": found} if found else {}


def _proposal(
    look: FileLook,
    columns: dict[str, list[str]],
    taken: dict[str, str | list[str]],
    before: dict[str, Any],
    after: dict[str, Any],
    comments: dict[str, list[str]] | None = None,
) -> Proposal:
    """The proposal of a section.

    Args:
      look: the files.
      columns: column -> its values.
      taken: our name -> column or columns.
      before: keys that stand before columns.
      after: keys that stand after them.
      comments: as in Proposal.
    """
    samples = {}
    for ours, theirs in taken.items():
        values = columns[theirs if isinstance(theirs, str) else theirs[0]]
        samples[ours] = list(dict.fromkeys(value for value in values if value))[:3]
    used = {name for part in taken.values() for name in ([part] if isinstance(part, str) else part)}
    explode = before.get("explode", [])
    used |= set(explode if isinstance(explode, list) else [explode])
    unused = [name for name in (*look.columns, *look.nested) if name not in used]
    after = after | _with_decimal_commas(taken, columns)
    names: dict[str, str] = {}
    if not look.has_header:  # our names go into the header; a column with two has the first
        for ours, theirs in taken.items():
            names.setdefault(str(theirs), ours)
        taken = {ours: names[str(theirs)] for ours, theirs in taken.items()}
    section = _opening(look, names) | before | {"columns": taken} | after
    return Proposal(look, section, samples, unused, comments or {})


def _text_columns(look: FileLook, key: str) -> dict[str, str]:
    """The columns of items that become their text, by our names, the title first."""
    taken: dict[str, str] = {}
    usable = [
        name
        for name, values in look.columns.items()
        if name != key
        and "." not in look.plain_name(name)
        and any(values)
        and not any(value.startswith(("http://", "https://")) for value in values)
    ]
    titles = sorted(
        filter(_is_title, usable), key=lambda name: look.plain_name(name).lower() not in _TITLES
    )
    if not look.has_header:
        texts = [name for name in usable if not any(map(is_number, look.columns[name]))]
        titles = texts[:1]
    if titles:
        taken["title"] = titles[0]
    for name in usable:
        if name not in titles[:1]:
            taken[look.plain_name(name)] = name
    return taken


def _with_category(
    taken: dict[str, Any], columns: dict[str, list[str]]
) -> dict[str, str | list[str]]:
    """`taken` with the columns of the category as one path, from few values to many."""
    names = [name for name in taken.values() if _is_category(name, columns, roles.CATEGORY)]
    if not names:
        groups = (name for name in taken.values() if _is_category(name, columns, roles.GROUP))
        names = [name for name in groups if _is_shared(columns[name])][:1]
    if not names:
        return taken
    exact = [name for name in names if roles.words(name) in (["categories"], ["category"])]
    names = exact[:1] or sorted(names, key=lambda name: (len(set(columns[name])), name))
    rest = {ours: theirs for ours, theirs in taken.items() if theirs not in names}
    path = names[0] if len(names) == 1 else names
    first = {ours: rest.pop(ours) for ours in ("item_id", "title") if ours in rest}
    return first | {"category": path} | rest


def _is_category(name: str, columns: dict[str, list[str]], kind: frozenset[str]) -> bool:
    """Whether a column's name has a word of `kind`, and its values are no ids and no tags."""
    return roles.has_word(name, kind) and not roles.is_id(name) and not _are_tags(columns[name])


def _is_shared(values: Sequence[str]) -> bool:
    """Whether values are texts that most rows have in common with others: groups of items."""
    given = list(filter(None, values))
    return 1 < len(set(given)) <= 0.5 * len(given) and not all(map(is_number, given))


def _are_tags(values: Sequence[str]) -> bool:
    """Whether most values are several words of a text, such as "Bars, Food": no path of a tree."""
    given = set(filter(None, values))
    tags = [text for text in given if ", " in text or ("|" in text and LIST not in text)]
    return len(tags) > 0.5 * len(given)


def _items(look: FileLook, key: str, others: Sequence[FileLook]) -> Proposal:
    long = _long_columns(look)
    if long and not is_unique(look.columns[key]):
        return _items_of_properties(look, key, long)
    columns = dict(look.columns)
    taken: dict[str, str | list[str]] = {"item_id": key, **_text_columns(look, key)}
    joins = []
    for name in look.columns:
        if name == key or not (look.has_header and roles.is_id(name)):
            continue
        for other in files_with_key(name, others, look):
            if name not in other.columns or set(other.columns) & set(columns) != {name}:
                continue
            joins.append({**_opening(other), "by": name})
            columns |= other.columns
            taken |= {added: added for added in other.columns if added != name}
            taken.pop(name, None)  # the number of what is joined now
            break
    before = _exploded((look.wrapper,) if look.wrapper else ())
    before |= {"join": joins} if joins else {}
    kept, lines = _kept([key], look.columns)
    given = [value for value in look.columns[key] if value]
    after = {} if len(set(given)) == len(given) else {"distinct": True}
    taken = _with_category(taken, columns)
    return _proposal(look, columns, taken, before | kept, after, {"keep": lines})


def _items_of_properties(look: FileLook, key: str, long: dict[str, str]) -> Proposal:
    """Items from rows of one property each: the properties that most rows have, and categories."""
    counts = Counter(look.columns[long["name"]])
    names = [name for name, _ in counts.most_common(MAX_PROPERTIES)]
    names += [name for name in counts if roles.has_word(name, roles.CATEGORY)]
    columns = {key: look.columns[key]}
    pairs = list(zip(look.columns[long["name"]], look.columns[long["value"]], strict=True))
    for name in dict.fromkeys(names):
        columns[name] = [value for owner, value in pairs if owner == name]
    taken: dict[str, str | list[str]] = {"item_id": key}
    taken |= {
        "category" if roles.has_word(name, roles.CATEGORY) else name: name
        for name in dict.fromkeys(names)
    }
    return _proposal(look, columns, taken, {"pivot": {"key": key, **long}}, {})


def _items_of_log(log: Log) -> Proposal:
    """Items that are known from the log alone: the columns that describe them."""
    values = log.columns[log.item]
    taken: dict[str, str | list[str]] = {"item_id": log.item}
    names = _describing(log)
    titles = [name for name in names if _is_title(name)]
    titles += [name for name in names if roles.has_word(name, ("description", "desc"))]
    if titles:
        taken["title"] = titles[0]
    elif not all(map(is_number, filter(None, values))):
        taken["title"] = log.item
    for name in names:
        if name not in taken.values():
            taken[name.rpartition(".")[2]] = name
    kept, lines = _kept([log.item], log.columns)
    before = _exploded(log.explode) | kept
    taken = _with_category(taken, log.columns)
    return _proposal(log.look, log.columns, taken, before, {"distinct": True}, {"keep": lines})


def _describing(log: Log) -> list[str]:
    """The columns of a log that describe its items: by their names, and steady for each item."""
    inner = f"{log.explode[-1]}." if log.explode else ""
    items = log.columns[log.item]
    found = []
    for name, values in log.columns.items() if log.look.has_header else ():
        plain = name.removeprefix(inner)
        is_near = name.startswith(inner) and "." not in plain and name != log.item and any(values)
        is_named = roles.has_word(name, _DESCRIBING | roles.CATEGORY) and not roles.is_id(name)
        is_named |= roles.is_name_of(name, roles.ITEM) or (bool(inner) and plain in _TITLES)
        if is_near and is_named and _is_steady(items, values):
            found.append(name)
    return found


def _is_steady(items: Sequence[str], values: Sequence[str]) -> bool:
    """Whether most items have one value in all their rows."""
    seen: dict[str, set[str]] = {}
    for item, value in zip(items, values, strict=False):
        seen.setdefault(item, set()).add(value)
    steady = sum(len(part - {""}) < 2 for part in seen.values())
    return len(items) != len(values) or steady >= _STEADY * len(seen)


def _interactions(log: Log, looks: Sequence[FileLook]) -> Proposal:
    columns, when, user = dict(log.columns), log.when, log.user
    needed = [user, log.item, when.column if when.ways else ""]
    kept, lines = _kept([name for name in needed if name], columns)
    before: dict[str, Any] = _exploded(log.explode) | kept
    if not user:
        look, user, key = users_file(log, looks)
        part: dict[str, Any] = {**_opening(look), "by": key}
        gap = next(filter(roles.is_gap, look.columns), "")
        order = next((name for name in look.columns if roles.words(name)[-1:] == ["number"]), "")
        columns |= {user: look.columns[user]}
        if not when.ways and gap and order:
            part["elapsed"] = {"user": user, "order": order, "gap": gap, "unit": "days"}
            when, columns["elapsed"] = When("elapsed", ("",)), look.columns[gap]
        elif not when.ways:
            found = find_time(look.columns, True)
            when = found if found.ways or not when.column else when
            columns |= {when.column: look.columns[when.column]} if when is found else {}
        part["columns"] = {user: user}
        if when is not log.when and when.column:
            part["columns"][when.column] = when.column
        before["join"] = [part]
    if len(when.ways) > 1 and when is log.when:
        when = decided(when, many_values(log.look, when.column))
    taken: dict[str, str | list[str]] = {"user_id": user, "item_id": log.item}
    if when.column:
        taken["timestamp"] = when.column
    for ours, name in _events_and_sessions(log, columns).items():
        if name not in taken.values():
            taken[ours] = name
    if log.is_by_session:
        note = f"No column of users is known by its name, so each {user} counts as a user."
        comments = {"columns": [note]}
    else:
        comments = {}
    comments |= {"keep": lines, "time": when.question(columns.get(when.column, ()))}
    return _proposal(log.look, columns, taken, before, when.key, comments)


def _events_and_sessions(log: Log, columns: dict[str, list[str]]) -> dict[str, str]:
    found = {}
    is_line = bool(log.explode) and is_named(log.look, roles.SESSION)  # of an order with an id
    for name, values in columns.items() if log.look.has_header else ():
        is_kind = len(set(values)) <= 20 and not all(map(is_number, values))
        if "event" not in found and roles.has_word(name, roles.EVENT) and is_kind:
            found["event"] = name
        filled = sum(bool(value) for value in values)
        is_session = is_id_of(name, roles.SESSION)
        is_session |= is_line and log.look.plain_name(name).lower() == "id"
        if "session_id" not in found and is_session:
            if filled > 0.9 * len(values):
                found["session_id"] = name
    return found


def _users(look: FileLook, key: str) -> Proposal:
    taken: dict[str, str | list[str]] = {"user_id": key}
    for name, values in look.columns.items():
        is_short = max(map(len, values), default=0) < _LONG_TEXT
        if name != key and "." not in look.plain_name(name) and any(values) and is_short:
            if not roles.is_private(name):
                taken[look.plain_name(name)] = name
    before = _exploded((look.wrapper,) if look.wrapper else ())
    return _proposal(look, look.columns, taken, before, {})
