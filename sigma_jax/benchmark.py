"""Runs a suite of methods, data sets and seeds, and writes one table of them.

    python -m sigma_jax.benchmark --suite=configs/benchmark/amazon.py --data=FOLDER

A run is one `python -m sigma_jax.train` command, whose words stand in the table; a run that is
finished (has a record.json) is not run again, one that was interrupted continues. WORKDIR gets
table.txt and results.json after every run. --runs=Beauty/SIGMA/0 runs only those whose name begins
so.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging

from sigma_jax.benchmarking import suite as suites
from sigma_jax.benchmarking.record import write_record
from sigma_jax.benchmarking.suite import Run, Suite
from sigma_jax.benchmarking.suite_page import write_suite_page
from sigma_jax.runtime import cli
from sigma_jax.runtime.config import nearest, to_dataclass
from sigma_jax.runtime.files import write_json
from sigma_jax.runtime.lock import locked
from sigma_jax.runtime.writer import clock

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The command's flags; only where it runs as the command."""
    flags.DEFINE_string("suite", None, "A file of configs/benchmark.", required=True)
    flags.DEFINE_string("data", "", "The folder of the data sets, where the suite needs one.")
    flags.DEFINE_string("workdir", None, "Where runs and tables go; runs/SUITE if not given.")
    flags.DEFINE_list("runs", [], "Only runs whose DATA/METHOD/SEED begins so.")
    flags.DEFINE_bool("dry_run", False, "Print the commands of the runs that are missing.")


def main(argv: Sequence[str]) -> None:
    """The command."""
    suite = load_suite(FLAGS.suite)
    workdir = Path(FLAGS.workdir or Path("runs") / Path(FLAGS.suite).stem)
    runs = chosen(suites.planned(suite), FLAGS.runs)
    missing = [run for run in runs if suites.read_results(run, workdir) is None]
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
        raise ValueError(f"{len(failed)} runs failed: {', '.join(failed)}; see their log.txt.")


def load_suite(path: str) -> Suite:
    """The suite of a file. ValueError if it is none."""
    remedy = "(); name a file of configs/benchmark."
    return to_dataclass(Suite, cli.load_function("suite", path, "get_suite", remedy)(), "suite")


def chosen(runs: Sequence[Run], prefixes: Sequence[str]) -> list[Run]:
    """The runs whose name begins with one of `prefixes`; all without prefixes.

    ValueError naming a prefix that no run has.
    """
    for prefix in prefixes:
        if not any(run.name.startswith(prefix) for run in runs):
            names = [run.name for run in runs]
            raise ValueError(f"--runs={prefix} is no run of this suite; {nearest(prefix, names)}")
    return [run for run in runs if not prefixes or run.name.startswith(tuple(prefixes))]


def command(suite: Suite, run: Run, workdir: Path) -> list[str]:
    """The words of the command that makes `run`."""
    folder, pool = run.workdir(workdir), workdir / "artifacts"
    words = suites.arguments(suite, run, FLAGS.data, folder, pool)
    return [sys.executable, "-m", "sigma_jax.train", *words]


def run_one(suite: Suite, run: Run, workdir: Path) -> str | None:
    """Makes one run, its output in log.txt of its folder; the last line of it if that failed."""
    folder = run.workdir(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with open(folder / "log.txt", "a") as log:
        done = subprocess.run(
            command(suite, run, workdir), stdout=log, stderr=subprocess.STDOUT, check=False
        )
    logging.info("benchmark: %s took %s", run.name, clock(time.monotonic() - began))
    if done.returncode == 0:
        write_record(folder, (*suite.columns, suite.headline), suite.levels)
        return None
    lines = (folder / "log.txt").read_text().strip().splitlines()
    return lines[-1] if lines else f"status {done.returncode}"


def write_tables(suite: Suite, workdir: Path) -> None:
    """WORKDIR/table.txt, results.json, report.html and plots/ of what is finished."""
    (workdir / "table.txt").write_text(suites.render(suite, workdir))
    write_json(workdir / "results.json", suites.as_json(suite, workdir))
    write_suite_page(suite, workdir)


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
