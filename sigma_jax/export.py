"""Writes one folder that recommends without the workdir: copy it to another machine.

    python -m sigma_jax.export --workdir=runs/sft-local --output=exports/demo

The folder holds (sigma_jax/serving/bundle.py lists the files):

- the weights as safetensors and as an Orbax checkpoint; the backbone is a Hugging Face folder
- the codebooks, the text encoder and the reranker
- the catalogue, as its first version
- with --retrieval=scann, an index of ScaNN, which follows changes of the catalogue

It holds no users. The reranker holds the item and the time of each training interaction, without
the user. The texts of searches are in the export too. `python -m sigma_jax.recommend --export`
answers requests with it, and `python -m sigma_jax.catalogue` changes its catalogue.
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
    """Defines the flags of this command."""
    flags.DEFINE_string("workdir", None, "Folder of the training.", required=True)
    flags.DEFINE_string("output", None, "The folder to write; it must not exist.", required=True)
    flags.DEFINE_enum(
        "retrieval",
        "exact",
        RETRIEVALS,
        "Search inside prefixes: exact, or by ScaNN, whose index becomes part of the export.",
    )


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    manifest = export(Path(FLAGS.workdir), Path(FLAGS.output), FLAGS.retrieval)
    print(f"{manifest['items']} items in {FLAGS.output}")
    print(about_retrieval(manifest))


def about_retrieval(manifest: Mapping[str, Any]) -> str:
    """A line on the search inside prefixes, from the manifest of a version."""
    largest, recall = manifest["largest_prefix"], manifest.get("recall")
    if recall:
        return f"ScaNN searches {len(recall)} prefixes; recall is at least {min(recall):.3f}"
    if recall is None and largest >= SCANN_ABOVE:
        return f"the largest prefix holds {largest} items: on a CPU --retrieval=scann is faster"
    return f"the search inside prefixes is exact; the largest holds {largest} items"


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
