"""Finds the log among foreign files: the file with columns of users, items and times."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence

from sigma_jax.data.mapping import roles
from sigma_jax.data.mapping.look import FileLook
from sigma_jax.data.mapping.roles import is_id_of, is_unique
from sigma_jax.data.mapping.spec import FILL_IN
from sigma_jax.data.mapping.when import When, find_time

_MAX_CANDIDATES = 12  # columns of a file that an error names
_MAX_ID = 64  # characters
_OVERLAP = 0.5  # of the values of a column that a file of items has


@dataclasses.dataclass(frozen=True)
class Log:
    """A file that may be the log, with the columns that were found in it."""

    look: FileLook
    explode: tuple[str, ...]
    columns: dict[str, list[str]]  # with those inside the exploded lists
    user: str
    item: str
    when: When
    has_items: bool  # whether another file tells the items

    @property
    def is_by_session(self) -> bool:
        """Whether sessions or orders stand for users."""
        return self.look.has_header and is_id_of(self.user, roles.SESSION)

    @property
    def score(self) -> tuple[int, bool, bool, int]:
        """The best log has the most roles, then items of a file, several items, the most bytes."""
        found = 3 * bool(self.item) + 2 * bool(self.user) + 2 * bool(self.when.column)
        several = len(set(self.columns.get(self.item, ()))) > 1
        return found, self.has_items, several, self.look.size


def find_log(looks: Sequence[FileLook]) -> Log:
    """The best log. ValueError with candidate columns if no file looks like one."""
    logs = [log for look in looks for log in _logs(look, looks)]
    complete = [
        log for log in logs if log.item and (log.user or users_file(log, looks) is not None)
    ]
    if not complete:
        raise ValueError(_nothing_found(looks, logs))
    log = max(complete, key=lambda log: log.score)
    # A session stands for a user only where no other file tells whose session it is.
    if log.is_by_session and users_file(log, looks) is not None:
        return dataclasses.replace(log, user="")
    return log


def _logs(look: FileLook, looks: Sequence[FileLook]) -> list[Log]:
    """The ways in which a file may be a log: as it stands, and by each list of objects in it."""
    outer = (look.wrapper,) if look.wrapper else ()
    found = [_log(look, outer, look.columns, looks)]
    for name, inside in look.nested.items():
        found.append(_log(look, (*outer, name), look.columns | inside, looks))
    return found


def _log(
    look: FileLook,
    explode: tuple[str, ...],
    columns: dict[str, list[str]],
    looks: Sequence[FileLook],
) -> Log:
    inner = f"{explode[-1]}." if explode else ""
    when = find_time(columns, look.has_header, inner)
    if not look.has_header:
        # Without names the order tells: users stand before items, and ids are never empty.
        ids = [name for name, values in columns.items() if name != when.column and "" not in values]
        is_log = len(ids) > 1 and not is_unique(columns[ids[0]])
        user, item = (ids[0], ids[1]) if is_log else ("", "")
        return Log(look, explode, columns, user, item, when, False)
    names = [name for name, values in columns.items() if any(values)]
    user = _user_column(names, columns, when)
    items = [name for name in names if is_id_of(name, roles.ITEM)]
    items = items or [name for name in names if roles.is_name_of(name, roles.ITEM)]
    items = [name for name in items if name != user and name.startswith(inner)]
    shared = {name: _is_of_file(name, columns[name], looks, look) for name in items}

    def rank(name: str) -> tuple[bool, bool, bool, bool]:
        values = columns[name]  # an id of each row is no item
        is_part = roles.is_part_id(name)
        return not shared[name], is_part, len(set(values)) < 2, is_unique(values)

    item = min(items, key=rank, default="")
    return Log(look, explode, columns, user, item, when, shared.get(item, False))


def _user_column(names: Sequence[str], columns: dict[str, list[str]], when: When) -> str:
    """The column of users: ids of persons, then addresses of mail, then sessions with times."""
    users = [name for name in names if is_id_of(name, roles.USER)]
    users = users or [name for name in names if roles.is_mail(name)]
    if not users and when.column:
        users = [name for name in names if is_id_of(name, roles.SESSION)][:1]

    def emptiness(name: str) -> bool:
        return columns[name].count("") > 0.5 * len(columns[name])

    return min(users, key=emptiness, default="")


def is_named(look: FileLook, kind: frozenset[str]) -> bool:
    """Whether the name of a file or of its wrapper has a word of a kind, such as orders.json."""
    stems = {word.removesuffix("s") for word in re.findall("[a-z]+", look.names[0].lower())}
    stems |= {word.removesuffix("s") for word in re.findall("[a-z]+", look.wrapper.lower())}
    return any(stem.startswith(word) for stem in stems for word in kind if len(word) > 3)


def is_same(one: str, other: str) -> bool:
    """Whether two columns have the same words in their names."""
    return roles.words(one) == roles.words(other)


def files_with_key(name: str, looks: Sequence[FileLook], besides: FileLook) -> list[FileLook]:
    """The other files in which a column of this name is unique."""
    return [
        look
        for look in looks
        if look is not besides
        and look.has_header
        and any(is_same(name, own) and is_unique(values) for own, values in look.columns.items())
    ]


def _is_of_file(
    name: str, values: Sequence[str], looks: Sequence[FileLook], besides: FileLook
) -> bool:
    """Whether another file has one row for each of the items in a column.

    Columns of another name count if they have most of its values; numbers alone prove little.
    """
    if files_with_key(name, looks, besides):
        return True
    given = {value for value in values if value and not value.isdigit()}
    for look in looks if given else ():
        for own, keys in look.columns.items() if look is not besides and look.has_header else ():
            is_key = is_id_of(own, roles.ITEM) and is_unique(keys)
            if is_key and len(given & set(keys)) > _OVERLAP * len(given):
                return True
    return False


def users_file(log: Log, looks: Sequence[FileLook]) -> tuple[FileLook, str, str] | None:
    """The file that tells the users of a log, their column, and the column that both have."""
    for name in filter(roles.is_id, log.columns) if log.look.has_header else ():
        for look in files_with_key(name, looks, log.look):
            for user in look.columns:
                if is_id_of(user, roles.USER) and name in look.columns and user != name:
                    return look, user, name
    return None


def _nothing_found(looks: Sequence[FileLook], logs: Sequence[Log]) -> str:
    """The error where no file is a log: the columns that may be ids, and a section to complete."""
    best = max(logs, key=lambda log: log.score)
    columns = {
        "user_id": best.user or FILL_IN,
        "item_id": best.item or FILL_IN,
        "timestamp": best.when.column or FILL_IN,
    }
    section = {"file": best.look.file}
    if best.explode:
        section["explode"] = list(best.explode)
    flow = ", ".join(f"{key}: {json.dumps(value)}" for key, value in section.items())
    names = ", ".join(f"{ours}: {json.dumps(theirs)}" for ours, theirs in columns.items())
    looked = "; ".join(f"{look.names[0]}: {', '.join(_candidates(look))}" for look in looks)
    return (
        "no file has a column of users and one of items that could be found by name. Columns that "
        f"may be ids: {looked}. Write mapping.yaml by hand (docs/own_data.md has its keys) and "
        f"replace each {FILL_IN}: interactions: {{{flow}, columns: {{{names}}}}}."
    )


def _candidates(look: FileLook) -> list[str]:
    """Columns whose values could be ids: short, not constant, no numbers with a fraction."""
    inside = {name: values for part in look.nested.values() for name, values in part.items()}
    found = []
    for name, values in (look.columns | inside).items():
        given = set(filter(None, values))
        is_short = all(len(value) <= _MAX_ID for value in given)
        is_whole = not any("." in value and value.replace(".", "").isdigit() for value in given)
        if len(given) > 1 and is_short and is_whole:
            found.append(name)
    return [*found[:_MAX_CANDIDATES], *(["..."] if len(found) > _MAX_CANDIDATES else [])]
