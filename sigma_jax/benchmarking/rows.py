"""Rows of a suite's tables: metrics of each method over seeds, read from the records of its runs.

A row holds one value per seed. Tables show the mean and the sample standard deviation.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sigma_jax import metrics
from sigma_jax.benchmarking.record import CHECKED_METRICS, DIGITS, read_record
from sigma_jax.benchmarking.suite import Run, Suite, planned_runs
from sigma_jax.schema import TASKS

MODEL = "SIGMA"  # name of the run's own model in its results
VARIANTS = {  # rankings by the run's model -> ending of their row names
    MODEL: "",
    "SIGMA without reranker": " without reranker",
    "SIGMA before refit": " before refit",
    "SIGMA without reranker before refit": " without reranker before refit",
    "SIGMA without reranker, sigma of Eq. 11": " without reranker, sigma of Eq. 11",
    "SIGMA without reranker, constant sigma": " without reranker, constant sigma",
    "SIGMA without reranker, first prefix": " without reranker, first prefix",
}
ROUNDING = 2 * 10**-DIGITS  # error of a difference between two rounded metrics


@dataclasses.dataclass(frozen=True)
class Row:
    """One method on one data set: metrics as fractions, one per seed."""

    method: str
    values: dict[str, list[float]]  # column -> one value per seed
    warnings: list[str]

    def mean(self, column: str) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values[column])

    def deviation(self, column: str) -> float:
        """Sample standard deviation over seeds; 0 for one seed."""
        values = self.values[column]
        return statistics.stdev(values) if len(values) > 1 else 0.0


def read_results(run: Run, folder: Path) -> dict[str, Any] | None:
    """The record of a finished run (benchmarking/record.py); None if it is not finished."""
    return read_record(run.workdir(folder))


def collect(
    suite: Suite, folder: Path, data: str, mode: str, level: str, task: str = "average"
) -> list[Row]:
    """The rows of one table from the finished runs: baselines first, then the suite's methods.

    Args:
      mode: one of MODES (sigma_jax/evaluation/score.py).
      level: "item" or "sid".
      task: one of TASKS, or "average" over the evaluated tasks.
    """
    summaries: dict[str, list[Mapping]] = {}
    for method, settings in suite.methods.items():
        for seed in suite.seeds:
            results = read_results(Run(data, method, seed), folder)
            if results is None:
                continue
            for name, by_mode in results["methods"].items():
                row = row_name(name, method, settings.has_baselines, model_of(results))
                if row is None or mode not in by_mode:
                    continue
                by_task = {"average": by_mode[mode]["average"], **by_mode[mode]["tasks"]}
                if by_task.get(task):
                    summaries.setdefault(row, []).append(by_task[task])
    rows = [make_row(suite, level, name, by_seed) for name, by_seed in summaries.items()]
    rows = [row for row in rows if row.values]  # a SASRec alone has no hits by semantic IDs
    of_suite = {f"{m}{ending}" for m in suite.methods for ending in VARIANTS.values()}
    return sorted(rows, key=lambda row: row.method in of_suite)


def collect_sweep(
    suite: Suite, folder: Path, data: str, name: str, mode: str, level: str
) -> dict[str, dict[float, Row]]:
    """method -> value -> row of the finished runs of the sweep `name`, on average over tasks."""
    sweep = suite.sweeps[name]
    rows: dict[str, dict[float, Row]] = {}
    for method, value in itertools.product(sweep.methods, sweep.values):
        run_name = sweep.run_name(method, name, value)
        records = [read_results(Run(data, run_name, seed), folder) for seed in sweep.seeds]
        by_mode = [record["methods"][MODEL] for record in records if record is not None]
        averages = [summaries[mode]["average"] for summaries in by_mode if mode in summaries]
        if averages:
            rows.setdefault(method, {})[value] = make_row(suite, level, run_name, averages)
    return rows


def model_of(results: Mapping[str, Any]) -> str:
    """The name of a run's own model in its results."""
    return results["run"].get("model", MODEL)


def row_name(name: str, method: str, has_baselines: bool, model: str = MODEL) -> str | None:
    """The row of the ranking `name` of a run of `method`; None for rankings without a row."""
    if name.startswith(model) and name.replace(model, MODEL, 1) in VARIANTS:
        return method + VARIANTS[name.replace(model, MODEL, 1)]
    return name if has_baselines and not name.startswith(MODEL) else None


def make_row(suite: Suite, level: str, name: str, summaries: Sequence[Mapping]) -> Row:
    """A row from summaries (score.summarise), one per seed."""
    values, warnings = {}, []
    for column in suite.columns:
        key = f"{level}.{column}" if f"{level}.{column}" in summaries[0] else column
        if all(key in summary for summary in summaries):
            values[column] = [summary[key]["mean"] for summary in summaries]
    checked = [f"{level}.{metric}" for metric in CHECKED_METRICS]
    for number, summary in enumerate(summaries):
        if all(key in summary for key in checked):
            means = (summary[key]["mean"] for key in checked)
            problem = metrics.leave_one_out_gap(*means, tolerance=ROUNDING)
            warnings += [f"{name}, run {number}: {problem}"] if problem else []
    return Row(name, values, warnings)


def evaluated_tasks(suite: Suite, folder: Path, data: str) -> list[str]:
    """The tasks with metrics in some finished run on `data`, in the order of TASKS."""
    tasks = set()
    for run in planned_runs(suite):
        results = read_results(run, folder) if run.data == data else None
        for by_mode in results["methods"].values() if results else ():
            tasks |= {task for summary in by_mode.values() for task in summary["tasks"]}
    return [task for task in TASKS if task in tasks]


def as_json(suite: Suite, folder: Path) -> dict[str, Any]:
    """data -> mode -> level -> row -> column -> one value per seed, as fractions."""
    return {
        data: {
            mode: {
                level: {row.method: row.values for row in collect(suite, folder, data, mode, level)}
                for level in suite.levels
            }
            for mode in suite.modes
        }
        for data in suite.data
    }
