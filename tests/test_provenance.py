"""A result names its commit, versions and machine."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sigma_jax import provenance

GIT = shutil.which("git")


def test_provenance_names_the_machine_and_the_versions():
    made = provenance.provenance()
    assert set(made) == {"commit", "command", "versions", "machine"}
    assert made["versions"]["python"] == sys.version.split()[0]
    assert made["machine"]["cores"] >= 1 and made["machine"]["memory_gb"] >= 1
    assert made["machine"]["processor"]
    import jax

    assert provenance.machine()["devices"].startswith(f"{jax.device_count()} x ")


@pytest.mark.skipif(not GIT, reason="git is not installed")
def test_a_commit_is_that_of_the_clone_and_marks_changes(tmp_path, monkeypatch):
    """A package that lies in a clone of another project has no commit."""
    file = tmp_path / "sigma_jax" / "provenance.py"
    file.parent.mkdir(parents=True)
    file.write_text("first")
    monkeypatch.setattr(provenance, "__file__", str(file))
    of_file = provenance.commit.__wrapped__
    assert of_file() == ""

    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run([GIT, "-C", tmp_path, *who, *words], capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "--quiet")
    Path(tmp_path / "other.txt").write_text("of another project")
    git("add", "other.txt")
    git("commit", "--quiet", "-m", "first")
    assert of_file() == ""
    git("add", "--all")
    git("commit", "--quiet", "-m", "second")
    assert of_file() == git("rev-parse", "HEAD") != ""
    file.write_text("second")
    assert of_file() == git("rev-parse", "HEAD") + "+"
