"""A benchmark suite: which methods run on which data, and what their results come to.

A run is one method on one data set with one seed: one `sigma_jax.train` command in a workdir of its
own, whose evaluation is read here. Rows are means and sample deviations over seeds.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sigma_jax import metrics
from sigma_jax.benchmarking.record import BY_TASK, DIGITS, GAPS, read_record
from sigma_jax.evaluation.score import MODES
from sigma_jax.evaluation.table import LEVELS, TITLES
from sigma_jax.schema import TASKS

OURS = "SIGMA"  # what a run's own model is called in its results
VARIANTS = {  # other rankings by the same run
    "SIGMA without reranker": " without reranker",
    "SIGMA before refit": " before the refit",
    "SIGMA without reranker, sigma of Eq. 11": " without reranker, sigma of Eq. 11",
    "SIGMA without reranker, constant sigma": " without reranker, constant sigma",
    "SIGMA without reranker, first prefix": " without reranker, first prefix",
}
ROUNDING = 2 * 10**-DIGITS  # of the differences that a check looks at
NAME, CELL = 34, 16  # widths of a table


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
class Sweep:
    """Methods under several values of one setting, for a plot."""

    methods: tuple[str, ...]
    fields: tuple[str, ...]  # of the config; each gets the value
    values: tuple[Any, ...]  # numbers
    seeds: tuple[int, ...]

    def run_name(self, method: str, name: str, value: float) -> str:
        """What a method is called in runs of the sweep `name`."""
        return f"{method}, {name} {value:g}"


@dataclasses.dataclass(frozen=True)
class Suite:
    """Fields of configs/benchmark/*.py."""

    title: str
    protocol: tuple[str, ...]  # what a reader has to know of the figures, a line each
    seeds: tuple[int, ...]
    data: dict[str, Source]
    methods: dict[str, Method]
    modes: tuple[str, ...]  # of MODES, in the order of the tables
    levels: tuple[str, ...]  # "item", "sid"
    columns: tuple[str, ...]  # figures of a row, such as Recall@10
    published: dict[str, dict[str, dict[str, float]]]  # data -> row -> column -> per cent
    published_level: str  # of their hits
    headline: str  # the figure that is plotted
    sweeps: dict[str, Sweep]  # what the setting is called -> its values

    def __post_init__(self):
        if unknown := set(self.modes) - set(MODES):
            raise ValueError(f"suite.modes names {sorted(unknown)}; known are {', '.join(MODES)}.")
        for name in ("seeds", "data", "methods"):
            if not getattr(self, name):
                raise ValueError(f"suite.{name} is empty; name at least one.")
        for name, sweep in self.sweeps.items():
            if not sweep.methods or set(sweep.methods) - set(self.methods):
                raise ValueError(f"suite.sweeps[{name!r}] names no method of the suite.")

    def fields_of(self, method: str) -> Method:
        """A method, or one that a sweep makes of it."""
        if method in self.methods:
            return self.methods[method]
        for name, sweep in self.sweeps.items():
            for of, value in itertools.product(sweep.methods, sweep.values):
                if method == sweep.run_name(of, name, value):
                    changed = dict.fromkeys(sweep.fields, value)
                    return Method(self.methods[of].fields | changed, False)
        raise KeyError(method)


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
    """All runs: seed by seed, so that a suite that was stopped has whole tables of few seeds; then
    those of the sweeps."""
    runs = [
        Run(data, method, seed)
        for seed in suite.seeds
        for data in suite.data
        for method in suite.methods
    ]
    return runs + [
        Run(data, sweep.run_name(method, name, value), seed)
        for name, sweep in suite.sweeps.items()
        for seed in sweep.seeds
        for data in suite.data
        for value in sweep.values
        for method in sweep.methods
    ]


def arguments(suite: Suite, run: Run, data_folder: str, workdir: Path, pool: Path) -> list[str]:
    """The arguments of `python -m sigma_jax.train` that make `run`."""
    source, method = suite.data[run.data], suite.fields_of(run.method)
    fields = {**source.fields, **method.fields}
    fields["seed"] = run.seed
    fields["evaluation.has_baselines"] = method.has_baselines
    words = [f"--config={source.config}", f"--workdir={workdir}", f"--artifacts={pool}"]
    for name, value in fields.items():
        text = value.format(data=data_folder) if isinstance(value, str) else value
        words.append(f"--config.{name}={text}")
    return words


def read_results(run: Run, folder: Path) -> dict[str, Any] | None:
    """What is kept of a finished run (benchmarking/record.py); None where it is not finished."""
    return read_record(run.workdir(folder))


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


def collect(
    suite: Suite, folder: Path, data: str, mode: str, level: str, task: str = "average"
) -> list[Row]:
    """The rows of one table from what is finished: baselines first, then the suite's methods.

    Args:
      level: "item" or "sid".
      task: one of TASKS, or "average" over those that were judged.
    """
    rows: dict[str, list[Mapping]] = {}
    for method, settings in suite.methods.items():
        for seed in suite.seeds:
            results = read_results(Run(data, method, seed), folder)
            if results is None:
                continue
            for name, modes in results["methods"].items():
                shown = row_name(name, method, settings.has_baselines)
                if shown is not None and mode in modes:
                    summary = modes[mode]
                    found = summary["average"] if task == "average" else summary["tasks"].get(task)
                    if found:
                        rows.setdefault(shown, []).append(found)
    made = [make_row(suite, level, name, found) for name, found in rows.items()]
    ours = {f"{method}{end}" for method in suite.methods for end in ("", *VARIANTS.values())}
    return sorted(made, key=lambda row: row.method in ours)


def collect_sweep(
    suite: Suite, folder: Path, data: str, name: str, mode: str, level: str
) -> dict[str, dict[float, Row]]:
    """method -> value -> what is finished of the sweep `name`, on average over tasks."""
    sweep = suite.sweeps[name]
    found: dict[str, dict[float, Row]] = {}
    for method, value in itertools.product(sweep.methods, sweep.values):
        run_name = sweep.run_name(method, name, value)
        runs = [read_results(Run(data, run_name, seed), folder) for seed in sweep.seeds]
        modes = [run["methods"][OURS] for run in runs if run is not None]
        averages = [summaries[mode]["average"] for summaries in modes if mode in summaries]
        if averages:
            found.setdefault(method, {})[value] = make_row(suite, level, run_name, averages)
    return found


def row_name(name: str, method: str, has_baselines: bool) -> str | None:
    """What a ranking of a run is called in the table of the suite; None: it is left out."""
    if name == OURS:
        return method
    if name in VARIANTS:
        return method + VARIANTS[name]
    return name if has_baselines and not name.startswith(OURS) else None


def make_row(suite: Suite, level: str, name: str, found: Sequence[Mapping]) -> Row:
    """A row of summaries (score.summarise), one a seed."""
    figures, warnings = {}, []
    for column in suite.columns:
        key = f"{level}.{column}" if f"{level}.{column}" in found[0] else column
        if all(key in summary for summary in found):
            figures[column] = [summary[key]["mean"] for summary in found]
    for number, summary in enumerate(found):
        four = [f"{level}.{name}" for name in GAPS]
        if all(key in summary for key in four):
            wrong = metrics.leave_one_out_gap(*(summary[k]["mean"] for k in four), ROUNDING)
            warnings += [f"{name}, run {number}: {wrong}"] if wrong else []
    return Row(name, figures, warnings)


def tasks_judged(suite: Suite, folder: Path, data: str) -> list[str]:
    """The tasks that finished runs have figures of, in their usual order."""
    found = set()
    for run in planned(suite):
        results = read_results(run, folder) if run.data == data else None
        for modes in (results or {"methods": {}})["methods"].values():
            found |= {task for summary in modes.values() for task in summary["tasks"]}
    return [task for task in TASKS if task in found]


def render(suite: Suite, folder: Path) -> str:
    """All tables as text."""
    lines = [suite.title, *suite.protocol, ""]
    for data in suite.data:
        tasks = tasks_judged(suite, folder, data)
        for mode, level in itertools.product(suite.modes, suite.levels):
            title = f"{data}, hits by {LEVELS[level]}, {TITLES[mode]}"
            rows = collect(suite, folder, data, mode, level)
            lines += render_rows(suite, title, rows, suite.published.get(data, {}), level)
            if len(tasks) > 1:
                lines += ["", *render_by_task(suite, folder, data, mode, level, tasks)]
            for name in suite.sweeps:
                lines += render_sweep(suite, folder, data, name, mode, level)
            lines.append("")
    lines += provenance(suite, folder)
    return "\n".join(lines) + "\n"


def render_rows(
    suite: Suite,
    title: str,
    rows: Sequence[Row],
    published: Mapping[str, Mapping[str, float]],
    level: str,
) -> list[str]:
    """A title, a head and a line a row: per cent, mean and deviation over seeds; then the published
    figures, where their hits are of this level."""
    lines = [title, f"{'':{NAME}}" + "".join(f"{column:>{CELL}}" for column in suite.columns)]
    for row in rows:
        count = len(next(iter(row.figures.values()), []))
        seeds = "" if count == len(suite.seeds) else f"  ({count} of {len(suite.seeds)} seeds)"
        cells = "".join(f"{cell(row, column):>{CELL}}" for column in suite.columns)
        lines.append(f"{row.method[: NAME - 1]:{NAME}}{cells}{seeds}")
        lines += [f"  WARNING: {warning}" for warning in row.warnings]
    if level == suite.published_level:
        for name, figures in published.items():
            shown = [f"{figures[c]:.2f}       " if c in figures else "-" for c in suite.columns]
            cells = "".join(f"{text:>{CELL}}" for text in shown)
            lines.append(f"{'  published: ' + name:{NAME}}{cells}")
    return lines


def cell(row: Row, column: str) -> str:
    """Mean and deviation in per cent; "-" where the row has no such figure."""
    if column not in row.figures:
        return "-"
    return f"{100 * row.mean(column):.2f} ± {100 * row.deviation(column):.2f}"


def render_by_task(
    suite: Suite, folder: Path, data: str, mode: str, level: str, tasks: Sequence[str]
) -> list[str]:
    """HR@10 of each task."""
    one = dataclasses.replace(suite, columns=(BY_TASK,))
    by_task = {task: collect(one, folder, data, mode, level, task) for task in tasks}
    names = list(dict.fromkeys(row.method for rows in by_task.values() for row in rows))
    title = f"{data}, {BY_TASK} by task, hits by {LEVELS[level]}, {TITLES[mode]}"
    lines = [title, f"{'':{NAME}}" + "".join(f"{task:>{CELL}}" for task in tasks)]
    for name in names:
        shown = ""
        for rows in by_task.values():
            row = next((row for row in rows if row.method == name), None)
            shown += f"{cell(row, BY_TASK) if row else '-':>{CELL}}"
        lines.append(f"{name[: NAME - 1]:{NAME}}{shown}")
    return lines


def render_sweep(
    suite: Suite, folder: Path, data: str, name: str, mode: str, level: str
) -> list[str]:
    """The headline of each method by the setting's values; nothing where none is finished."""
    found = collect_sweep(suite, folder, data, name, mode, level)
    if not found:
        return []
    values = suite.sweeps[name].values
    lines = [
        "",
        f"{data}, {suite.headline} by {name}, hits by {LEVELS[level]}, {TITLES[mode]}",
        f"{'':{NAME}}" + "".join(f"{value:>{CELL}g}" for value in values),
    ]
    for method, rows in found.items():
        cells = [cell(rows[value], suite.headline) if value in rows else "-" for value in values]
        counts = {len(figures) for row in rows.values() for figures in row.figures.values()}
        wanted = len(suite.sweeps[name].seeds)
        fewest = "" if counts == {wanted} else f"  (as few as {min(counts)} of {wanted} seeds)"
        lines.append(
            f"{method[: NAME - 1]:{NAME}}" + "".join(f"{c:>{CELL}}" for c in cells) + fewest
        )
    return lines


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
    """data -> mode -> level -> row -> column -> one figure a seed, as fractions."""
    return {
        data: {
            mode: {
                level: {
                    row.method: row.figures for row in collect(suite, folder, data, mode, level)
                }
                for level in suite.levels
            }
            for mode in suite.modes
        }
        for data in suite.data
    }
