"""Parses command lines of this package without running them.

Standard input: a JSON list of [command, [word, ...]]. Standard output: a JSON list, for each the
error that the command would end with, or "" if config, fields and flags exist. Flags are global,
so each command line is parsed in a process of its own, forked after the slow imports.
"""

import importlib
import json
import os
import sys

from sigma_jax import __main__ as console
from sigma_jax import benchmark
from sigma_jax.runtime import cli

POSITIONAL = {"catalogue": 1, "experiment": 1}


def error_of(name: str, words: list[str]) -> str:
    """Error of command `name` for the flags `words`, before any work; "" if there is none."""
    module = importlib.import_module(f"sigma_jax.{name}")
    module.define_flags()
    sys.argv = [name, *words]  # the flag --config looks here for the fields over it
    try:
        rest = cli._parse_flags([name, *words], getattr(module, "CONFIG", ""))[1:]
        if name == "benchmark":
            benchmark.load_suite(module.FLAGS.suite)
        if name in POSITIONAL and rest[0] not in module.ACTIONS:
            return f"{rest[0]} is no action"
    except ValueError as error:
        return str(error)
    return "" if len(rest) == POSITIONAL.get(name, 0) else f"{rest} is not understood"


def in_child(name: str, words: list[str]) -> str:
    """`error_of` in a forked process."""
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        os.close(receiving)
        with os.fdopen(sending, "w") as pipe:
            pipe.write(error_of(name, words))
        os._exit(0)
    os.close(sending)
    with os.fdopen(receiving) as pipe:
        message = pipe.read()
    status = os.waitpid(child, 0)[1]
    return message or (f"parsing ended with status {status}" if status else "")


if __name__ == "__main__":
    for name in console.COMMANDS:
        importlib.import_module(f"sigma_jax.{name}")
    answers = [in_child(*command) for command in json.load(sys.stdin)]
    print(json.dumps(answers))
