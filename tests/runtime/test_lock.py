"""One command at a time in a workdir."""

import pytest

from sigma_jax.runtime.cli import one_line
from sigma_jax.runtime.lock import locked


def test_two_runs_do_not_share_a_workdir(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(ValueError, match="another run is at work"),
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
    said = one_line(caught.value)
    assert said.endswith("/file/run: not a directory; check the path and who may write there.")
