"""Recommends items to one user under an instruction, or to everyone in a file.

    python -m sigma_jax.recommend --workdir=runs/sft-local --user=1 --instruction="party snacks"
    python -m sigma_jax.recommend --export=FOLDER --users=users.jsonl --output=found.jsonl

In a workdir the command reads the user's stored history. Without a history or without --user, the
profile and the instruction decide. Every printed item comes from the catalogue. The columns are its
probability (Eq. 10 of SIGMA with the reranker, calibrated), the rank of its prefix among the beams,
the log-probability of that prefix (Eq. 7), and its cosine (Eq. 9).

An export (`python -m sigma_jax.export`) needs no data of the training: the file of users holds the
histories (sigma_jax/recommender/requests.py describes it). The output has one row for each request,
in the same order. Its name says the format: JSON lines or Parquet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from tqdm import tqdm

from sigma_jax.generation.config import RETRIEVALS
from sigma_jax.recommender.recommender import RecommendOptions
from sigma_jax.recommender.requests import DEFAULT_INSTRUCTION
from sigma_jax.recommender.results import OUTPUTS, RowWriter, text_table
from sigma_jax.recommender.workdir import load_workdir
from sigma_jax.runtime import cli
from sigma_jax.runtime.config import MeshConfig
from sigma_jax.runtime.sharding import make_mesh
from sigma_jax.serving.bundle import Bundle
from sigma_jax.serving.engine import CatalogueSnapshot, SnapshotSettings

FLAGS = flags.FLAGS
ROWS = 1024  # requests of a file that are answered together


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("workdir", None, "Folder of the training.")
    flags.DEFINE_string("export", None, "An export, in place of --workdir.")
    flags.DEFINE_string("users", None, "With --export: a file of users, .jsonl, .parquet or .csv.")
    flags.DEFINE_string("output", None, "With --users: the file to write, .jsonl or .parquet.")
    flags.DEFINE_string("user", None, "Id of the user. Leave it out for an unknown user.")
    flags.DEFINE_string("instruction", DEFAULT_INSTRUCTION, "The wish of the user, in plain words.")
    flags.DEFINE_integer("count", 10, "Items to recommend.", lower_bound=1)
    flags.DEFINE_integer("beams", 32, "Prefixes to keep (K of Eq. 6).", lower_bound=1)
    flags.DEFINE_enum(
        "retrieval",
        None,
        RETRIEVALS,
        "With --export: search inside prefixes; as it was exported by default.",
    )
    flags.DEFINE_bool(
        "split_items", False, "With --export: split the item vectors over all devices."
    )
    flags.DEFINE_bool("compilation_cache", True, "Keep compiled programs for the next run.")
    flags.DEFINE_bool("exclude_seen", False, "Leave out the items of the history.")


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    if bool(FLAGS.workdir) == bool(FLAGS.export):
        raise ValueError(
            "give either --workdir=FOLDER of a training or --export=FOLDER of an export."
        )
    if FLAGS.compilation_cache:
        cli.use_compilation_cache()
    options = RecommendOptions(FLAGS.count, exclude_seen=FLAGS.exclude_seen)
    if not FLAGS.export:
        if FLAGS.users or FLAGS.output:
            raise ValueError(
                "--users and --output need --export=FOLDER; make an export with `sigma export`."
            )
        workdir = Path(FLAGS.workdir)
        print(recommend_one(workdir, FLAGS.user, FLAGS.instruction, FLAGS.beams, options))
        return
    if not (FLAGS.users and FLAGS.output):
        raise ValueError("--export needs --users=FILE and --output=FILE.")
    mesh = None
    if FLAGS.split_items:
        mesh = make_mesh(MeshConfig(data=1, fsdp=-1, tensor=1))
    settings = SnapshotSettings(
        FLAGS.instruction, beams=FLAGS.beams, retrieval=FLAGS.retrieval or "", mesh=mesh
    )
    snapshot = CatalogueSnapshot.load(Bundle.open(Path(FLAGS.export)), "", settings)
    rows, short = recommend_file(snapshot, FLAGS.users, Path(FLAGS.output), options)
    print(f"{rows} rows in {FLAGS.output}, of version {snapshot.name}")
    if short:
        print(f"{short} rows have fewer than {FLAGS.count} items: no more were found.")


def recommend_file(
    snapshot: CatalogueSnapshot, users: str, output: Path, options: RecommendOptions
) -> tuple[int, int]:
    """Answers the requests of the file `users` in the file `output`.

    Returns the number of rows, and of those with fewer items than `options.count`. If a row cannot
    be answered, `output` stays as it was.

    Raises:
      ValueError: as in RequestParser.read, or the name of `output` says no known format.
    """
    if output.suffix not in OUTPUTS:
        raise ValueError(f"--output={output}: use a name that ends in {' or '.join(OUTPUTS)}.")
    unfinished = output.with_name(f".{output.name}.writing")
    rows = short = 0
    try:
        with RowWriter(unfinished, output.suffix) as writer, tqdm(unit=" users") as bar:
            for batch in snapshot.parser.read(users, ROWS):
                answer = snapshot.recommend(batch, options)
                writer.write(snapshot.rows(batch, answer))
                rows += len(batch)
                short += int(((answer.items >= 0).sum(axis=1) < options.count).sum())
                bar.update(len(batch))
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)
    return rows, short


def recommend_one(
    workdir: Path, user: str | None, instruction: str, beams: int, options: RecommendOptions
) -> str:
    """A printable table of recommendations by the workdir's own recommender.

    Args:
      user: id of the user; None for an unknown user.

    Raises:
      ValueError: the user is not in the data, the instruction is empty or not text, or `workdir`
        is not trained.
    """
    check_instruction(instruction)
    opened = load_workdir(workdir, beams)
    if user is not None:
        opened.data.users.row(user)  # ValueError if unknown
    row = {"user_id": "anyone", "history": []} if user is None else {"user_id": user}
    batch = opened.parser.parse([row | {"instruction": instruction}])
    count = min(options.count, len(opened.data.catalogue))
    answer = opened.recommender.recommend(batch, dataclasses.replace(options, count=count))
    shown = " ".join(instruction[:200].split()) + (" ..." if len(instruction) > 200 else "")
    lines = [
        f'"{shown}", for {f"user {user}" if user else "anyone"}:',
        text_table(answer, 0, opened.data.catalogue),
    ]
    number = int((answer.items[0] >= 0).sum())
    if number < options.count:
        lines.append(f"{number} items instead of {options.count}: no more under --beams={beams}.")
    return "\n".join(lines)


def check_instruction(text: str) -> None:
    """ValueError if an instruction is empty or cannot be encoded."""
    if not text.strip():
        raise ValueError("--instruction is empty; say what is wanted, or leave the flag out.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("--instruction is not UTF-8; check the terminal's encoding.") from None


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
