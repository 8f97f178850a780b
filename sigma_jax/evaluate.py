"""Judges a trained workdir on its test split, beside the baselines.

    python -m sigma_jax.evaluate --config=configs/sft.py --workdir=runs/sft-local

Writes WORKDIR/evaluation (results.json, table.txt, report.html) and prints a summary. How to
generate may be changed without training again: --config.evaluation.generation.num_beams=64
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from sigma_jax.evaluation.run import evaluate
from sigma_jax.runtime import artifacts, cli
from sigma_jax.runtime.process import locked

FLAGS = flags.FLAGS


def define_flags() -> None:
    """This command's flags; only where it runs as the command."""
    cli.define_config()
    flags.DEFINE_string("workdir", None, "Of the training; runs/STAGE-PRESET if not given.")


def main(argv: Sequence[str]) -> None:
    """The command."""
    workdir = Path(FLAGS.workdir) if FLAGS.workdir else cli.default_workdir()
    artifacts.read_manifest(workdir, "sft")  # a mistyped workdir is told, not made for its lock
    with locked(workdir):
        evaluate(FLAGS.config, workdir)


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
