"""Compares the arms of an experiment of a service.

    python -m sigma_jax.experiment report --store=runs/service/store.db --name=summer
    python -m sigma_jax.experiment list --store=runs/service/store.db

`report` prints the hit rate of each arm: the share of exposed users who took an item that they had
been shown, within --window_hours of their first exposure. The interval "read any day" stays valid
for those who look every day; the others are for one look.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from sigma_jax.runtime import cli
from sigma_jax.serving.experiments.assignment import Experiment, read_experiments
from sigma_jax.serving.experiments.report import ALPHA, ArmReport, Comparison, Report, make_report
from sigma_jax.serving.replay import clock_of
from sigma_jax.serving.stores.base import (
    ADDRESS,
    StoreError,
    open_store,
    without_password,
)

FLAGS = flags.FLAGS
STORE = "runs/service/store.db"  # without --store and SIGMA_STORE
ACTIONS = ("report", "list")
WORDS = {"ahead": "{} is ahead of {}", "behind": "{} is behind {}", "open": "no decision yet"}


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string(
        "store",
        None,
        f"A SQLite file, or redis://HOST:PORT/N. Without it: SIGMA_STORE, or {STORE}.",
    )
    flags.DEFINE_string("name", None, "report: the experiment.")
    flags.DEFINE_string("tenant", "default", "The tenant of the service.")
    flags.DEFINE_float("window_hours", 24.0, "Hours after the first exposure that count.", 0.0)
    flags.DEFINE_list("kinds", [], "Kinds of events that take an item, such as purchase; or all.")
    flags.DEFINE_float(
        "alpha", ALPHA, "Significance level: how often equal arms are called different."
    )
    flags.DEFINE_enum("format", "text", ("text", "json"), "How the report is printed.")


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    action = argv[1] if len(argv) == 2 else ""
    if action not in ACTIONS:
        given = " ".join(argv[1:])
        raise ValueError(f"the action is {given!r}; use one of {', '.join(ACTIONS)}.")
    address = FLAGS.store or os.environ.get(ADDRESS) or STORE
    path, shown = address.removeprefix("sqlite:///"), without_password(address)
    if "://" not in path and not Path(path).is_file():
        raise ValueError(f"--store={shown} does not exist; give the store of a service.")
    try:
        store = open_store(address)
        tenant = store.tenant(FLAGS.tenant)
        experiments = read_experiments(tenant)
        if action == "list":
            print("\n".join(map(listed, experiments.values())) or "there is no experiment")
            return
        if FLAGS.name not in experiments:
            known = ", ".join(experiments) or "no experiments"
            raise ValueError(f"--name={FLAGS.name} is no experiment; the store has {known}.")
        report = make_report(
            experiments[FLAGS.name],
            tenant,
            FLAGS.window_hours * 3600,
            FLAGS.kinds,
            FLAGS.alpha,
            clock_of(tenant)(),
        )
        store.close()
    except StoreError as error:
        raise ValueError(f"--store={shown}: {error}") from error
    print(json.dumps(report.to_json(), indent=1) if FLAGS.format == "json" else text_of(report))


def listed(experiment: Experiment) -> str:
    """A line about an experiment."""
    arms = ", ".join(f"{arm.name} {100 * arm.share:g} %" for arm in experiment.arms)
    state = "runs" if experiment.stopped is None else f"stopped {day(experiment.stopped)}"
    return f"{experiment.name}  {state}, started {day(experiment.started)}  {arms}"


def text_of(report: Report) -> str:
    """The report as lines of text."""
    kinds = ", ".join(report.kinds) or "any event"
    level = 100 * (1 - report.alpha)
    lines = [
        f"experiment {report.experiment}, {day(report.now)}: a hit is {kinds} with a shown item "
        f"within {report.window_seconds / 3600:g} hours",
        "",
        f"{'arm':20} {'share':>6} {'exposed':>9} {'waiting':>9} {'users':>9} {'hits':>9} "
        f"{'hit rate':>9}  {level:g} % interval",
        *map(arm_line, report.arms),
        "",
        *(line for one in report.comparisons for line in comparison_lines(one)),
        "",
        f"sample ratio: p = {report.sample_ratio_p:.3g}, "
        + (
            "a mismatch: an arm loses users. Find out why; the differences mean nothing."
            if report.has_mismatch
            else "users come to the arms by their shares"
        ),
    ]
    if report.mixed_users:
        lines.append(f"{report.mixed_users} users were exposed to several arms and do not count")
    return "\n".join(lines)


def arm_line(arm: ArmReport) -> str:
    """The row of an arm."""
    rate = "-" if arm.hit_rate is None else f"{arm.hit_rate:.4f}"
    return (
        f"{arm.name:20} {arm.share:6.3f} {arm.exposed:9} {arm.waiting:9} {arm.users:9} "
        f"{arm.hits:9} {rate:>9}  [{arm.low:.4f}, {arm.high:.4f}]"
    )


def comparison_lines(one: Comparison) -> list[str]:
    """The lines of an arm against the control."""
    difference = "-" if one.difference is None else f"{one.difference:+.4f}"
    verdict = WORDS[one.verdict].format(one.arm, one.control)
    if one.decided_at is not None:
        verdict += f", decided {day(one.decided_at)}"
    return [
        f"{one.arm} - {one.control}: {difference}",
        f"  read once      [{one.low:+.4f}, {one.high:+.4f}]",
        f"  read any day   [{one.always_low:+.4f}, {one.always_high:+.4f}]  {verdict}",
    ]


def day(when: float) -> str:
    """A time as UTC text."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(when))


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
