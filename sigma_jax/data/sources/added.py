"""Later files of a source that is prepared: they have the shape of its first files.

A prepared folder keeps the mapping file of its source. So new rows are read as the first ones were.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import fsspec
import ibis
import ibis.expr.types as ir

from sigma_jax.data import database, readers
from sigma_jax.data.config import ColumnsConfig, DataConfig
from sigma_jax.data.mapping.build import Place, build_table
from sigma_jax.data.mapping.spec import FILE, Section, read_mapping
from sigma_jax.data.sources.mapped import expand, find_mapping, parts_of
from sigma_jax.data.sources.renamed import rename_table


@dataclasses.dataclass(frozen=True)
class AddedTable:
    """A table of new files, not checked yet; fields as in `Tables`."""

    table: ir.Table
    name: str  # of its file, for messages
    sizes: tuple[tuple[str, int], ...]  # () if rows are not those of the files
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class AddedFiles:
    """How new files become tables: by sections of a mapping file, and by names of columns."""

    sections: Mapping[str, Section] = dataclasses.field(default_factory=dict)
    columns: ColumnsConfig | None = None  # None: the files have our names
    separator: str = " > "  # between the levels of a category path

    @classmethod
    def of(cls, folder: Path, columns: ColumnsConfig, separator: str) -> AddedFiles:
        """The files that follow those of the prepared data in `folder`."""
        path = folder / FILE
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return cls(read_mapping(path, text) if text else {}, columns, separator)

    def paths(self, given: Mapping[str, str]) -> dict[str, str]:
        """`given` (path by use), and the files that their sections join, by a number behind it.

        Raises:
          ValueError: a joined file does not lie in the folder of the given one.
        """
        found = dict(given)
        for use, path in given.items():
            if use in self.sections:
                joined = [one for paths in self._joined(use, path).values() for one in paths]
                for number, name in enumerate(dict.fromkeys(joined), 2):
                    found[f"{use} {number}"] = name
        return found

    def open(self, con: ibis.BaseBackend, table_name: str, path: str) -> AddedTable:
        """The table `table_name` of the file, folder or glob `path`, as the first files were read.

        Raises:
          ValueError: the file is not as the mapping says, or lacks a column that is named.
        """
        section = self.sections.get(table_name)
        if section is None:
            opened = readers.open_table(con, path)
            added = AddedTable(opened.table, path, opened.sizes, opened.notes)
        else:
            added = self._mapped(con, table_name, section, path)
        if self.columns is None:
            return added
        table = rename_table(added.table, self.columns, table_name, path)
        return dataclasses.replace(added, table=table)

    def _mapped(
        self, con: ibis.BaseBackend, table_name: str, section: Section, path: str
    ) -> AddedTable:
        if any(part.elapsed for part in parts_of(section)):
            raise ValueError(
                f"{section.place}: elapsed counts times from the first row of a user, which "
                f"{path} does not have; train again with all rows."
            )
        if not database.is_url(path) and not Path(path).exists() and "*" not in path:
            raise ValueError(f"{path} does not exist; correct the path.")
        files = {section.place: tuple(readers.files_of(path)), **self._joined(table_name, path)}
        place = Place(con, files, self.separator, [])
        table = build_table(place, table_name, section)
        name = path
        if section.is_reshaped:
            name += f" (rows as {section.place.partition(':')[0]} makes them)"
        return AddedTable(table, name, (), tuple(place.notes))

    def _joined(self, table_name: str, path: str) -> dict[str, tuple[str, ...]]:
        """The files of each section that is joined: those of its names beside `path`."""
        folder = path.rstrip("/").rpartition("/")[0] or ("/" if path.startswith("/") else ".")
        joined = parts_of(self.sections[table_name])[1:]
        return {part.place: expand(folder, part) for part in joined}


PLAIN = AddedFiles()  # files of our tables


def keep_mapping(config: DataConfig, folder: Path) -> None:
    """Writes a copy of the mapping file of a source, if it has one, into `folder`."""
    path = find_mapping(config) if config.source == "files" else None
    if path is not None:
        with fsspec.open(path, "r", encoding="utf-8") as file:
            (folder / FILE).write_text(file.read(), encoding="utf-8")
