"""Seconds from the command `sigma_jax.serve` until it is ready, with compiled programs kept.

    python -m launch.benchmarks.cold_start --export=exports/demo

The first start may compile programs and is not counted. CPU seconds stand beside the wall time,
since other work on the machine does not change them.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

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
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sigma_jax.serve", f"--export={export}", f"--role={role}"]
        command += [f"--port={port}", f"--store={folder}/store.db"]
        began = time.monotonic()
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            while not is_ready(port):
                if process.poll() is not None or time.monotonic() - began > MOST_SECONDS:
                    raise SystemExit(f"the service did not start: {' '.join(command)}")
                time.sleep(0.05)
            return time.monotonic() - began, cpu_seconds(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def cpu_seconds(pid: int) -> float:
    """User and system seconds of a process, as Linux counts them."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_ready(port: int) -> bool:
    """Whether the service on a port says that it is ready."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    main()
