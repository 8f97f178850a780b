"""Results as text of at most 120 columns, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from sigma_jax.evaluation.score import FILTERED, MODES, Results

COLUMNS = {
    "HR@1": "{level}.HR@1",
    "HR@5": "{level}.HR@5",
    "HR@10": "{level}.HR@10",
    "HR@20": "{level}.HR@20",
    "N@5": "{level}.NDCG@5",
    "N@10": "{level}.NDCG@10",
    "cover": "coverage@10",
    "tail": "long_tail@10",
    "fits": "constraint@10",
}
LEVELS = {"item": "items", "sid": "semantic IDs"}
TITLES = {
    "include_seen": "seen items included",
    "exclude_seen": "seen items excluded",
    "unseen_targets": "seen items excluded, requests with an unseen target only",
}
INSTRUCTION_METRICS = (
    "fits",
    "popularity",
    "new category",
    "overlap",
)  # of evaluation/instruction_following.py
NAME_WIDTH = 30  # of the first column, where no name is longer
SHORT = {"JustForYou": "ForYou", "Category": "Categ.", "Longtail": "Tail", "Discover": "Disc."}


def render_summary(results: Results, folder: Path) -> str:
    """What the terminal shows of `render_table`: hits by items, and where the rest is."""
    lines = introduction(results)
    for mode in ("include_seen", "exclude_seen"):
        lines += ["", *render_average(results, mode, "item")]
    lines += ["", *render_tasks(results, "include_seen", "item")]
    lines += [
        "",
        *render_cold(results),
        *render_instruction_following(results),
        *warnings(results),
        f"All figures: {folder / 'table.txt'}",
    ]
    lines += [f"With plots: {folder / 'report.html'}"]
    return "\n".join(lines) + "\n"


def render_table(results: Results) -> str:
    """The averages over tasks and HR@10 of each task, of every mode and level, in per cent."""
    lines = introduction(results)
    for mode in MODES:
        for level in LEVELS:
            lines += ["", *render_average(results, mode, level)]
    for mode in MODES:
        for level in LEVELS:
            lines += ["", *render_tasks(results, mode, level)]
    lines += ["", *render_cold(results), *render_instruction_following(results), *warnings(results)]
    return "\n".join(lines).rstrip() + "\n"


def introduction(results: Results) -> list[str]:
    """What the figures are, in lines."""
    return [
        f"{results['requests']:,} requests, {results['items']:,} items; figures in per cent. "
        "HR@K of one target equals Recall@K.",
        "cover, tail, fits, in the first 10: share of the catalogue shown, of long-tail items, "
        "of items as asked for.",
        f'"{FILTERED.strip()}": only items that the query, category or theme asked for allows.',
    ]


def warnings(results: Results) -> list[str]:
    """A line a warning."""
    return [f"WARNING: {warning}" for warning in results["warnings"]]


def methods_in(results: Results, mode: str) -> list[str]:
    """Methods that have figures in `mode`."""
    return [name for name, modes in results["methods"].items() if mode in modes]


def tasks_in(results: Results) -> list[str]:
    """Tasks that have figures, in their usual order."""
    found = {
        task: None
        for modes in results["methods"].values()
        for summary in modes.values()
        for task in summary["tasks"]
    }
    return list(found)


def cells(figures: dict, level: str) -> list[str]:
    """One row of COLUMNS: per cent, "-" where the figure does not apply."""
    names = [name.format(level=level) for name in COLUMNS.values()]
    return [percent(figures.get(name)) for name in names]


def percent(figure: dict | None) -> str:
    """The mean in per cent, two decimals; "-" where there is no figure."""
    return f"{100 * figure['mean']:.2f}" if figure else "-"


def aligned(head: str, rows: Mapping[str, str]) -> list[str]:
    """A line for the head and one for each row, after its name, which is never cut."""
    width = max([NAME_WIDTH, *(len(name) + 1 for name in rows)])
    return [" " * width + head, *(f"{name:{width}}{row}" for name, row in rows.items())]


def render_average(results: Results, mode: str, level: str) -> list[str]:
    """Title, head and a row a method."""
    rows = {}
    for method in methods_in(results, mode):
        figures = results["methods"][method][mode]["average"]
        if f"{level}.HR@10" not in figures:
            continue
        error = f"{100 * figures[f'{level}.HR@10']['error']:.2f}"
        rows[method] = "".join(f"{cell:>9}" for cell in [*cells(figures, level), error])
    head = "".join(f"{name:>9}" for name in [*COLUMNS, "± HR@10"])
    title = f"Average over tasks, hits by {LEVELS[level]}, {TITLES[mode]}"
    return [title, *aligned(head, rows)]


def render_tasks(results: Results, mode: str, level: str) -> list[str]:
    """HR@10 of each task, with its standard error."""
    tasks = tasks_in(results)
    rows = {}
    for method in methods_in(results, mode):
        by_task = results["methods"][method][mode]["tasks"]
        rows[method] = ""
        for task in tasks:
            figure = by_task.get(task, {}).get(f"{level}.HR@10")
            text = f"{percent(figure)}±{100 * figure['error']:.1f}" if figure else "-"
            rows[method] += f"{text:>12}"
    head = "".join(f"{SHORT.get(task, task):>12}" for task in tasks)
    return [f"HR@10 by task, hits by {LEVELS[level]}, {TITLES[mode]}", *aligned(head, rows)]


def render_cold(results: Results) -> list[str]:
    """Recall@10 of targets without a training interaction, beside that of the others."""
    names = ("cold.Recall@10", "warm.Recall@10")
    rows = {}
    for mode in ("include_seen", "exclude_seen"):
        for method in methods_in(results, mode):
            figures = results["methods"][method][mode]["average"]
            cold, warm = (figures.get(name) for name in names)
            if cold:
                row = f"{percent(cold):>12}{cold['n']:>12}{percent(warm):>12}"
                rows[f"{method}, {TITLES[mode]}"] = row
    if not rows:
        return []
    head = "".join(f"{name:>12}" for name in ("cold", "requests", "warm"))
    title = "Recall@10 by item: cold targets (nobody took them in training) and warm ones"
    return [title, *aligned(head, rows), ""]


def render_instruction_following(results: Results) -> list[str]:
    """Whether instructions are followed (sigma_jax/evaluation/instruction_following.py)."""
    if not results.get("instruction_following"):
        return []
    rows = {
        f"{task}, {variant}": "".join(
            f"{percent(summaries.get(name)):>14}" for name in INSTRUCTION_METRICS
        )
        for task, sets in results["instruction_following"].items()
        for variant, summaries in sets.items()
    }
    head = "".join(f"{name:>14}" for name in INSTRUCTION_METRICS)
    title = "Instructions followed, first 10 items of SIGMA, seen items included"
    return [title, *aligned(head, rows), ""]


def write_json(results: Results, path: Path) -> None:
    """`results` as JSON, methods and tasks in their order."""
    path.write_text(json.dumps(results, indent=1) + "\n")
