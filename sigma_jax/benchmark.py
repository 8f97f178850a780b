"""Runs a suite of methods, data sets and seeds, and writes one report of all runs.

    python -m sigma_jax.benchmark --suite=configs/benchmark/amazon.py --data=FOLDER

A run is one `python -m sigma_jax.train` command; the report lists the commands. A finished run has
a record.json and is skipped. An interrupted run continues. After each run WORKDIR gets table.txt,
results.json, report.html and plots/. --runs=Beauty/SIGMA/0 selects runs by the beginning of their
names.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging

from sigma_jax.benchmarking.record import write_record
from sigma_jax.benchmarking.rows import as_json, read_results
from sigma_jax.benchmarking.suite import Run, Suite, planned_runs, train_arguments
from sigma_jax.benchmarking.suite_page import write_suite_page
from sigma_jax.benchmarking.suite_table import render
from sigma_jax.runtime import cli
from sigma_jax.runtime.config import did_you_mean, to_dataclass
from sigma_jax.runtime.files import write_json
from sigma_jax.runtime.process import locked
from sigma_jax.runtime.writer import clock

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("suite", None, "A file of configs/benchmark.", required=True)
    flags.DEFINE_string("data", "", "The folder of the data sets; not every suite needs one.")
    flags.DEFINE_string("workdir", None, "The folder of runs and tables; default: runs/SUITE.")
    flags.DEFINE_list("runs", [], "Only runs whose name DATA/METHOD/SEED begins with this.")
    flags.DEFINE_bool("dry_run", False, "Print the commands of unfinished runs, and run nothing.")


def main(argv: Sequence[str]) -> None:
    """Makes the selected runs that are not finished, and prints the tables."""
    suite = load_suite(FLAGS.suite)
    workdir = Path(FLAGS.workdir or Path("runs") / Path(FLAGS.suite).stem)
    runs = select_runs(planned_runs(suite), FLAGS.runs)
    missing = [run for run in runs if read_results(run, workdir) is None]
    if FLAGS.dry_run:
        print("\n".join(" ".join(command(suite, run, workdir)) for run in missing))
        return
    failed = []
    with locked(workdir):
        for number, run in enumerate(missing, 1):
            logging.info("benchmark: %s, %d of %d", run.name, number, len(missing))
            if reason := run_one(suite, run, workdir):
                logging.warning("benchmark: %s failed: %s", run.name, reason)
                failed.append(run.name)
            write_tables(suite, workdir)
        if not missing:
            write_tables(suite, workdir)
    print((workdir / "table.txt").read_text())
    if failed:
        raise ValueError(
            f"{len(failed)} runs failed: {', '.join(failed)}; read their log.txt and start again."
        )


def load_suite(path: str) -> Suite:
    """The suite that a file's get_suite() returns. ValueError if the file defines none."""
    remedy = "(); name a file of configs/benchmark."
    return to_dataclass(Suite, cli.load_function("suite", path, "get_suite", remedy)(), "suite")


def select_runs(runs: Sequence[Run], prefixes: Sequence[str]) -> list[Run]:
    """The runs whose name begins with one of `prefixes`; all runs if there are none.

    Raises:
      ValueError: no run begins with one of the prefixes.
    """
    for prefix in prefixes:
        if not any(run.name.startswith(prefix) for run in runs):
            names = [run.name for run in runs]
            raise ValueError(
                f"--runs={prefix} matches no run of this suite; {did_you_mean(prefix, names)}"
            )
    return [run for run in runs if not prefixes or run.name.startswith(tuple(prefixes))]


def command(suite: Suite, run: Run, workdir: Path) -> list[str]:
    """The command that makes `run`, as a list of arguments."""
    folder, artifacts = run.workdir(workdir), workdir / "artifacts"
    arguments = train_arguments(suite, run, FLAGS.data, folder, artifacts)
    return [sys.executable, "-m", "sigma_jax.train", *arguments]


def run_one(suite: Suite, run: Run, workdir: Path) -> str | None:
    """None after a successful run; otherwise the last line of its log.txt."""
    folder = run.workdir(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with open(folder / "log.txt", "a") as log:
        done = subprocess.run(
            command(suite, run, workdir), stdout=log, stderr=subprocess.STDOUT, check=False
        )
    logging.info("benchmark: %s took %s", run.name, clock(time.monotonic() - began))
    if done.returncode == 0:
        names = {str(workdir): "WORKDIR"} | ({FLAGS.data: "FOLDER"} if FLAGS.data else {})
        write_record(folder, (*suite.columns, suite.headline), suite.levels, names)
        return None
    lines = (folder / "log.txt").read_text().strip().splitlines()
    return lines[-1] if lines else f"status {done.returncode}"


def write_tables(suite: Suite, workdir: Path) -> None:
    """Writes table.txt, results.json, report.html and plots/ of the finished runs to WORKDIR."""
    (workdir / "table.txt").write_text(render(suite, workdir))
    write_json(workdir / "results.json", as_json(suite, workdir))
    write_suite_page(suite, workdir)


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
