"""The plots of the report pages: PNG images inside the page, with their values as alternative text.

Matplotlib draws them. Plots are narrow, so that their text stays legible on a phone.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sigma_jax.evaluation.score import FILTERED, Results
from sigma_jax.tokenizer.quality import perplexities

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours of text, minor lines, SIGMA, other methods and the grid.
INK, MUTED, MAIN, OTHER, GRID = "#1d2430", "#5b6472", "#1f5fa8", "#a9b4c2", "#e3e7ec"
SERIES = ("#1f5fa8", "#c2571a", "#2d8659", "#7d4fa3", "#a3333d", "#5b6472", "#a88a1f", "#2a8f9c")
SIZE = (5.2, 3.2)  # inches


def new_axes(height: float = SIZE[1]):
    """A figure with one pair of axes in the style of the report."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIZE[0], height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=10)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


@dataclasses.dataclass(frozen=True)
class Picture:
    """A plot with its alternative text."""

    figure: Figure
    alternative: str

    def as_image(self) -> str:
        """An <img> element that contains the PNG."""
        return as_image(self.figure, self.alternative)

    def save(self, path: Path) -> None:
        """Writes the plot as PNG."""
        path.write_bytes(png(self.figure))


def png(figure: Figure) -> bytes:
    """The figure as PNG, without the name and version of Matplotlib."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def as_image(figure: Figure, alternative: str) -> str:
    """An <img> element that contains the PNG and the alternative text."""
    data = base64.b64encode(png(figure)).decode()
    text = alternative.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'<img alt="{text}" src="data:image/png;base64,{data}">'


def read_curves(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Metric -> its steps and values in a metrics.jsonl.

    Lines that are no JSON are skipped: a killed run leaves an incomplete last line.
    """
    columns: dict[str, tuple[list[int], list[float]]] = {}
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                steps, values = columns.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append(value)
    return {name: (np.array(steps), np.array(values)) for name, (steps, values) in columns.items()}


def loss_curve(stage: str, path: Path) -> str | None:
    """A plot of the losses in one stage's metrics.jsonl; None if it has no losses."""
    curves = read_curves(path)
    losses = {name: curves[name] for name in sorted(curves) if "loss" in name.lower()}
    # The total loss first, then its terms.
    losses = {name: losses[name] for name in sorted(losses, key=lambda name: name != "loss")}
    if not losses:
        return None
    figure, axes = new_axes()
    for color, (name, (steps, values)) in zip(SERIES, losses.items(), strict=False):
        axes.plot(steps, values, color=color, linewidth=1.6, label=name)
    axes.set_xlabel("step", color=INK)
    axes.set_title(stage, color=INK, loc="left", fontsize=12)
    # The legend stands above the axes, so that no curve crosses it.
    place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": len(losses)}
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, columnspacing=1, **place)
    ends = "; ".join(f"{n} from {v[0]:.3g} to {v[-1]:.3g}" for n, (_, v) in losses.items())
    return as_image(figure, f"Loss of stage {stage} by step: {ends}.")


def hit_rates(results: Results, task: str, mode: str, level: str) -> str | None:
    """A plot of HR@10 of all methods on one task, or on "average", with standard errors.

    A filtered baseline is omitted where it equals the baseline, as in tasks without a constraint.
    """
    names, estimates = [], []
    for method, modes in results["methods"].items():
        summary = modes.get(mode)
        by_task = {} if summary is None else summary["tasks"] | {"average": summary["average"]}
        hit_rate = by_task.get(task, {}).get(f"{level}.HR@10")
        is_same = method.endswith(FILTERED) and names and hit_rate == estimates[-1]
        if hit_rate and not is_same:
            names.append(method)
            estimates.append(hit_rate)
    if not names:
        return None
    count = estimates[0]["n"]
    means, errors = ([100 * e[part] for e in estimates] for part in ("mean", "error"))
    return bar_chart(names, means, errors, f"{task}  (n = {count:,})", "HR@10, %").as_image()


def bar_chart(
    names: Sequence[str],
    means: Sequence[float],
    errors: Sequence[float],
    title: str,
    label: str,
) -> Picture:
    """A bar with its error for each method; those of SIGMA have another colour."""
    figure, axes = new_axes(0.9 + 0.34 * len(names))
    means, errors = np.asarray(means), np.asarray(errors)
    colors = [MAIN if name.lower().startswith("sigma") else OTHER for name in names]
    places = np.arange(len(names))[::-1]
    axes.barh(places, means, xerr=errors, color=colors, height=0.68, ecolor=INK, capsize=2.5)
    axes.set_yticks(places, names)
    axes.grid(False, axis="y")
    longest = max((means + errors).max(), 1e-9)
    axes.set_xlim(0, longest * 1.2)
    for place, mean, error in zip(places, means, errors, strict=True):
        axes.text(mean + error + longest * 0.02, place, f"{mean:.1f}", va="center", fontsize=9)
    axes.set_title(title, color=INK, loc="left", fontsize=12)
    axes.set_xlabel(label, color=INK)
    bars = zip(names, means, errors, strict=True)
    text = ", ".join(f"{name} {mean:.2f} ± {error:.2f}" for name, mean, error in bars)
    return Picture(figure, f"{title}, {label}: {text}.")


def points(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, x: str, y: str
) -> Picture:
    """A scatter plot; each series has its own colour and marker."""
    figure, axes = new_axes()
    texts = []
    markers = "osD^vPX*"
    for number, (name, (xs, ys)) in enumerate(series.items()):
        style = {"color": SERIES[number % len(SERIES)], "marker": markers[number % len(markers)]}
        axes.scatter(xs, ys, s=36, label=name, **style)
        texts += [f"{name} {a:.3g}, {b:.2f}" for a, b in zip(xs, ys, strict=True)]
    finish_axes(axes, title, x, y)
    axes.set_xlim(0, 1.08 * max(1e-9, *(max(xs) for xs, _ in series.values())))
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return Picture(figure, f"{title}: {y} against {x}: {'; '.join(texts)}.")


def lines(
    series: Mapping[str, Sequence[tuple[float, float, float]]], title: str, x: str, y: str
) -> Picture:
    """A line through the points (x, mean, deviation) of each series.

    The x axis is logarithmic if the largest x is at least ten times the smallest.
    """
    figure, axes = new_axes()
    texts = []
    for number, (name, points_of) in enumerate(series.items()):
        xs, means, errors = zip(*points_of, strict=True)
        color = SERIES[number % len(SERIES)]
        axes.errorbar(
            xs, means, errors, color=color, marker="o", linewidth=1.8, capsize=2.5, label=name
        )
        parts = ", ".join(f"{a:g}: {b:.2f} ± {c:.2f}" for a, b, c in points_of)
        texts.append(f"{name}, {parts}")
    finish_axes(axes, title, x, y)
    xs = sorted({x for points_of in series.values() for x, _, _ in points_of})
    if xs[0] > 0 and xs[-1] >= 10 * xs[0]:
        axes.set_xscale("log")
    axes.set_xticks(xs, [f"{value:g}" for value in xs])
    axes.minorticks_off()
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return Picture(figure, f"{title}: {y} by {x}: {'; '.join(texts)}.")


def finish_axes(axes, title: str, x: str, y: str) -> None:
    """Sets the title and the labels of both axes."""
    axes.set_title(title, color=INK, loc="left", fontsize=12)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK, fontsize=8)


def reliability_diagram(name: str, groups: Sequence[Sequence[float]], error: float) -> str:
    """A plot of groups (mean probability, share of hits, requests) beside the line of equality."""
    figure, axes = new_axes()
    probabilities, shares = [group[0] for group in groups], [group[1] for group in groups]
    top = 1.05 * max(*probabilities, *shares, 0.01)
    axes.plot([0, top], [0, top], color=MUTED, linewidth=1)
    axes.plot(probabilities, shares, color=MAIN, marker="o", linewidth=1.8)
    title = f"{name}: expected calibration error {error:.3f}"
    finish_axes(axes, title, "printed probability of the first item", "share of requests")
    pairs = ", ".join(f"{a:.2f} {b:.2f}" for a, b in zip(probabilities, shares, strict=True))
    return as_image(figure, f"{title}; probability and share: {pairs}.")


def sigma_by_task(sigma: Mapping[str, Sequence[float]], title: str = "") -> str | None:
    """A box plot of sigma (Eq. 11 of SIGMA) by task; None if all values are 0.

    Sigma is 0 for requests with a single beam.
    """
    by_task = {task: np.asarray(values) for task, values in sigma.items()}
    by_task = {task: v[np.isfinite(v)] for task, v in by_task.items() if np.isfinite(v).any()}
    if not any(values.any() for values in by_task.values()):
        return None
    figure, axes = new_axes(1.0 + 0.36 * len(by_task))
    places = np.arange(len(by_task))[::-1]
    axes.boxplot(
        list(by_task.values()),
        positions=places,
        orientation="horizontal",
        widths=0.6,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": "#d5e3f3", "edgecolor": MAIN},
        medianprops={"color": MAIN, "linewidth": 2},
        whiskerprops={"color": MUTED},
        capprops={"color": MUTED},
    )
    axes.set_yticks(places, list(by_task))
    axes.grid(False, axis="y")
    axes.set_xlabel("sigma of the beam scores", color=INK)
    axes.set_title(title, color=INK, loc="left", fontsize=12)
    text = ", ".join(f"{task} {np.median(values):.2f}" for task, values in by_task.items())
    return as_image(figure, f"Distribution of sigma by task; medians: {text}.")


def codebook_use(counts: np.ndarray) -> str:
    """A plot of the share of items by code, most used codes first; one line per level.

    Args:
      counts: [L, C], number of items with each code.
    """
    figure, axes = new_axes()
    texts = []
    for level, (row, perplexity) in enumerate(zip(counts, perplexities(counts), strict=True)):
        share = np.sort(row)[::-1] / max(row.sum(), 1)
        used, size = int((row > 0).sum()), len(row)
        color = SERIES[level % len(SERIES)]
        label = f"level {level + 1}: {used} of {size} used, perplexity {perplexity:.0f}"
        axes.plot(np.arange(1, size + 1), 100 * share, color=color, linewidth=1.8, label=label)
        texts.append(label)
    axes.set_xlabel("codes, most used first", color=INK)
    axes.set_ylabel("items, %", color=INK)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return as_image(figure, f"Use of the codes by level. {'; '.join(texts)}.")


def collisions(sizes: Sequence[int]) -> str:
    """A histogram of collisions; twelve and more items are one bar.

    Args:
      sizes: `sizes[n-1]` is the number of SIDs that n items share.
    """
    figure, axes = new_axes()
    sizes = np.asarray(sizes)
    num_items = np.arange(1, len(sizes) + 1)
    if len(sizes) > 12:
        sizes = np.append(sizes[:11], sizes[11:].sum())
        num_items = np.arange(1, 13)
    axes.bar(num_items, np.maximum(sizes, 0), color=MAIN, width=0.75)
    axes.set_yscale("symlog", linthresh=1)
    names = [str(n) for n in num_items]
    names[-1] += "+" if len(num_items) == 12 else ""
    axes.set_xticks(num_items, names)
    axes.grid(False, axis="x")
    axes.set_xlabel("items that share a semantic ID", color=INK)
    axes.set_ylabel("semantic IDs", color=INK)
    text = ", ".join(f"{count} SIDs with {n}" for n, count in zip(names, sizes, strict=True))
    return as_image(figure, f"Collision histogram: {text} items.")
