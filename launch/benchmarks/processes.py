"""Processes of benchmarks: free ports, a Redis server, the service, and the wait for an answer."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sigma_jax.serving.stores.base import StoreError

POLL_SECONDS = 0.05


def free_port() -> int:
    """A port of this machine that nobody listens to."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def redis_command(folder: Path, port: int, fsync: str = "everysec") -> list[str]:
    """The command of a Redis that writes each change to a file in `folder`."""
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    command += ["--dir", str(folder.absolute()), "--appendonly", "yes", "--appendfsync", fsync]
    return [*command, "--loglevel", "warning"]


def serve_command(export: Path, store: str, *flags: str) -> list[str]:
    """The command of a service over a store."""
    command = [sys.executable, "-m", "sigma_jax.serve", f"--export={export}", f"--store={store}"]
    return [*command, *flags]


def wait_until(check: Callable[[], Any], process: subprocess.Popen[Any], seconds: float) -> None:
    """Returns when `check` raises no error of a connection any more.

    Raises:
      RuntimeError: the process has ended.
      TimeoutError: the time is over.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError, StoreError):
            check()
            return
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} has ended; see its log.")
        time.sleep(POLL_SECONDS)
    raise TimeoutError(f"{process.args!r} does not answer within {seconds:g} s; see its log.")


def get(port: int, path: str) -> bytes:
    """The body of an answer. OSError if there is none, or its status is no 200."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        body: bytes = answer.read()
        return body


def check_warm(port: int) -> None:
    """Returns if the service has loaded the programs of all requests. OSError if not."""
    get(port, "/readyz?is_warmed_up=true")
