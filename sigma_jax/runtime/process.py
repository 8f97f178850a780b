"""This process: its lock on the workdir, the signal to stop, and its memory.

Commands import this file before JAX, so that a mistyped flag is reported at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax

# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """A context in which no other command writes to `workdir`; the folder is made if missing.

    Raises:
      ValueError: another command is writing to it, or it is a file.
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
                f"another command is writing to {workdir}; wait for it or use another folder."
            ) from None
        yield


def count_maps() -> int:
    """The number of this process's memory maps; 0 where Linux does not say.

    Every compiled program takes about 60.
    """
    try:
        with open("/proc/self/maps", "rb") as maps:
            return sum(1 for _ in maps)
    except OSError:
        return 0


def share_of_maps() -> float:
    """The share of the memory maps that Linux allows this process; 0 where it does not say.

    With more than vm.max_map_count, 65,530 by default, the compiler fails and the process ends.
    """
    try:
        return count_maps() / int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return 0.0


def let_programs_go() -> None:
    """Forgets all compiled programs. The compilation cache has those that are needed again."""
    import jax

    jax.clear_caches()
    gc.collect()


class Stopped(Exception):
    """A training saved its state after SIGTERM; the message names the step."""


class StopSignal:
    """A context that remembers SIGTERM, so that a training saves its state before it ends.

    SIGTERM is the notice before a machine is taken away. On several processes all of them have to
    stop after the same step, whichever process got the signal first.
    """

    def __init__(self):
        self._is_received = False
        self._handler_before: Any = None
        self._previous_answer: Any = False

    def __enter__(self) -> StopSignal:
        # Python allows signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            self._handler_before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._handler_before is not None:
            signal.signal(signal.SIGTERM, self._handler_before)

    def _receive(self, *_: Any) -> None:
        self._is_received = True

    def must_stop(self, step: jax.Array, is_last: bool) -> bool:
        """Whether to stop after this step; the same on all processes, which all have to call it.

        Several processes combine their answers on the devices and read the result at the next call.
        So no host waits for the step that it has just dispatched, except after the last step.

        Args:
          step: the step number of the state that the step has made.
        """
        from sigma_jax.runtime import hosts

        if hosts.is_alone():
            return self._is_received
        previous = self._previous_answer
        self._previous_answer = hosts.any_true(self._is_received, step)
        return bool(previous) or (is_last and bool(self._previous_answer))


def keep_freed_memory() -> bool:
    """Lets the process keep freed memory for its next arrays; False where that is not possible.

    On a CPU each training step allocates the same arrays again. By default glibc gets large arrays
    from the system each time, and the system clears them page by page. That took 68 of 590 ms of
    processor time in a step of the preset `local`.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return all(
        [mallopt(M_ARENA_MAX, 1), mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, 2**31 - 1)]
    )


def peak_memory_mb() -> float:
    """The peak resident memory of this process so far, in MB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def release_memory() -> None:
    """Gives memory that nothing uses back to the system.

    After `keep_freed_memory` it stays with the process, in pieces that fit the last arrays. Other
    arrays, as of the next stage, would take new memory beside it.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
