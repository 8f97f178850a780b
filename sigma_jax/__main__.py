"""The console script: `sigma train --config=configs/sft.py` is `python -m sigma_jax.train ...`.

sigma            lists the commands
sigma NAME ...   runs one of them
"""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

from sigma_jax.runtime.config import did_you_mean

PACKAGE = Path(__file__).parent
COMMANDS = (
    "prepare",
    "train",
    "evaluate",
    "recommend",
    "export",
    "catalogue",
    "benchmark",
    "serve",
    "experiment",
    "knowledge",
    "preflight",
    "refresh",
)


def main() -> None:
    """Runs the command that the first argument names. An unknown name ends with status 1."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "-help", "--help", "help"):
        print(usage())
    elif name in COMMANDS:
        sys.argv = [f"sigma {name}", *arguments]
        runpy.run_module(f"sigma_jax.{name}", run_name="__main__", alter_sys=True)
    else:
        print(f"error: {name!r} is no command; {did_you_mean(name, COMMANDS)}", file=sys.stderr)
        sys.exit(1)


def usage() -> str:
    """The usage text: one line for each command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary(name)}" for name in COMMANDS]
    return "\n".join(
        ["usage: sigma COMMAND [FLAGS]", "", *lines, "", "sigma COMMAND --help lists its flags."]
    )


def summary(name: str) -> str:
    """First line of the docstring of a command's file, read without importing the file."""
    docstring = ast.get_docstring(ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8")))
    assert docstring, f"{name}.py has no docstring"
    return docstring.splitlines()[0]


if __name__ == "__main__":
    main()
