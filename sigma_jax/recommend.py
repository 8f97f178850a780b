"""Recommends items to one user under an instruction, or to everyone in a file.

    python -m sigma_jax.recommend --workdir=runs/sft-local --user=1 --instruction="party snacks"
    python -m sigma_jax.recommend --export=FOLDER --users=users.jsonl --output=found.jsonl

In a workdir the user's whole history is read. Without --user, or for a user without history, the
profile (if there is one) and the instruction alone decide. Every item printed is of the catalogue,
with the rank of its prefix among the beams, its cosine (Eq. 7 and 9 of SIGMA) and its probability:
that of Eq. 10 with what counts say (sigma_jax/reranking/reranker.py).

An export (`python -m sigma_jax.export`) needs no data of the training: histories come with the
users (sigma_jax/serving/requests.py says how the file looks). The output has a row for each of its
rows, in their order, as JSON lines or Parquet by its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from sigma_jax.evaluation.evaluator import make_generator
from sigma_jax.evaluation.run import describe
from sigma_jax.generation.config import RETRIEVALS
from sigma_jax.histories import seen_items
from sigma_jax.recommender.trained import generation_config, load_recommender
from sigma_jax.runtime import cli
from sigma_jax.runtime.artifacts import check_inputs
from sigma_jax.runtime.config import MeshConfig
from sigma_jax.runtime.sharding import make_mesh
from sigma_jax.schema import PreparedData, Requests
from sigma_jax.serving.bundle import Bundle
from sigma_jax.serving.engine import Answering
from sigma_jax.serving.requests import read_users
from sigma_jax.serving.results import OUTPUTS, RowWriter, rows_of

FLAGS = flags.FLAGS
ROWS = 1024  # of a file, read and answered together


def define_flags() -> None:
    """This command's flags; only where it runs as the command."""
    flags.DEFINE_string("workdir", None, "Of the training.")
    flags.DEFINE_string("export", None, "An export, in place of --workdir.")
    flags.DEFINE_string("users", None, "With --export: a file of users, .jsonl, .parquet or .csv.")
    flags.DEFINE_string("output", None, "With --users: the file to write, .jsonl or .parquet.")
    flags.DEFINE_string("user", None, "The user's id; nobody in particular if not given.")
    default = "recommend something for me"  # a wording of training
    flags.DEFINE_string("instruction", default, "What is wanted, in your own words.")
    flags.DEFINE_integer("count", 10, "Items to recommend.", lower_bound=1)
    flags.DEFINE_integer("beams", 32, "Prefixes to look into (K of Eq. 6).", lower_bound=1)
    flags.DEFINE_enum(
        "retrieval",
        None,
        RETRIEVALS,
        "With --export: how items inside prefixes are found. Else: as it was exported.",
    )
    flags.DEFINE_bool(
        "split_items", False, "With --export: cut the item table up over all devices."
    )
    flags.DEFINE_bool("compilation_cache", True, "Keep compiled programs for the next run.")
    flags.DEFINE_bool("keep_seen", True, "Whether items of the history may come again.")


def main(argv: Sequence[str]) -> None:
    """The command."""
    del argv
    if bool(FLAGS.workdir) == bool(FLAGS.export):
        raise ValueError("give --workdir=FOLDER of a training, or --export=FOLDER of an export.")
    if FLAGS.compilation_cache:
        cli.use_compilation_cache()
    if FLAGS.export:
        if not (FLAGS.users and FLAGS.output):
            raise ValueError("--export needs --users=FILE and --output=FILE.")
        bundle = Bundle.open(Path(FLAGS.export))
        mesh = None
        if FLAGS.split_items:
            mesh = make_mesh(MeshConfig(data=1, fsdp=-1, tensor=1))
        answering = Answering.of(
            bundle,
            "",
            FLAGS.instruction,
            beams=FLAGS.beams,
            retrieval=FLAGS.retrieval or "",
            mesh=mesh,
        )
        rows, short = recommend_all(
            answering, FLAGS.users, Path(FLAGS.output), FLAGS.count, FLAGS.keep_seen
        )
        print(f"{rows} rows in {FLAGS.output}, of version {answering.name}")
        if short:
            print(f"{short} of them with fewer than {FLAGS.count} items: no more was found.")
        return
    print(
        recommend(
            Path(FLAGS.workdir),
            FLAGS.user,
            FLAGS.instruction,
            FLAGS.count,
            FLAGS.beams,
            FLAGS.keep_seen,
        )
    )


def recommend_all(
    answering: Answering, users: str, output: Path, count: int, keeps_seen: bool
) -> tuple[int, int]:
    """Writes `output` whole or not at all; its rows, and how many of them have fewer items than
    `count`. ValueError as in read_users."""
    if output.suffix not in OUTPUTS:
        raise ValueError(f"--output={output}: use a name that ends in {' or '.join(OUTPUTS)}.")
    beside = output.with_name(f".{output.name}.writing")
    rows = short = 0
    try:
        with RowWriter(beside, output.suffix) as writer, tqdm(unit=" users") as bar:
            for asked in read_users(users, answering.reading, ROWS):
                found = answering.recommend(asked, count, keeps_seen)
                writer.write(rows_of(asked, found, answering.version.catalogue, answering.name))
                rows += len(asked)
                short += int(((found.items >= 0).sum(axis=1) < count).sum())
                bar.update(len(asked))
        beside.replace(output)
    finally:
        beside.unlink(missing_ok=True)
    return rows, short


def recommend(
    workdir: Path, user: str | None, instruction: str, count: int, beams: int, keep_seen: bool
) -> str:
    """A printable table of `count` items.

    Raises:
      ValueError: the user is not in the data, the instruction is empty or not text, or WORKDIR is
        not trained.
    """
    check_inputs(workdir, "sft")
    data = PreparedData.load(workdir / "data")
    request = one_request(data, user, instruction)
    trained = load_recommender(workdir, data)
    if not trained.config.prompt.has_instructions:  # it was never told anything
        request = dataclasses.replace(request, instruction=[""])
    generator = make_generator(trained, generation_config(trained.config, beams, batch_size=1))
    seen = None if keep_seen else seen_items(data.histories, request)
    choice = trained.choice(generator, request, data, seen=seen)
    most = min(count, len(data.catalogue))
    choice = generator.for_lists(choice, most)
    [found] = generator.variants(trained.prompts(request, data), most, [choice])
    shown = " ".join(instruction[:200].split()) + (" ..." if len(instruction) > 200 else "")
    lines = [f'"{shown}", for {f"user {user}" if user else "anyone"}:', describe(found, 0, data)]
    number = int((found.items[0] >= 0).sum())
    if number < count:
        lines.append(f"{number} items instead of {count}: no more under --beams={beams}.")
    return "\n".join(lines)


def one_request(data: PreparedData, user_id: str | None, instruction: str) -> Requests:
    """All of a user's history and an instruction. ValueError for an unknown user or no text."""
    if not instruction.strip():
        raise ValueError("--instruction is empty; say what is wanted, or leave the flag out.")
    try:
        instruction.encode()
    except UnicodeEncodeError:
        raise ValueError("--instruction is not UTF-8; check the terminal's encoding.") from None
    user = -1 if user_id is None else data.users.row(user_id)
    history_end = 0 if user < 0 else int(data.histories.offsets[user + 1])
    none = np.full(1, -1, np.int32)
    return Requests(
        user=np.array([user], np.int32),
        history_end=np.array([history_end], np.int64),
        task=none,
        slot_value=none,
        target=none,
        instruction=[instruction],
    )


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
