"""An export of the small training that tests share."""

import shutil
from pathlib import Path

import pytest

from sigma_jax.schema import PreparedData
from sigma_jax.serving.bundle import export


@pytest.fixture(scope="session")
def data(trained) -> PreparedData:
    return PreparedData.load(trained[1] / "data")


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory) -> Path:
    """Read only."""
    folder = tmp_path_factory.mktemp("export") / "small"
    export(trained[1], folder)
    return folder


@pytest.fixture
def own(exported, tmp_path) -> Path:
    """A copy to be changed, at another place."""
    return Path(shutil.copytree(exported, tmp_path / "elsewhere"))
