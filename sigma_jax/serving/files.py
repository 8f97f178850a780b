"""Folders that are written once, whole or not at all, and known by the sizes and hashes of their
files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sigma_jax.runtime.artifacts import command_line, versions
from sigma_jax.runtime.files import atomic_folder, read_json, to_json

FORMAT = 2  # of exports; another one is refused
HASHED = 2**28  # bytes; of a larger file so many are hashed, so that opening takes seconds
SLICE = 2**22


def write_folder(
    target: Path,
    manifest: str,
    write: Callable[[Path], Mapping[str, Any]],
    apart: Sequence[str] = (),
) -> dict[str, Any]:
    """Makes `target`: `write(folder)` writes its files and returns what the manifest says of them.

    `apart`: folders inside with manifests of their own. ValueError where `target` is there
    already. If `write` raises, nothing is left.
    """
    if target.exists():
        raise ValueError(f"{target} is there already; choose another or delete it.")
    with atomic_folder(target) as folder:
        said = write(folder)
        found = {"format": FORMAT, **said, "command": command_line(), "versions": versions()}
        found["files"] = described(folder, apart)
        (folder / manifest).write_text(to_json(found) + "\n")
    return found


def described(folder: Path, apart: Sequence[str] = ()) -> dict[str, list]:
    """Size in bytes and SHA-256 (of a part of large files) of every file below `folder`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    paths = [path for path in paths if path.relative_to(folder).parts[0] not in apart]
    return {str(path.relative_to(folder)): [path.stat().st_size, _hash(path)] for path in paths}


def read_folder(folder: Path, manifest: str) -> dict[str, Any]:
    """The manifest of `folder`.

    ValueError where it is missing, of another format, or a file is not the one that was written.
    """
    damaged = ValueError(
        f"{folder / manifest} is missing or damaged; copy the export again, or export again."
    )
    try:
        found = read_json(folder / manifest)
    except ValueError:
        raise damaged from None
    if found.get("format") != FORMAT:
        raise ValueError(
            f"{folder} has format {found.get('format')}, this version of sigma_jax reads {FORMAT}; "
            "export again with this version, or use the one that made it."
        )
    files = found.get("files")
    marks = files.values() if isinstance(files, dict) else [None]
    if not all(isinstance(mark, list) and len(mark) == 2 for mark in marks):
        raise damaged
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.exists():
            raise ValueError(f"{path} is missing; copy the export again, or export again.")
        if path.stat().st_size != size or _hash(path) != digest:
            raise ValueError(f"{path} is damaged; copy the export again, or export again.")
    return found


def _hash(path: Path) -> str:
    """SHA-256 of a file, or of slices spread over a large one."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        count = min(-(-size // SLICE), HASHED // SLICE)
        for number in range(count):
            file.seek((size - SLICE) * number // (count - 1) if size > HASHED else number * SLICE)
            digest.update(file.read(SLICE))
    return digest.hexdigest()
