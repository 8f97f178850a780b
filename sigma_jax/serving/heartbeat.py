"""A sign of life of a worker: a file that each round of its loop touches.

    python -m sigma_jax.serving.heartbeat FILE SECONDS

ends with status 1 if the file is older than so many seconds, or missing. Probes of containers run
it, so it imports nothing that is slow to load.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path


def is_alive(path: Path, seconds: float) -> bool:
    """Whether `path` was touched within the last `seconds`."""
    try:
        return time.time() - path.stat().st_mtime <= seconds
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(not is_alive(Path(sys.argv[1]), float(sys.argv[2])))
