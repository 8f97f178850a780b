"""One folder with all it takes to recommend: copy it to another machine.

    python -m sigma_jax.export --workdir=runs/sft-local --output=exports/demo

Holds the weights as safetensors (the backbone is a Hugging Face folder) and as an Orbax checkpoint,
the codebooks, the text encoder, what counts say, and the catalogue as its first version
(sigma_jax/serving/bundle.py says where). Of the users nothing is in it; of the log what counts are
made of, which item was taken when, by nobody in particular, and of the searches their texts.
`python -m sigma_jax.recommend --export` asks it, `python -m sigma_jax.catalogue` changes its
catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from sigma_jax.runtime import cli
from sigma_jax.serving.bundle import export

FLAGS = flags.FLAGS


def define_flags() -> None:
    """This command's flags; only where it runs as the command."""
    flags.DEFINE_string("workdir", None, "Of the training.", required=True)
    flags.DEFINE_string("output", None, "The folder to write; must not be there.", required=True)


def main(argv: Sequence[str]) -> None:
    """The command."""
    del argv
    manifest = export(Path(FLAGS.workdir), Path(FLAGS.output))
    print(f"{manifest['items']} items in {FLAGS.output}")


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
