"""Proposes a mapping for foreign files: which file is which table, and which column is which."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sigma_jax.data.mapping import roles
from sigma_jax.data.mapping.look import LIST, FileLook, is_number
from sigma_jax.data.mapping.roles import is_id_of, is_unique
from sigma_jax.data.mapping.spec import ANY, NO_TIME

MAX_PROPERTIES = 8  # of a long table that a proposal takes
_LONG_TEXT = 200  # characters; a column of longer values is no profile
_TITLES = ("title", "name")


@dataclasses.dataclass(frozen=True)
class Proposal:
    """The section of one table, and what a person needs to check it."""

    look: FileLook
    section: dict[str, Any]  # as in a mapping file
    samples: dict[str, list[str]]  # our name of a column -> some of its values
    unused: list[str]  # columns of the file that the section leaves out


@dataclasses.dataclass(frozen=True)
class _Log:
    """A file that may be the log, with the columns that were found in it."""

    look: FileLook
    explode: str
    columns: dict[str, list[str]]  # with those inside the exploded lists
    user: str
    item: str
    when: str
    unit: str  # of `when`

    @property
    def score(self) -> tuple[int, int]:
        """The best log has the most roles, then the most bytes."""
        found = 3 * bool(self.item) + 2 * bool(self.user) + 2 * bool(self.when)
        return found, self.look.size


def propose(looks: Sequence[FileLook]) -> dict[str, Proposal]:
    """Table -> its proposed section; items and interactions, and users if they are found.

    Raises:
      ValueError: no file looks like a log of users and items.
    """
    logs = [log for look in looks for log in _logs(look, looks) if log.item]
    complete = [log for log in logs if log.user or _users_file(log, looks)]
    if not complete:
        raise ValueError(
            "no file has a column of users and one of items that could be found by name "
            f"(looked at {', '.join(name for look in looks for name in look.names)}); write "
            "mapping.yaml by hand: docs/own_data.md has its keys."
        )
    log = max(complete, key=lambda log: log.score)
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
    if users is not None:
        proposals["users"] = _users(*users)
    return proposals


def _logs(look: FileLook, looks: Sequence[FileLook]) -> list[_Log]:
    """The ways in which a file may be a log: as it stands, and by each list of objects in it."""
    found = [_log(look, "", look.columns, looks)]
    for name, inside in look.nested.items():
        found.append(_log(look, name, look.columns | inside, looks))
    return found


def _log(
    look: FileLook, explode: str, columns: dict[str, list[str]], looks: Sequence[FileLook]
) -> _Log:
    when, unit = _find_time(columns, look.has_header, explode)
    if not look.has_header:
        # Without names the order tells: users stand before items, and ids are never empty.
        ids = [name for name, values in columns.items() if name != when and "" not in values]
        is_log = len(ids) > 1 and not is_unique(columns[ids[0]])
        user, item = (ids[0], ids[1]) if is_log else ("", "")
        return _Log(look, explode, columns, user, item, when, unit)
    users = [name for name in columns if is_id_of(name, roles.USER)]
    sessions = [name for name in columns if is_id_of(name, roles.SESSION)]
    items = [name for name in columns if is_id_of(name, roles.ITEM) and name not in users]
    if explode:
        items = [name for name in items if name.startswith(f"{explode}.")]
    shared = [name for name in items if _files_with_key(name, looks, look)]
    user = next(iter(users), sessions[0] if sessions and when else "")
    return _Log(look, explode, columns, user, next(iter(shared or items), ""), when, unit)


def _find_time(columns: dict[str, list[str]], has_header: bool, explode: str) -> tuple[str, str]:
    """The column of times and how they are written; ("", "") if there is none."""
    for name in sorted(columns, key=lambda name: not (explode and name.startswith(f"{explode}."))):
        unit = roles.time_of(name, columns[name], has_header)
        if unit is not None:
            return name, unit
    return "", ""


def _is_same(one: str, other: str) -> bool:
    return roles.words(one) == roles.words(other)


def _files_with_key(name: str, looks: Sequence[FileLook], besides: FileLook) -> list[FileLook]:
    """The other files in which a column of this name is unique."""
    return [
        look
        for look in looks
        if look is not besides
        and look.has_header
        and any(_is_same(name, own) and is_unique(values) for own, values in look.columns.items())
    ]


def _users_file(log: _Log, looks: Sequence[FileLook]) -> tuple[FileLook, str, str] | None:
    """The file that tells the users of a log, their column, and the column that both have."""
    for name in log.columns if log.look.has_header else ():
        for look in _files_with_key(name, looks, log.look):
            for user in look.columns:
                if is_id_of(user, roles.USER) and name in look.columns and user != name:
                    return look, user, name
    return None


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
            _is_same(own, key),
            any(_is_title(name) for name in look.columns),
            len(look.columns),
        )
        if score > best:
            best, found = score, (look, own)
    return found


def _key(look: FileLook, key: str, kind: frozenset[str]) -> str | None:
    """The column of ids in a file of items or users; None if it is no such file."""
    stems = {word.removesuffix("s") for word in re.findall("[a-z]+", look.names[0].lower())}
    is_named = any(stem.startswith(word) for stem in stems for word in kind if len(word) > 3)
    if not look.has_header:
        first = next(iter(look.columns), None)
        return first if first and is_named and is_unique(look.columns[first]) else None
    found = [name for name in look.columns if _is_same(name, key) and key]
    found += [name for name in look.columns if is_id_of(name, kind)]
    if is_named:
        found += [name for name in look.columns if name.lower() == "id"]
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
    when, _ = _find_time(look.columns, True, "")
    return {"name": names[0], "value": values[0]} | ({"latest": when} if when else {})


def _opening(look: FileLook, names: dict[str, str] | None = None) -> dict[str, Any]:
    """The keys that open the files of `look`.

    Args:
      names: column -> name, of a file without a header.
    """
    keys: dict[str, Any] = {"file": look.names[0] if len(look.names) == 1 else list(look.names)}
    if look.kind == "text" and look.delimiter != ",":
        keys["delimiter"] = look.delimiter
    if look.encoding != "utf-8":
        keys["encoding"] = look.encoding
    if not look.has_header:
        keys["header"] = [(names or {}).get(name, name) for name in look.columns]
    return keys


def _proposal(
    look: FileLook,
    columns: dict[str, list[str]],
    taken: dict[str, str | list[str]],
    before: dict[str, Any],
    after: dict[str, Any],
) -> Proposal:
    """The proposal of a section.

    Args:
      look: the files.
      columns: column -> its values.
      taken: our name -> column or columns.
      before: keys that stand before columns.
      after: keys that stand after them.
    """
    samples = {}
    for ours, theirs in taken.items():
        values = columns[theirs if isinstance(theirs, str) else theirs[0]]
        samples[ours] = list(dict.fromkeys(value for value in values if value))[:3]
    used = {name for part in taken.values() for name in ([part] if isinstance(part, str) else part)}
    unused = [name for name in (*look.columns, *look.nested) if name not in used]
    unused = [name for name in unused if name not in (before.get("explode"),)]
    if not look.has_header:  # our names go into the header; a column with two has the first
        ours_of: dict[str, str] = {}
        for ours, theirs in taken.items():
            ours_of.setdefault(str(theirs), ours)
        taken = {ours: ours_of[str(theirs)] for ours, theirs in taken.items()}
        section = _opening(look, ours_of) | before | {"columns": taken} | after
        return Proposal(look, section, samples, unused)
    return Proposal(look, _opening(look) | before | {"columns": taken} | after, samples, unused)


def _text_columns(look: FileLook, key: str) -> dict[str, str]:
    """The columns of items that become their text, by our names, the title first."""
    taken: dict[str, str] = {}
    usable = [
        name
        for name, values in look.columns.items()
        if name != key
        and "." not in name
        and any(values)
        and not any(value.startswith(("http://", "https://")) for value in values)
    ]
    titles = sorted(filter(_is_title, usable), key=lambda name: name.lower() not in _TITLES)
    if not look.has_header:
        texts = [name for name in usable if not any(map(is_number, look.columns[name]))]
        titles = texts[:1]
    if titles:
        taken["title"] = titles[0]
    for name in usable:
        if name not in titles[:1]:
            taken[name] = name
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
    exact = [name for name in names if name.lower() in ("categories", "category")]
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
        for other in _files_with_key(name, others, look):
            if name not in other.columns or set(other.columns) & set(columns) != {name}:
                continue
            joins.append({**_opening(other), "by": name})
            columns |= other.columns
            taken |= {added: added for added in other.columns if added != name}
            taken.pop(name, None)  # the number of what is joined now
            break
    before: dict[str, Any] = {"join": joins} if joins else {}
    if "" in look.columns[key]:
        before["keep"] = {key: ANY}
    given = [value for value in look.columns[key] if value]
    after = {} if len(set(given)) == len(given) else {"distinct": True}
    return _proposal(look, columns, _with_category(taken, columns), before, after)


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


def _items_of_log(log: _Log) -> Proposal:
    """Items that are known from the log alone."""
    values = log.columns[log.item]
    taken: dict[str, str | list[str]] = {"item_id": log.item}
    if not all(map(is_number, filter(None, values))):
        taken["title"] = log.item
    before = {"explode": log.explode} if log.explode else {}
    return _proposal(log.look, log.columns, taken, before, {"distinct": True})


def _interactions(log: _Log, looks: Sequence[FileLook]) -> Proposal:
    columns, when, unit = dict(log.columns), log.when, log.unit
    before: dict[str, Any] = {"explode": log.explode} if log.explode else {}
    user = log.user
    if not user:
        look, user, key = _users_file(log, looks)
        part: dict[str, Any] = {**_opening(look), "by": key}
        gap = next(filter(roles.is_gap, look.columns), "")
        order = next((name for name in look.columns if roles.words(name)[-1] == "number"), "")
        if not when and gap and order:
            part["elapsed"] = {"user": user, "order": order, "gap": gap, "unit": "days"}
            when, columns["elapsed"] = "elapsed", look.columns[gap]
        elif not when:
            when, unit = _find_time(look.columns, True, "")
        columns |= {user: look.columns[user]} | ({when: look.columns[when]} if not gap else {})
        part["columns"] = {user: user} | ({when: when} if when else {})
        before["join"] = [part]
    taken: dict[str, str | list[str]] = {"user_id": user, "item_id": log.item}
    if when:
        taken["timestamp"] = when
    for ours, name in _events_and_sessions(log, columns).items():
        if name not in taken.values():
            taken[ours] = name
    after = {"time": unit} if unit else {}
    return _proposal(log.look, columns, taken, before, after if when else {"time": NO_TIME})


def _events_and_sessions(log: _Log, columns: dict[str, list[str]]) -> dict[str, str]:
    found = {}
    for name, values in columns.items() if log.look.has_header else ():
        is_kind = len(set(values)) <= 20 and not all(map(is_number, values))
        if "event" not in found and roles.has_word(name, roles.EVENT) and is_kind:
            found["event"] = name
        filled = sum(bool(value) for value in values)
        if "session_id" not in found and is_id_of(name, roles.SESSION):
            if filled > 0.9 * len(values):
                found["session_id"] = name
    return found


def _users(look: FileLook, key: str) -> Proposal:
    taken: dict[str, str | list[str]] = {"user_id": key}
    for name, values in look.columns.items():
        is_short = max(map(len, values), default=0) < _LONG_TEXT
        if name != key and "." not in name and any(values) and is_short:
            if not roles.is_private(name):
                taken[name] = name
    return _proposal(look, look.columns, taken, {}, {})
