"""The documentation promises only what is there, and its generated pages say what the code says."""

import dataclasses
import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from sigma_jax.configs.common import PRESETS

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))


@pytest.fixture(scope="module")
def generated_pages():
    """docs/generated_pages.py as a module."""
    path = ROOT / "docs" / "generated_pages.py"
    spec = importlib.util.spec_from_file_location("generated_pages", path)
    sys.modules["generated_pages"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_paths_exist(page):
    """Files and folders of this repository that a page names in code, or links to."""
    text = page.read_text()
    code = re.findall(r"`((?:sigma_jax|configs|docs|launch|tests|examples|\.ci)/[\w./]*)`", text)
    missing = [path for path in code if "NAME" not in path and not (ROOT / path).exists()]
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        # A page that Sphinx generates has its source in the code.
        if not link.startswith("generated/") and not (page.parent / link).exists():
            missing.append(link)
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_names_of_the_package_exist(page):
    """Dotted names such as `sigma_jax.losses.contrastive_loss` can be imported."""
    for name in set(re.findall(r"`(sigma_jax(?:\.\w+)+)`", page.read_text())):
        module, _, attribute = name.rpartition(".")
        if importlib.util.find_spec(module) and attribute:
            found = importlib.import_module(module)
            if not hasattr(found, attribute):
                importlib.import_module(name)
        else:
            importlib.import_module(name)


def test_every_page_is_in_the_table_of_contents():
    contents = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    entries = set(re.findall(r"^(\w+)$", contents, re.MULTILINE))
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages <= entries


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_preset_is_explained():
    text = (ROOT / "docs" / "configuration.md").read_text()
    assert all(f"`{preset}`" in text for preset in PRESETS)


def test_ci_runs_the_two_commands_of_the_readme():
    """CI runs the first command from a wheel, in an empty folder, with a preset of a minute."""
    script = (ROOT / ".ci" / "run").read_text()
    blocks = re.findall(r"```bash\n(pip install .*)\n```", (ROOT / "README.md").read_text())
    assert blocks[0].split(" && ")[1] in script and '[demo]"' in script
    assert all(command in script for command in blocks[1].split(" && "))


def test_ci_runs_every_example():
    script = (ROOT / ".ci" / "run").read_text()
    examples = sorted((ROOT / "examples").glob("*.py"))
    assert examples and all(f"examples/{path.name}" in script for path in examples)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Two fields."""

    # Of the whole
    # gradient.
    clip_norm: float  # 0 leaves it as it is
    steps: tuple[int, ...]


def test_comments_above_and_behind_a_field_explain_it(generated_pages):
    clip, steps = generated_pages.fields_of(Sample)
    assert clip == generated_pages.Field(
        "clip_norm", "float", "Of the whole gradient. 0 leaves it as it is"
    )
    assert steps == generated_pages.Field("steps", "tuple[int, ...]", "")


def test_configuration_page_shows_value_and_presets(generated_pages):
    page = generated_pages.configuration_page()
    [row] = [line for line in page.splitlines() if line.startswith("| `train.steps` ")]
    assert "`int` | `640`" in row and "smoke: `10`" in row


def test_docstrings_become_restructured_text(generated_pages):
    docstring = [
        "Rows of `a_b` and c_, 2 * 3.",
        "",
        "    code * here",
        "",
        "A list:",
        "  - one",
        "  - two",
        "",
        "Args:",
        "  x: a value.",
    ]
    assert list(generated_pages._to_rst(docstring)) == [
        "Rows of ``a_b`` and c\\_, 2 \\* 3.",
        "",
        "::",
        "",
        "        code * here",
        "",
        "A list:",
        "",
        "  - one",
        "  - two",
        "",
        "Args:",
        "  x: a value.",
    ]
