"""Commands of tests on several processes of this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(devices: int, **more: str) -> dict[str, str]:
    """Environment of a test's process that has `devices` devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        **more,
    }


def joined(count: int) -> list[Mapping[str, str]]:
    """Environment in which `count` processes find each other; empty for one process."""
    if count == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    common = {"JAX_COORDINATOR_ADDRESS": address, "SIGMA_PROCESSES": str(count)}
    return [{**common, "SIGMA_PROCESS": str(number)} for number in range(count)]


def start(words: Sequence, count: int, devices: int) -> list[subprocess.Popen]:
    """`python WORDS` in `count` processes with so many devices each."""
    return [
        subprocess.Popen(
            [sys.executable, *map(str, words)],
            env=environment(devices, **own),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in joined(count)
    ]


def finish(runs: Sequence[subprocess.Popen], seconds: float = 300) -> list[tuple[int, str, str]]:
    """(exit status, stdout, stderr) of each; all are killed when one takes too long."""
    try:
        said = [run.communicate(timeout=seconds) for run in runs]
    finally:
        for run in runs:
            run.kill()
    return [(run.returncode, *words) for run, words in zip(runs, said, strict=True)]
