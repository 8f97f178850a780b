"""Results of an evaluation as text of at most 120 columns, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from sigma_jax.evaluation.score import FILTERED, MODES, Results

COLUMNS = {  # head -> metric of score.py
    "HR@1": "{level}.HR@1",
    "HR@5": "{level}.HR@5",
    "HR@10": "{level}.HR@10",
    "HR@20": "{level}.HR@20",
    "N@5": "{level}.NDCG@5",
    "N@10": "{level}.NDCG@10",
    "coverage": "coverage@10",
    "longtail": "long_tail@10",
    "matches": "constraint@10",
}
INSTRUCTION_COLUMNS = {  # head -> metric of instruction_following.py
    "matches": "constraint@10",
    "popularity": "popularity@10",
    "new category": "new_category@10",
    "overlap": "overlap@10",
}
LEVELS = {"item": "items", "sid": "semantic IDs"}
TITLES = {
    "include_seen": "seen items included",
    "exclude_seen": "seen items excluded",
    "unseen_targets": "seen items excluded, requests with an unseen target only",
}
NAME_WIDTH = 30  # of the first column; wider if a name needs it
SHORT = {"JustForYou": "ForYou", "Category": "Categ.", "Longtail": "Tail", "Discover": "Disc."}


def render_summary(results: Results, folder: Path) -> str:
    """The part of `render_table` that the terminal shows: hits by items, and the files' paths."""
    lines = introduction(results)
    for mode in ("include_seen", "exclude_seen"):
        lines += ["", *render_average(results, mode, "item")]
    lines += ["", *render_tasks(results, "include_seen", "item")]
    lines += ["", *render_cold(results), *render_instruction_following(results)]
    lines += render_calibration(results)
    lines += [*warnings(results), f"All results: {folder / 'table.txt'}"]
    if (folder / "report.html").exists():
        lines.append(f"Report with plots: {folder / 'report.html'}")
    return "\n".join(lines) + "\n"


def render_table(results: Results) -> str:
    """All results in per cent: averages over tasks and HR@10 by task, for each mode and level."""
    lines = introduction(results)
    for mode in MODES:
        for level in LEVELS:
            lines += ["", *render_average(results, mode, level)]
    for mode in MODES:
        for level in LEVELS:
            lines += ["", *render_tasks(results, mode, level)]
    lines += ["", *render_cold(results), *render_instruction_following(results)]
    lines += render_calibration(results)
    lines += [*render_shortcuts(results), *warnings(results)]
    return "\n".join(lines).rstrip() + "\n"


def introduction(results: Results) -> list[str]:
    """Lines that explain the tables."""
    return [
        f"{results['requests']:,} requests, {results['items']:,} items. Values are per cent. "
        "A request has one target, so HR@K equals Recall@K.",
        "For the first 10 items: coverage = share of the catalogue that is shown to anyone; "
        "longtail = share of long-tail items;",
        "matches = share of items that match the query, category or theme of the instruction.",
        f'"{FILTERED.strip()}": the baseline ranks only items that match the instruction.',
    ]


def warnings(results: Results) -> list[str]:
    """A line for each warning."""
    return [f"WARNING: {warning}" for warning in results["warnings"]]


def methods_in(results: Results, mode: str) -> list[str]:
    """The methods with results in `mode`."""
    return [name for name, by_mode in results["methods"].items() if mode in by_mode]


def tasks_in(results: Results) -> list[str]:
    """The tasks with results, in their usual order."""
    tasks = {
        task: None
        for by_mode in results["methods"].values()
        for summary in by_mode.values()
        for task in summary["tasks"]
    }
    return list(tasks)


def cells(estimates: Mapping[str, dict], level: str) -> list[str]:
    """The cells of COLUMNS in per cent; "-" where a metric does not apply.

    Args:
      estimates: metric -> estimate (score.py).
    """
    names = [name.format(level=level) for name in COLUMNS.values()]
    return [percent(estimates.get(name)) for name in names]


def percent(estimate: dict | None) -> str:
    """The mean of an estimate in per cent with two decimals; "-" for None."""
    return f"{100 * estimate['mean']:.2f}" if estimate else "-"


def aligned(head: str, rows: Mapping[str, str]) -> list[str]:
    """The head, and each row after its name; names are never cut."""
    width = max([NAME_WIDTH, *(len(name) + 1 for name in rows)])
    return [" " * width + head, *(f"{name:{width}}{row}" for name, row in rows.items())]


def render_average(results: Results, mode: str, level: str) -> list[str]:
    """A table of COLUMNS on average over tasks, one row per method."""
    rows = {}
    for method in methods_in(results, mode):
        average = results["methods"][method][mode]["average"]
        if f"{level}.HR@10" not in average:
            continue
        error = f"{100 * average[f'{level}.HR@10']['error']:.2f}"
        rows[method] = "".join(f"{cell:>9}" for cell in [*cells(average, level), error])
    head = "".join(f"{name:>9}" for name in [*COLUMNS, "± HR@10"])
    title = f"Average over tasks, hits by {LEVELS[level]}, {TITLES[mode]}"
    return [title, *aligned(head, rows)]


def render_tasks(results: Results, mode: str, level: str) -> list[str]:
    """A table of HR@10 with its standard error for each task, one row per method."""
    tasks = tasks_in(results)
    rows = {}
    for method in methods_in(results, mode):
        by_task = results["methods"][method][mode]["tasks"]
        rows[method] = ""
        for task in tasks:
            hit_rate = by_task.get(task, {}).get(f"{level}.HR@10")
            text = f"{percent(hit_rate)}±{100 * hit_rate['error']:.1f}" if hit_rate else "-"
            rows[method] += f"{text:>12}"
    head = "".join(f"{SHORT.get(task, task):>12}" for task in tasks)
    return [f"HR@10 by task, hits by {LEVELS[level]}, {TITLES[mode]}", *aligned(head, rows)]


def render_cold(results: Results) -> list[str]:
    """A table of Recall@10 for cold and for warm targets; no lines if no target is cold."""
    rows = {}
    for mode in ("include_seen", "exclude_seen"):
        for method in methods_in(results, mode):
            average = results["methods"][method][mode]["average"]
            cold, warm = average.get("cold.Recall@10"), average.get("warm.Recall@10")
            if cold:
                row = f"{percent(cold):>14}{cold['n']:>14}{percent(warm):>14}"
                rows[f"{method}, {TITLES[mode]}"] = row
    if not rows:
        return []
    head = "".join(f"{name:>14}" for name in ("cold", "cold targets", "warm"))
    title = "Recall@10 of cold targets, which have no interaction in training, and of warm targets"
    return [title, *aligned(head, rows), ""]


def render_instruction_following(results: Results) -> list[str]:
    """A table of INSTRUCTION_COLUMNS for each task and kind of request; no lines without them."""
    if not results.get("instruction_following"):
        return []
    rows = {
        f"{task}, {variant}": "".join(
            f"{percent(estimates.get(name)):>14}" for name in INSTRUCTION_COLUMNS.values()
        )
        for task, variants in results["instruction_following"].items()
        for variant, estimates in variants.items()
    }
    head = "".join(f"{name:>14}" for name in INSTRUCTION_COLUMNS)
    title = "Instruction following: first 10 items of SIGMA, seen items included"
    return [title, *aligned(head, rows), ""]


def render_calibration(results: Results) -> list[str]:
    """A line of the expected calibration errors of SIGMA by task; no lines without them."""
    found = results.get("calibration")
    if not found:
        return []
    errors = ", ".join(f"{name} {one['error']:.3f}" for name, one in found.items())
    return [f"Expected calibration error of the first item's probability: {errors}", ""]


def render_shortcuts(results: Results) -> list[str]:
    """A line of the figures of shortcuts.py; no lines without them."""
    figures = results.get("shortcuts")
    if not figures:
        return []
    return [f"Shortcuts in this log (evaluation/shortcuts.py): {shortcuts_text(figures)}", ""]


def shortcuts_text(figures: Mapping[str, float]) -> str:
    """The figures of shortcuts.py in one line."""
    return ", ".join(f"{name} {value:.2f}" for name, value in figures.items())


def write_json(results: Results, path: Path) -> None:
    """Writes `results` as JSON; the order of methods and tasks is kept."""
    path.write_text(json.dumps(results, indent=1) + "\n")
