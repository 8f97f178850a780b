"""Writes the tables of README.md and docs/ from the records of launch/.

    python -m launch.tables

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`. TABLES has a function for
each name. A test holds the pages equal to what this command writes.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.benchmarks import capacity
from launch.benchmarks.result import read_result
from sigma_jax import benchmark
from sigma_jax.benchmarking.rows import Row, collect, collect_sweep, read_results
from sigma_jax.benchmarking.suite import Run, Suite, planned_runs
from sigma_jax.benchmarking.suite_table import cell
from sigma_jax.configs import letter, sft
from sigma_jax.configs.benchmark import amazon
from sigma_jax.configs.benchmark import letter as letter_suite

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "launch" / "results"
BENCHMARKS = ROOT / "launch" / "benchmarks" / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
MARKED = re.compile(r"(<!-- table: ([\w.-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
BEFORE = " before refit"

Rows = list[list[str]]  # the first is the head


def main() -> None:
    """Rewrites the pages, and prints the names of those that changed."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (new := render_page(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(page.relative_to(ROOT))


def render_page(text: str) -> str:
    """The text of a page with its marked tables made anew. KeyError for an unknown table."""
    return MARKED.sub(lambda found: found[1] + "\n" + table(found[2]) + "\n" + found[3], text)


def table(name: str) -> str:
    """The table `name` in Markdown, or a sentence where nothing was measured."""
    try:
        made = TABLES[name]()
    except FileNotFoundError:
        made = []
    if len(made) < 2:
        return "Not measured yet.\n"
    head, *rows = (f"| {' | '.join(cells)} |\n" for cells in made)
    return "".join([head, "|" + "---|" * (head.count(" | ") + 1) + "\n", *rows])


@functools.cache
def suite_of(name: str) -> Suite:
    """The suite of configs/benchmark/NAME.py."""
    return benchmark.load_suite(str(ROOT / "configs" / "benchmark" / f"{name}.py"))


def rows_of(name: str, data: str, mode: str, level: str = "item") -> dict[str, Row]:
    """The rows of a suite's records on one data set, by method."""
    rows = collect(suite_of(name), RESULTS / name, data, mode, level)
    return {row.method: row for row in rows}


def shown(row: Row | None, column: str) -> str:
    """A cell of a row that may be missing."""
    return cell(row, column).strip() if row else "-"


def equal_methods(name: str, data: str, columns: Sequence[str], mode: str = "exclude_seen") -> Rows:
    """Every method before and after the refit, best first by the last column."""
    rows = rows_of(name, data, mode)
    methods = [method for method in rows if is_shown(method)]
    methods.sort(key=lambda method: -rows[method].mean(columns[-1]))
    head = ["method", "seeds"]
    for column in columns:
        head += [f"{column}{BEFORE}", column]
    table_rows = [head]
    for method in methods:
        cells = [method, str(len(rows[method].values[columns[-1]]))]
        for column in columns:
            cells += [shown(row, column) for row in before_and_after(rows, method)]
        table_rows.append(cells)
    return table_rows


def is_shown(method: str) -> bool:
    """Whether a row stands for itself: not for a method before its refit, nor another fusion."""
    return not method.endswith(BEFORE) and " without reranker, " not in method


def before_and_after(rows: Mapping[str, Row], method: str) -> tuple[Row | None, Row | None]:
    """The rows of a method before and after its refit; the paper's settings have no refit."""
    if method.startswith(amazon.PAPER_SETTINGS):
        return rows.get(method), None
    return rows.get(method + BEFORE), rows.get(method)


SUMMARISED = (
    *("SIGMA", "GR(ID)", "SIGMA without reranker", amazon.PAPER_SETTINGS),
    *("SASRec", "gSASRec", "eSASRec", "HSTU"),
    *("Features without a network", "Transition graph", "Co-visitation", "Popularity"),
)


def summary() -> Rows:
    """NDCG@10 of some methods on the Amazon data sets, before and after the refit."""
    by_data = {data: rows_of("amazon", data, "exclude_seen") for data in suite_of("amazon").data}
    methods = [m for m in SUMMARISED if any(m in rows for rows in by_data.values())]
    scores = {
        method: [rows[method].mean("NDCG@10") for rows in by_data.values() if method in rows]
        for method in methods
    }
    methods.sort(key=lambda method: -sum(scores[method]) / len(scores[method]))
    return [
        ["NDCG@10, before and after the refit", *by_data],
        *(
            [method]
            + [
                " / ".join(shown(row, "NDCG@10") for row in before_and_after(rows, method))
                for rows in by_data.values()
            ]
            for method in methods
        ),
    ]


def like_published(name: str, data: str) -> Rows:
    """Published results beside ours by their protocol: seen items included, before the refit."""
    suite, rows = suite_of(name), rows_of(name, data, "include_seen")
    ours = {
        method: row
        for method in rows
        if is_shown(method) and (row := before_and_after(rows, method)[0])
    }
    scored = [
        (row.mean(suite.columns[-1]), [method, *(shown(row, c) for c in suite.columns)])
        for method, row in ours.items()
    ]
    scored += [
        (values[suite.columns[-1]] / 100, [f"{method} (published)", *map("{:.2f}".format, cells)])
        for method, values in suite.published.get(data, {}).items()
        if (cells := [values[column] for column in suite.columns])
    ]
    return [["method", *suite.columns], *(cells for _, cells in sorted(scored, key=by_score))]


def by_score(scored: tuple[float, list[str]]) -> float:
    """A key that puts the highest score first."""
    return -scored[0]


def some_methods(
    name: str, data: str, mode: str, methods: Mapping[str, str], columns: Sequence[str]
) -> Rows:
    """Some methods under other names; `columns` are of the suite."""
    rows = rows_of(name, data, mode)
    return [
        ["", *columns],
        *([label, *(shown(rows.get(m), c) for c in columns)] for label, m in methods.items()),
    ]


def all_methods(name: str, data: str, mode: str, columns: Sequence[str]) -> Rows:
    """The rows of a suite that are not " before refit", in its order."""
    rows = rows_of(name, data, mode)
    methods = [method for method in rows if not method.endswith(BEFORE)]
    return [["", *columns], *([m, *(shown(rows[m], c) for c in columns)] for m in methods)]


def table_1() -> Rows:
    """Table 1 of the paper: hits by SID, HR@10 by item, and the paper's HR@10."""
    suite = suite_of("table1")
    [data] = suite.data
    by_sid, by_item = (rows_of("table1", data, "include_seen", level) for level in ("sid", "item"))
    published = suite.published[data]
    names = {"SASRec": "online model (SASRec)"}
    head = ["hits by SID, seen items included", "seeds", *suite.columns]
    rows = [[*head, "HR@10 by item", "the paper's HR@10"]]
    for method, row in by_sid.items():
        is_variant = " without reranker" in method and not method.startswith(
            ("SIGMA w", "GR(ID) w")
        )
        if is_variant or (
            " + filter" in method and not method.startswith("User's most frequent +")
        ):
            continue
        paper = published.get(names.get(method, method))
        cells = [method, str(len(row.values[suite.headline]))]
        cells += [shown(row, column) for column in suite.columns]
        cells += [shown(by_item[method], suite.headline)]
        rows.append([*cells, f"{paper[suite.headline]:.2f}" if paper else "-"])
    return rows


DEMO_ROWS = {
    "SIGMA": "SIGMA",
    "SIGMA, instructions worded as never in training": "SIGMA, unseen wording",
    "SIGMA without reranker": "SIGMA without reranker",
    "The user's most frequent items, lately, that satisfy the instruction": (
        "User's most frequent lately + filter"
    ),
    "The user's most frequent items that satisfy the instruction": "User's most frequent + filter",
    "The user's most frequent items, lately": "User's most frequent lately",
    "The user's most frequent items": "User's most frequent",
    "The reranker's features without a network": "Features without a network",
    "Co-visitation with a memory": "Co-visitation with a memory",
    "Co-visitation": "Co-visitation",
    "SASRec": "SASRec",
    "Popularity": "Popularity",
}


def demo() -> Rows:
    """HR@10 of the demo by task, hits by item, seen items included; means over the seeds."""
    records = demo_records()
    tasks = list(records[0]["methods"]["SIGMA"]["include_seen"]["tasks"])
    rows = [["", "average", *tasks]]
    for label, method in DEMO_ROWS.items():
        if method not in records[0]["methods"]:
            continue
        of_seeds = [record["methods"][method]["include_seen"] for record in records]
        cells = [[one["average"], *(one["tasks"][task] for task in tasks)] for one in of_seeds]
        values = 100 * np.array([[cell["item.HR@10"]["mean"] for cell in one] for one in cells])
        first, *others = (f"{value:.1f}" for value in values.mean(axis=0))
        if len(records) > 1:
            first += f" ± {values[:, 0].std(ddof=1):.1f}"
        rows.append([label, first, *others])
    return rows


def following() -> Rows:
    """How well the lists of the demo follow instructions, with the instruction and without."""
    of_seeds = [record["instruction_following"] for record in demo_records()]
    rows = [["task", "with the instruction", "without it"]]
    for task, by_variant in of_seeds[0].items():
        name = "new_category@10" if task == "Discover" else "constraint@10"
        if name in by_variant["instruction"]:
            cells = (
                np.mean([figures[task][variant][name]["mean"] for figures in of_seeds])
                for variant in ("instruction", "no instruction")
            )
            rows.append([task, *(f"{100 * value:.1f}" for value in cells)])
    return rows


def calibration_errors() -> Rows:
    """The expected calibration error of the demo by task; means over the seeds."""
    of_seeds = [record.get("calibration", {}) for record in demo_records()]
    means = {name: np.mean([errors[name] for errors in of_seeds]) for name in of_seeds[0]}
    rows = [["", *means], ["error", *(f"{value:.3f}" for value in means.values())]]
    return rows if means else []


def sentences() -> Rows:
    """The share of right items for free sentences (launch/benchmarks/instructions.py)."""
    found = result_of("instructions")
    names = {
        "the recommender, a user without a history": "recommender",
        "the recommender, users with a history": "recommender, users",
        "the sentence encoder alone": "encoder",
        "common words": "words",
    }
    rows = [[f"{found['sentences']} sentences", "of the first ten items, per cent right"]]
    return rows + [[title, f"{100 * found[name]:.1f}"] for title, name in names.items()]


def wishes() -> Rows:
    """Sentences taken apart and as they stand (launch/benchmarks/wishes.py)."""
    found = result_of("wishes")
    head = [f"{found['sentences']} sentences, per cent", "excluded items in the first ten"]
    rows = [[*head, "named things that the first ten hold"]]
    for name, shares in found.items():
        if isinstance(shares, dict) and "excluded" in shares:
            rows.append([name, *(f"{100 * shares[part]:.1f}" for part in ("excluded", "named"))])
    return rows


def engines() -> Rows:
    """Preparations by engine and number of interactions (launch/benchmarks/engines.py)."""
    rows = [["engine", "interactions", "minutes", "memory, GB", "disk, GB", "killed", "same files"]]
    for one in result_of("engines"):
        kills = len(one.get("killed_at", ()))
        is_same = one["same"] and one.get("same_after_kills", True)
        rows.append(
            [
                one["engine"],
                f"{one['interactions']:,}",
                f"{one['seconds'] / 60:.1f}",
                f"{one['memory']:.1f}",
                f"{one['disk']:.1f}",
                f"{kills} times" if kills else "-",
                "yes" if is_same else "no",
            ]
        )
    return rows


def refresh_days() -> Rows:
    """A refresh each day against a training each day (launch/benchmarks/refresh_days.py)."""
    rows = [
        [
            "day",
            "NDCG@10 refreshed",
            "trained anew",
            "difference",
            "first training",
            "seconds of a refresh",
            "of a training",
        ]
    ]
    for day in result_of("refresh_days")["days"]:
        one = day["refresh"]
        rows.append(
            [
                day["date"],
                f"{one['ndcg']:.4f}",
                f"{one['ndcg_before']:.4f}",
                f"{one['difference']:+.4f} ± {one['error']:.4f}",
                f"{day['first']['ndcg']:.4f}",
                f"{day['refresh_seconds']:.0f}",
                f"{day['training_seconds']:.0f}",
            ]
        )
    return rows


def incremental() -> Rows:
    """The cost of new behaviour with kept keys (launch/benchmarks/incremental.py)."""
    found = result_of("incremental")
    rows = [["network", "tokens", "with kept keys", "ms", "with kept keys ", "ratio of times"]]
    for name, title in (("cost", "of the demo"), ("cost_large", "8 layers of width 512")):
        one = found[name]
        seconds = one["seconds_whole"], one["seconds_kept"]
        rows.append(
            [
                title,
                f"{one['columns_whole']:.0f}",
                f"{one['columns_kept']:.0f}",
                *(f"{1000 * value:.1f}" for value in seconds),
                f"{seconds[0] / seconds[1]:.1f}",
            ]
        )
    return rows


def cold_start() -> Rows:
    """Seconds of a start until the service is ready (launch/benchmarks/cold_start.py)."""
    found = result_of("cold_start")
    seconds = [f"{found[name]:.1f}" for name in ("wall", "cpu")]
    return [["role", "seconds until ready", "CPU seconds"], [found["role"], *seconds]]


def chaos() -> Rows:
    """Losses after kills under load (launch/benchmarks/chaos.py)."""
    made = [["store", "kills", "events acknowledged", "lost", "twice", "users left stale"]]
    made[0] += ["errors with nothing down"]
    for store in ("redis", "sqlite"):
        if (BENCHMARKS / f"chaos_{store}.json").exists():
            found = result_of(f"chaos_{store}")
            kills = ", ".join(f"{count} x {part}" for part, count in found["kills"].items())
            lists = ("lost", "twice", "stale", "errors_otherwise")
            counts = [str(len(found[name])) for name in lists]
            made.append([store, kills, f"{found['acknowledged']:,}", *counts])
    return made


def serve_requests() -> Rows:
    """Times of instructions and of new lists (launch/benchmarks/serve_requests.py)."""
    found = result_of("serve_requests")
    one, many, lists = (found[name] for name in ("one_at_a_time", "at_once", "event_to_list"))
    return [
        ["", "p50", "p95", "p99", "requests a second"],
        [
            "one instruction at a time",
            f"{one['p50_ms']:.0f} ms",
            "-",
            f"{one['p99_ms']:.0f} ms",
            "-",
        ],
        [
            f"instructions of {many['callers']} callers at once",
            f"{many['p50_ms']:.0f} ms",
            "-",
            f"{many['p99_ms']:.0f} ms",
            f"{many['requests_a_second']:.1f}",
        ],
        [
            f"event to new list, --period={lists['period']:g}",
            f"{lists['p50_s']:.1f} s",
            f"{lists['p95_s']:.1f} s",
            "-",
            "-",
        ],
    ]


def serve_load() -> Rows:
    """Times of reads of the index by rate (launch/benchmarks/serve_load.py)."""
    found = result_of("serve_load")
    rows = [[f"{found['users']:,} users", "reads a second", "p50, ms", "p99, ms", "errors"]]
    for name in ("sqlite", "redis"):
        for one in found.get(name, ()):
            times = (f"{one[field]:.1f}" for field in ("p50_ms", "p99_ms"))
            rows.append([name, str(one["rate"]), *times, str(one["errors"])])
    return rows


def fewer_beams() -> Rows:
    """HR@10 and time by the share of the beams (launch/benchmarks/fewer_beams.py)."""
    rows = [["share", "beams", "HR@10, per cent", "ms alone", "ms among 32", "CPU ms among 32"]]
    for one in result_of("fewer_beams"):
        quality = f"{100 * one['hr_10']:.1f} ± {100 * one['error']:.1f}"
        times = (f"{one[name]:.1f}" for name in ("ms_alone", "ms", "cpu_ms"))
        rows.append([f"{one['share']:g}", str(one["beams"]), quality, *times])
    return rows


def shared_products() -> Rows:
    """The matrix products of a request (launch/benchmarks/shared_products.py)."""
    found, names = result_of("shared_products"), ("products_of_all_beams", "products")
    by_name = {
        name: {(one["program"], one["function"]): one["mflop"] for one in found[name]}
        for name in names
    }
    keys = list(dict.fromkeys(key for rows in by_name.values() for key in rows))
    rows = [["program", "function", "MFLOP with every query", "MFLOP with its own"]]
    for key in keys:
        cells = (f"{by_name[name][key]:.1f}" if key in by_name[name] else "-" for name in names)
        rows.append([f"`{key[0]}`", f"`{key[1]}`", *cells])
    return rows


def shared_times() -> Rows:
    """Times of answers with shared products (launch/benchmarks/shared_products.py)."""
    rows = [["requests together", "ms with every query", "ms with its own", "ratio", "CPU ratio"]]
    for one in result_of("shared_products")["times"]:
        times = (f"{one[name]:.1f}" for name in ("ms_all_beams", "ms_shared"))
        rows.append(
            [f"{one['requests']:.0f}", *times, f"{one['ratio']:.2f}", f"{one['cpu_ratio']:.2f}"]
        )
    return rows


def capacity_plan() -> Rows:
    """The needs of a service by its users (launch/benchmarks/capacity.py)."""
    figures = capacity.Figures.read()
    head = ["users", "events a second", "reads a second", "instructions a second"]
    head += ["API processes", "cores, demo", "chips, qwen3_0p6b", "Redis GB", "servers"]
    rows = [[*head, "kept GB, demo", "kept GB, qwen3_0p6b"]]
    for users in capacity.USERS:
        one = capacity.plan(users, capacity.Assumptions(), figures)
        rates = one.events_a_second, one.reads_a_second, one.instructions_a_second
        machines = one.api_processes, one.cores, one.chips
        rows.append(
            [f"{users:,}", *(f"{value:,.0f}" if value >= 10 else f"{value:.1f}" for value in rates)]
            + ["-" if value is None else f"{value:,}" for value in machines]
            + [f"{one.redis_gb:,.0f}", f"{one.redis_servers:,}"]
            + [f"{value:,.1f}" for value in (one.contexts_gb, one.chip_contexts_gb)]
        )
    return rows


def assumptions() -> Rows:
    """The assumptions of the capacity table, and where they come from."""
    rows = [["flag", "default", "source"]]
    for field in dataclasses.fields(capacity.Assumptions):
        rows.append([f"`--{field.name}`", f"{field.default:g}", field.metadata["source"]])
    return rows


def window() -> Rows:
    """HR@10 by the step of a prompt's window (launch/benchmarks/incremental.py)."""
    rows = [["window moves by", "HR@10 of JustForYou, per cent"]]
    for one in result_of("incremental")["price"]:
        shown_rate = f"{100 * one['hr_10']:.1f} ± {100 * one['error']:.1f}"
        rows.append([f"{one['step']} interactions", shown_rate])
    return rows


def demo_records() -> list[dict[str, Any]]:
    """The records of the demo, one a seed. FileNotFoundError without any."""
    runs = [Run("Complete Journey", "SIGMA", seed) for seed in suite_of("demo").seeds]
    found = (read_results(run, RESULTS / "demo") for run in runs)
    records = [record for record in found if record is not None]
    if not records:
        raise FileNotFoundError(RESULTS / "demo")
    return records


FUSIONS = {
    "sigma of Eq. 11 exactly": "- item head without reranker, sigma of Eq. 11",
    "with the floor of 1, the default": "- item head without reranker",
    "the best constant by validation": "- item head without reranker, constant sigma",
    "the first prefix alone": "- item head without reranker, first prefix",
}


def fusions() -> Rows:
    """HR@10 of four ways to fuse prefixes and items, of the model without item head."""
    levels = {"by SID": "sid", "by item": "item"}
    rows = {
        level: rows_of("table1", "Complete Journey", "include_seen", level)
        for level in levels.values()
    }
    return [
        ["fusion", *levels],
        *(
            [label, *(shown(rows[level].get(method), "HR@10") for level in levels.values())]
            for label, method in FUSIONS.items()
        ),
    ]


def sweep(name: str, data: str, sweep_name: str, mode: str, level: str) -> Rows:
    """The headline metric of each method of a sweep by value."""
    suite = suite_of(name)
    by_method = collect_sweep(suite, RESULTS / name, data, sweep_name, mode, level)
    values = [
        value
        for value in suite.sweeps[sweep_name].values
        if any(value in rows for rows in by_method.values())
    ]
    return [
        [sweep_name, *(f"{value:g}" for value in values)],
        *(
            [method, *(shown(rows.get(value), suite.headline) for value in values)]
            for method, rows in by_method.items()
        ),
    ]


def shortcuts() -> Rows:
    """The shortcuts of each log that a record has (evaluation/shortcuts.py)."""
    names = ("branching", "one_step", "two_steps", "smoothness", "long_history_gain")
    rows = [["log", *names]]
    for suite_name, data in (
        *(("amazon", data) for data in suite_of("amazon").data),
        ("time_split", "Beauty"),
        ("table1", "Complete Journey"),
        ("time_split_journey", "Complete Journey"),
    ):
        method = "SIGMA" if suite_name == "table1" else "SASRec"  # its run has the baselines
        record = read_results(Run(data, method, 0), RESULTS / suite_name)
        if record is None or not record.get("shortcuts"):
            continue
        values = record["shortcuts"]
        label = f"{data}, split by time" if suite_name.startswith("time_split") else data
        cells = [f"{values[name]:.2f}" if name in values else "-" for name in names]
        rows.append([label, *cells])
    return rows


def letter_table() -> Rows:
    """Each switch of configs/letter.py: its fields, two defaults, and what it is worth."""
    presets = {preset: sft.get_config(preset) for preset in ("local", "amazon")}
    worth = {
        "local": rows_of("letter", "Complete Journey", "include_seen"),
        "amazon": rows_of("letter", "Scientific", "exclude_seen"),
    }
    columns = {"local": "HR@10", "amazon": "NDCG@10"}
    rows = [
        ["part", "fields", "the paper", "`local`", "`amazon`", "Scientific", "Complete Journey"]
    ]
    for name, fields in letter.SWITCHES.items():
        kept = {
            field: value
            for field, value in fields.items()
            if not field.startswith("evaluation.")
            and any(value_of(config, field) != value for config in presets.values())
        }
        defaults = {
            preset: {field: value_of(config, field) for field in kept}
            for preset, config in presets.items()
        }
        cells = [name, *(lines_of(values) for values in (list(kept), kept.values()))]
        cells += [lines_of(defaults[preset].values()) for preset in presets]
        for preset in ("amazon", "local"):
            if defaults[preset] == kept:
                cells.append("=")
                continue
            base = base_of(name)
            of_both = [worth[preset].get(method) for method in (name, base)]
            if None in of_both:
                cells.append("-")
                continue
            change = of_both[0].mean(columns[preset]) - of_both[1].mean(columns[preset])
            cells.append(f"{100 * change:+.1f}")
        rows.append(cells)
    return rows


def base_of(name: str) -> str:
    """The row that a switch is compared with: the last that it needs, or the default."""
    return letter.NEEDS.get(name, (letter_suite.DEFAULT,))[-1]


def value_of(config: Any, path: str) -> Any:
    """The field of a config at a path such as train.steps."""
    for part in path.split("."):
        config = config[part]
    return config


def lines_of(values: Iterable[Any]) -> str:
    """Values as code, one on each line of a cell."""
    return "<br>".join(f"`{value}`" if value != "" else "none" for value in values)


def commits() -> Rows:
    """The commit, the machine and the number of runs of each suite's records."""
    rows = [["suite", "commit", "runs", "JAX", "machine"]]
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        counts: dict[tuple[str, ...], int] = {}
        for run in planned_runs(suite_of(folder.name)):
            record = read_results(run, folder)
            if record is None:
                continue
            made = record["run"]
            machine = made.get("machine", {})
            facts = ", ".join(
                str(machine[key]) for key in ("processor", "devices") if key in machine
            )
            key = (
                made.get("commit", "")[:10] or "-",
                made.get("versions", {}).get("jax", "-"),
                facts or "-",
            )
            counts[key] = counts.get(key, 0) + 1
        for (commit, jax, facts), count in counts.items():
            rows.append([folder.name, commit, str(count), jax, facts])
    return rows


def result_of(name: str) -> Any:
    """The stored result of launch/benchmarks/NAME.py."""
    return read_result(BENCHMARKS / f"{name}.json")


def of_benchmark(name: str, head: Sequence[str], columns: Mapping[str, str]) -> Rows:
    """A benchmark's result, one row for each of its entries; `columns`: key -> format."""
    rows = result_of(name)
    return [
        list(head),
        *([format(row[key], form) for key, form in columns.items()] for row in rows),
    ]


def tuned() -> Rows:
    """The tries of launch/benchmarks/tune_sasrec.py: NDCG@10 on validation by settings."""
    found = result_of("tune_sasrec")["tries"]
    [settings, *_] = found.values()
    names = [key for key in settings[0] if key != "ndcg_10"]
    rows = [["width, dropout, learning rate", *found]]
    for number, tried in enumerate(settings):
        values = ", ".join(f"{tried[name]:g}" for name in names)
        cells = [100 * tries[number]["ndcg_10"] for tries in found.values()]
        rows.append([values, *map("{:.2f}".format, cells)])
    return rows


def presets() -> Rows:
    """Batch, memory, time and cost of the presets on slices."""
    rows = [
        ["stage", "preset", "slice", "batch", "changed settings", "GiB a chip", "s a step", "MFU"]
        + ["hours", "chip-hours"]
    ]
    for row in trainings():
        memory = f"{row['memory'] / 2**30:.1f} of {row['chip_memory'] / 2**30:.0f}"
        rows.append(
            [row["stage"], row["preset"], row["topology"], f"{row['batch_size']:,}"]
            + [f"`{row['changes']}`" if row["changes"] else "", memory, f"{row['seconds']:.2f}"]
            + [f"{100 * row['mfu']:.0f}", f"{row['hours']:.0f}", f"{row['chip_hours']:,.0f}"]
        )
    return rows


def parts_of_a_step() -> Rows:
    """The parts of a step of each preset, in seconds."""
    parts = {"step": "", "at peak": "ideal_", "products": "product_", "kernels": "kernel_"}
    parts |= {"other": "other_", "waiting": "waiting_"}
    return [
        ["stage", "preset", "slice", *parts],
        *(
            [row["stage"], row["preset"], row["topology"]]
            + [f"{row[f'{prefix}seconds']:.2f}" for prefix in parts.values()]
            for row in trainings()
        ),
    ]


def trainings() -> list[dict[str, Any]]:
    """The results of the presets' training steps over a million items."""
    return [row for row in result_of("presets") if not row.get("flags")]


def inferences() -> Rows:
    """Requests or texts a second of the presets' inference."""
    return [
        ["stage", "preset", "slice", "a second", "GiB a chip"],
        *(
            [row["stage"], row["preset"], row["topology"], f"{row['examples_per_second']:,.0f}"]
            + [f"{row['memory'] / 2**30:.1f} of {row['chip_memory'] / 2**30:.0f}"]
            for row in result_of("presets")
            if row.get("flags") == "--inference"
        ),
    ]


COLUMNS = ("Recall@10", "NDCG@10")
HR = ("HR@10",)
TABLES: dict[str, Callable[[], Rows]] = {
    "demo": demo,
    "following": following,
    "calibration": calibration_errors,
    "sentences": sentences,
    "wishes": wishes,
    "incremental": incremental,
    "engines": engines,
    "refresh_days": refresh_days,
    "window": window,
    "serve-load": serve_load,
    "chaos": chaos,
    "cold-start": cold_start,
    "serve-requests": serve_requests,
    "fewer-beams": fewer_beams,
    "shared-products": shared_products,
    "shared-times": shared_times,
    "capacity": capacity_plan,
    "assumptions": assumptions,
    "summary": summary,
    **{
        f"amazon-{data}": functools.partial(equal_methods, "amazon", data, COLUMNS)
        for data in suite_of("amazon").data
    },
    **{
        f"published-{data}": functools.partial(like_published, "amazon", data)
        for data in suite_of("amazon").published
    },
    "time-beauty": functools.partial(equal_methods, "time_split", "Beauty", COLUMNS),
    "time-journey": functools.partial(
        equal_methods, "time_split_journey", "Complete Journey", HR, "include_seen"
    ),
    "texts": functools.partial(all_methods, "texts", "Scientific", "exclude_seen", COLUMNS),
    "cold": functools.partial(
        all_methods, "cold", "Scientific", "include_seen", suite_of("cold").columns
    ),
    "crossover": functools.partial(
        sweep, "crossover", "Scientific", "negatives per batch", "exclude_seen", "item"
    ),
    "table-1": table_1,
    "fusions": fusions,
    "prefixes": functools.partial(
        sweep, "table1", "Complete Journey", "prefixes K", "include_seen", "sid"
    ),
    "shortcuts": shortcuts,
    "letter": letter_table,
    "tuned": tuned,
    "commits": commits,
    "trie": functools.partial(
        of_benchmark,
        "trie",
        ("items, 8 levels of 2,048 codes", "build", "bytes", "search", "without the model"),
        {"items": ",", "build_ratio": ".2f", "bytes_ratio": ".2f", "search_ratio": ".2f"}
        | {"search_without_model_ratio": ".2f"},
    ),
    "beams": functools.partial(
        of_benchmark,
        "beams",
        ("beams", "bytes a user", "copied", "ms a user", "copied"),
        {"beams": ",", "shared": ",.0f", "copied": ",.0f", "shared_ms": ".0f", "copied_ms": ".0f"},
    ),
    "retrieval": functools.partial(
        of_benchmark,
        "retrieval",
        ("items of a prefix", "queries", "recall", "ScaNN ms", "exact ms", "ratio"),
        {"items": ",", "queries": ",", "recall": ".3f", "scann": ".3f", "exact": ".3f"}
        | {"ratio": ".2f"},
    ),
    "catalogue-size": functools.partial(
        of_benchmark,
        "catalogue_size",
        ("items", "prefixes", "found", "three steps, ms", "exhaustive, ms", "ratio"),
        {"items": ",", "prefixes": ",", "found": ".3f", "three_step": ".2f", "exhaustive": ".2f"}
        | {"ratio": ".2f"},
    ),
    "loader": functools.partial(
        of_benchmark,
        "loader",
        ("preset", "items", "samples", "opened in s", "MB", "MB more after 100 batches")
        + ("rows a second", "any batch in ms"),
        {"preset": "", "items": ",", "samples": ",", "opened_seconds": ".1f", "opened_mb": ",.0f"}
        | {"grown_mb": ",.0f", "rows_per_second": ",.0f", "far_batch_ms": ",.0f"},
    ),
    "presets": presets,
    "inference": inferences,
    "parts-of-a-step": parts_of_a_step,
}


if __name__ == "__main__":
    main()
