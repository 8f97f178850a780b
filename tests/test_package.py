"""Promises of the package: a wheel holds all that the commands need, outside any checkout."""

import ast
import os
import subprocess
import sys
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import sigma_jax
from sigma_jax import __main__ as console
from sigma_jax import configs

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel of this checkout, built from a copy so that no build folder is left behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "sigma_jax", "configs"):
        (source / name).symlink_to(ROOT / name)
    code = (
        "import sys\n"
        "from setuptools.build_meta import build_wheel\n"
        "sys.argv[1:] = ['--quiet']\n"
        f"print(build_wheel({str(folder)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    """A folder as `pip install` leaves it in site-packages."""
    folder = tmp_path_factory.mktemp("site-packages")
    wheel.extractall(folder)
    return folder


def run(site_packages: Path, folder: Path, *words: str) -> subprocess.CompletedProcess:
    """`python -m WORDS` in `folder` with the unpacked wheel in place of this checkout."""
    environment = {**os.environ, "PYTHONPATH": str(site_packages)}
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def last_line(done: subprocess.CompletedProcess) -> str:
    return done.stderr.splitlines()[-1]


def test_wheel_holds_every_config_file(wheel):
    files = {f"sigma_jax/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.py")}
    assert files <= set(wheel.namelist())


def test_console_script_resolves(wheel):
    [name] = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "sigma = sigma_jax.__main__:main" in wheel.read(name).decode()
    assert EntryPoint("sigma", "sigma_jax.__main__:main", "console_scripts").load() is console.main


@pytest.mark.slow
def test_wheel_finds_its_own_config_files(unpacked, tmp_path):
    """`--only` in an empty folder reads the config, imports JAX, and names the missing data."""
    done = run(unpacked, tmp_path, "sigma_jax.train", "--config=configs/sft.py:smoke", "--only")
    assert done.returncode == 1
    assert last_line(done).startswith("error: runs/sft-smoke/data/manifest.json is missing")


@pytest.mark.slow
def test_wheel_reads_a_config_file_of_ones_own(unpacked, tmp_path):
    """A file on disk goes first, and it may build on a packaged one."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "sft.py").write_text(
        "from sigma_jax.configs import sft\n"
        "def get_config(preset='local'):\n"
        "    config = sft.get_config('smoke')\n"
        "    config.data.path = preset\n"
        "    return config\n"
    )
    done = run(unpacked, tmp_path, "sigma_jax.train", "--config=configs/sft.py:own", "--only")
    assert last_line(done).startswith("error: runs/sft-own/data/manifest.json is missing")


def test_wheel_finds_a_packaged_suite(unpacked, tmp_path):
    words = ["sigma_jax", "benchmark", "--suite=configs/benchmark/smoke.py", "--dry_run"]
    done = run(unpacked, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert "-m sigma_jax.train --config=configs/sft.py:smoke" in done.stdout


def test_config_files_of_a_checkout_are_those_of_the_package():
    assert list(configs.__path__) == [str(Path(sigma_jax.__file__).parents[1] / "configs")]


def commands() -> set[str]:
    """Every file of the package that runs as a command."""
    return {
        path.stem
        for path in Path(sigma_jax.__file__).parent.glob("*.py")
        if "cli.run_command(main" in path.read_text()
    }


def test_every_command_is_in_the_console_script():
    assert set(console.COMMANDS) == commands()


def test_usage_says_one_line_about_each_command():
    lines = console.usage().splitlines()
    for name in console.COMMANDS:
        [line] = [line for line in lines if line.split()[:1] == [name]]
        docstring = ast.get_docstring(ast.parse((ROOT / "sigma_jax" / f"{name}.py").read_text()))
        assert line.endswith(docstring.splitlines()[0])
        assert len(line) <= 100


@pytest.mark.parametrize("words", [[], ["--help"], ["help"]])
def test_sigma_alone_lists_the_commands(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sigma", *words])
    console.main()
    assert "  recommend  " in capsys.readouterr().out


def test_unknown_command_names_the_nearest(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sigma", "recomend", "--user=1"])
    with pytest.raises(SystemExit) as ended:
        console.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        "error: 'recomend' is no command; did you mean 'recommend'?\n"
    )
