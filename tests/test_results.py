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
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
# A line break in a sentence is a space.
SHOWN = "\n".join(re.sub(r"(?<=[^|\n])\n(?=[^|\n#`-])", " ", page.read_text()) for page in PAGES)


def suite_of(folder: Path) -> Suite:
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


def test_what_the_docs_show_without_training_is_all_recorded():
    found = re.findall(r'--workdir=launch/results/(\w+) "--runs=([^"]+)"', SHOWN)
    assert found
    for name, prefix in found:
        suite = suite_of(RESULTS / name)
        runs = benchmark.select_runs(planned_runs(suite), [prefix])
        assert runs and all(read_results(run, RESULTS / name) for run in runs)


def test_the_docs_show_the_means_and_deviations_of_the_records():
    """Rows such as | Beauty | SIGMA | 3 | 9.51 ± 0.12 | ...: seeds, then the suite's columns."""
    folder = RESULTS / "amazon"
    suite = suite_of(folder)
    names = "|".join(suite.data)
    shown = re.findall(rf"^\| ({names}) \| ([^|]+) \| (\d) \| (.+) \|$", SHOWN, re.MULTILINE)
    assert len(shown) > 10
    for data, method, seeds, cells in shown:
        rows = collect(suite, folder, data, "exclude_seen", "item")
        [row] = [row for row in rows if row.method == method]
        expected = [cell(row, column) for column in suite.columns]
        assert cells.split(" | ") == expected, (data, method)
        assert all(len(values) == int(seeds) for values in row.values.values())


def test_the_docs_show_table_1_of_the_records():
    """Of each method: seeds, the suite's columns by SID, the headline by item, the paper's."""
    folder = RESULTS / "table1"
    suite = suite_of(folder)
    [data] = suite.data
    by_sid, by_item = (
        {row.method: row for row in collect(suite, folder, data, "include_seen", level)}
        for level in ("sid", "item")
    )
    names = {"SASRec": "online model (SASRec)"}  # in the paper
    lines = SHOWN.split("| hits by SID, seen items included |")[1].split("\n\n")[0].splitlines()[2:]
    shown = {cells[0]: cells[1:] for cells in (line.strip("| ").split(" | ") for line in lines)}
    assert suite.methods.keys() & by_sid.keys() <= shown.keys()
    for method, (seeds, *cells, of_paper) in shown.items():
        row = by_sid[method]
        assert cells[:-1] == [cell(row, column) for column in suite.columns], method
        assert cells[-1] == cell(by_item[method], suite.headline)
        assert all(len(values) == int(seeds) for values in row.values.values())
        published = suite.published[data].get(names.get(method, method))
        assert of_paper == (f"{published[suite.headline]:.2f}" if published else "-")


@pytest.mark.parametrize(
    "name, first, columns",
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
def test_the_docs_show_the_benchmarks_of_the_records(name, first, columns):
    path = ROOT / "launch" / "benchmarks" / "results" / f"{name}.json"
    table = SHOWN.split(f"| {first} |")[1].split("\n\n")[0].splitlines()[2:]
    shown = [line.strip("| ").split(" | ") for line in table]
    assert shown == [
        [format(row[key], form) for key, form in columns.items()]
        for row in json.loads(path.read_text())
    ]


def test_the_docs_show_the_swap_of_the_record():
    found = json.loads((ROOT / "launch" / "benchmarks" / "results" / "swap.json").read_text())
    assert not found["failed"] and not found["mixed"] and not found["compiled_for_requests"]
    assert f"{found['new_items']} new items" in SHOWN
    assert f"of {found['requests']:,} requests none failed" in SHOWN
    assert f"median was {found['ms_median']:.0f} ms" in SHOWN


def test_the_docs_show_the_presets_of_the_record():
    path = ROOT / "launch" / "benchmarks" / "results" / "presets.json"
    table = SHOWN.split("| stage | preset | slice |")[1].split("\n\n")[0].splitlines()[2:]
    rows = json.loads(path.read_text())
    assert [line.split(" | ")[0] for line in table] == [f"| {row['stage']}" for row in rows]
    for line, row in zip(table, rows, strict=True):
        cells = line.strip("| ").split(" | ")
        assert cells[1:4] == [row["preset"], row["topology"], f"{row['batch_size']:,}"]
        assert cells[4].strip("`") == row["changes"]
        assert cells[5] == f"{row['memory'] / 2**30:.1f} of {row['chip_memory'] / 2**30:.0f}"
        assert row["fits"]
        assert cells[6:8] == [f"{row['seconds']:.2f}", f"{100 * row['mfu']:.0f}"]
        assert cells[8:] == [f"{row['hours']:.0f}", f"{row['chip_hours']:,.0f}"]


def test_the_docs_show_what_a_step_of_each_preset_takes():
    found = json.loads((ROOT / "launch" / "benchmarks" / "results" / "presets.json").read_text())
    names = ("", "ideal_", "product_", "kernel_", "other_", "waiting_")
    for row in found:
        parts = [f"{row[f'{name}seconds']:.2f}" for name in names]
        line = [row["stage"], row["preset"], row["topology"], *parts]
        assert f"| {' | '.join(line)} |" in SHOWN


def test_the_docs_show_the_trunk_of_the_record():
    found = json.loads((ROOT / "launch" / "benchmarks" / "results" / "trunk.json").read_text())
    for name in ("ours", "ours, layer", "theirs"):
        assert f"{1000 * found[name]['seconds']:.0f} ms" in SHOWN
        assert f"{found[name]['memory'] / 2**30:.2f} GiB" in SHOWN
    assert f"{found['sft_ratio']:.2f} of the trunk" in SHOWN


def test_the_docs_show_the_cpu_steps_of_the_record():
    folder = ROOT / "launch" / "benchmarks" / "results"
    found = json.loads((folder / "torch_cpu.json").read_text())
    assert f"tokens a second are {found['ratios']['ours, next code']:.2f} times" in SHOWN
    assert f"as that loop ({found['ratios']['ours, stage 3']:.2f})" in SHOWN
    first = found["first_losses"]
    assert first["ours, next code"] == pytest.approx(first["PyTorch, next code"], rel=1e-4)


def test_the_docs_show_the_loader_of_the_record():
    """Rows | preset | items | samples | and five figures, and what they mean for two machines."""
    folder = ROOT / "launch" / "benchmarks" / "results"
    names = ("opened_mb", "grown_mb", "rows_per_second", "far_batch_ms")
    for row in json.loads((folder / "loader.json").read_text()):
        cells = [row["preset"], f"{row['items']:,}", f"{row['samples']:,}"]
        cells += [f"{row['opened_seconds']:.1f}", *(f"{row[name]:,.0f}" for name in names)]
        assert f"| {' | '.join(cells)} |" in SHOWN
        if row["preset"] == "local":
            rate = row["rows_per_second"]
        else:
            needed = row["rows_per_second"]
    step = json.loads((folder / "torch_cpu.json").read_text())
    consumed = step["tokens_per_second"]["ours, stage 3"] / step["row_tokens"]
    assert f"{rate / consumed:.0f} times what a training of `local`" in SHOWN
    assert f"({consumed:.0f} rows a second)" in SHOWN
    presets = json.loads((folder / "presets.json").read_text())
    [slice_] = [
        row
        for row in presets
        if (row["stage"], row["preset"], row["topology"]) == ("sft", "qwen3_0p6b", "v5e-16")
    ]
    wanted = slice_["batch_size"] / slice_["seconds"]
    assert f"consumes {wanted:.0f} rows a second" in SHOWN and wanted < needed / 2


def test_the_docs_show_the_preemptions_of_the_record():
    found = json.loads((ROOT / "launch" / "benchmarks" / "results" / "preemption.json").read_text())
    for series in found.values():
        assert sum(series["kills"].values()) == 20
        assert series["checkpoints_lost"] == 0 and series["every_step_once"]
    assert found["one mesh"]["bit_for_bit"]
    worst = found["any mesh"]["weights"]
    assert f"{worst:.7f} at most" in SHOWN and worst < 1e-5
