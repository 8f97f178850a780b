"""report.html: the results of a run as one self-contained page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sigma_jax.evaluation import plots
from sigma_jax.evaluation.score import FILTERED, MODES, Results
from sigma_jax.evaluation.table import (
    COLUMNS,
    INSTRUCTION_COLUMNS,
    LEVELS,
    TITLES,
    cells,
    methods_in,
    percent,
    tasks_in,
)
from sigma_jax.schema import PreparedData, SemanticIds

STYLE = """
:root { color: #1d2430; background: #fff; font: 16px/1.55 system-ui, sans-serif; }
body { max-width: 68rem; margin: 0 auto; padding: 1.2rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .4rem 0; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .5rem; border-top: 1px solid #d5dae1; padding-top: 1rem; }
h3 { font-size: 1rem; margin: 1.3rem 0 .3rem; }
p, li { max-width: 46rem; } nav a { margin-right: 1rem; } a { color: #1f5fa8; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr));
  gap: 1rem; align-items: start; }
img { width: 100%; height: auto; max-width: 34rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e3e7ec;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; max-width: 28rem;
  position: static; }
td.fact { max-width: 46rem; }
tr.ours td { font-weight: 600; } tr.task th { text-align: left; color: #5b6472; }
.warning { background: #fdf0e7; border-left: .3rem solid #c2571a; padding: .4rem .8rem; }
.muted { color: #5b6472; } code { overflow-wrap: anywhere; background: #f3f5f8; padding: 0 .2rem; }
summary { cursor: pointer; margin: .6rem 0; }
"""

SECTIONS = {
    "hit-rate": "Hit rate by task and method",
    "results": "All results",
    "instructions": "Instruction following",
    "calibration": "Printed probabilities",
    "sigma": "Sigma by task",
    "loss": "Loss curves",
    "codebooks": "Semantic IDs",
    "pairs": "Relevance pairs",
    "source": "Command and stages",
}


def write_report(
    results: Results,
    metrics_files: Mapping[str, Path],
    report_data: Mapping[str, Any],
    path: Path,
) -> None:
    """Writes the page. A section without data says so.

    Args:
      results: the results of evaluation/score.py. They may also have results["deviation"], the
        deviation of the beam scores of each request by task, results["calibration"]
        (evaluation/calibration.py), and results["run"], the command, hashes and seed.
      metrics_files: stage -> its metrics.jsonl.
      report_data: any of these keys:
        "code_counts": [L, C], number of items with each code;
        "collisions": [n-1], number of SIDs that n items share;
        "pairs": {view: {"count": n, "examples": [[text, text], ...]}};
        "recommendations": [{"user", "instruction", "items": [text, ...]}, ...];
        "stages": {stage: {name: value}}, the metrics of the manifests.
      path: the file to write.
    """
    bodies = {
        "hit-rate": hit_rate_section(results),
        "results": results_section(results),
        "instructions": instruction_section(results),
        "calibration": calibration_section(results),
        "sigma": sigma_section(results),
        "loss": loss_section(metrics_files),
        "codebooks": codebook_section(report_data),
        "pairs": pairs_section(report_data),
        "source": source_section(results, report_data),
    }
    links = "".join(f'<a href="#{key}">{html.escape(SECTIONS[key])}</a> ' for key in bodies)
    parts = [
        f'<section id="{key}"><h2>{html.escape(SECTIONS[key])}</h2>{body}</section>'
        for key, body in bodies.items()
    ]
    warnings = "".join(f'<p class="warning">{html.escape(w)}</p>' for w in results["warnings"])
    path.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>SIGMA: evaluation</title><style>{STYLE}</style></head><body>"
        f"<h1>SIGMA: evaluation</h1><p>{introduction(results)}</p><nav>{links}</nav>{warnings}"
        f"{''.join(parts)}</body></html>\n",
        encoding="utf-8",
    )


def introduction(results: Results) -> str:
    """A paragraph that explains the results."""
    share = 100 * results["unseen_targets"] / max(results["requests"], 1)
    return (
        f"{results['requests']:,} requests over {results['items']:,} items. Each request has one "
        f"held-out target item. In {share:.0f} % of the requests the user's history lacks the "
        "target. A hit by items is the target itself; a hit by semantic IDs is any item with the "
        "target's semantic ID. Black lines and ± show one standard error. "
        f"Baselines with “{FILTERED.strip()}” rank only items that match the query, category or "
        "theme of the instruction. SIGMA and the other baselines rank all items."
    )


def hit_rate_section(results: Results) -> str:
    """A plot of all methods for each task, first by items, then by semantic IDs."""
    tasks = ["average", *tasks_in(results)]
    parts = []
    for level in LEVELS:
        images = [plots.hit_rates(results, task, "include_seen", level) for task in tasks]
        grid = f'<div class="plots">{"".join(image for image in images if image)}</div>'
        title = f"Hits by {LEVELS[level]}, seen items included"
        parts.append(f"<h3>{title}</h3>{grid}")
    return "".join(parts)


def results_section(results: Results) -> str:
    """Tables of all results: averages over tasks, and each task in a folded table."""
    tables = []
    for mode in MODES:
        for level in LEVELS:
            if not methods_in(results, mode):
                continue
            title = html.escape(f"Hits by {LEVELS[level]}, {TITLES[mode]}")
            average = results_table(results, mode, level, ["average"])
            by_task = results_table(results, mode, level, tasks_in(results))
            folded = f"<details><summary>{title}: each task</summary>{by_task}</details>"
            tables.append(f"<h3>{title}</h3>{average}{folded}")
    note = (
        "<p>Values are per cent. A request has one target, so Recall@K equals HR@K. "
        "<i>coverage</i>, <i>longtail</i> and <i>matches</i> concern the first ten items: the "
        "share of the catalogue that is shown to anyone, of long-tail items, and of items that "
        "match the instruction. With seen items excluded, the user's most frequent items cannot "
        "be shown; that baseline then falls back to popularity.</p>"
    )
    return note + "".join(tables)


def results_table(results: Results, mode: str, level: str, tasks: Sequence[str]) -> str:
    """An HTML table with a block for each of `tasks` ("average" is one) and a row per method."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in [*COLUMNS, "± HR@10", "n"])
    rows = [f"<tr><th>method</th>{head}</tr>"]
    for task in tasks:
        title = "average over tasks" if task == "average" else task
        rows.append(f'<tr class="task"><th colspan="{len(COLUMNS) + 3}">{title}</th></tr>')
        for method in methods_in(results, mode):
            summary = results["methods"][method][mode]
            of_task = summary["average"] if task == "average" else summary["tasks"].get(task, {})
            hit_rate = of_task.get(f"{level}.HR@10")
            if hit_rate is None:
                continue
            values = [
                *cells(of_task, level),
                f"{100 * hit_rate['error']:.2f}",
                f"{hit_rate['n']:,}",
            ]
            style = ' class="ours"' if method.lower().startswith("sigma") else ""
            filled = "".join(f"<td>{value}</td>" for value in values)
            rows.append(f"<tr{style}><td>{html.escape(method)}</td>{filled}</tr>")
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def instruction_section(results: Results) -> str:
    """A table of metrics with an instruction, without one, out of season and for two at once."""
    by_task = results.get("instruction_following")
    if not by_task:
        return missing("instruction following")
    note = (
        "Values are per cent of the first ten items. <i>Matches</i> is the share that matches the "
        "instruction. <i>Popularity</i> is the mean share of the catalogue with fewer "
        "interactions. <i>New category</i> is the share from categories that the user's history "
        "lacks. <i>Overlap</i> is the share that the same user's list without instruction contains "
        "too. <i>No instruction</i> is that list, of the task JustForYou. <i>Out of season</i> "
        "requests a season or holiday of another time of the year. <i>Combined</i> requests a "
        "theme and a category together."
    )
    head = "".join(f"<th>{name}</th>" for name in INSTRUCTION_COLUMNS)
    rows = [f"<tr><th>task, request</th>{head}</tr>"]
    for task, variants in by_task.items():
        for variant, estimates in variants.items():
            values = [percent(estimates.get(name)) for name in INSTRUCTION_COLUMNS.values()]
            filled = "".join(f"<td>{value}</td>" for value in values)
            rows.append(f"<tr><td>{html.escape(f'{task}, {variant}')}</td>{filled}</tr>")
    return f'<p>{note}</p><div class="wide"><table>{"".join(rows)}</table></div>'


def calibration_section(results: Results) -> str:
    """A reliability diagram of all requests and of each task, with expected calibration errors."""
    found = results.get("calibration")
    if not found:
        return missing("calibration")
    note = (
        "A point is a tenth of the requests: the mean probability that was printed for the first "
        "item, and how often the user took that item. On the line both are equal. The expected "
        "calibration error is the mean distance from the line."
    )
    images = [
        plots.reliability_diagram(name, one["groups"], one["error"]) for name, one in found.items()
    ]
    return f'<p>{note}</p><div class="plots">{"".join(images)}</div>'


def sigma_section(results: Results) -> str:
    """The distribution of Eq. 11's sigma by task, and the constant that was used in its place."""
    image = plots.sigma_by_task(results.get("deviation", {}))
    if image is None:
        return missing("sigma of the beam scores")
    note = (
        "Sigma is the standard deviation of the beam scores, which are log-probabilities of the "
        "generated prefixes (Eq. 11 of SIGMA). A large sigma makes the probabilities of items "
        "within a prefix more unequal, a small one less. A box holds the middle half of the "
        "requests; its line is the median."
    )
    used = results.get("sigma", "deviation")
    if used != "deviation":
        note += f" SIGMA used the constant {used} in its place on this page."
    if results.get("constant_sigma") is not None:
        note += (
            f" The best constant on validation requests is {results['constant_sigma']}: see the "
            "row <i>SIGMA without reranker, constant sigma</i> above."
        )
    return f'<p>{note}</p><div class="plots">{image}</div>'


def loss_section(metrics_files: Mapping[str, Path]) -> str:
    """A plot of the training losses for each stage."""
    images = [plots.loss_curve(stage, p) for stage, p in metrics_files.items() if p.exists()]
    images = [image for image in images if image]
    return f'<div class="plots">{"".join(images)}</div>' if images else missing("training losses")


def codebook_section(report_data: Mapping[str, Any]) -> str:
    """Plots of codebook use and of SID collisions."""
    parts = []
    if "code_counts" in report_data:
        image = plots.codebook_use(report_data["code_counts"])
        parts.append(f"<div><h3>Use of the codes</h3>{image}</div>")
    if "collisions" in report_data:
        image = plots.collisions(report_data["collisions"])
        parts.append(f"<div><h3>Collisions</h3>{image}</div>")
    return f'<div class="plots">{"".join(parts)}</div>' if parts else missing("semantic IDs")


def pairs_section(report_data: Mapping[str, Any]) -> str:
    """The number of relevance pairs of each view, with examples."""
    views = report_data.get("pairs", {})
    if not views:
        return missing("relevance pairs")
    parts = []
    for view, pairs in views.items():
        parts.append(f"<h3>{html.escape(view)}: {pairs['count']:,} pairs</h3>")
        rows = "".join(
            f'<tr><td class="text">{html.escape(left)}</td>'
            f'<td class="text">{html.escape(right)}</td></tr>'
            for left, right in pairs["examples"]
        )
        parts.append(f'<div class="wide"><table>{rows}</table></div>' if rows else "")
    return "".join(parts)


def source_section(results: Results, report_data: Mapping[str, Any]) -> str:
    """The command with hashes and seed, examples of recommendations, and metrics of all stages."""
    run = results.get("run", {})
    section = fact_table(run) if run else missing("the command and hashes")
    for example in report_data.get("recommendations", []):
        items = "".join(f"<li>{html.escape(str(item))}</li>" for item in example["items"])
        title = html.escape(f"User {example['user']}: {example['instruction']}")
        section += f"<h3>{title}</h3><ol>{items}</ol>"
    for stage, stage_metrics in report_data.get("stages", {}).items():
        title = html.escape(f"Metrics of stage {stage}")
        section += f"<details><summary>{title}</summary>{fact_table(stage_metrics)}</details>"
    return section


def fact_table(facts: Mapping[str, Any]) -> str:
    """A table of names and values; values are cut after 400 characters."""
    rows = ""
    for name, value in facts.items():
        text = f"{value:.5g}" if isinstance(value, float) else str(value)
        text = html.escape(text if len(text) <= 400 else text[:400] + " ...")
        name = html.escape(str(name))
        rows += f'<tr><td>{name}</td><td class="text fact"><code>{text}</code></td></tr>'
    return f'<div class="wide"><table>{rows}</table></div>'


def missing(content: str) -> str:
    """A line that says that the run has no data for a section."""
    return f'<p class="muted">This run has no data about {content}.</p>'


def collect_report_data(
    data: PreparedData,
    semantic_ids: SemanticIds,
    stages: Mapping[str, Mapping[str, Any]],
    num_examples: int = 5,
) -> dict[str, Any]:
    """The part of `report_data` of `write_report` that artifacts provide.

    Args:
      stages: stage -> metrics of its manifest.
      num_examples: number of example pairs of each view.
    """
    codes, size = np.asarray(semantic_ids.codes), semantic_ids.codebook_size
    shared = np.unique(codes, axis=0, return_counts=True)[1]
    pairs = {}
    for view, of_view in data.pairs.items():
        step = max(len(of_view.left) // num_examples, 1)
        rows = np.arange(0, len(of_view.left), step)[:num_examples]
        right = data.catalogue.titles(of_view.right[rows])
        if of_view.left_texts is not None:
            left = [of_view.left_texts[int(row)].as_py() for row in of_view.left[rows]]
        else:
            left = data.catalogue.titles(of_view.left[rows])
        examples = [list(pair) for pair in zip(left, right, strict=True)]
        pairs[view] = {"count": len(of_view.left), "examples": examples}
    return {
        "code_counts": np.stack([np.bincount(level, minlength=size) for level in codes.T]),
        "collisions": np.bincount(shared)[1:],
        "pairs": pairs,
        "stages": dict(stages),
    }
