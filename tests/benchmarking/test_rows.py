"""Rows and tables of a suite: means over seeds, baselines, warnings, widths."""

import json

import pytest
from tiny_suite import tiny_suite, write_results

from sigma_jax.benchmarking.rows import as_json, collect
from sigma_jax.benchmarking.suite import Method, Run
from sigma_jax.benchmarking.suite_table import NAME_WIDTH, render

CELL_END = len("20.00 ± 0.00")


def test_rows_are_means_and_deviations_over_seeds(tmp_path):
    suite = tiny_suite()
    popularity = {"Popularity": {"exclude_seen": {"tasks": {}, "average": {}}}}
    write_results(tmp_path, Run("A", "SIGMA", 0), 0.20, **popularity)
    write_results(tmp_path, Run("A", "SIGMA", 1), 0.24)
    write_results(tmp_path, Run("A", "GR(ID)", 0), 0.15)
    rows = {row.method: row for row in collect(suite, tmp_path, "A", "exclude_seen", "item")}
    assert list(rows) == ["SIGMA", "GR(ID)"]
    assert rows["SIGMA"].mean("Recall@10") == pytest.approx(0.22)
    assert rows["SIGMA"].deviation("Recall@10") == pytest.approx(0.02 * 2**0.5)
    text = render(suite, tmp_path)
    assert "22.00 ± 2.83" in text and "(1 of 2 seeds)" in text
    assert "A/GR(ID)/1: not run" in text and "A/SIGMA/0: c0ffee da7a 7 python -m x" in text
    assert "published: TIGER" in text and "6.48" in text
    assert "WARNING" not in text
    stored = as_json(suite, tmp_path)["A"]["exclude_seen"]["item"]
    assert stored["SIGMA"]["Recall@10"] == [0.20, 0.24]


def test_rankings_of_a_sasrec_run_are_rows_of_its_method(tmp_path):
    """Also the one before its refit. One seed has no deviation."""
    suite = tiny_suite(methods={"gSASRec": Method({}, False, "teacher")}, seeds=(0,))
    before = {"SASRec before refit": {"exclude_seen": {"tasks": {}, "average": {}}}}
    run = Run("A", "gSASRec", 0)
    write_results(tmp_path, run, 0.12, method="SASRec", model="SASRec", **before)
    path = run.workdir(tmp_path) / "record.json"
    record = json.loads(path.read_text())
    record["methods"]["SASRec before refit"] = record["methods"]["SASRec"]
    path.write_text(json.dumps(record))
    rows = collect(suite, tmp_path, "A", "exclude_seen", "item")
    assert [row.method for row in rows] == ["gSASRec", "gSASRec before refit"]
    text = render(suite, tmp_path)
    assert "12.00" in text and "±" not in text.split("gSASRec")[1].splitlines()[0]


def test_metrics_that_contradict_each_other_are_reported(tmp_path):
    write_results(tmp_path, Run("A", "SIGMA", 0), 0.20, ndcg_gain=0.09)
    assert "WARNING: SIGMA, run 0: N@10 - N@5" in render(tiny_suite(), tmp_path)


def test_baselines_come_from_the_method_that_evaluates_them(tmp_path):
    write_results(tmp_path, Run("A", "GR(ID)", 0), 0.15, method="Popularity")
    assert not collect(tiny_suite(), tmp_path, "A", "exclude_seen", "item")
    write_results(tmp_path, Run("A", "SIGMA", 0), 0.15, method="Popularity")
    [row] = collect(tiny_suite(), tmp_path, "A", "exclude_seen", "item")
    assert row.method == "Popularity"


def test_names_are_never_cut(tmp_path):
    name = "a name " * 8 + "that is longer than its column"
    methods = {name: tiny_suite().methods["SIGMA"]}
    write_results(tmp_path, Run("A", name, 0), 0.2)
    lines = render(tiny_suite(methods=methods), tmp_path).splitlines()
    assert len(name) > NAME_WIDTH
    [row] = [line for line in lines if line.startswith(f"{name} ")]
    head = lines[lines.index(row) - 1]
    assert head.index("Recall@10") + len("Recall@10") == row.index("20.00") + CELL_END
