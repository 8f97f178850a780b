"""Recommends items to one user under an instruction.

    python -m sigma_jax.recommend --workdir=runs/sft-local --user=1 --instruction="party snacks"

The user's whole history is read. Without --user, or for a user without history, the profile (if
there is one) and the instruction alone decide. Every item printed is of the catalogue, with the
rank of its prefix among the beams, its cosine and its probability (Eq. 7, 9 and 10 of SIGMA).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from sigma_jax.evaluation.run import describe, make_generator, seen_items
from sigma_jax.runtime import cli
from sigma_jax.schema import PreparedData, Requests
from sigma_jax.sft.task import generation_config, load_recommender

WORKDIR = flags.DEFINE_string("workdir", None, "Of the training.", required=True)
USER = flags.DEFINE_string("user", None, "The user's id; nobody in particular if not given.")
INSTRUCTION = flags.DEFINE_string(
    "instruction", "Recommend something for me.", "What is wanted, in your own words."
)
COUNT = flags.DEFINE_integer("count", 10, "Items to recommend.", lower_bound=1)
BEAMS = flags.DEFINE_integer("beams", 32, "Prefixes to look into (K of Eq. 6).", lower_bound=1)
KEEP_SEEN = flags.DEFINE_bool("keep_seen", True, "Whether items of the history may come again.")


def main(argv: Sequence[str]) -> None:
    """The command."""
    workdir = Path(WORKDIR.value)
    data = PreparedData.load(workdir / "data")
    request = one_request(data, USER.value, INSTRUCTION.value)
    trained = load_recommender(workdir, data)
    settings = generation_config(trained.config, BEAMS.value, batch_size=1)
    settings = dataclasses.replace(settings, num_retrieved=max(COUNT.value, settings.num_retrieved))
    generator = make_generator(trained, settings)
    seen = None if KEEP_SEEN.value else seen_items(data, request)
    found = generator(trained.prompts(request, data), COUNT.value, seen)
    print(f'"{INSTRUCTION.value}", for {"user " + USER.value if USER.value else "anyone"}:')
    print(describe(found, 0, data))
    number = int((found.items[0] >= 0).sum())
    if number < COUNT.value:
        print(f"{number} items instead of {COUNT.value}: no more under --beams={BEAMS.value}.")


def one_request(data: PreparedData, user_id: str | None, instruction: str) -> Requests:
    """All of a user's history and an instruction. ValueError for an unknown user."""
    user = -1 if user_id is None else data.users.row(user_id)
    cut = 0 if user < 0 else int(data.histories.offsets[user + 1])
    none = np.full(1, -1, np.int32)
    return Requests(
        user=np.array([user], np.int32),
        cut=np.array([cut], np.int64),
        task=none,
        argument=none,
        target=none,
        instruction=[instruction],
    )


if __name__ == "__main__":
    cli.run_command(main)
