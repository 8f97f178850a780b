"""The documentation promises only what is there, and its generated pages say what the code says."""

import dataclasses
import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from sigma_jax.configs import sft
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


def field_names() -> set[str]:
    """Full names of all fields and groups of the config of stage `sft`."""

    def names(group: ConfigDict, prefix: str) -> set[str]:
        found = set()
        for key, value in group.items():
            found.add(prefix + key)
            if isinstance(value, ConfigDict):
                found |= names(value, f"{prefix}{key}.")
        return found

    return names(sft.get_config(), "")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_config_fields_exist(page):
    """Fields such as `train.batch_size` or `prompt.layout.sid_in_prompt=0`, under their full name.

    Pages about one stage may leave out its prefix `upstream.STAGE.`.
    """
    fields = field_names()
    known = fields | {re.sub(r"^upstream\.\w+\.", "", name) for name in fields}
    groups = {name.partition(".")[0] for name in known if "." in name}
    spans = re.findall(
        r"`(?:--config\.)?([a-z][a-z_0-9]*(?:\.[a-z][a-z_0-9]*)+)(?:=[^`]*)?`", page.read_text()
    )
    named = {span for span in spans if span.partition(".")[0] in groups}
    assert not {
        name for name in named if name not in known and not re.search(r"\.(py|md|json)$", name)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_words_of_code_exist(page):
    """A name with an underscore in code, such as `lexical_match`, stands somewhere in the code."""
    code = "".join(
        path.read_text()
        for folder in ("sigma_jax", "configs", "launch", "tests", "docs", "examples")
        for path in (ROOT / folder).rglob("*.py")
    )
    names = set(re.findall(r"`([a-z]+(?:_[a-z0-9]+)+)(?:=[^`]*)?`", page.read_text()))
    assert not {name for name in names if not re.search(rf"\b{name}\b", code)}


def test_every_page_is_in_the_table_of_contents():
    contents = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    entries = set(re.findall(r"^(\w+)$", contents, re.MULTILINE))
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages <= entries


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


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
    assert "`int` | `448`" in row and "smoke: `10`" in row


def test_every_config_field_is_explained(generated_pages):
    """The comment of a field in its dataclass is its row in the table of all fields."""
    page = generated_pages.configuration_page()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert not {row[0] for row in rows if not row[3].strip()}


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
