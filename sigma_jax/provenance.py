"""Where a result comes from: the commit, the command, the versions of packages, and the machine."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("sigma_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers")
GIT_SECONDS = 10  # longest wait for git


def provenance() -> dict[str, Any]:
    """Keys commit, command, versions and machine, as the functions below return them."""
    return {
        "commit": commit(),
        "command": command_line(),
        "versions": versions(),
        "machine": machine(),
    }


@functools.cache
def commit() -> str:
    """The commit of the clone that this package runs from; "" where it is no clone.

    It ends with "+" if files of the clone differ from that commit.
    """
    root = Path(__file__).resolve().parents[1]
    head = _git(root, "rev-parse", "HEAD")
    if head is None or _git(root, "ls-files", "--error-unmatch", __file__) is None:
        return ""  # no clone, or a clone of another project around an installed package
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return head + ("+" if changed else "")


def _git(folder: Path, *words: str) -> str | None:
    """The output of a git command; None if it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", folder, *words],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def command_line() -> str:
    """The command that started this process."""
    module = getattr(sys.modules.get("__main__"), "__spec__", None)
    words = ["python", "-m", module.name] if module else ["python", sys.argv[0]]
    return " ".join(words + sys.argv[1:])


def versions() -> dict[str, str]:
    """The version of Python and of each package that results depend on."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """The processor, its cores, the memory in GB, and the devices of JAX if JAX is in use."""
    facts = {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
    }
    if "jax" in sys.modules:
        import jax

        facts["devices"] = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return facts


def _processor() -> str:
    """The name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
