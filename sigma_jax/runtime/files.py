"""Files and folders that are written completely or not at all, and values as JSON.

Content is written beside its place, synced to disk and renamed. A killed process leaves either the
old content or the new one, never a part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_folder(target: Path, replaces: bool = False) -> Iterator[Path]:
    """An empty folder to write into, which becomes `target` when the block ends.

    If the block raises, `target` stays as it was.

    Args:
      replaces: delete a folder that is at `target` already.

    Raises:
      OSError: `target` has files and `replaces` is False.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.writing")
    shutil.rmtree(beside, ignore_errors=True)  # left by a killed process
    beside.mkdir()
    try:
        yield beside
        for path in (*beside.rglob("*"), beside):
            sync(path)
        if replaces:
            shutil.rmtree(target, ignore_errors=True)
        os.replace(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    sync(target.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a text file completely or not at all."""
    beside = path.with_name(f".{path.name}.writing")
    beside.write_text(text)
    sync(beside)
    os.replace(beside, path)


def sync(path: Path) -> None:
    """Brings the content of a file or folder to disk, so that a rename never comes before it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def plain(value: Any) -> Any:
    """`value` with types that JSON has.

    Dataclasses and ConfigDicts become dicts, tuples lists, arrays nested lists, paths text.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if hasattr(value, "items"):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy and JAX arrays and scalars
        return value.tolist()
    return str(value) if isinstance(value, Path) else value


def to_json(value: Any) -> str:
    """`value` as indented JSON text."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as a JSON file, completely or not at all."""
    write_text(path, to_json(value) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. ValueError if the file is missing or damaged."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; delete {path.parent} and run again.") from None
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete {path.parent} and run again."
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object; delete {path.parent} and run again.")
    return value
