"""One folder with all it takes to recommend: copy it to another machine.

    python -m sigma_jax.export --workdir=runs/sft-local --output=exports/demo

Holds the weights as safetensors (the backbone is a Hugging Face folder) and as an Orbax checkpoint,
the codebooks, the text encoder, what counts say, and the catalogue as its first version
(sigma_jax/serving/bundle.py says where). Of the users nothing is in it; of the log what counts are
made of, which item was taken when, by nobody in particular, and of the searches their texts.
`python -m sigma_jax.recommend --export` asks it, `python -m sigma_jax.catalogue` changes its
catalogue. With --retrieval=scann the index of ScaNN is in it, and follows the catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from sigma_jax.generation.config import RETRIEVALS
from sigma_jax.index.host_index import SCANN_ABOVE
from sigma_jax.runtime import cli
from sigma_jax.serving.bundle import export

FLAGS = flags.FLAGS


def define_flags() -> None:
    """This command's flags; only where it runs as the command."""
    flags.DEFINE_string("workdir", None, "Of the training.", required=True)
    flags.DEFINE_string("output", None, "The folder to write; must not be there.", required=True)
    flags.DEFINE_enum(
        "retrieval",
        "exact",
        RETRIEVALS,
        "How items inside prefixes are found: all compared, or by ScaNN, whose index is written.",
    )


def main(argv: Sequence[str]) -> None:
    """The command."""
    del argv
    said = export(Path(FLAGS.workdir), Path(FLAGS.output), FLAGS.retrieval)
    print(f"{said['items']} items in {FLAGS.output}")
    print(about_retrieval(said))


def about_retrieval(said: Mapping[str, Any]) -> str:
    """A line on how items inside prefixes are found, by what the manifest of a version says."""
    largest, recall = said["largest_prefix"], said.get("recall")
    if recall:
        return f"ScaNN searches {len(recall)} prefixes, recall {min(recall):.3f} or more"
    if recall is None and largest >= SCANN_ABOVE:
        return f"a prefix holds {largest} items: on a CPU --retrieval=scann is faster"
    return f"prefixes are compared whole; the largest holds {largest} items"


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
