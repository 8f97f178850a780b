"""The Colab notebook holds no output and runs commands that exist; .ci/run executes it."""

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
CELLS = json.loads((ROOT / "launch" / "sigma_colab.ipynb").read_text())["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_cells_are_python_without_output():
    assert all(ast.parse(source) for source in CODE)
    assert all(not cell.get("outputs") for cell in CELLS)
    assert all(cell.get("execution_count") is None for cell in CELLS)


def test_its_commands_exist_and_ci_runs_it():
    commands = set(re.findall(r'"sigma_jax\.(\w+)"', "\n".join(CODE)))
    assert commands == {"train", "export", "recommend"}
    assert all((ROOT / "sigma_jax" / f"{name}.py").exists() for name in commands)
    assert "jupyter execute launch/sigma_colab.ipynb" in (ROOT / ".ci" / "run").read_text()
