"""Folders of an export: written whole or not at all, and checked by sizes and hashes of files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sigma_jax.provenance import provenance
from sigma_jax.runtime.files import atomic_folder, read_json, to_json

FORMAT = 3  # of exports; another one is refused
HASHED = 2**28  # bytes hashed of a larger file: opening an export takes seconds
SLICE = 2**22  # bytes of a slice of a large file


def write_folder(
    target: Path,
    manifest: str,
    write: Callable[[Path], Mapping[str, Any]],
    apart: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes the folder `target` with a manifest, which it returns.

    If `write` raises, nothing is left.

    Args:
      manifest: name of the manifest's file.
      write: writes the files into the folder it gets, and returns fields of the manifest.
      apart: subfolders with manifests of their own.

    Raises:
      ValueError: `target` exists.
    """
    if target.exists():
        raise ValueError(f"{target} exists already; choose another folder or delete it.")
    with atomic_folder(target) as folder:
        fields = write(folder)
        content = {"format": FORMAT, **fields, **provenance()}
        content["files"] = file_hashes(folder, apart)
        (folder / manifest).write_text(to_json(content) + "\n")
    return content


def file_hashes(folder: Path, apart: Sequence[str] = ()) -> dict[str, list]:
    """Size in bytes and SHA-256 of every file below `folder`; for a large file, of slices."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    paths = [path for path in paths if path.relative_to(folder).parts[0] not in apart]
    return {str(path.relative_to(folder)): [path.stat().st_size, _hash(path)] for path in paths}


def read_folder(folder: Path, manifest: str) -> dict[str, Any]:
    """The manifest of `folder`.

    ValueError if it is missing or has another format, or if a file is missing or has changed.
    """
    damaged = ValueError(
        f"{folder / manifest} is missing or damaged; copy the export again, or export again."
    )
    try:
        content = read_json(folder / manifest)
    except ValueError:
        raise damaged from None
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{folder} has format {content.get('format')}, but this version of sigma_jax reads "
            f"{FORMAT}; export again with this version, or use the version that wrote it."
        )
    files = content.get("files")
    entries = files.values() if isinstance(files, dict) else [None]
    if not all(isinstance(entry, list) and len(entry) == 2 for entry in entries):
        raise damaged
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.exists():
            raise ValueError(f"{path} is missing; copy the export again, or export again.")
        if path.stat().st_size != size or _hash(path) != digest:
            raise ValueError(f"{path} is damaged; copy the export again, or export again.")
    return content


def _hash(path: Path) -> str:
    """SHA-256 of a file; for a large file, of slices spread over it."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        count = min(-(-size // SLICE), HASHED // SLICE)
        for number in range(count):
            file.seek((size - SLICE) * number // (count - 1) if size > HASHED else number * SLICE)
            digest.update(file.read(SLICE))
    return digest.hexdigest()
