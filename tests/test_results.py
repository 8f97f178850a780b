"""The results in the documentation equal those of the stored records."""

import json
import re
from pathlib import Path

import pytest

from sigma_jax import benchmark
from sigma_jax.benchmarking.rows import collect, read_results
from sigma_jax.benchmarking.suite import Suite, planned_runs
from sigma_jax.benchmarking.suite_table import cell, render

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "launch" / "results"
FOLDERS = sorted(path for path in RESULTS.iterdir() if path.is_dir())
BENCHMARKS = ROOT / "launch" / "benchmarks" / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
# Line breaks inside sentences become spaces.
TEXT = "\n".join(re.sub(r"(?<=[^|\n])\n(?=[^|\n#`-])", " ", page.read_text()) for page in PAGES)


def table_after(head: str) -> list[list[str]]:
    """The cells of each row of the table in the documentation whose head begins with `head`."""
    rows = TEXT.split(f"| {head} |")[1].split("\n\n")[0].splitlines()[2:]
    return [row.strip("| ").split(" | ") for row in rows]


def benchmark_result(name: str):
    """The stored result of launch/benchmarks/NAME.py."""
    return json.loads((BENCHMARKS / f"{name}.json").read_text())


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


def test_the_documentation_shows_the_means_and_deviations_of_the_records():
    """Rows are | Beauty | SIGMA | 3 | 9.51 ± 0.12 | ... with seeds and the suite's columns."""
    folder = RESULTS / "amazon"
    suite = suite_of(folder)
    names = "|".join(suite.data)
    pattern = rf"^\| ({names}) \| ([^|]+) \| (\d) \| (.+) \|$"
    documented = re.findall(pattern, TEXT, re.MULTILINE)
    assert len(documented) > 10
    for data, method, seeds, cells in documented:
        rows = collect(suite, folder, data, "exclude_seen", "item")
        [row] = [row for row in rows if row.method == method]
        expected = [cell(row, column).strip() for column in suite.columns]
        assert cells.split(" | ") == expected, (data, method)
        assert all(len(values) == int(seeds) for values in row.values.values())


def test_the_documentation_shows_table_1_of_the_records():
    """Columns are seeds, the suite's columns by SID, HR@10 by item, and the paper's HR@10."""
    folder = RESULTS / "table1"
    suite = suite_of(folder)
    [data] = suite.data
    by_sid, by_item = (
        {row.method: row for row in collect(suite, folder, data, "include_seen", level)}
        for level in ("sid", "item")
    )
    paper_names = {"SASRec": "online model (SASRec)"}
    documented = {cells[0]: cells[1:] for cells in table_after("hits by SID, seen items included")}
    assert suite.methods.keys() & by_sid.keys() <= documented.keys()
    for method, (seeds, *cells, paper) in documented.items():
        row = by_sid[method]
        assert cells[:-1] == [cell(row, column) for column in suite.columns], method
        assert cells[-1] == cell(by_item[method], suite.headline)
        assert all(len(values) == int(seeds) for values in row.values.values())
        published = suite.published[data].get(paper_names.get(method, method))
        assert paper == (f"{published[suite.headline]:.2f}" if published else "-")


@pytest.mark.parametrize(
    "name, head, columns",
    [
        (
            "trie",
            "items, 8 levels of 2,048 codes",
            {"items": ",", "build_ratio": ".2f", "bytes_ratio": ".2f", "search_ratio": ".2f"}
            | {"search_without_model_ratio": ".2f"},
        ),
        (
            "beams",
            "beams",
            {"beams": ",", "shared": ",.0f", "copied": ",.0f"}
            | {"shared_ms": ".0f", "copied_ms": ".0f"},
        ),
        (
            "retrieval",
            "items of a prefix",
            {"items": ",", "queries": ",", "recall": ".3f"}
            | {"scann": ".3f", "exact": ".3f", "ratio": ".2f"},
        ),
    ],
)
def test_the_documentation_shows_the_tables_of_the_benchmarks(name, head, columns):
    assert table_after(head) == [
        [format(row[key], form) for key, form in columns.items()] for row in benchmark_result(name)
    ]


def test_the_documentation_shows_the_catalogue_update_under_load():
    result = benchmark_result("swap")
    assert not result["failed"] and not result["mixed"] and not result["compiled_for_requests"]
    assert f"{result['new_items']} new items" in TEXT
    assert f"of {result['requests']:,} requests none failed" in TEXT
    assert f"median was {result['ms_median']:.0f} ms" in TEXT


def test_the_documentation_shows_the_estimates_of_the_presets():
    rows = benchmark_result("presets")
    for cells, row in zip(table_after("stage | preset | slice"), rows, strict=True):
        assert cells[:3] == [row["stage"], row["preset"], row["topology"]]
        assert cells[3] == f"{row['batch_size']:,}"
        assert cells[4].strip("`") == row["changes"]
        assert cells[5] == f"{row['memory'] / 2**30:.1f} of {row['chip_memory'] / 2**30:.0f}"
        assert row["fits"]
        assert cells[6:8] == [f"{row['seconds']:.2f}", f"{100 * row['mfu']:.0f}"]
        assert cells[8:] == [f"{row['hours']:.0f}", f"{row['chip_hours']:,.0f}"]


def test_the_documentation_shows_the_parts_of_a_step_of_each_preset():
    rows = benchmark_result("presets")
    names = ("", "ideal_", "product_", "kernel_", "other_", "waiting_")
    for row in rows:
        parts = [f"{row[f'{name}seconds']:.2f}" for name in names]
        line = [row["stage"], row["preset"], row["topology"], *parts]
        assert f"| {' | '.join(line)} |" in TEXT


def test_the_documentation_shows_the_trunk_benchmark():
    result = benchmark_result("trunk")
    for name in ("ours", "ours, layer", "theirs"):
        assert f"{1000 * result[name]['seconds']:.0f} ms" in TEXT
        assert f"{result[name]['memory'] / 2**30:.2f} GiB" in TEXT
    assert f"{result['sft_ratio']:.2f} of the trunk" in TEXT


def test_the_documentation_shows_the_steps_on_a_cpu():
    result = benchmark_result("torch_cpu")
    assert f"tokens a second are {result['ratios']['ours, next code']:.2f} times" in TEXT
    assert f"as that loop ({result['ratios']['ours, stage 3']:.2f})" in TEXT
    first = result["first_losses"]
    assert first["ours, next code"] == pytest.approx(first["PyTorch, next code"], rel=1e-4)


def test_the_documentation_shows_the_loader_benchmark():
    """Rows are | preset | items | samples | and five measurements; two sentences compare rates."""
    names = ("opened_mb", "grown_mb", "rows_per_second", "far_batch_ms")
    for row in benchmark_result("loader"):
        cells = [row["preset"], f"{row['items']:,}", f"{row['samples']:,}"]
        cells += [f"{row['opened_seconds']:.1f}", *(f"{row[name]:,.0f}" for name in names)]
        assert f"| {' | '.join(cells)} |" in TEXT
        if row["preset"] == "local":
            rate = row["rows_per_second"]
        else:
            needed = row["rows_per_second"]
    step = benchmark_result("torch_cpu")
    consumed = step["tokens_per_second"]["ours, stage 3"] / step["row_tokens"]
    assert f"{rate / consumed:.0f} times what a training of `local`" in TEXT
    assert f"({consumed:.0f} rows a second)" in TEXT
    presets = benchmark_result("presets")
    [preset] = [
        row
        for row in presets
        if (row["stage"], row["preset"], row["topology"]) == ("sft", "qwen3_0p6b", "v5e-16")
    ]
    wanted = preset["batch_size"] / preset["seconds"]
    assert f"consumes {wanted:.0f} rows a second" in TEXT and wanted < needed / 2


def test_the_documentation_shows_the_preemption_benchmark():
    result = benchmark_result("preemption")
    for series in result.values():
        assert sum(series["kills"].values()) == 20
        assert series["checkpoints_lost"] == 0 and series["every_step_once"]
    assert result["one mesh"]["bit_for_bit"]
    worst = result["any mesh"]["weights"]
    assert f"{worst:.7f} at most" in TEXT and worst < 1e-5
