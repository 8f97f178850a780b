"""A benchmark suite: which methods run on which data, and what their results come to.

A run is one method on one data set with one seed: one `sigma_jax.train` command in a workdir of its
own, whose evaluation is read here. Rows are means and sample deviations over seeds.
"""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sigma_jax import metrics
from sigma_jax.evaluation.score import MODES
from sigma_jax.evaluation.table import TITLES

OURS = "SIGMA"  # what a run's own model is called in its results
VARIANTS = {"SIGMA without prior": " without counts"}  # other rankings by the same model
ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set: the config file and preset it is run with, and the fields that differ there."""

    config: str  # configs/sft.py:amazon
    fields: dict[str, Any]  # {"data.path": "{data}/Beauty"}; {data} is the command's --data


@dataclasses.dataclass(frozen=True)
class Method:
    """Fields of the config that make a method, over those of the data set."""

    fields: dict[str, Any]
    has_baselines: bool  # its runs also judge the baselines of sigma_jax/baselines


@dataclasses.dataclass(frozen=True)
class Suite:
    """Fields of configs/benchmark/*.py."""

    title: str
    protocol: tuple[str, ...]  # what a reader has to know of the figures, a line each
    seeds: tuple[int, ...]
    data: dict[str, Source]
    methods: dict[str, Method]
    modes: tuple[str, ...]  # of MODES, in the order of the tables
    level: str  # "item" or "sid"
    columns: tuple[str, ...]  # figures of a row, such as Recall@10
    published: dict[str, dict[str, dict[str, float]]]  # data or "" -> row -> column -> per cent

    def __post_init__(self):
        if unknown := set(self.modes) - set(MODES):
            raise ValueError(f"suite.modes names {sorted(unknown)}; known are {', '.join(MODES)}.")
        for name in ("seeds", "data", "methods"):
            if not getattr(self, name):
                raise ValueError(f"suite.{name} is empty; name at least one.")


@dataclasses.dataclass(frozen=True)
class Run:
    """One method on one data set with one seed."""

    data: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """DATA/METHOD/seed, as --runs takes it."""
        return f"{self.data}/{self.method}/{self.seed}"

    def workdir(self, folder: Path) -> Path:
        """FOLDER/DATA/METHOD-SEED without what file systems mind."""
        parts = (self.data, f"{self.method}-{self.seed}")
        return folder.joinpath(*(re.sub(r"[^\w.=-]+", "_", part).strip("_") for part in parts))


def planned(suite: Suite) -> list[Run]:
    """All runs: seed by seed, so that a suite that was stopped has whole tables of few seeds."""
    return [
        Run(data, method, seed)
        for seed in suite.seeds
        for data in suite.data
        for method in suite.methods
    ]


def arguments(suite: Suite, run: Run, data_folder: str, workdir: Path, pool: Path) -> list[str]:
    """The arguments of `python -m sigma_jax.train` that make `run`."""
    source, method = suite.data[run.data], suite.methods[run.method]
    fields = {**source.fields, **method.fields}
    fields["seed"] = run.seed
    fields["evaluation.has_baselines"] = method.has_baselines
    words = [f"--config={source.config}", f"--workdir={workdir}", f"--artifacts={pool}"]
    for name, value in fields.items():
        text = value.format(data=data_folder) if isinstance(value, str) else value
        words.append(f"--config.{name}={text}")
    return words


def read_results(run: Run, folder: Path) -> dict[str, Any] | None:
    """The results of a finished run; None where it is not finished."""
    path = run.workdir(folder) / "evaluation" / "results.json"
    return json.loads(path.read_text()) if path.exists() else None


@dataclasses.dataclass(frozen=True)
class Row:
    """One method on one data set: figures of its seeds, as fractions."""

    method: str
    figures: dict[str, list[float]]  # column -> one a seed
    warnings: list[str]

    def mean(self, column: str) -> float:
        return statistics.fmean(self.figures[column])

    def deviation(self, column: str) -> float:
        """Sample deviation over seeds; 0 of one."""
        values = self.figures[column]
        return statistics.stdev(values) if len(values) > 1 else 0.0


def collect(suite: Suite, folder: Path, data: str, mode: str, task: str = "average") -> list[Row]:
    """The rows of one table from what is finished: baselines first, then the suite's methods.

    Args:
      task: one of TASKS, or "average" over those that were judged.
    """
    rows: dict[str, list[Mapping]] = {}
    for method, settings in suite.methods.items():
        for seed in suite.seeds:
            results = read_results(Run(data, method, seed), folder)
            if results is None:
                continue
            for name, modes in results["methods"].items():
                shown = _row_name(name, method, settings.has_baselines)
                if shown is not None and mode in modes:
                    summary = modes[mode]
                    found = summary["average"] if task == "average" else summary["tasks"].get(task)
                    if found:
                        rows.setdefault(shown, []).append(found)
    made = [_row(suite, name, found) for name, found in rows.items()]
    return sorted(made, key=lambda row: row.method.split(" without")[0] in suite.methods)


def _row_name(name: str, method: str, has_baselines: bool) -> str | None:
    """What a ranking of a run is called in the table of the suite; None: it is left out."""
    if name == OURS:
        return method
    if name in VARIANTS:
        return method + VARIANTS[name]
    return name if has_baselines and not name.startswith(OURS) else None


def _row(suite: Suite, name: str, found: Sequence[Mapping]) -> Row:
    level = suite.level
    keys = {column: f"{level}.{column}" for column in suite.columns}
    figures = {
        column: [summary[key]["mean"] for summary in found]
        for column, key in keys.items()
        if all(key in summary for summary in found)
    }
    warnings = []
    for seed, summary in enumerate(found):
        four = [f"{level}.{gain}@{k}" for gain in ("Recall", "NDCG") for k in (5, 10)]
        if all(key in summary for key in four):
            wrong = metrics.leave_one_out_gap(*(summary[k]["mean"] for k in four), ROUNDING)
            if wrong:
                warnings.append(f"{name}, run {seed}: {wrong}")
    return Row(name, figures, warnings)


def render(suite: Suite, folder: Path) -> str:
    """All tables as text."""
    lines = [suite.title, *suite.protocol, ""]
    for data in suite.data:
        for mode in suite.modes:
            lines += render_rows(
                suite, f"{data}, {TITLES[mode]}", collect(suite, folder, data, mode)
            )
            for name, figures in suite.published.get(data, {}).items():
                if mode == "kept":
                    cells = "".join(f"{_published(figures, c):>18}" for c in suite.columns)
                    lines.append(f"{name[:31]:32}{cells}  published")
            lines.append("")
    lines += provenance(suite, folder)
    return "\n".join(lines) + "\n"


def render_rows(suite: Suite, title: str, rows: Sequence[Row]) -> list[str]:
    """A title, a head and a line a row: per cent, mean and deviation over seeds."""
    lines = [title, f"{'':32}" + "".join(f"{column:>18}" for column in suite.columns)]
    for row in rows:
        cells = [
            f"{100 * row.mean(c):.2f} ± {100 * row.deviation(c):.2f}" if c in row.figures else "-"
            for c in suite.columns
        ]
        count = len(next(iter(row.figures.values()), []))
        seeds = "" if count == len(suite.seeds) else f"  ({count} of {len(suite.seeds)} seeds)"
        lines.append(f"{row.method[:31]:32}" + "".join(f"{cell:>18}" for cell in cells) + seeds)
        lines += [f"  WARNING: {warning}" for warning in row.warnings]
    return lines


def _published(figures: Mapping[str, float], column: str) -> str:
    return f"{figures[column]:.2f}       " if column in figures else "-       "


def provenance(suite: Suite, folder: Path) -> list[str]:
    """A line a run: command, hashes and time."""
    lines = ["Runs: config hash, data hash, seconds of evaluation, command"]
    for run in planned(suite):
        results = read_results(run, folder)
        if results is None:
            lines.append(f"{run.name}: not run")
            continue
        made = results["run"]
        lines.append(
            f"{run.name}: {made['config_hash']} {made['data_hash']} {made['seconds']:.0f} "
            f"{made['command']}"
        )
    return lines


def as_json(suite: Suite, folder: Path) -> dict[str, Any]:
    """data -> mode -> row -> column -> {"mean", "deviation", "seeds"}; figures are fractions."""
    return {
        data: {
            mode: {
                row.method: {
                    column: {
                        "mean": row.mean(column),
                        "deviation": row.deviation(column),
                        "seeds": values,
                    }
                    for column, values in row.figures.items()
                }
                for row in collect(suite, folder, data, mode)
            }
            for mode in suite.modes
        }
        for data in suite.data
    }
