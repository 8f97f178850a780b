"""Every command that README, docs and CONTRIBUTING show exists, with its flags and config fields.

A command of this package is parsed as it stands, down to presets and fields of configs. The cheap
ones are run (RUN). `.ci/run` and other tests run the rest on small data: EXECUTED_ELSEWHERE.
"""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools

from sigma_jax import __main__ as console

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
CI = (ROOT / ".ci" / "run").read_text()
CHECKS = ("ruff", "mypy", "pytest", "sphinx-build")  # .ci/run has them
# Programs that are not of this project. Their words are not checked.
OTHERS = ("cd", "curl", "export", "git", "python3.11", "source", "tensorboard")
# Commands that cost a second or two.
RUN = (
    "sigma --help",
    "sigma train --help",
    "python -m sigma_jax.benchmark --suite=configs/benchmark/amazon.py",
)
# What a test or .ci/run executes with other data: the command's beginning and where.
EXECUTED_ELSEWHERE = {
    "python -m sigma_jax.train --config=configs/sft.py": ".ci/run",
    "sigma train": "tests/test_package.py",
    "python -m sigma_jax.prepare": "tests/test_prepare.py",
    "python -m sigma_jax.recommend": "tests/test_commands.py",
    "python -m sigma_jax.evaluate": "tests/test_commands.py",
    "python -m sigma_jax.preflight": "tests/test_preflight.py",
    "python -m sigma_jax.knowledge": "tests/test_knowledge.py",
    "python -m sigma_jax.serve": "tests/test_serve.py",
    "python -m sigma_jax.experiment": "tests/serving/experiments/test_report.py",
    "python -m sigma_jax.refresh": "tests/refreshing/test_refresh.py",
    "launch/tpu_vm.sh": "tests/test_tpu_vm.py",
}


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of each command in the fenced `bash` blocks, in order."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                for command in line.split(" && "):
                    if words := shlex.split(command, comments=True):
                        found.append((page.name, words))
    return found


COMMANDS = commands()


def without_prefix(words: list[str]) -> list[str]:
    """`words` without variables before the command, and without a script that runs it."""
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[0] == "launch/multihost_local.sh":
        return words[2:]
    if words[:2] == ["launch/tpu_vm.sh", "train"]:
        return words[3:]
    return words


def of_package(words: list[str]) -> tuple[str, list[str]] | None:
    """(name, arguments) of a command of this package; None for any other command."""
    words = without_prefix(words)
    if words[:2] == ["python", "-m"] and words[2].startswith("sigma_jax."):
        return words[2].removeprefix("sigma_jax."), words[3:]
    if words[0] == "sigma" and len(words) > 1 and "--help" not in words:
        return words[1], words[2:]
    return None


def test_pages_show_commands():
    assert len(COMMANDS) > 40
    assert {"README.md", "CONTRIBUTING.md", "quickstart.md"} <= {page for page, _ in COMMANDS}


def test_commands_of_the_package_parse(tmp_path):
    """Commands, flags, presets and config fields exist. `my_shop.py` is the config of a page."""
    [own] = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "configuration.md").read_text(), re.S
    )
    (tmp_path / "my_shop.py").write_text(own)
    shown = [command for _, words in COMMANDS if (command := of_package(words))]
    assert {name for name, _ in shown} == set(console.COMMANDS)
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "parse_flags.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        input=json.dumps(shown),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])
    wrong = [
        f"{name} {shlex.join(words)}: {error}"
        for (name, words), error in zip(shown, errors, strict=True)
        if error
    ]
    assert not wrong, "\n".join(wrong)


def extras() -> dict[str, list[str]]:
    """The extras that setup.py defines."""
    given = {}
    setup, setuptools.setup = setuptools.setup, given.update
    try:
        runpy.run_path(str(ROOT / "setup.py"))
    finally:
        setuptools.setup = setup
    return given["extras_require"]


def is_known(words: list[str]) -> bool:
    """Whether a command that is not of this package is one that exists."""
    words = without_prefix(words)
    if words[0] == "pip":
        named = re.findall(r"\[(.*?)\]", " ".join(words))
        return words[1] == "install" and {e for n in named for e in n.split(",")} <= set(extras())
    if words[0] in CHECKS:
        paths = [word for word in words[1:] if re.match(r"(docs|tests)(/|$)", word)]
        exist = all((ROOT / path).exists() for path in paths if path != "docs/_build")
        return exist and re.search(rf"^{words[0]}\b", CI, re.MULTILINE) is not None
    if words[:2] == ["python", "-m"] and words[2].startswith("launch."):
        is_tested = words[2] in ("launch.leak", "launch.benchmarks.chaos")  # with other arguments
        is_plain = len(words) == 3 or is_tested
        return (ROOT / f"{words[2].replace('.', '/')}.py").is_file() and is_plain
    if words[0].startswith(("launch/", ".ci/")):
        return os.access(ROOT / words[0], os.X_OK)
    return words[0] in OTHERS or shlex.join(words) in RUN


@pytest.mark.parametrize(
    "words", [words for _, words in COMMANDS if not of_package(words)], ids=shlex.join
)
def test_other_commands_exist(words):
    assert is_known(words)


@pytest.mark.parametrize(
    "words",
    [
        words
        for _, words in COMMANDS
        if shlex.join(words).startswith(RUN) and "--data=FOLDER" not in words
    ],
    ids=shlex.join,
)
def test_cheap_commands_run(words, tmp_path):
    """With this checkout in place of the installed package, and copies of the folders it writes."""
    for number, word in enumerate(words):
        flag, _, folder = word.partition("=")
        if flag == "--workdir":
            shutil.copytree(ROOT / folder, tmp_path / "workdir")
            words = [*words[:number], f"--workdir={tmp_path / 'workdir'}", *words[number + 1 :]]
    name, *rest = words[1:] if words[0] == "sigma" else [words[2].partition(".")[2], *words[3:]]
    done = subprocess.run(
        [sys.executable, "-m", "sigma_jax", name, *rest],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    # absl's --help ends with status 1.
    assert done.returncode == (1 if "--help" in rest else 0), done.stderr
    assert done.stdout.strip()


def test_multihost_local_tells_each_process_which_it_is():
    script = (
        "import os\n"
        "text = os.environ['SIGMA_PROCESS'] + ' of ' + os.environ['SIGMA_PROCESSES'] + '\\n'\n"
        "os.write(1, text.encode())"
    )
    words = ["launch/multihost_local.sh", "2", sys.executable, "-c", script]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.splitlines()) == ["0 of 2", "1 of 2"]


@pytest.mark.parametrize(("command", "place"), EXECUTED_ELSEWHERE.items())
def test_what_is_executed_elsewhere_is(command, place):
    """The place names the command, and a page shows it."""
    shown = [shlex.join(without_prefix(words)) for _, words in COMMANDS]
    shown += [shlex.join(words) for _, words in COMMANDS]
    assert any(line.startswith(command) for line in shown)
    name = re.search(r"sigma_jax\.(\w+)|launch/(\w+\.sh)|sigma (\w+)", command)
    text = (ROOT / place).read_text()
    assert next(filter(None, name.groups())) in text
