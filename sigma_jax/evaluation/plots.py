"""The plots of report.html: each a PNG inside the page and a sentence for those who cannot see it.

Matplotlib draws; every plot is drawn narrow, so that its text is legible on a phone too.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sigma_jax.evaluation.score import FILTERED, Results

INK, MUTED, MAIN, OTHER, GRID = "#1d2430", "#5b6472", "#1f5fa8", "#a9b4c2", "#e3e7ec"
SERIES = ("#1f5fa8", "#c2571a", "#2d8659", "#7d4fa3", "#a3333d", "#5b6472", "#a88a1f", "#2a8f9c")
SIZE = (5.2, 3.2)  # inches


def new_axes(height: float = SIZE[1]):
    """A figure with one quiet pair of axes."""
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
    """A plot, and a sentence in its place."""

    figure: Figure
    alternative: str

    def as_image(self) -> str:
        """`<img>` with the PNG inside it."""
        return as_image(self.figure, self.alternative)

    def save(self, path: Path) -> None:
        """Writes the PNG."""
        path.write_bytes(png(self.figure))


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def as_image(figure: Figure, alternative: str) -> str:
    """`<img>` with the PNG inside it."""
    data = base64.b64encode(png(figure)).decode()
    text = alternative.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'<img alt="{text}" src="data:image/png;base64,{data}">'


def read_figures(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of every figure in a metrics.jsonl; a last line cut short is left out."""
    columns: dict[str, tuple[list[int], list[float]]] = {}
    for line in path.read_text().splitlines():
        try:
            figures = json.loads(line)
        except json.JSONDecodeError:
            continue
        for name, value in figures.items():
            if name != "step" and isinstance(value, int | float):
                steps, values = columns.setdefault(name, ([], []))
                steps.append(figures["step"])
                values.append(value)
    return {name: (np.array(steps), np.array(values)) for name, (steps, values) in columns.items()}


def loss_curve(stage: str, path: Path) -> str | None:
    """The losses of one stage's metrics.jsonl; None where it holds none."""
    figures = read_figures(path)
    losses = {name: figures[name] for name in sorted(figures) if "loss" in name.lower()}
    # The whole first, then its parts.
    losses = {name: losses[name] for name in sorted(losses, key=lambda name: name != "loss")}
    if not losses:
        return None
    figure, axes = new_axes()
    for color, (name, (steps, values)) in zip(SERIES, losses.items(), strict=False):
        axes.plot(steps, values, color=color, linewidth=1.6, label=name)
    axes.set_xlabel("step", color=INK)
    axes.set_title(stage, color=INK, loc="left", fontsize=12)
    # Above the axes, where no curve runs through it.
    place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": len(losses)}
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, columnspacing=1, **place)
    ends = "; ".join(f"{n} from {v[0]:.3g} to {v[-1]:.3g}" for n, (_, v) in losses.items())
    return as_image(figure, f"Loss of stage {stage} by step: {ends}.")


def hit_rates(results: Results, task: str, mode: str, level: str) -> str | None:
    """HR@10 of every method on one task ("average" for all), with standard errors.

    A filtered baseline is shown only where the task has something to filter by.
    """
    names, figures = [], []
    for method, modes in results["methods"].items():
        summary = modes.get(mode)
        by_task = {} if summary is None else summary["tasks"] | {"average": summary["average"]}
        figure = by_task.get(task, {}).get(f"{level}.HR@10")
        is_same = method.endswith(FILTERED) and names and figure == figures[-1]
        if figure and not is_same:
            names.append(method)
            figures.append(figure)
    if not names:
        return None
    count = figures[0]["n"]
    means, errors = ([100 * f[part] for f in figures] for part in ("mean", "error"))
    return bar_chart(names, means, errors, f"{task}  (n = {count:,})", "HR@10, %").as_image()


def bar_chart(
    names: Sequence[str],
    means: Sequence[float],
    errors: Sequence[float],
    title: str,
    label: str,
) -> Picture:
    """A bar a method with its error; SIGMA's in another colour."""
    figure, axes = new_axes(0.9 + 0.34 * len(names))
    means, errors = np.asarray(means), np.asarray(errors)
    colors = [MAIN if name.lower().startswith("sigma") else OTHER for name in names]
    places = np.arange(len(names))[::-1]
    axes.barh(places, means, xerr=errors, color=colors, height=0.68, ecolor=INK, capsize=2.5)
    axes.set_yticks(places, names)
    axes.grid(False, axis="y")
    room = max((means + errors).max(), 1e-9)
    axes.set_xlim(0, room * 1.2)
    for place, mean, error in zip(places, means, errors, strict=True):
        axes.text(mean + error + room * 0.02, place, f"{mean:.1f}", va="center", fontsize=9)
    axes.set_title(title, color=INK, loc="left", fontsize=12)
    axes.set_xlabel(label, color=INK)
    listed = zip(names, means, errors, strict=True)
    text = ", ".join(f"{name} {mean:.2f} ± {error:.2f}" for name, mean, error in listed)
    return Picture(figure, f"{title}, {label}: {text}.")


def points(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, x: str, y: str
) -> Picture:
    """A point for each pair of a series, a colour and a mark for each series."""
    figure, axes = new_axes()
    told = []
    marks = "osD^vPX*"
    for number, (name, (xs, ys)) in enumerate(series.items()):
        style = {"color": SERIES[number % len(SERIES)], "marker": marks[number % len(marks)]}
        axes.scatter(xs, ys, s=36, label=name, **style)
        told += [f"{name} {a:.3g}, {b:.2f}" for a, b in zip(xs, ys, strict=True)]
    finish_axes(axes, title, x, y)
    axes.set_xlim(0, 1.08 * max(1e-9, *(max(xs) for xs, _ in series.values())))
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return Picture(figure, f"{title}: {y} against {x}: {'; '.join(told)}.")


def lines(
    series: Mapping[str, Sequence[tuple[float, float, float]]], title: str, x: str, y: str
) -> Picture:
    """A line through the points (x, mean, deviation) of each series; a logarithmic axis where the
    largest x is ten times the least."""
    figure, axes = new_axes()
    told = []
    for number, (name, of) in enumerate(series.items()):
        xs, means, errors = zip(*of, strict=True)
        color = SERIES[number % len(SERIES)]
        axes.errorbar(
            xs, means, errors, color=color, marker="o", linewidth=1.8, capsize=2.5, label=name
        )
        parts = ", ".join(f"{a:g}: {b:.2f} ± {c:.2f}" for a, b, c in of)
        told.append(f"{name}, {parts}")
    finish_axes(axes, title, x, y)
    xs = sorted({value for of in series.values() for value, _, _ in of})
    if xs[0] > 0 and xs[-1] >= 10 * xs[0]:
        axes.set_xscale("log")
    axes.set_xticks(xs, [f"{value:g}" for value in xs])
    axes.minorticks_off()
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return Picture(figure, f"{title}: {y} by {x}: {'; '.join(told)}.")


def finish_axes(axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, color=INK, loc="left", fontsize=12)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK, fontsize=8)


def sigma_by_task(sigma: Mapping[str, Sequence[float]], title: str = "") -> str | None:
    """Distribution of sigma (Eq. 11 of SIGMA) for each task; None where no request had two beams,
    which is sigma 0."""
    kept = {task: np.asarray(values) for task, values in sigma.items()}
    kept = {task: v[np.isfinite(v)] for task, v in kept.items() if np.isfinite(v).any()}
    if not any(values.any() for values in kept.values()):
        return None
    figure, axes = new_axes(1.0 + 0.36 * len(kept))
    places = np.arange(len(kept))[::-1]
    axes.boxplot(
        list(kept.values()),
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
    axes.set_yticks(places, list(kept))
    axes.grid(False, axis="y")
    axes.set_xlabel("sigma of the beam scores", color=INK)
    axes.set_title(title, color=INK, loc="left", fontsize=12)
    text = ", ".join(f"{task} {np.median(values):.2f}" for task, values in kept.items())
    return as_image(figure, f"Distribution of sigma by task; medians: {text}.")


def codebook_use(counts: np.ndarray) -> str:
    """`counts` [L, C]: items with each code. Codes sorted by use, one line a level."""
    figure, axes = new_axes()
    told = []
    for level, row in enumerate(counts):
        share = np.sort(row)[::-1] / max(row.sum(), 1)
        used, of, perplexity = int((row > 0).sum()), len(row), perplexities(counts)[level]
        color = SERIES[level % len(SERIES)]
        label = f"level {level + 1}: {used} of {of} used, perplexity {perplexity:.0f}"
        axes.plot(np.arange(1, of + 1), 100 * share, color=color, linewidth=1.8, label=label)
        told.append(label)
    axes.set_xlabel("codes, most used first", color=INK)
    axes.set_ylabel("items, %", color=INK)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return as_image(figure, f"Use of the codes by level. {'; '.join(told)}.")


def perplexities(counts: np.ndarray) -> np.ndarray:
    """exp(entropy) of each level's codes: the number of codes in even use."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return np.exp(-(share * np.log(np.where(share > 0, share, 1))).sum(1))


def collisions(sizes: Sequence[int]) -> str:
    """`sizes[n-1]`: number of SIDs that n items share."""
    figure, axes = new_axes()
    sizes = np.asarray(sizes)
    shown = np.arange(1, len(sizes) + 1)
    if len(sizes) > 12:  # the rare large ones together
        sizes = np.append(sizes[:11], sizes[11:].sum())
        shown = np.arange(1, 13)
    axes.bar(shown, np.maximum(sizes, 0), color=MAIN, width=0.75)
    axes.set_yscale("symlog", linthresh=1)
    names = [str(n) for n in shown]
    names[-1] += "+" if len(shown) == 12 else ""
    axes.set_xticks(shown, names)
    axes.grid(False, axis="x")
    axes.set_xlabel("items that share a semantic ID", color=INK)
    axes.set_ylabel("semantic IDs", color=INK)
    text = ", ".join(f"{count} SIDs with {n}" for n, count in zip(names, sizes, strict=True))
    return as_image(figure, f"Collision histogram: {text} items.")
