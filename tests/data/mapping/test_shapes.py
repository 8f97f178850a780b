"""Every example mapping turns files of its data set's shape into the right tables."""

import shutil
from pathlib import Path

import pytest
from mapping_expected import TABLES
from mapping_reading import read_tables
from mapping_shapes import SHAPES, write_shape

EXAMPLES = Path(__file__).parents[3] / "examples" / "mappings"


def test_every_example_has_a_shape():
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == set(SHAPES) == set(TABLES)


@pytest.mark.parametrize("name", SHAPES)
def test_example_mapping_makes_the_right_tables(name, tmp_path):
    folder = write_shape(name, tmp_path / "files")
    shutil.copy(EXAMPLES / f"{name}.yaml", folder / "mapping.yaml")
    found = read_tables(folder, tmp_path)
    found["interactions"] = [tuple(row.values()) for row in found["interactions"]]
    assert found == TABLES[name]
