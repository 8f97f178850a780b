"""JSON: an object a line, or one array of objects. Every row counts for the types of the columns.

| values of a key, besides null | type |
|---|---|
| whole numbers of 64 bits | BIGINT |
| whole numbers and others | DOUBLE; text if a whole number has 16 digits, which it may round |
| larger whole numbers | text |
| true, false | BOOLEAN |
| lists of values, lists of such lists | VARCHAR[], VARCHAR[][] |
| texts, objects, several of these | text; objects and lists are JSON in it |
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import duckdb
import ibis

from sigma_jax.data import database
from sigma_jax.data.readers.bytes import TextFile, open_text
from sigma_jax.data.readers.part import Part, literal_path, name_of, quoted

MAX_OBJECT_BYTES = 1 << 26
_BIG = "-?[0-9]{16,}"  # whole numbers that a DOUBLE may round
_LIST = re.compile(r'\["(VARCHAR|U?BIGINT|DOUBLE|BOOLEAN|NULL)"\]|\[\]')
_WHOLE_TEXT = r"^(-?[0-9]+)\.0+$"


def read(con: ibis.BaseBackend, path: str) -> Part:
    """The file at `path`. A text that looks like a day, a time or a UUID stays text.

    Raises:
      ValueError: a line is no object, or has a key twice; the message names the line.
    """
    text = open_text(path)
    file, compression = path, text.compression
    if not text.is_utf8:  # DuckDB reads a copy
        file, compression = str(_copy(con, text)), None
    is_array = _first_character(text) == "["
    options = (
        f"format = '{'array' if is_array else 'newline_delimited'}', "
        f"compression = {quoted(compression or 'uncompressed')}, "
        f"maximum_object_size = {MAX_OBJECT_BYTES}"
    )
    objects = f"read_json_objects({literal_path(file)}, {options})"
    try:
        num_rows = _check_objects(con, path, objects)
        kinds = _kinds(con, objects)
    except duckdb.Error as error:
        if database.is_out_of_memory(error):
            raise
        raise ValueError(_malformed(text, is_array, error)) from error
    notes = [f"{path}: a key without a name is not read"] if "" in kinds else []
    types = {name: kind for name, (kind, _) in kinds.items() if name}
    _check_case(path, types)
    shown = ", ".join(
        f"{quoted(name)}: {quoted('JSON' if kinds[name][1] else kind)}"
        for name, kind in types.items()
    )
    source = f"read_json({{files}}, {options}, columns = {{{shown}}})"
    if not types:
        raise ValueError(f"{path} has no rows with a key; add rows, or remove the file.")
    return Part(path, file, num_rows, source, _columns(types, kinds), tuple(notes))


def _columns(
    types: Mapping[str, str], kinds: Mapping[str, tuple[str, bool]]
) -> tuple[tuple[str, str, str], ...]:
    columns = []
    for name, kind in types.items():
        expression = name_of(name)
        if kinds[name][1]:  # the number 2.0 is the whole number 2, although its column is text
            text = f"{expression}->>'$'"
            whole = f"regexp_replace({text}, {quoted(_WHOLE_TEXT)}, '\\1')"
            is_number = f"json_type({expression}) = 'DOUBLE'"
            expression = f"CASE WHEN {is_number} THEN {whole} ELSE {text} END"
        columns.append((name, kind, expression))
    return tuple(columns)


def _check_objects(con: ibis.BaseBackend, path: str, objects: str) -> int:
    """The number of rows. ValueError for a row that is no object, or that has a key twice."""
    keys = "list_transform(json_keys(json), lambda key: lower(key))"
    wrong = f"json_type(json) <> 'OBJECT' OR len(json_keys(json)) <> len(list_distinct({keys}))"
    num_rows, first = con.raw_sql(
        f"SELECT count(*), min(row) FILTER (WHERE {wrong}) FROM "
        f"(SELECT json, row_number() OVER () AS row FROM {objects})"
    ).fetchone()
    if first is None:
        return num_rows
    query = f"SELECT json_type(json), json_keys(json) FROM {objects} LIMIT 1 OFFSET {first - 1}"
    kind, names = con.raw_sql(query).fetchone()
    if kind != "OBJECT":
        raise ValueError(
            f"{path}: row {first} is {kind.lower()}, not an object; write each row as "
            '{"column": value, ...}.'
        )
    twice = [name for name in names if sum(name.lower() == other.lower() for other in names) > 1]
    raise ValueError(
        f"{path}: row {first} has the keys {twice[0]!r} and {twice[1]!r}, which are the same or "
        "differ in case only; rename or remove one."
    )


def _kinds(con: ibis.BaseBackend, objects: str) -> dict[str, tuple[str, bool]]:
    """The type of each key, in order of appearance, and whether it has floats read as text."""
    rows = con.raw_sql(
        f"""
        WITH entries AS (
            SELECT row, unnest(json_keys(json)) AS key, unnest(json_extract(json, '$.*')) AS value,
                unnest(range(len(json_keys(json)))) AS place
            FROM (SELECT json, row_number() OVER () AS row FROM {objects})
        ), typed AS (
            SELECT key, row, place, value, json_type(value) AS kind,
                CASE WHEN json_type(value) IN ('BIGINT', 'UBIGINT', 'DOUBLE')
                    THEN value->>'$' END AS number
            FROM entries
        )
        SELECT key, kind, min((row, place)), bool_or(regexp_full_match(number, '{_BIG}')),
            bool_and(try_cast(number AS BIGINT) IS NOT NULL),
            CASE WHEN kind = 'ARRAY' THEN json_group_structure(value) END
        FROM typed GROUP BY key, kind ORDER BY 3
        """
    ).fetchall()
    found: dict[str, dict[str, tuple]] = {}
    for key, kind, _, *facts in rows:
        found.setdefault(key, {})[kind] = tuple(facts)
    return {key: _kind(facts) for key, facts in found.items()}


def _kind(facts: dict[str, tuple]) -> tuple[str, bool]:
    """The type of a column, and whether it has floats that are read as text.

    Args:
      facts: type of a value -> (has big numbers, all fit a BIGINT, structure of lists).
    """
    kinds = set(facts) - {"NULL"}
    numbers = [facts[kind] for kind in kinds]
    if kinds and kinds <= {"BIGINT", "UBIGINT"}:
        return ("BIGINT", False) if all(fits for _, fits, _ in numbers) else ("VARCHAR", False)
    if kinds and kinds <= {"BIGINT", "UBIGINT", "DOUBLE"}:
        return ("VARCHAR", True) if any(big for big, _, _ in numbers) else ("DOUBLE", False)
    if kinds == {"BOOLEAN"}:
        return "BOOLEAN", False
    if kinds == {"ARRAY"}:
        structure = numbers[0][2]
        if _LIST.fullmatch(structure):
            return "VARCHAR[]", False
        if structure.startswith("[[") and _LIST.fullmatch(structure[1:-1]):
            return "VARCHAR[][]", False
    return "VARCHAR", "DOUBLE" in kinds


def _check_case(path: str, types: Mapping[str, str]) -> None:
    seen: dict[str, str] = {}
    for name in types:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise ValueError(
                f"{path}: the keys {other!r} and {name!r} differ in case only; rename one, so that "
                "all rows have the same."
            )


def _copy(con: ibis.BaseBackend, text: TextFile):
    """A copy of a file in UTF-8."""
    target = database.scratch_file(con, "json")
    with open(target, "wb") as file:
        for block in text.blocks():
            file.write(block)
    return target


def _first_character(text: TextFile) -> str:
    for line in text.lines():
        if line.strip():
            return line.strip()[0]
    raise ValueError(f"{text.path} has no rows: it is empty; add rows, or remove the file.")


def _error_of_array(text: TextFile) -> str:
    """The place of an array's first fault; "" if it has none, or is too long to be read at once."""
    content = ""
    for block in text.blocks():
        content += block.decode("utf-8", "replace")
        if len(content) > MAX_OBJECT_BYTES:
            return ""
    try:
        json.loads(content)
    except (ValueError, RecursionError) as error:
        found = re.sub(r": line (\d+) column (\d+).*", r", line \1, character \2", str(error))
        return f"the array is not JSON ({found})"
    return ""


def _malformed(text: TextFile, is_array: bool, error: duckdb.Error) -> str:
    """The message about a file that DuckDB cannot read.

    It finds the line itself: DuckDB counts from where a thread began, or one too many.
    """
    remedy = "write one object a line, or one array of objects, as UTF-8"
    if not is_array:
        for number, line in enumerate(text.lines(), 1):
            if len(line) > MAX_OBJECT_BYTES:
                return f"{text.path}: line {number} has over {MAX_OBJECT_BYTES} bytes; shorten it."
            try:
                # Written again, since Python reads half of a pair of surrogates.
                json.dumps(json.loads(line.strip() or "{}"), ensure_ascii=False).encode()
            except (ValueError, RecursionError) as found:
                problem = re.sub(r": line \d+ column (\d+).*", r" at character \1", str(found))
                return (
                    f"{text.path}: line {number} is not JSON ({problem}): {line.strip()[:60]!r}; "
                    f"correct it ({remedy})."
                )
    elif found := _error_of_array(text):
        return f"{text.path}: {found}; {remedy}."
    problem = re.sub(r' in file "[^"]*"|, at byte \d+ in line \d+', "", database.first_line(error))
    return f"{text.path} cannot be read ({problem}); {remedy}."
