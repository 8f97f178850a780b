"""Records of finished runs."""

import json

import numpy as np
import pytest
from tiny_suite import tiny_suite, write_results

from sigma_jax.benchmarking.record import QUANTILES, read_record, write_record
from sigma_jax.benchmarking.rows import read_results
from sigma_jax.benchmarking.suite import Run
from sigma_jax.benchmarking.suite_page import write_suite_page
from sigma_jax.benchmarking.suite_table import render

RUN = Run("A", "SIGMA", 0)


def test_tables_and_plots_need_only_the_records(tmp_path):
    write_results(tmp_path / "runs", RUN, 0.2)
    copy = RUN.workdir(tmp_path / "copy") / "record.json"
    copy.parent.mkdir(parents=True)
    copy.write_bytes((RUN.workdir(tmp_path / "runs") / "record.json").read_bytes())
    suite = tiny_suite()
    pages = []
    for name in ("runs", "copy"):
        write_suite_page(suite, tmp_path / name)
        pages.append((tmp_path / name / "report.html").read_text())
        assert "20.00" in render(suite, tmp_path / name)
    assert pages[0] == pages[1]


def test_a_record_holds_the_metrics_of_the_suite_and_quantiles_of_the_deviation(tmp_path):
    write_results(tmp_path, RUN, 0.2)
    workdir = RUN.workdir(tmp_path)
    path = workdir / "evaluation" / "results.json"
    results = json.loads(path.read_text())
    average = results["methods"]["SIGMA"]["exclude_seen"]["average"]
    average["item.MRR@20"] = {"mean": 0.1, "error": 0.01, "n": 9}
    average["item.Recall@10"] = {"mean": 0.123456789, "error": 0.01, "n": 9}
    average["cold.Recall@10"] = {"mean": 0.3, "error": 0.01, "n": 9}
    values = np.random.default_rng(0).normal(size=500)
    results["deviation"] = {"Query": [*values.tolist(), float("nan")], "Holiday": [float("nan")]}
    results["calibration"] = {"Query": {"error": 0.0312345678, "groups": [[0.5, 0.4, 40]]}}
    path.write_text(json.dumps(results))
    write_record(workdir, ("Recall@10", "cold.Recall@10"), ("item",))
    record = read_record(workdir)
    average = record["methods"]["SIGMA"]["exclude_seen"]["average"]
    assert "item.MRR@20" not in average
    assert average["item.Recall@10"] == {"mean": 0.123457, "error": 0.01}
    assert average["cold.Recall@10"] == {"mean": 0.3, "error": 0.01}
    assert record["calibration"] == {"Query": 0.031235}
    assert list(record["deviation"]) == ["Query"] and len(record["deviation"]["Query"]) == QUANTILES
    assert np.median(record["deviation"]["Query"]) == pytest.approx(np.median(values), abs=1e-4)


def test_a_run_without_a_record_is_not_finished(tmp_path):
    write_results(tmp_path, RUN, 0.2)
    assert read_record(RUN.workdir(tmp_path)) is not None
    (RUN.workdir(tmp_path) / "record.json").unlink()
    assert read_results(RUN, tmp_path) is None
