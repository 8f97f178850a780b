"""Foreign files: a mapping file, mapping.yaml beside them, says how they become the tables."""

from __future__ import annotations

import difflib
from pathlib import Path

import fsspec
import ibis

from sigma_jax.data import database, readers
from sigma_jax.data.config import DataConfig
from sigma_jax.data.mapping.build import Place, build_table
from sigma_jax.data.mapping.spec import FILE, NO_TIME, Section, read_mapping
from sigma_jax.data.sources.files import usual_paths
from sigma_jax.data.tables import TABLES, Tables
from sigma_jax.schema import VECTORS


def find_mapping(config: DataConfig) -> str | None:
    """Path or URL of the mapping file: files.mapping, or mapping.yaml in data.path if it exists."""
    if not config.path or not (database.is_url(config.path) or Path(config.path).is_dir()):
        return None  # `files.paths` says so
    return readers.find(config.path, Path(FILE).stem, config.files.mapping, (".yaml", ".yml"))


def paths(config: DataConfig) -> dict[str, str]:
    """Path or URL of each file by its use: the mapping, its files, tables and vectors beside it.

    Raises:
      ValueError: the mapping file is wrong, or names a file that does not exist.
    """
    sections = _sections(config)
    found = {"mapping": find_mapping(config)}
    for table, section in sections.items():
        names = [path for part in parts_of(section) for path in expand(config.path, part)]
        for number, path in enumerate(dict.fromkeys(names)):
            found[table if number == 0 else f"{table} {number + 1}"] = path
    return found | _beside(config, sections)


def read(con: ibis.BaseBackend, config: DataConfig) -> Tables:
    """The tables of the mapping file, and those beside it that it does not name.

    Raises:
      ValueError: a file, a column or a value is not as the mapping file says.
    """
    sections, path = _sections(config), find_mapping(config)
    every = [part for section in sections.values() for part in parts_of(section)]
    place = Place(
        con,
        {part.place: expand(config.path, part) for part in every},
        config.text.category_separator,
        [],
    )
    names, parts = {}, {}
    tables = dict.fromkeys(TABLES)
    for table, section in sections.items():
        tables[table] = build_table(place, table, section)
        names[table] = place.paths[section.place][0]
        if section.is_reshaped:
            names[table] += f" (rows as {Path(path).name} makes them)"
    beside = _beside(config, sections)
    for table in beside.keys() & set(TABLES):
        opened = readers.open_table(con, beside[table])
        tables[table], names[table] = opened.table, beside[table]
        parts[table] = opened.sizes
        place.notes.extend(opened.notes)
    has_times = True
    if "interactions" in sections and sections["interactions"].time == NO_TIME:
        has_times = False
        place.notes.append(
            f"{path}: interactions.time is none, so no interaction has a time: rows count in the "
            "order of the file, and nothing depends on days; name the column of times if there is "
            "one"
        )
    return Tables(
        **tables,
        **{name: beside.get(name) for name in VECTORS},
        names=names,
        files=paths(config),
        has_times=has_times,
        has_composed_searches=False,
        parts=parts,
        notes=tuple(dict.fromkeys(place.notes)),
    )


def _sections(config: DataConfig) -> dict[str, Section]:
    path = find_mapping(config)
    if database.is_url(path):
        with fsspec.open(path, "r", encoding="utf-8") as file:
            return read_mapping(path, file.read())
    return read_mapping(path, Path(path).read_text(encoding="utf-8"))


def parts_of(section: Section) -> list[Section]:
    """`section` and the sections that it joins, and those that they join."""
    return [section, *(part for join in section.joins for part in parts_of(join.section))]


def expand(folder: str, section: Section) -> tuple[str, ...]:
    """Paths or URLs of the files of a section, sorted inside each glob.

    Raises:
      ValueError: a name matches no file. The message has the nearest name in `folder`.
    """
    found = []
    for name in section.files:
        pattern = name if database.is_url(name) else f"{folder.rstrip('/')}/{name}"
        if name.startswith("/"):
            pattern = name
        filesystem, inner = fsspec.core.url_to_fs(pattern)
        # A name that exists is meant as it stands, even with a bracket or a star in it.
        paths = [inner] if filesystem.isfile(inner) else sorted(filesystem.glob(inner))
        paths = [path for path in paths if filesystem.isfile(path)]
        if not paths:
            raise ValueError(f"{section.place}.file: {pattern} does not exist{_near(pattern)}.")
        if database.is_url(pattern):
            paths = [filesystem.unstrip_protocol(path) for path in paths]
        found += paths
    return tuple(found)


def _near(pattern: str) -> str:
    """The file beside `pattern` with the nearest name, as the end of an error."""
    filesystem, inner = fsspec.core.url_to_fs(pattern)
    folder, _, name = inner.rpartition("/")
    try:
        names = [Path(path).name for path in filesystem.ls(folder, detail=False)]
    except OSError:
        return "; correct it"
    near = difflib.get_close_matches(name, names, 1, 0.0)
    return f"; did you mean {near[0]!r}?" if near else "; correct it"


def _beside(config: DataConfig, sections: dict[str, Section]) -> dict[str, str]:
    """Tables and vectors under their usual names that the mapping file does not name."""
    found = usual_paths(config, sections)
    for name in ("items", "interactions"):
        if name not in sections and not found[name]:
            raise ValueError(
                f"{find_mapping(config)} has no section {name!r}, and {config.path} holds no file "
                f"{name}.csv or the like; add one of them."
            )
    return {name: path for name, path in found.items() if path}
