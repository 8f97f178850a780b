"""What a suite keeps of a run: one small file, so that figures can stay beside the code.

RUN/record.json has the structure of RUN/evaluation/results.json (score.score), with the means of
the figures that a suite shows, quantiles in place of every request's deviation, and the minutes
that the run's stages trained. A folder of such files is a finished suite: its tables and plots are
made without the runs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sigma_jax.runtime.artifacts import read_manifest
from sigma_jax.runtime.files import read_json, write_json
from sigma_jax.stages import STAGES

NAME = "record.json"
DIGITS = 6  # of a figure, which is a fraction
QUANTILES = 41
GAPS = ("Recall@5", "Recall@10", "NDCG@5", "NDCG@10")  # what metrics.leave_one_out_gap reads
BY_TASK = "HR@10"  # of every task


def write_record(workdir: Path, columns: Sequence[str], levels: Sequence[str]) -> None:
    """Writes WORKDIR/record.json of a run that is finished.

    ValueError where its results are missing or damaged.
    """
    results = read_json(workdir / "evaluation" / "results.json")
    wanted = {f"{level}.{name}" for level in levels for name in (*columns, *GAPS, BY_TASK)}
    wanted |= set(columns)
    methods = {
        method: {mode: slim_summary(summary, wanted) for mode, summary in modes.items()}
        for method, modes in results["methods"].items()
    }
    shares = np.linspace(0, 1, QUANTILES)
    deviation = {
        task: np.quantile(finite, shares).round(DIGITS).tolist()
        for task, values in results.get("deviation", {}).items()
        if len(finite := np.asarray(values)[np.isfinite(values)])
    }
    # A stage that another run has made counts with the time it took there.
    made = [read_manifest(workdir, s).metrics for s in STAGES if (workdir / s).exists()]
    record = {
        "methods": methods,
        "deviation": deviation,
        "run": results["run"],
        "minutes": round(sum(figures.get("seconds", 0.0) for figures in made) / 60, 2),
    }
    write_json(workdir / NAME, record)


def slim_summary(summary: Mapping[str, Any], wanted: set[str]) -> dict[str, Any]:
    """The means of the wanted figures, by task and on average."""

    def slim(figures: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
        return {
            name: {"mean": round(figure["mean"], DIGITS)}
            for name, figure in figures.items()
            if name in wanted
        }

    tasks = {task: slim(figures) for task, figures in summary["tasks"].items()}
    return {"tasks": tasks, "average": slim(summary["average"])}


def read_record(workdir: Path) -> dict[str, Any] | None:
    """What `write_record` wrote; None where the run is not finished."""
    path = workdir / NAME
    return _load(path, path.stat().st_mtime_ns) if path.exists() else None


@functools.cache
def _load(path: Path, written: int) -> dict[str, Any]:
    """A file as it was when `written`: every table of a suite looks into every run."""
    return read_json(path)
