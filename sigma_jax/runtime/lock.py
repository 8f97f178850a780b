"""One command at a time in a workdir."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps other commands that write out of `workdir`, which is made if it is not there.

    ValueError if another one is at work in it, or it is a file.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f"--workdir={workdir} is a file; name a folder.") from None
    with open(workdir / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another run is at work in {workdir}; wait for it or use another folder."
            ) from None
        yield
