"""Mistakes on the command line: one clear line on stderr, an exit status, no traceback."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sigma_jax.runtime import cli

ROOT = Path(__file__).parents[2]

CONFIG = """
from sigma_jax.configs import common

def get_config(preset="local"):
    base = {"train": common.train(10, 4), "path": "", "inner": {"dtype": "bfloat16"}}
    return common.select(preset, base, {"smoke": {"train.steps": 2}})
"""
COMMAND = """
import sys
import time
from sigma_jax.runtime import cli
from sigma_jax.runtime.process import Stopped
CONFIG = cli.define_config()
def main(argv):
    config = CONFIG.value
    if config.path == "wait":
        print("waiting", flush=True)
        time.sleep(60)
    if config.path == "stopped":
        raise Stopped("linear: saved after step 3 of 9, stopped by SIGTERM")
    if config.path == "missing":
        open("/nowhere/items.csv")
    if config.path:
        raise ValueError(f"{config.path} is no good; give another.")
    print(config.train.steps, cli.default_workdir())
cli.run_command(main)
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.py").write_text(CONFIG)
    (folder / "command.py").write_text(COMMAND)

    def start(*words, **environment):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        return subprocess.Popen(
            [sys.executable, "command.py", *words],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell starts what runs in its background with interrupts ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    return start


def ended(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--config=tiny.py"], "10 runs/tiny-local"),
        (["--config=tiny.py:smoke"], "2 runs/tiny-smoke"),
        (["--config=tiny.py:smoke", "--config.train.steps=3"], "3 runs/tiny-smoke"),
        (["--config", "tiny.py:smoke", "--config.train.steps", "4"], "4 runs/tiny-smoke"),
    ],
)
def test_preset_and_overrides(command, words, wanted):
    assert ended(command(*words))[:2] == (0, wanted + "\n")


def test_a_run_that_was_stopped_has_not_failed(command):
    status, _, err = ended(command("--config=tiny.py", "--config.path=stopped"))
    message = "linear: saved after step 3 of 9, stopped by SIGTERM; the same command continues.\n"
    assert (status, err) == (0, message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=tiny.py:smok"], "preset 'smok' is unknown; did you mean 'smoke'?"),
        (["--config=tiny.pi"], "--config=tiny.pi does not exist; did you mean 'tiny.py'?"),
        (
            ["--config=tiny.py", "--config.train.stepz=3"],
            "--config.train.stepz is unknown; did you mean 'steps'?",
        ),
        (
            ["--config=tiny.py", "--config.trian.steps=3"],
            "--config.trian is unknown; did you mean 'train'?",
        ),
        (["--config=tiny.py", "--config.train.steps=many"], "--config.train.steps=many"),
        (["--config.train.steps=3", "--config=tiny.py"], "put --config first"),
        (["--config=tiny.py", "--wrokdir=x"], "'wrokdir'"),
        ([], "--config is missing; give file and preset"),
        (["--config=tiny.py", "--config.path=items.csv"], "items.csv is no good; give another."),
        (["--config=tiny.py", "--config.path=missing"], "/nowhere/items.csv"),
    ],
)
def test_mistake_is_one_line(command, words, message):
    status, out, err = ended(command(*words))
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_traceback_on_request(command):
    words = ["--config=tiny.py", "--config.path=items.csv"]
    _, _, err = ended(command(*words, SIGMA_TRACEBACK="1"))
    assert "Traceback" in err
    assert err.splitlines()[-1] == "error: items.csv is no good; give another."


def test_interrupt_is_status_130(command):
    process = command("--config=tiny.py", "--config.path=wait")
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    status, _, err = ended(process)
    assert status == 130
    assert "Traceback" not in err


def test_first_field_of_a_name_is_found():
    from ml_collections import ConfigDict

    config = ConfigDict({"a": {"b": {"dtype": "x"}}, "c": {"dtype": "y"}})
    assert cli.find_field(config, "dtype") == "y"
    assert cli.find_field(config, "nothing") is None
