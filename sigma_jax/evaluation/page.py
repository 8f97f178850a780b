"""report.html: one file that shows a run, with everything inside it and nothing from elsewhere."""

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
    INSTRUCTION_METRICS,
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
    "instructions": "Instructions followed",
    "sigma": "Sigma by task",
    "loss": "Loss curves",
    "codebooks": "Semantic IDs",
    "pairs": "Relevance pairs",
    "source": "How this was made",
}


def write_report(
    results: Results,
    metrics_files: Mapping[str, Path],
    figures: Mapping[str, Any],
    path: Path,
) -> None:
    """Writes the page; a section without figures says so.

    Args:
      results: of evaluation/score.py, with results["deviation"] {task: that of each request} and
        results["run"] {name: value} (command, hashes, seed) where they are known.
      metrics_files: stage -> its metrics.jsonl.
      figures: any of
        "code_counts": [L, C] items with each code;
        "collisions": [n-1] number of SIDs that n items share;
        "pairs": {view: {"count": n, "examples": [[text, text], ...]}};
        "recommendations": [{"user", "instruction", "items": [text, ...]}, ...];
        "stages": {stage: {name: value}}, the figures of the manifests.
      path: the file to write.
    """
    bodies = {
        "hit-rate": hit_rate_section(results),
        "results": results_section(results),
        "instructions": instruction_section(results),
        "sigma": sigma_section(results),
        "loss": loss_section(metrics_files),
        "codebooks": codebook_section(figures),
        "pairs": pairs_section(figures),
        "source": source_section(results, figures),
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
    """What was measured, in two sentences."""
    share = 100 * results["unseen_targets"] / max(results["requests"], 1)
    return (
        f"{results['requests']:,} requests over {results['items']:,} items, each with one held-out "
        f"item that should be among the recommendations. In {share:.0f} % of them the user had "
        "not had that item before. A hit by items is that very item; a hit by semantic IDs is "
        "any item with the same semantic ID. Black lines and ± show one standard error. "
        f"Baselines with “{FILTERED.strip()}” choose only among the items that the query, category "
        "or theme of the instruction allows; the others, and SIGMA, choose among all."
    )


def hit_rate_section(results: Results) -> str:
    """A plot a task, of all methods; item level first."""
    tasks = ["average", *tasks_in(results)]
    shown = []
    for level in LEVELS:
        drawn = [plots.hit_rates(results, task, "include_seen", level) for task in tasks]
        grid = f'<div class="plots">{"".join(image for image in drawn if image)}</div>'
        title = f"Hits by {LEVELS[level]}, seen items included"
        shown.append(f"<h3>{title}</h3>{grid}")
    return "".join(shown)


def results_section(results: Results) -> str:
    """Tables of all figures: averages in sight, tasks folded."""
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
        "<p>Per cent. With one target a request Recall@K equals HR@K. <i>cover</i>, <i>tail</i> "
        "and <i>fits</i> look at the first ten items: the share of the catalogue that is shown, "
        "of long-tail items, and of items that satisfy the constraint. With seen items left out, "
        "nothing is left of the user's own most frequent items, so popularity stands in.</p>"
    )
    return note + "".join(tables)


def results_table(results: Results, mode: str, level: str, tasks: Sequence[str]) -> str:
    """One table of `tasks` ("average" is one), a row a method."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in [*COLUMNS, "± HR@10", "n"])
    rows = [f"<tr><th>method</th>{head}</tr>"]
    for task in tasks:
        title = "average over tasks" if task == "average" else task
        rows.append(f'<tr class="task"><th colspan="{len(COLUMNS) + 3}">{title}</th></tr>')
        for method in methods_in(results, mode):
            summary = results["methods"][method][mode]
            figures = summary["average"] if task == "average" else summary["tasks"].get(task, {})
            hit_rate = figures.get(f"{level}.HR@10")
            if hit_rate is None:
                continue
            values = [
                *cells(figures, level),
                f"{100 * hit_rate['error']:.2f}",
                f"{hit_rate['n']:,}",
            ]
            ours = ' class="ours"' if method.lower().startswith("sigma") else ""
            filled = "".join(f"<td>{value}</td>" for value in values)
            rows.append(f"<tr{ours}><td>{html.escape(method)}</td>{filled}</tr>")
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def instruction_section(results: Results) -> str:
    """What lists show when asked for something, beside those of users asked for nothing."""
    found = results.get("instruction_following")
    if not found:
        return missing("instructions followed")
    note = (
        "Share of the first ten items that satisfy what was asked for; how popular they are (share "
        "of the catalogue that is taken less often); share from categories the user never had; "
        "share that the same user's JustForYou list has too. <i>Unasked</i> is that list; <i>out "
        "of season</i> asks for a season or holiday of another time of the year; <i>combined</i> "
        "for a theme within a category. Per cent."
    )
    head = "".join(f"<th>{name}</th>" for name in INSTRUCTION_METRICS)
    rows = [f"<tr><th>asked for</th>{head}</tr>"]
    for task, sets in found.items():
        for variant, summaries in sets.items():
            values = [percent(summaries.get(name)) for name in INSTRUCTION_METRICS]
            filled = "".join(f"<td>{value}</td>" for value in values)
            rows.append(f"<tr><td>{html.escape(f'{task}, {variant}')}</td>{filled}</tr>")
    return f'<p>{note}</p><div class="wide"><table>{"".join(rows)}</table></div>'


def sigma_section(results: Results) -> str:
    """The distribution of Eq. 11's sigma, and what was used in its place."""
    image = plots.sigma_by_task(results.get("deviation", {}))
    if image is None:
        return missing("sigma of the beam scores")
    note = (
        "Sigma is the standard deviation of the beam scores, the log-probabilities of the "
        "generated prefixes. It sharpens (large) or flattens (small) the choice among the items of "
        "a prefix (Eq. 11 of SIGMA). The box holds the middle half, the line is the median."
    )
    used = results.get("sigma", "deviation")
    if used != "deviation":
        note += f" The lists of this page were ranked with {used} in its place."
    if results.get("constant_sigma") is not None:
        note += (
            f" Of constants {results['constant_sigma']} serves validation requests best: the row "
            "<i>SIGMA without reranker, constant sigma</i> above."
        )
    return f'<p>{note}</p><div class="plots">{image}</div>'


def loss_section(metrics_files: Mapping[str, Path]) -> str:
    """A plot a stage."""
    drawn = [plots.loss_curve(stage, p) for stage, p in metrics_files.items() if p.exists()]
    drawn = [image for image in drawn if image]
    return f'<div class="plots">{"".join(drawn)}</div>' if drawn else missing("training losses")


def codebook_section(figures: Mapping[str, Any]) -> str:
    """Use of the codebooks, and collisions."""
    drawn = []
    if "code_counts" in figures:
        drawn.append(f"<div><h3>Use</h3>{plots.codebook_use(figures['code_counts'])}</div>")
    if "collisions" in figures:
        drawn.append(f"<div><h3>Collisions</h3>{plots.collisions(figures['collisions'])}</div>")
    return f'<div class="plots">{"".join(drawn)}</div>' if drawn else missing("semantic IDs")


def pairs_section(figures: Mapping[str, Any]) -> str:
    """Number and examples of each view's pairs."""
    views = figures.get("pairs", {})
    if not views:
        return missing("relevance pairs")
    shown = []
    for view, found in views.items():
        shown.append(f"<h3>{html.escape(view)}: {found['count']:,} pairs</h3>")
        rows = "".join(
            f'<tr><td class="text">{html.escape(left)}</td>'
            f'<td class="text">{html.escape(right)}</td></tr>'
            for left, right in found["examples"]
        )
        shown.append(f'<div class="wide"><table>{rows}</table></div>' if rows else "")
    return "".join(shown)


def source_section(results: Results, figures: Mapping[str, Any]) -> str:
    """Command, hashes, seed; examples of recommendations; the figures of every stage."""
    run = results.get("run", {})
    shown = fact_table(run) if run else missing("its command and hashes")
    for example in figures.get("recommendations", []):
        items = "".join(f"<li>{html.escape(str(item))}</li>" for item in example["items"])
        user, said = html.escape(str(example["user"])), html.escape(example["instruction"])
        shown += f"<h3>User {user}: {said}</h3><ol>{items}</ol>"
    for stage, found in figures.get("stages", {}).items():
        title = html.escape(f"Figures of stage {stage}")
        shown += f"<details><summary>{title}</summary>{fact_table(found)}</details>"
    return shown


def fact_table(facts: Mapping[str, Any]) -> str:
    """Names and values; long ones are cut."""
    rows = ""
    for name, value in facts.items():
        text = f"{value:.5g}" if isinstance(value, float) else str(value)
        text = html.escape(text if len(text) <= 400 else text[:400] + " ...")
        name = html.escape(str(name))
        rows += f'<tr><td>{name}</td><td class="text fact"><code>{text}</code></td></tr>'
    return f'<div class="wide"><table>{rows}</table></div>'


def missing(what: str) -> str:
    """A line in place of figures that a run does not have."""
    return f'<p class="muted">This run has no figures of {what}.</p>'


def collect_report_data(
    data: PreparedData,
    semantic_ids: SemanticIds,
    stages: Mapping[str, Mapping[str, Any]],
    num_examples: int = 5,
) -> dict[str, Any]:
    """The `figures` of `write_report` that follow from artifacts; `stages`: manifests' figures."""
    codes, size = np.asarray(semantic_ids.codes), semantic_ids.codebook_size
    shared = np.unique(codes, axis=0, return_counts=True)[1]
    pairs = {}
    for view, found in data.pairs.items():
        step = max(len(found.left) // num_examples, 1)
        rows = np.arange(0, len(found.left), step)[:num_examples]
        right = data.catalogue.titles(found.right[rows])
        if found.left_texts is not None:
            left = [found.left_texts[int(row)].as_py() for row in found.left[rows]]
        else:
            left = data.catalogue.titles(found.left[rows])
        examples = [list(pair) for pair in zip(left, right, strict=True)]
        pairs[view] = {"count": len(found.left), "examples": examples}
    return {
        "code_counts": np.stack([np.bincount(level, minlength=size) for level in codes.T]),
        "collisions": np.bincount(shared)[1:],
        "pairs": pairs,
        "stages": dict(stages),
    }
