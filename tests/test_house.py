"""The rules of the house: who imports whom, how long files are, every config field is read."""

import ast
import dataclasses
import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from sigma_jax.configs import common
from sigma_jax.data.config import DataConfig
from sigma_jax.runtime.config import MeshConfig, to_dataclass
from sigma_jax.stages import STAGES, stage_fields, stages_of, task_classes

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sigma_jax"
# A file imports from its own floor and those above it.
FLOORS = (
    ("schema", "configs"),
    ("shapes", "hashing", "provenance", "losses", "metrics"),
    ("histories",),
    ("runtime",),
    ("data",),
    ("models",),
    ("encoders", "language_model"),
    ("tasks",),
    ("prompts",),
    ("index",),
    ("generation",),
    ("reranking",),
    ("recommender",),
    ("teacher", "grounding", "tokenizer"),
    ("sft",),
    ("stages",),
    ("baselines",),
    ("evaluation",),
    ("benchmarking",),
    ("serving",),
    ("refreshing",),
    (
        "prepare",
        "train",
        "evaluate",
        "recommend",
        "benchmark",
        "export",
        "catalogue",
        "preflight",
        "knowledge",
        "serve",
        "experiment",
        "refresh",
    ),
    ("api", "__main__"),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FUNCTION_LINES = 60  # about 50, with room for docstrings and signatures
MAX_FILES = 13  # of a folder, about 12


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported(path: Path) -> set[str]:
    """Rooms of this package that the file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("sigma_jax.")}
    return found & set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_file_imports_from_above_only(path):
    if path == PACKAGE / "__init__.py":
        assert rooms_imported(path) <= {"api"}, "the package itself imports its API alone"
        return
    assert room(path) in FLOOR, f"{room(path)} has no floor; put it into FLOORS"
    below = {name for name in rooms_imported(path) if FLOOR[name] > FLOOR[room(path)]}
    assert not below, f"imports from below: {sorted(below)}"


def functions(path: Path) -> dict[str, int]:
    """Lines of every function of a file, by its name."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {
        f"{path.relative_to(PACKAGE)}: {node.name}": node.end_lineno - node.lineno + 1
        for node in nodes
        if isinstance(node, ast.FunctionDef)
    }


def test_functions_are_short():
    lengths = {name: lines for path in FILES for name, lines in functions(path).items()}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES}


def test_folders_are_small():
    """The commands stand in the package itself, one file each; that folder is not counted."""
    inside = [path for path in FILES if path.parent != PACKAGE and path.name != "__init__.py"]
    folders = Counter(path.parent for path in inside)
    large = {str(folder): count for folder, count in folders.items() if count > MAX_FILES}
    assert not large


def config_files() -> list[Path]:
    found = [ROOT / "configs" / f"{stage}.py" for stage in STAGES]
    return [path for path in found if path.exists()]


def load_config(path: Path, preset: str):
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.__doc__ and f"configs/{path.name}" in module.__doc__, "no command in docstring"
    return module.get_config(preset)


def test_every_stage_has_a_config_file():
    assert [path.stem for path in config_files()] == list(STAGES)


@pytest.mark.parametrize("preset", common.PRESETS)
@pytest.mark.parametrize("path", config_files(), ids=lambda path: path.stem)
def test_every_preset_becomes_its_dataclasses(path, preset):
    config = load_config(path, preset)
    assert config.is_locked
    assert config.stage == path.stem
    assert isinstance(config.seed, int)
    to_dataclass(MeshConfig, config.mesh, "mesh")
    to_dataclass(DataConfig, config.data, "data")
    for stage in stages_of(config):
        to_dataclass(task_classes(stage)[0], *stage_fields(config, stage))


def config_dataclasses() -> set[type]:
    """Every dataclass that the config files fill, nested ones included."""
    from sigma_jax.evaluation.evaluator import EvaluationConfig

    found, waiting = set(), [MeshConfig, DataConfig, EvaluationConfig]
    waiting += [task_classes(stage)[0] for stage in STAGES]
    while waiting:
        cls = waiting.pop()
        if cls in found:
            continue
        found.add(cls)
        module = importlib.import_module(cls.__module__)
        for field in dataclasses.fields(cls):
            hint = getattr(module, str(field.type).split(" |")[0], field.type)
            if dataclasses.is_dataclass(hint):
                waiting.append(hint)
    return found


def names_read() -> set[str]:
    """Every attribute the package reads, and names given as text to getattr."""
    found = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def test_every_config_field_is_read():
    read = names_read()
    unread = {
        f"{cls.__name__}.{field.name}"
        for cls in config_dataclasses()
        for field in dataclasses.fields(cls)
        if field.name not in read
    }
    assert not unread


def test_no_defaults_in_config_dataclasses():
    defaults = {
        f"{cls.__name__}.{field.name}"
        for cls in config_dataclasses()
        for field in dataclasses.fields(cls)
        if field.default is not dataclasses.MISSING
        or field.default_factory is not dataclasses.MISSING
    }
    assert not defaults
