"""report.html of a suite: its tables and plots in one file, the plots beside it as PNGs too."""

from __future__ import annotations

import dataclasses
import html
import itertools
from collections.abc import Sequence
from pathlib import Path

from sigma_jax.benchmarking.suite import (
    OURS,
    Row,
    Run,
    Suite,
    cell,
    collect,
    collect_sweep,
    planned,
    provenance,
    read_results,
    tasks_judged,
)
from sigma_jax.evaluation import plots
from sigma_jax.evaluation.page import STYLE
from sigma_jax.evaluation.plots import Picture
from sigma_jax.evaluation.table import LEVELS, TITLES


def write_suite_page(suite: Suite, folder: Path) -> None:
    """Writes FOLDER/report.html and FOLDER/plots/*.png from the runs that are finished."""
    (folder / "plots").mkdir(exist_ok=True)
    parts = "".join(data_section(suite, folder, data) for data in suite.data)
    lines = "\n".join(provenance(suite, folder))
    title = html.escape(suite.title)
    protocol = html.escape(" ".join(suite.protocol))
    (folder / "report.html").write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>"
        f"<p>{protocol}</p>{parts}<section><h2>How this was made</h2>"
        f'<div class="wide"><pre>{html.escape(lines)}</pre></div></section></body></html>\n',
        encoding="utf-8",
    )


def data_section(suite: Suite, folder: Path, data: str) -> str:
    """Tables and plots of one data set; a line where nothing is finished."""
    head = f"<section><h2>{html.escape(data)}</h2>"
    if not any(read_results(run, folder) for run in planned(suite) if run.data == data):
        return f'{head}<p class="muted">No run of it is finished.</p></section>'
    tables = ""
    for mode, level in itertools.product(suite.modes, suite.levels):
        title = html.escape(f"Hits by {LEVELS[level]}, {TITLES[mode]}")
        rows = collect(suite, folder, data, mode, level)
        tables += f"<h3>{title}</h3>{rows_table(suite, data, rows, level)}"
    drawn = pictures(suite, folder, data)
    for name, picture in drawn.items():
        picture.save(folder / "plots" / f"{slug(data)}-{name}.png")
    images = "".join(picture.as_image() for picture in drawn.values())
    images += sigma_plot(suite, folder, data)
    return f'{head}{tables}<div class="plots">{images}</div></section>'


def rows_table(suite: Suite, data: str, rows: Sequence[Row], level: str) -> str:
    """Mean and deviation of each row, then the published figures where they are of this level."""

    def line(name: str, cells: Sequence[str], kind: str = "") -> str:
        filled = "".join(f"<td>{html.escape(text)}</td>" for text in cells)
        return f"<tr{kind}><td>{html.escape(name)}</td>{filled}</tr>"

    head = "".join(f"<th>{html.escape(column)}</th>" for column in suite.columns)
    lines = [f"<tr><th>method</th>{head}</tr>"]
    for row in rows:
        ours = ' class="ours"' if row.method == next(iter(suite.methods)) else ""
        lines.append(line(row.method, [cell(row, column) for column in suite.columns], ours))
        lines += [
            f'<tr><td colspan="9" class="warning">{html.escape(w)}</td></tr>' for w in row.warnings
        ]
    if level == suite.published_level:
        for name, figures in suite.published.get(data, {}).items():
            shown = [f"{figures[c]:.2f}" if c in figures else "-" for c in suite.columns]
            lines.append(line(f"published: {name}", shown))
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def pictures(suite: Suite, folder: Path, data: str) -> dict[str, Picture]:
    """The plots of a data set by name, in its first mode and level."""
    mode, level = suite.modes[0], suite.levels[0]
    one = dataclasses.replace(suite, columns=(suite.headline,))
    where = f"hits by {LEVELS[level]}, {TITLES[mode]}"
    tasks = tasks_judged(suite, folder, data)
    found = {}
    for task in ["average", *(tasks if len(tasks) > 1 else [])]:
        rows = collect(one, folder, data, mode, level, task)
        rows = [row for row in rows if suite.headline in row.figures]
        if not rows:
            continue
        title = data if task == "average" else f"{data}, {task}"
        found[f"methods-{task}"] = plots.bar_chart(
            [row.method for row in rows],
            [100 * row.mean(suite.headline) for row in rows],
            [100 * row.deviation(suite.headline) for row in rows],
            title,
            f"{suite.headline}, %, {where}",
        )
    points = quality_by_time(suite, folder, data, mode, level)
    if points:
        label = f"{suite.headline}, %, {where}"
        found["time"] = plots.points(points, data, "minutes of training, all stages", label)
    for name in suite.sweeps:
        swept = collect_sweep(one, folder, data, name, mode, level)
        if any(len(rows) > 1 for rows in swept.values()):
            series = {
                method: [
                    (value, 100 * row.mean(suite.headline), 100 * row.deviation(suite.headline))
                    for value, row in rows.items()
                ]
                for method, rows in swept.items()
            }
            label = f"{suite.headline}, %, {where}"
            found[f"sweep-{slug(name)}"] = plots.lines(series, data, name, label)
    return found


def headline_of(suite: Suite, results, mode: str, level: str) -> float | None:
    """The headline figure of the model of a run, on average over tasks; None without one."""
    summary = (results or {"methods": {}})["methods"].get(OURS, {}).get(mode)
    if summary is None:
        return None
    average = summary["average"]
    found = average.get(f"{level}.{suite.headline}", average.get(suite.headline))
    return None if found is None else found["mean"]


def quality_by_time(
    suite: Suite, folder: Path, data: str, mode: str, level: str
) -> dict[str, tuple[list[float], list[float]]]:
    """method -> minutes that its stages trained, and the headline in per cent, a run each."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for method, seed in itertools.product(suite.methods, suite.seeds):
        results = read_results(Run(data, method, seed), folder)
        figure = headline_of(suite, results, mode, level)
        if figure is None:
            continue
        minutes, figures = found.setdefault(method, ([], []))
        minutes.append(results["minutes"])
        figures.append(100 * figure)
    return found


def sigma_plot(suite: Suite, folder: Path, data: str) -> str:
    """sigma of Eq. 11 by task, in the first run of the first method that searched codes."""
    for method in suite.methods:
        results = read_results(Run(data, method, suite.seeds[0]), folder) or {}
        image = plots.sigma_by_task(results.get("deviation", {}), method)
        if image is not None:
            return image
    return ""


def slug(name: str) -> str:
    """For file names: lower case, letters and digits and hyphens."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
