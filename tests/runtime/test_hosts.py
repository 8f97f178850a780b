"""A run on several processes is the run of one."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from processes import ROOT, finish, joined, start

from sigma_jax.runtime import hosts

LINEAR = ROOT / "tests" / "linear_task.py"


def linear(folder: Path, processes: int, devices: int, *words) -> list[tuple[int, str, str]]:
    """Ten steps of the linear stage in `folder`."""
    return finish(start([LINEAR, folder, 10, *words], processes, devices))


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def parameters(output: str) -> np.ndarray:
    """The parameters that tests/linear_task.py printed."""
    lines = [line for line in output.splitlines()[:-1] if not line.startswith("[Gloo]")]
    return np.concatenate([np.frombuffer(bytes.fromhex(line), np.float32) for line in lines])


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The folder and the output of a run on one process with two devices."""
    folder = tmp_path_factory.mktemp("reference")
    [(status, output, errors)] = linear(folder, 1, 2, 0)
    assert status == 0, errors
    return folder, output


@pytest.mark.slow
@pytest.mark.parametrize("signal_at", [3, pytest.param(9, marks=pytest.mark.nightly)])
def test_two_processes_stop_together_after_sigterm_and_one_continues(
    tmp_path, reference, signal_at
):
    ends = linear(tmp_path, 2, 1, signal_at, "term")
    messages = {output.splitlines()[-1] for _, output, _ in ends}
    assert [status for status, *_ in ends] == [0, 0], ends
    assert len(messages) == 1 and "saved after step" in messages.pop()
    steps = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert signal_at < max(steps) <= signal_at + 2
    [(status, output, errors)] = linear(tmp_path, 1, 2, 0)
    assert status == 0, errors
    assert_same(tmp_path, output, reference)


@pytest.mark.slow
def test_one_process_is_killed_and_two_continue(tmp_path, reference):
    [(status, *_)] = linear(tmp_path, 1, 2, 8)
    assert status == -signal.SIGKILL
    (status, output, errors), other = linear(tmp_path, 2, 1, 0)
    assert status == other[0] == 0, (errors, other)
    assert [line for line in other[1].splitlines() if not line.startswith("[Gloo]")] == []
    assert_same(tmp_path, output, reference)


def assert_same(folder: Path, output: str, reference: tuple[Path, str]) -> None:
    """Parameters and losses equal those of the uninterrupted run; every step is there once."""
    np.testing.assert_allclose(parameters(output), parameters(reference[1]), rtol=1e-5, atol=1e-6)
    found, wanted = metrics(folder), metrics(reference[0])
    assert [line["step"] for line in found] == list(range(1, 11))
    assert [line["mean_step"] for line in found] == [line["mean_step"] for line in wanted]
    losses = [[line["loss"] for line in lines] for lines in (found, wanted)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


SCRIPT = """
import sys
from pathlib import Path
from sigma_jax.runtime import hosts
hosts.start(False)
import jax
def refuse():
    raise ValueError("no; try another.")
print(hosts.by_first(lambda: {"by": [jax.process_index(), None, "\u00e9"]}))
for function in (refuse, lambda: hosts.check_shared(Path(sys.argv[1 + jax.process_index()]))):
    try:
        hosts.by_first(function) if function is refuse else function()
    except ValueError as error:
        print(error)
hosts.check_shared(Path(sys.argv[1]))
print(hosts.all_true(True), hosts.all_true(jax.process_index() == 0))
"""


@pytest.mark.slow
def test_all_processes_get_the_result_of_the_first(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    ends = finish(start(["-c", SCRIPT, tmp_path / "a", tmp_path / "b"], 2, 1))
    for number, (status, output, errors) in enumerate(ends):
        assert status == 0, errors
        seen, refused, unshared, agreed = output.splitlines()[-4:]
        assert seen == "{'by': [0, None, 'é']}" and refused == "no; try another."
        assert f"--workdir={tmp_path / 'ab'[number]} is not the same folder on all 2" in unshared
        assert agreed == "True False"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SIGMA_PROCESSES": ""}, "SIGMA_PROCESSES='' is not a number"),
        ({"SIGMA_PROCESS": "2"}, "SIGMA_PROCESS=2 of SIGMA_PROCESSES=2; count from 0"),
    ],
)
def test_an_incomplete_environment_is_named(monkeypatch, changes, message):
    for name, value in (joined(2)[1] | changes).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        hosts.start(False)
    assert "JAX_COORDINATOR_ADDRESS" in os.environ


def test_one_process_does_not_wait(tmp_path):
    hosts.wait()
    hosts.check_shared(tmp_path / "missing")
    assert hosts.by_first(lambda: (1, 2)) == (1, 2) and not hosts.all_true(False)
