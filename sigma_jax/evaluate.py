"""Evaluates the recommender of a workdir on the test split, next to the baselines.

    python -m sigma_jax.evaluate --config=configs/sft.py --workdir=runs/sft-local

It writes WORKDIR/evaluation (results.json, table.txt, report.html) and prints a summary. Settings
of the generation can change without a new training:
--config.evaluation.generation.num_beams=64
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
    """Defines the flags of this command."""
    cli.define_config()
    flags.DEFINE_string("workdir", None, "Folder of the training; runs/STAGE-PRESET by default.")


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    workdir = Path(FLAGS.workdir) if FLAGS.workdir else cli.default_workdir()
    # Reports a mistyped workdir before `locked` makes it.
    artifacts.read_manifest(workdir, FLAGS.config.stage)
    with locked(workdir):
        evaluate(FLAGS.config, workdir)


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
