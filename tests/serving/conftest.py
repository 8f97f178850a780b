"""The data of the small training that tests share, copies of its export, and a store."""

import shutil
from pathlib import Path

import pytest

from sigma_jax.schema import PreparedData
from sigma_jax.serving.stores.base import open_store


@pytest.fixture(scope="session")
def data(trained) -> PreparedData:
    return PreparedData.load(trained[1] / "data")


@pytest.fixture
def export_copy(exported, tmp_path) -> Path:
    """A copy of the export, in another folder, that a test may change."""
    return Path(shutil.copytree(exported, tmp_path / "elsewhere"))


@pytest.fixture
def store(tmp_path):
    """A store in a SQLite file."""
    store = open_store(str(tmp_path / "store.db"))
    yield store
    store.close()


@pytest.fixture
def items(engine):
    """The ids of all items of the engine's catalogue."""
    return engine.current.version.catalogue.table["item_id"].to_pylist()
