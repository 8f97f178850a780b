"""Paths of tables: a file, a folder of parts, or a glob, on disk or at a URL.

Folders named `key=value` (the partitions of Hive) become columns. Files whose names begin with
`.` or `_` are no parts. README files, schemas, settings and backups are no parts either; a note
names them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path

import ibis

from sigma_jax.data import database
from sigma_jax.data.engines import spark
from sigma_jax.data.readers import delimited, json_lines, parquet
from sigma_jax.data.readers.part import Opened, Part, join, name_of, with_constants

_READERS = {
    ".parquet": parquet.read,
    ".csv": delimited.read,
    ".tsv": delimited.read,
    ".txt": delimited.read,
    ".jsonl": json_lines.read,
    ".ndjson": json_lines.read,
    ".json": json_lines.read,
}
COMPRESSIONS = (".gz", ".zst")
SUFFIXES = tuple(_READERS)
# In the order in which they are looked for.
TABLE_SUFFIXES = SUFFIXES + tuple(s + c for s in SUFFIXES[1:] for c in COMPRESSIONS)
NANOSECONDS = "TIMESTAMP_NS"
# Types of DuckDB that Spark reads from Parquet as the same values.
_USUAL = re.compile(
    r"(VARCHAR|BOOLEAN|TINYINT|SMALLINT|INTEGER|BIGINT|FLOAT|DOUBLE|DECIMAL\(\d+,\d+\)"
    r"|DATE|TIMESTAMP|TIMESTAMP WITH TIME ZONE)(\[\])*"
)
# Files that lie beside the parts of a table: texts about it, settings, copies of an editor.
_BESIDE = re.compile(
    r"(readme|license|changelog|schema|desktop|thumbs)(\.[a-z]+)?|.*(~|\.(md|ini|bak|log|tmp|crc))",
    re.IGNORECASE,
)
_PATTERN = "[]{}*?\\"
_NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"


def open_table(con: ibis.BaseBackend, path: str) -> Opened:
    """The file, the folder of parts or the glob at `path` as one table.

    Text is checked to its last row, other files by their schema; rows are read by the query.

    Raises:
      ValueError: there is no such file, or one cannot be read. The message names it.
    """
    if con.name == spark.NAME:
        return _open_for_spark(con, path)
    if database.is_url(path):
        database.register_url(con, path)
    parts = []
    for file in files_of(path):
        part = _READERS[kind_of(file)](con, file)
        parts.append(with_constants(part, _partition(path, file)))
    opened = join(con, parts, path)
    notes = [f"{file} is not read: it is no part of a table" for file in _beside(path)]
    return dataclasses.replace(opened, notes=(*opened.notes, *notes, *_equal_notes(path, parts)))


def _open_for_spark(con: ibis.BaseBackend, path: str) -> Opened:
    """The same as a table of Spark, which reads regular Parquet itself.

    Other files are read by a DuckDB and handed over.
    """
    with database.open_reader() as reader:
        opened = open_table(reader, path)
        if not _is_for_spark(opened.parts):
            table = database.hand_over(reader, opened.table, con, path)
            return dataclasses.replace(opened, table=table)
    database.check_names(opened.parts[0].types, path)
    files = [part.path for part in opened.parts]
    table = spark.read_parquet(
        con,
        *(file if database.is_url(file) else os.path.abspath(file) for file in files),
        nanoseconds=[name for name, kind in opened.parts[0].types.items() if kind == NANOSECONDS],
    )
    table = table.select(*opened.parts[0].types, spark.ROW)
    return dataclasses.replace(opened, table=table)


def _is_for_spark(parts: Sequence[Part]) -> bool:
    """Whether Spark reads the files as DuckDB does: Parquet of one shape, with usual types."""
    return (
        all(kind_of(part.path) == ".parquet" for part in parts)
        and len({(part.source, part.columns) for part in parts}) == 1
        and all(
            text == name_of(name) and (kind == NANOSECONDS or _USUAL.fullmatch(kind))
            for name, kind, text in parts[0].columns
        )
        and not any(set(part.path) & set(_PATTERN) for part in parts)  # Spark would take a glob
    )


def kind_of(file: str) -> str:
    """The suffix of a file without that of its compression. ValueError if no reader has it."""
    name = file.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    suffix = os.path.splitext(name)[1]
    if suffix not in _READERS or not name.endswith(SUFFIXES):
        raise ValueError(
            f"{file}: this kind of file is not supported; use {', '.join(SUFFIXES)}, the text ones "
            "also as .gz or .zst."
        )
    return suffix


def files_of(path: str) -> list[str]:
    """The files of a table, in the order of their names: of a folder and of a glob all files.

    Raises:
      ValueError: there is no file, or files of several kinds lie in the folder.
    """
    if not _is_many(path):
        return [path]
    files = [file for file in _walk(path) if _is_part(path, file)]
    files = [file for file in files if not _BESIDE.fullmatch(_name(file))] or files
    if not files:
        raise ValueError(
            f"{path} holds no table; put files of one kind into it ({', '.join(SUFFIXES)}), or "
            "correct the path."
        )
    # Spark leaves empty files for empty partitions.
    filled = [file for file in files if database.is_url(file) or os.path.getsize(file)]
    files = filled or files
    kinds = sorted({kind_of(file) for file in files})
    if len(kinds) > 1:
        raise ValueError(
            f"{path} holds files of several kinds ({', '.join(kinds)}); leave one kind, or name it "
            f"with a glob such as *{kinds[0]}."
        )
    return files


def _beside(path: str) -> list[str]:
    """The files of a folder that lie beside its parts and are not read."""
    if not _is_many(path):
        return []
    read = set(files_of(path))
    return [
        file
        for file in _walk(path)
        if _is_part(path, file) and file not in read and _BESIDE.fullmatch(_name(file))
    ]


def _equal_notes(path: str, parts: Sequence[Part]) -> list[str]:
    """Notes on parts with equal content, and on parts of one name in two compressions.

    Parts of different partitions have different rows.
    """
    notes = []
    stems: dict[str, str] = {}
    sizes: dict[tuple, list[str]] = {}
    for file in (part.path for part in parts):
        stem = file.removesuffix(".gz").removesuffix(".zst")
        other = stems.setdefault(stem, file)
        if other != file:
            notes.append(f"{other} and {file} are both read; remove one if they are one file")
        if not database.is_url(file):
            partition = tuple(_partition(path, file).items())
            sizes.setdefault((os.path.getsize(file), partition), []).append(file)
    for same_size in sizes.values():
        contents: dict[str, str] = {}
        for file in same_size if len(same_size) > 1 else []:
            with open(file, "rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            other = contents.setdefault(digest, file)
            if other != file:
                notes.append(f"{other} and {file} have equal content and are both read; remove one")
    return notes


def _name(file: str) -> str:
    return file.rstrip("/").split("/")[-1]


def find(folder: str, name: str, given: str, suffixes: tuple[str, ...]) -> str | None:
    """The path of a table: `given` if set, else the first of `candidates`, else None.

    Raises:
      ValueError: `given` does not exist, or has another suffix.
    """
    if not given:
        return next(iter(candidates(folder, name, suffixes)), None)
    path = given if database.is_url(given) else _join(folder, given)
    if _is_many(path) and suffixes == TABLE_SUFFIXES:
        return path
    if not given.lower().endswith(suffixes):
        raise ValueError(f"{given}: this kind of file is not supported; use {', '.join(suffixes)}.")
    if not _exists(path):
        raise ValueError(f"{path} does not exist; check --config.data.files.{name}.")
    return path


def candidates(folder: str, name: str, suffixes: tuple[str, ...]) -> list[str]:
    """The files NAME.SUFFIX in `folder` in the order of `suffixes`, then the folder NAME."""
    there = _names(folder)
    if there is None:  # a URL that cannot be listed
        found = [name + suffix for suffix in suffixes]
        return [path for path in (_join(folder, file) for file in found) if _exists(path)]
    by_lower = {file.lower(): file for file in there if file.lower() not in there} | {
        file: file for file in there
    }
    found = [by_lower[name + suffix] for suffix in suffixes if name + suffix in by_lower]
    if suffixes == TABLE_SUFFIXES:  # Spark calls a folder of parts items.parquet
        paths = [_join(folder, file) for file in found]
        if name in there and _is_many(_join(folder, name)):
            paths.append(_join(folder, name))
        return paths
    return [path for path in (_join(folder, file) for file in found) if _exists(path)]


def similar(folder: str, name: str) -> list[str]:
    """Names in `folder` that begin as `name` does, for the message that no table is there."""
    return sorted(file for file in _names(folder) or [] if file.lower().startswith(name[:4]))


def _partition(folder: str, file: str) -> Mapping[str, str | None]:
    """The columns of the folders `key=value` between `folder` and `file`."""
    inside = file.removeprefix(folder.split("*")[0]).split("/")[:-1]
    pairs = (name.split("=", 1) for name in inside if "=" in name and not name.startswith("="))
    return {
        key: None if value == _NO_PARTITION else urllib.parse.unquote(value) for key, value in pairs
    }


def _is_part(path: str, file: str) -> bool:
    """Whether a file of a folder is a part, not a mark such as _SUCCESS or .part.crc."""
    inside = file.removeprefix(path.split("*")[0]).lstrip("/").split("/")
    return not any(name.startswith((".", "_")) and "=" not in name for name in inside)


def _is_many(path: str) -> bool:
    """Whether `path` is a folder or a glob, not a file."""
    if not database.is_url(path):
        return not Path(path).is_file() and ("*" in path or Path(path).is_dir())
    filesystem, inner = _filesystem(path)
    return "*" in path or filesystem.isdir(inner)


def _walk(path: str) -> list[str]:
    """All files below a folder, or of a glob, sorted. Links are followed, each folder once."""
    if database.is_url(path):
        filesystem, inner = _filesystem(path)
        found = filesystem.glob(inner) if "*" in path else filesystem.find(inner)
        return sorted(filesystem.unstrip_protocol(file) for file in found)
    if "*" in path:
        root = Path(path.split("*")[0]).parent if not path.split("*")[0].endswith("/") else None
        root = root or Path(path.split("*")[0])
        found = root.glob(os.path.relpath(path, root))
        return sorted(str(file) for file in found if file.is_file())
    files, seen = [], set()
    for folder, folders, names in os.walk(path, followlinks=True):
        if os.path.realpath(folder) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(os.path.realpath(folder))
        files += [os.path.join(folder, name) for name in names]
    return sorted(file for file in files if os.path.isfile(file))


def _names(folder: str) -> list[str] | None:
    """The names in `folder`; None if a URL cannot be listed."""
    if not database.is_url(folder):
        return sorted(os.listdir(folder))
    filesystem, inner = _filesystem(folder)
    try:
        paths = filesystem.ls(inner, detail=False)
        return sorted(path.rstrip("/").split("/")[-1] for path in paths)
    except (OSError, NotImplementedError):
        return None


def _filesystem(path: str):
    """The fsspec file system of a URL and the path in it. ValueError without its package."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{path}: {error}; install that package with pip.") from error


def _join(folder: str, name: str) -> str:
    if database.is_url(folder):
        return f"{folder.rstrip('/')}/{name}"
    return str(Path(folder) / name)


def _exists(path: str) -> bool:
    if not database.is_url(path):
        return Path(path).is_file()
    filesystem, inner = _filesystem(path)
    return filesystem.exists(inner)
