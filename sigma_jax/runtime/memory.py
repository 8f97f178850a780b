"""Memory of this process."""

from __future__ import annotations

import ctypes
import resource
import sys

# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed() -> bool:
    """Lets the process keep what it frees, for the next arrays; whether it could be asked for.

    On a CPU each training step allocates the same arrays again. By default glibc takes large ones
    from the system each time and the system clears them, page by page: 68 of 590 ms of processor
    time a step of `local`.
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
    """The most memory this process has held, in MB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
