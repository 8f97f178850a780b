"""The results in the documentation equal those of the stored records."""

import re
from pathlib import Path

import pytest

from launch import tables
from sigma_jax import benchmark
from sigma_jax.benchmarking.rows import read_results
from sigma_jax.benchmarking.suite import Suite, planned_runs
from sigma_jax.benchmarking.suite_table import render

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "launch" / "results"
FOLDERS = sorted(path for path in RESULTS.iterdir() if path.is_dir())
PAGES = tables.PAGES
# Line breaks inside sentences become spaces.
TEXT = "\n".join(re.sub(r"(?<=[^|\n])\n(?=[^|\n#`-])", " ", page.read_text()) for page in PAGES)


def suite_of(folder: Path) -> Suite:
    """The suite whose records are in `folder`."""
    return benchmark.load_suite(str(ROOT / "configs" / "benchmark" / f"{folder.name}.py"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_record_is_of_a_run_of_its_suite(folder):
    suite = suite_of(folder)
    names = {run.workdir(folder): run.name for run in planned_runs(suite)}
    records = sorted(path.parent for path in folder.rglob("record.json"))
    assert records and set(records) <= set(names)
    text = render(suite, folder)
    assert all(f"{names[path]}: not run" not in text for path in records)
    assert "WARNING" not in text


def test_tables_that_need_no_training_have_all_their_records():
    commands = re.findall(r'--workdir=launch/results/(\w+) "--runs=([^"]+)"', TEXT)
    assert commands
    for name, prefix in commands:
        suite = suite_of(RESULTS / name)
        runs = benchmark.select_runs(planned_runs(suite), [prefix])
        assert runs and all(read_results(run, RESULTS / name) for run in runs)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_of_the_documentation_are_those_of_the_records(page):
    """After a change of a record: python -m launch.tables"""
    text = page.read_text(encoding="utf-8")
    assert tables.render_page(text) == text


def test_no_table_of_figures_is_outside_the_marks():
    """A table with three or more cells of decimals is made from records."""
    for page in PAGES:
        text = tables.MARKED.sub("", page.read_text(encoding="utf-8"))
        rows = [line for line in text.splitlines() if len(re.findall(r"\| -?\d+\.\d+ ", line)) > 2]
        assert not rows, (page.name, rows[:2])


def test_the_documentation_shows_the_catalogue_update_under_load():
    result = tables.result_of("swap")
    assert not result["failed"] and not result["mixed"] and not result["compiled_for_requests"]
    assert f"{result['new_items']} new items" in TEXT
    assert f"of {result['requests']:,} requests none failed" in TEXT
    assert f"median was {result['ms_median']:.0f} ms" in TEXT


def test_every_preset_fits_its_slice():
    assert all(row["fits"] for row in tables.result_of("presets"))


def test_the_documentation_shows_the_trunk_benchmark():
    result = tables.result_of("trunk")
    for name in ("ours", "ours, layer", "theirs"):
        assert f"{1000 * result[name]['seconds']:.0f} ms" in TEXT
        assert f"{result[name]['memory'] / 2**30:.2f} GiB" in TEXT
    assert f"{result['sft_ratio']:.2f} of the trunk" in TEXT


def test_the_documentation_shows_the_steps_on_a_cpu():
    result = tables.result_of("torch_cpu")
    assert f"tokens a second are {result['ratios']['ours, next code']:.2f} times" in TEXT
    assert f"as that loop ({result['ratios']['ours, stage 3']:.2f})" in TEXT
    first = result["first_losses"]
    assert first["ours, next code"] == pytest.approx(first["PyTorch, next code"], rel=1e-4)


def test_the_documentation_shows_the_loader_benchmark():
    """Two sentences compare rates."""
    for row in tables.result_of("loader"):
        if row["preset"] == "local":
            rate = row["rows_per_second"]
        else:
            needed = row["rows_per_second"]
    step = tables.result_of("torch_cpu")
    consumed = step["tokens_per_second"]["ours, stage 3"] / step["row_tokens"]
    assert f"{rate / consumed:.0f} times what a training of `local`" in TEXT
    assert f"({consumed:.0f} rows a second)" in TEXT
    [preset] = [
        row
        for row in tables.trainings()
        if (row["stage"], row["preset"], row["topology"]) == ("sft", "qwen3_0p6b", "v5e-16")
    ]
    wanted = preset["batch_size"] / preset["seconds"]
    assert f"consumes {wanted:.0f} rows a second" in TEXT and wanted < needed / 2


def test_the_documentation_shows_the_preemption_benchmark():
    result = tables.result_of("preemption")
    for series in result.values():
        assert sum(series["kills"].values()) == 20
        assert series["checkpoints_lost"] == 0 and series["every_step_once"]
    assert result["one mesh"]["bit_for_bit"]
    worst = result["any mesh"]["weights"]
    assert f"{worst:.7f} at most" in TEXT and worst < 1e-5
