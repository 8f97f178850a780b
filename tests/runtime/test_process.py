"""A workdir has one writer at a time; freed memory stays with the process where possible."""

import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from sigma_jax.runtime import process
from sigma_jax.runtime.cli import one_line
from sigma_jax.runtime.process import locked

FAULTS = """
import resource, sys
import numpy as np
from sigma_jax.runtime.process import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("not glibc")
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(16_000_000)
before = faults()
for _ in range(5):
    np.ones(16_000_000)
print(faults() - before)
"""


def faults(how: str) -> int | None:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True)
    return int(done.stdout) if done.returncode == 0 else None


def test_two_runs_do_not_share_a_workdir(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(ValueError, match="another command is writing"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


def test_a_workdir_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ValueError, match=r"--workdir=\S+ is a file; name a folder\."),
        locked(tmp_path / "file"),
    ):
        pass
    with pytest.raises(NotADirectoryError) as caught, locked(tmp_path / "file" / "run"):
        pass
    message = one_line(caught.value)
    assert message.endswith("/file/run: not a directory; check the path and who may write there.")


def test_arrays_of_the_next_step_reuse_the_memory_of_the_last():
    kept = faults("keep")
    if kept is not None:  # elsewhere nothing is promised
        assert kept < faults("free") / 10


def test_other_systems_are_not_changed(monkeypatch):
    monkeypatch.setattr(process.sys, "platform", "darwin")
    assert process.keep_freed_memory() is False


RELEASE = """
import sys
import numpy as np
from sigma_jax.runtime.process import keep_freed_memory, release_memory
if not keep_freed_memory():
    sys.exit("not glibc")
def megabytes():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
kept = []
for _ in range(40):  # between the freed arrays lie small ones
    kept += [np.ones(1_000_000), np.ones(1_000)]
before = megabytes()
kept[::2] = [None] * 40
freed = megabytes()
release_memory()
print(before - freed, freed - megabytes())
"""


def test_released_memory_goes_back_to_the_system():
    result = subprocess.run([sys.executable, "-c", RELEASE], capture_output=True, text=True)
    if "not glibc" in result.stderr:
        pytest.skip("not glibc")
    freed, released = map(float, result.stdout.split())
    assert freed < 50 and released > 200  # of 305 MB


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux alone counts maps")
def test_memory_maps_are_counted(tmp_path):
    before, most = process.share_of_maps(), 65_530
    assert 0 < before < 1
    path = tmp_path / "file"
    path.write_bytes(bytes(4_096))
    with open(path, "rb") as file:  # each with a protection of its own, so that none are joined
        held = [mmap.mmap(file.fileno(), 4_096, access=mmap.ACCESS_READ) for _ in range(500)]
    assert (process.share_of_maps() - before) * most > 100
    assert len(held) == 500
