"""The data of the small training that tests share, and copies of its export."""

import shutil
from pathlib import Path

import pytest

from sigma_jax.schema import PreparedData


@pytest.fixture(scope="session")
def data(trained) -> PreparedData:
    return PreparedData.load(trained[1] / "data")


@pytest.fixture
def export_copy(exported, tmp_path) -> Path:
    """A copy of the export, in another folder, that a test may change."""
    return Path(shutil.copytree(exported, tmp_path / "elsewhere"))
