"""Memory that is freed stays with the process, where its C library can be asked."""

import subprocess
import sys

from sigma_jax.runtime import memory

FAULTS = """
import resource, sys
import numpy as np
from sigma_jax.runtime.memory import keep_freed
if sys.argv[1] == "keep" and not keep_freed():
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


def test_arrays_of_the_next_step_have_the_memory_of_the_last():
    kept = faults("keep")
    if kept is not None:  # elsewhere nothing is promised
        assert kept < faults("free") / 10


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_freed() is False
