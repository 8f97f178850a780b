"""The record of a run: one small file with all that a suite's tables and plots need.

RUN/record.json has the structure of RUN/evaluation/results.json (score.score), with these changes:

- only the metrics that the suite shows, with standard errors over requests
- quantiles in place of the deviation of each request
- `shortcuts`: figures of the log (evaluation/shortcuts.py)
- `instruction_following`: evaluation/instruction_following.py
- `calibration`: evaluation/calibration.py, errors alone
- `minutes`: training time of all stages of the run
- `settings`: stage -> its config, and that of the evaluation
- folders of the machine are replaced by names, such as WORKDIR

A folder of records stands for a finished suite, so results can be stored without the runs.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sigma_jax.runtime.artifacts import MANIFEST, read_manifest
from sigma_jax.runtime.files import plain, read_json, write_text
from sigma_jax.stages import STAGES, artifact_names

NAME = "record.json"
DIGITS = 6  # decimals of a metric, which is a fraction
QUANTILES = 41
CHECKED_METRICS = ("Recall@5", "Recall@10", "NDCG@5", "NDCG@10")  # of metrics.leave_one_out_gap
METRIC_BY_TASK = "HR@10"  # recorded for each task


def write_record(
    workdir: Path,
    columns: Sequence[str],
    levels: Sequence[str],
    names: Mapping[str, str] | None = None,
) -> None:
    """Writes WORKDIR/record.json of a finished run.

    Args:
      workdir: the run's folder, with evaluation/results.json.
      columns: metrics to record, such as Recall@10.
      levels: levels of hits to record: "item", "sid".
      names: folder of this machine -> the name that the record has in its place.

    Raises:
      ValueError: the results are missing or damaged.
    """
    results = read_json(workdir / "evaluation" / "results.json")
    wanted = {
        f"{level}.{name}"
        for level in levels
        for name in (*columns, *CHECKED_METRICS, METRIC_BY_TASK)
    }
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
    # A stage that is reused from another run counts with its training time there.
    names_here = [s for s in (*artifact_names(), "evaluation") if (workdir / s / MANIFEST).exists()]
    manifests = {stage: read_manifest(workdir, stage) for stage in names_here}
    trained = [manifest for stage, manifest in manifests.items() if stage in STAGES]
    seconds = sum(manifest.metrics.get("seconds", 0.0) for manifest in trained)
    record = {
        "methods": methods,
        "deviation": deviation,
        "shortcuts": results.get("shortcuts", {}),
        "instruction_following": results.get("instruction_following", {}),
        "calibration": {
            task: round(found["error"], DIGITS)
            for task, found in results.get("calibration", {}).items()
        },
        "run": results["run"],
        "peak_memory_mb": max(
            (manifest.metrics.get("peak_memory_mb", 0) for manifest in manifests.values()),
            default=0,
        ),
        "minutes": round(seconds / 60, 2),
        "settings": {stage: manifest.config for stage, manifest in manifests.items()},
    }
    text = json.dumps(plain(record), separators=(",", ":"), ensure_ascii=False)
    for path, name in (names or {}).items():
        text = text.replace(path, name)
    write_text(workdir / NAME, text + "\n")


def slim_summary(summary: Mapping[str, Any], wanted: set[str]) -> dict[str, Any]:
    """The wanted metrics on average over tasks, and METRIC_BY_TASK of each task."""

    def slim(summaries: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
        return {
            name: {key: round(summary[key], DIGITS) for key in ("mean", "error") if key in summary}
            for name, summary in summaries.items()
            if name in wanted
        }

    tasks = {
        task: {name: value for name, value in slim(summaries).items() if METRIC_BY_TASK in name}
        for task, summaries in summary["tasks"].items()
    }
    return {"tasks": tasks, "average": slim(summary["average"])}


def read_record(workdir: Path) -> dict[str, Any] | None:
    """The record that `write_record` wrote in `workdir`; None if the run is not finished."""
    path = workdir / NAME
    return _read(path, path.stat().st_mtime_ns) if path.exists() else None


@functools.cache
def _read(path: Path, modified_ns: int) -> dict[str, Any]:
    """The file as of `modified_ns`. It is cached because every table of a suite reads it."""
    return read_json(path)
