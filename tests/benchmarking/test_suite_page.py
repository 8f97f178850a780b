"""The report page of a suite: tables, plots and sweeps."""

import pytest
from tiny_suite import tiny_suite, write_results

from sigma_jax.benchmarking.rows import collect
from sigma_jax.benchmarking.suite import Run, Sweep, planned_runs, train_arguments
from sigma_jax.benchmarking.suite_page import quality_by_time, sigma_plot, write_suite_page
from sigma_jax.benchmarking.suite_table import render
from sigma_jax.runtime.artifacts import Recipe, write_artifact
from sigma_jax.runtime.files import read_json, write_json

FIELDS = ("evaluation.generation.num_beams", "report_beams")
SWEEP = Sweep(("SIGMA", "GR(ID)"), FIELDS, (1, 4), (0,))


@pytest.fixture
def suite():
    return tiny_suite(sweeps={"prefixes K": SWEEP})


def write_stages(folder, run, seconds):
    """Writes the manifests that the stages of a run leave."""
    for stage, spent in seconds.items():
        workdir = run.workdir(folder)
        workdir.mkdir(parents=True, exist_ok=True)
        manifest_metrics = {"seconds": spent}
        write_artifact(workdir, stage, Recipe({}, {}, 0), lambda _, m=manifest_metrics: m)


def test_a_sweep_runs_each_value_once_and_stays_out_of_the_tables(suite, tmp_path):
    names = [run.name for run in planned_runs(suite)]
    assert names[-4:] == [
        f"A/{method}, prefixes K {value}/0" for value in (1, 4) for method in ("SIGMA", "GR(ID)")
    ]
    run = planned_runs(suite)[-1]
    arguments = train_arguments(suite, run, "D", tmp_path, tmp_path / "pool")
    assert "--config.evaluation.generation.num_beams=4" in arguments
    assert "--config.report_beams=4" in arguments
    assert "--config.prompt.layout.sid_generated=0" in arguments
    assert "--config.evaluation.has_baselines=False" in arguments
    write_results(tmp_path, run, 0.3)
    assert collect(suite, tmp_path, "A", "exclude_seen", "item") == []


@pytest.mark.parametrize("methods", [(), ("SIGNA",), ("SIGMA", "SIGNA")])
def test_a_sweep_over_unknown_methods_is_refused(methods):
    with pytest.raises(ValueError, match=r"sweeps\['K'\].methods is .*name at least one method"):
        tiny_suite(sweeps={"K": Sweep(methods, ("seed",), (1,), (0,))})


def test_a_sweep_over_seeds_shows_means_and_deviations_by_value(tmp_path):
    suite = tiny_suite(sweeps={"K": Sweep(("SIGMA", "GR(ID)"), FIELDS, (1, 4), (0, 1))})
    for value, seed, recall in [(1, 0, 0.2), (1, 1, 0.24), (4, 0, 0.3)]:
        write_results(tmp_path, Run("A", f"SIGMA, K {value}", seed), recall)
    text = render(suite, tmp_path)
    head, row, after = text[text.index("Recall@10 by K") :].splitlines()[1:4]
    assert head.split() == ["1", "4"] and after == ""
    shown = "SIGMA 22.00 ± 2.83 30.00 (as few as 1 of 2 seeds)"
    assert row.split() == shown.split()


def test_the_page_holds_tables_and_plots_of_the_finished_runs(suite, tmp_path):
    run = Run("A", "SIGMA", 0)
    write_suite_page(suite, tmp_path)
    assert "No run on this data set is finished" in (tmp_path / "report.html").read_text()
    write_results(tmp_path, run, 0.20)
    write_results(tmp_path, Run("A", "SIGMA", 1), 0.24)
    write_results(tmp_path, Run("A", "GR(ID)", 0), 0.15)
    for value, recall in [(1, 0.2), (4, 0.22)]:
        write_results(tmp_path, Run("A", f"SIGMA, prefixes K {value}", 0), recall)
    write_suite_page(suite, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "22.00 ± 2.83" in page and "published: TIGER" in page and "A/GR(ID)/1: not run" in page
    assert "SIGMA 22.00 ± 2.83, GR(ID) 15.00 ± 0.00" in page  # the alternative text of the plot
    assert "SIGMA, 1: 20.00 ± 0.00, 4: 22.00 ± 0.00" in page
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "a-methods-average.png",
        "a-time.png",
        "a-sweep-prefixes-k.png",
    }
    assert all(p.read_bytes()[:4] == b"\x89PNG" for p in (tmp_path / "plots").iterdir())


def test_time_is_the_sum_over_all_stages(suite, tmp_path):
    run = Run("A", "SIGMA", 1)
    write_stages(tmp_path, run, {"tokenizer": 60.0, "sft": 120.0})
    write_results(tmp_path, run, 0.24)
    qualities = quality_by_time(suite, tmp_path, "A", "exclude_seen", "item")
    assert qualities == {"SIGMA": ([3.0], [pytest.approx(24.0)])}


def test_sigma_is_shown_for_the_first_method_that_searches_codes(suite, tmp_path):
    for method, values in [("SIGMA", [0.0, 0.0]), ("GR(ID)", [0.5, 1.5])]:
        assert sigma_plot(suite, tmp_path, "A") == ""
        run = Run("A", method, 0)
        write_results(tmp_path, run, 0.2)
        path = run.workdir(tmp_path) / "record.json"
        write_json(path, read_json(path) | {"deviation": {"JustForYou": values}})
    assert "medians: JustForYou 1.00" in sigma_plot(suite, tmp_path, "A")
