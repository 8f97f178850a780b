"""report.html of a suite: tables and plots in one file. The plots are stored as PNG files too."""

from __future__ import annotations

import dataclasses
import html
import itertools
from collections.abc import Sequence
from pathlib import Path

from sigma_jax.benchmarking.rows import (
    MODEL,
    Row,
    collect,
    collect_sweep,
    evaluated_tasks,
    read_results,
)
from sigma_jax.benchmarking.suite import Run, Suite, planned_runs
from sigma_jax.benchmarking.suite_table import provenance, row_cells
from sigma_jax.evaluation import plots
from sigma_jax.evaluation.page import STYLE
from sigma_jax.evaluation.plots import Picture
from sigma_jax.evaluation.table import LEVELS, TITLES


def write_suite_page(suite: Suite, folder: Path) -> None:
    """Writes FOLDER/report.html and FOLDER/plots/*.png from the finished runs below FOLDER."""
    (folder / "plots").mkdir(exist_ok=True)
    sections = "".join(data_section(suite, folder, data) for data in suite.data)
    commands = "\n".join(provenance(suite, folder))
    title = html.escape(suite.title)
    protocol = html.escape(" ".join(suite.protocol))
    (folder / "report.html").write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>"
        f"<p>{protocol}</p>{sections}<section><h2>Commands</h2>"
        f'<div class="wide"><pre>{html.escape(commands)}</pre></div></section></body></html>\n',
        encoding="utf-8",
    )


def data_section(suite: Suite, folder: Path, data: str) -> str:
    """HTML with the tables and plots of one data set; one line if no run is finished."""
    head = f"<section><h2>{html.escape(data)}</h2>"
    if not any(read_results(run, folder) for run in planned_runs(suite) if run.data == data):
        return f'{head}<p class="muted">No run on this data set is finished.</p></section>'
    tables = ""
    for mode, level in itertools.product(suite.modes, suite.levels):
        title = html.escape(f"Hits by {LEVELS[level]}, {TITLES[mode]}")
        rows = collect(suite, folder, data, mode, level)
        tables += f"<h3>{title}</h3>{rows_table(suite, data, rows, level)}"
    plots_by_name = pictures(suite, folder, data)
    for name, picture in plots_by_name.items():
        picture.save(folder / "plots" / f"{slug(data)}-{name}.png")
    images = "".join(picture.as_image() for picture in plots_by_name.values())
    images += sigma_plot(suite, folder, data)
    return f'{head}{tables}<div class="plots">{images}</div></section>'


def rows_table(suite: Suite, data: str, rows: Sequence[Row], level: str) -> str:
    """An HTML table of `rows`, then of the published results if their hits are of `level`."""

    def line(name: str, cells: Sequence[str], attributes: str = "") -> str:
        filled = "".join(f"<td>{html.escape(text)}</td>" for text in cells)
        return f"<tr{attributes}><td>{html.escape(name)}</td>{filled}</tr>"

    head = "".join(f"<th>{html.escape(column)}</th>" for column in suite.columns)
    width = len(suite.columns) + 1
    lines = [f"<tr><th>method</th>{head}</tr>"]
    for row in rows:
        is_first = row.method == next(iter(suite.methods))
        lines.append(line(row.method, row_cells(row, suite), ' class="ours"' if is_first else ""))
        lines += [
            f'<tr><td colspan="{width}" class="warning">{html.escape(w)}</td></tr>'
            for w in row.warnings
        ]
    if level == suite.published_level:
        for name, values in suite.published.get(data, {}).items():
            cells = [f"{values[c]:.2f}" if c in values else "-" for c in suite.columns]
            lines.append(line(f"published: {name}", cells))
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def pictures(suite: Suite, folder: Path, data: str) -> dict[str, Picture]:
    """The plots of a data set by name, in the suite's first mode and level."""
    mode, level = suite.modes[0], suite.levels[0]
    label = f"{suite.headline}, %, hits by {LEVELS[level]}, {TITLES[mode]}"
    plots_by_name = method_plots(suite, folder, data, mode, level, label)
    points = quality_by_time(suite, folder, data, mode, level)
    if points:
        axis = "minutes of training, all stages"
        plots_by_name["time"] = plots.points(points, data, axis, label)
    for name in suite.sweeps:
        by_method = collect_sweep(headline_only(suite), folder, data, name, mode, level)
        if any(len(rows) > 1 for rows in by_method.values()):
            series = {
                method: [
                    (value, 100 * row.mean(suite.headline), 100 * row.deviation(suite.headline))
                    for value, row in rows.items()
                ]
                for method, rows in by_method.items()
            }
            plots_by_name[f"sweep-{slug(name)}"] = plots.lines(series, data, name, label)
    return plots_by_name


def headline_only(suite: Suite) -> Suite:
    """The suite with its headline metric as the only column."""
    return dataclasses.replace(suite, columns=(suite.headline,))


def method_plots(
    suite: Suite, folder: Path, data: str, mode: str, level: str, label: str
) -> dict[str, Picture]:
    """A bar chart of the methods on average over tasks, and one for each task if there are more."""
    tasks = evaluated_tasks(suite, folder, data)
    charts = {}
    for task in ["average", *(tasks if len(tasks) > 1 else [])]:
        rows = collect(headline_only(suite), folder, data, mode, level, task)
        rows = [row for row in rows if suite.headline in row.values]
        if not rows:
            continue
        charts[f"methods-{task}"] = plots.bar_chart(
            [row.method for row in rows],
            [100 * row.mean(suite.headline) for row in rows],
            [100 * row.deviation(suite.headline) for row in rows],
            data if task == "average" else f"{data}, {task}",
            label,
        )
    return charts


def headline_of(suite: Suite, results, mode: str, level: str) -> float | None:
    """The headline metric of a run's model, on average over tasks, as a fraction.

    None if the run is not finished or has no such metric.
    """
    summary = (results or {"methods": {}})["methods"].get(MODEL, {}).get(mode)
    if summary is None:
        return None
    average = summary["average"]
    metric = average.get(f"{level}.{suite.headline}", average.get(suite.headline))
    return None if metric is None else metric["mean"]


def quality_by_time(
    suite: Suite, folder: Path, data: str, mode: str, level: str
) -> dict[str, tuple[list[float], list[float]]]:
    """method -> training minutes of all stages, and the headline in per cent; one per run."""
    by_method: dict[str, tuple[list[float], list[float]]] = {}
    for method, seed in itertools.product(suite.methods, suite.seeds):
        results = read_results(Run(data, method, seed), folder)
        quality = headline_of(suite, results, mode, level)
        if quality is None:
            continue
        minutes, qualities = by_method.setdefault(method, ([], []))
        minutes.append(results["minutes"])
        qualities.append(100 * quality)
    return by_method


def sigma_plot(suite: Suite, folder: Path, data: str) -> str:
    """An image of sigma (Eq. 11) by task, of the first method that searches codes; "" if none."""
    for method in suite.methods:
        results = read_results(Run(data, method, suite.seeds[0]), folder) or {}
        image = plots.sigma_by_task(results.get("deviation", {}), method)
        if image is not None:
            return image
    return ""


def slug(name: str) -> str:
    """`name` in lower-case letters, digits and hyphens, for file names."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
