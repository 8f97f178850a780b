"""launch/run_all passes the right words on to the command."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "launch" / "run_all"


@pytest.mark.parametrize(
    ("words", "preset", "workdir", "rest"),
    [
        ([], "local", "runs/sft-local", []),
        (["smoke"], "smoke", "runs/sft-smoke", []),
        (["smoke", "--config.seed=1"], "smoke", "runs/sft-smoke", ["--config.seed=1"]),
        (["--config.seed=1"], "local", "runs/sft-local", ["--config.seed=1"]),
        (["smoke", "a b", "--only"], "smoke", "a b", ["--only"]),
    ],
)
def test_run_all_tells_its_folder_from_a_flag(tmp_path, words, preset, workdir, rest):
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    output = subprocess.run(
        [SCRIPT, *words], env=environment, capture_output=True, text=True
    ).stdout.splitlines()
    first = ["-m", "sigma_jax.train", f"--config=configs/sft.py:{preset}", f"--workdir={workdir}"]
    assert output == first + rest
