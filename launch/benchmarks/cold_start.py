"""Seconds from the command `sigma_jax.serve` until it is ready, with compiled programs kept.

    python -m launch.benchmarks.cold_start --export=exports/demo

The first start may compile programs and is not counted. CPU seconds stand beside the wall time,
since other work on the machine does not change them.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from launch.benchmarks.processes import free_port, get, serve_command, wait_until
from launch.benchmarks.result import write_result

MOST_SECONDS = 600.0


def main() -> None:
    """Prints a line for each start."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--export", type=Path, required=True)
    parser.add_argument("--role", default="api", choices=("api", "all"))
    parser.add_argument("--starts", type=int, default=4)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found = []
    for number in range(arguments.starts):
        wall, cpu = start(arguments.export, arguments.role)
        print(f"start {number}: ready after {wall:.1f} s, {cpu:.1f} CPU seconds", flush=True)
        found.append((wall, cpu))
    wall, cpu = np.median(found[1:], axis=0).tolist()
    if arguments.output:
        write_result(arguments.output, {"role": arguments.role, "wall": wall, "cpu": cpu})


def start(export: Path, role: str) -> tuple[float, float]:
    """(wall seconds, CPU seconds of the process) from the command to its first ready answer."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        store, flags = f"{folder}/store.db", (f"--role={role}", f"--port={port}")
        began = time.monotonic()
        process = subprocess.Popen(serve_command(export, store, *flags), stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: get(port, "/readyz"), process, MOST_SECONDS)
            return time.monotonic() - began, cpu_seconds(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def cpu_seconds(pid: int) -> float:
    """User and system seconds of a process, as Linux counts them."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
