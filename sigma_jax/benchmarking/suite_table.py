"""The tables of a suite as text, and the commands that made them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from sigma_jax.benchmarking.record import METRIC_BY_TASK
from sigma_jax.benchmarking.rows import (
    Row,
    collect,
    collect_sweep,
    evaluated_tasks,
    read_results,
)
from sigma_jax.benchmarking.suite import Suite, planned_runs
from sigma_jax.evaluation.table import LEVELS, TITLES, shortcuts_text

NAME_WIDTH = 34  # of the first column; wider if a name needs it
CELL_WIDTH = 16
NO_DEVIATION = " " * len(" ± 0.00")


def render(suite: Suite, folder: Path) -> str:
    """All tables of the suite as text, from the finished runs below `folder`."""
    lines = [suite.title, *suite.protocol, ""]
    for data in suite.data:
        tasks = evaluated_tasks(suite, folder, data)
        for mode, level in itertools.product(suite.modes, suite.levels):
            title = f"{data}, hits by {LEVELS[level]}, {TITLES[mode]}"
            rows = collect(suite, folder, data, mode, level)
            lines += render_rows(suite, title, rows, suite.published.get(data, {}), level)
            if len(tasks) > 1:
                lines += ["", *render_by_task(suite, folder, data, mode, level, tasks)]
            for name in suite.sweeps:
                lines += render_sweep(suite, folder, data, name, mode, level)
            lines.append("")
        lines += shortcuts(suite, folder, data)
    lines += provenance(suite, folder)
    return "\n".join(lines) + "\n"


def render_rows(
    suite: Suite,
    title: str,
    rows: Sequence[Row],
    published: Mapping[str, Mapping[str, float]],
    level: str,
) -> list[str]:
    """Title, head and rows in per cent; then the published results if their hits are of `level`."""
    shown = published if level == suite.published_level else {}
    names = [*(row.method for row in rows), *(f"  published: {name}" for name in shown)]
    lines = table_lines(title, suite.columns, names, [row_cells(row, suite) for row in rows])
    width = len(lines[1]) - CELL_WIDTH * len(suite.columns)
    by_row = []
    for row, line in zip(rows, lines[2:], strict=True):
        count = len(next(iter(row.values.values()), []))
        is_complete = count == len(suite.seeds)
        by_row.append(line + ("" if is_complete else f"  ({count} of {len(suite.seeds)} seeds)"))
        by_row += [f"  WARNING: {warning}" for warning in row.warnings]
    for name, values in shown.items():
        cells = [f"{values[c]:.2f}{NO_DEVIATION}" if c in values else "-" for c in suite.columns]
        by_row.append(f"{'  published: ' + name:{width}}" + joined(cells))
    return [*lines[:2], *by_row]


def table_lines(
    title: str, columns: Sequence, names: Sequence[str], cells: Sequence[Sequence[str]]
) -> list[str]:
    """A title, a head with `columns`, and a line for each of `cells`, after the name of its row.

    The first column has room for all of `names`, of which the first are the rows of `cells`.
    """
    width = max([NAME_WIDTH, *(len(name) + 1 for name in names)])
    lines = [title, " " * width + joined([str(column) for column in columns])]
    rows = zip(names, cells, strict=False)
    return lines + [f"{name:{width}}{joined(texts)}" for name, texts in rows]


def joined(cells: Sequence[str]) -> str:
    """Cells of CELL_WIDTH characters, flush right."""
    return "".join(f"{text:>{CELL_WIDTH}}" for text in cells)


def row_cells(row: Row, suite: Suite) -> list[str]:
    """The cells of a row, one for each column of the suite."""
    return [cell(row, column) for column in suite.columns]


def cell(row: Row, column: str) -> str:
    """Mean ± standard deviation over seeds in per cent; "-" where the row lacks the metric.

    One seed has no deviation. Spaces in its place keep the column straight.
    """
    if column not in row.values:
        return "-"
    mean = f"{100 * row.mean(column):.2f}"
    if len(row.values[column]) < 2:
        return mean + NO_DEVIATION
    return f"{mean} ± {100 * row.deviation(column):.2f}"


def render_by_task(
    suite: Suite, folder: Path, data: str, mode: str, level: str, tasks: Sequence[str]
) -> list[str]:
    """A table with METRIC_BY_TASK of each row for each task."""
    one_column = dataclasses.replace(suite, columns=(METRIC_BY_TASK,))
    by_task = {task: collect(one_column, folder, data, mode, level, task) for task in tasks}
    names = list(dict.fromkeys(row.method for rows in by_task.values() for row in rows))
    cells = []
    for name in names:
        of_name = [next((r for r in rows if r.method == name), None) for rows in by_task.values()]
        cells.append([cell(row, METRIC_BY_TASK) if row else "-" for row in of_name])
    title = f"{data}, {METRIC_BY_TASK} by task, hits by {LEVELS[level]}, {TITLES[mode]}"
    return table_lines(title, tasks, names, cells)


def render_sweep(
    suite: Suite, folder: Path, data: str, name: str, mode: str, level: str
) -> list[str]:
    """A table with the headline metric of each method by value; no lines before a run finished."""
    by_method = collect_sweep(suite, folder, data, name, mode, level)
    if not by_method:
        return []
    values, num_seeds = suite.sweeps[name].values, len(suite.sweeps[name].seeds)
    cells = [
        [cell(rows[value], suite.headline) if value in rows else "-" for value in values]
        for rows in by_method.values()
    ]
    title = f"{data}, {suite.headline} by {name}, hits by {LEVELS[level]}, {TITLES[mode]}"
    lines = table_lines(title, [f"{value:g}" for value in values], list(by_method), cells)
    for number, rows in enumerate(by_method.values(), 2):
        counts = [len(column) for row in rows.values() for column in row.values.values()]
        fewest = min(counts, default=num_seeds)
        if fewest < num_seeds:
            lines[number] += f"  (as few as {fewest} of {num_seeds} seeds)"
    return ["", *lines]


def shortcuts(suite: Suite, folder: Path, data: str) -> list[str]:
    """A line with the shortcuts of the log (evaluation/shortcuts.py), where a run has them."""
    for run in planned_runs(suite):
        results = read_results(run, folder) if run.data == data else None
        if results and results.get("shortcuts"):
            return [f"{data}, shortcuts: {shortcuts_text(results['shortcuts'])}", ""]
    return []


def provenance(suite: Suite, folder: Path) -> list[str]:
    """The commits of the runs; then their hashes, seconds of evaluation, and commands."""
    lines = ["Runs: config hash, data hash, seconds of evaluation, command as it was run"]
    commits: dict[str, int] = {}
    for run in planned_runs(suite):
        results = read_results(run, folder)
        if results is None:
            lines.append(f"{run.name}: not run")
            continue
        made = results["run"]
        commit = made.get("commit") or "unknown"
        commits[commit] = commits.get(commit, 0) + 1
        lines.append(
            f"{run.name}: {made['config_hash']} {made['data_hash']} {made['seconds']:.0f} "
            f"{made['command']}"
        )
    counted = ", ".join(f"{commit} ({count} runs)" for commit, count in commits.items())
    return [f"Commits: {counted or 'none'}", *lines]
