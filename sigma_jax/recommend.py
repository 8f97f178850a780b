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

from absl import flags
from tqdm import tqdm

from sigma_jax.evaluation.run import describe
from sigma_jax.generation.config import RETRIEVALS
from sigma_jax.recommender.recommender import RecommendOptions
from sigma_jax.recommender.results import OUTPUTS, RowWriter
from sigma_jax.recommender.workdir import load_workdir
from sigma_jax.runtime import cli
from sigma_jax.runtime.config import MeshConfig
from sigma_jax.runtime.sharding import make_mesh
from sigma_jax.serving.bundle import Bundle
from sigma_jax.serving.engine import CatalogueSnapshot, SnapshotSettings

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
    options = RecommendOptions(FLAGS.count, exclude_seen=not FLAGS.keep_seen)
    if not FLAGS.export:
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
        print(f"{short} of them have fewer than {FLAGS.count} items: no more were found.")


def recommend_file(
    snapshot: CatalogueSnapshot, users: str, output: Path, options: RecommendOptions
) -> tuple[int, int]:
    """Writes `output` whole or not at all; its rows, and how many have fewer items than wanted.

    ValueError as in RequestParser.read.
    """
    if output.suffix not in OUTPUTS:
        raise ValueError(f"--output={output}: use a name that ends in {' or '.join(OUTPUTS)}.")
    beside = output.with_name(f".{output.name}.writing")
    rows = short = 0
    try:
        with RowWriter(beside, output.suffix) as writer, tqdm(unit=" users") as bar:
            for batch in snapshot.parser.read(users, ROWS):
                answer = snapshot.recommend(batch, options)
                writer.write(snapshot.rows(batch, answer))
                rows += len(batch)
                short += int(((answer.items >= 0).sum(axis=1) < options.count).sum())
                bar.update(len(batch))
        beside.replace(output)
    finally:
        beside.unlink(missing_ok=True)
    return rows, short


def recommend_one(
    workdir: Path, user: str | None, instruction: str, beams: int, options: RecommendOptions
) -> str:
    """A printable table of recommendations.

    ValueError where the user is not in the data, the instruction is empty or not text, or WORKDIR
    is not trained.
    """
    check_instruction(instruction)
    loaded = load_workdir(workdir, beams)
    if user is not None:
        loaded.data.users.row(user)  # ValueError if unknown
    row = {"user_id": "anyone", "history": []} if user is None else {"user_id": user}
    batch = loaded.parser.parse([row | {"instruction": instruction}])
    count = min(options.count, len(loaded.data.catalogue))
    answer = loaded.recommender.recommend(batch, dataclasses.replace(options, count=count))
    shown = " ".join(instruction[:200].split()) + (" ..." if len(instruction) > 200 else "")
    lines = [
        f'"{shown}", for {f"user {user}" if user else "anyone"}:',
        describe(answer, 0, loaded.data),
    ]
    number = int((answer.items[0] >= 0).sum())
    if number < options.count:
        lines.append(f"{number} items instead of {options.count}: no more under --beams={beams}.")
    return "\n".join(lines)


def check_instruction(text: str) -> None:
    """ValueError where an instruction is empty or cannot be encoded."""
    if not text.strip():
        raise ValueError("--instruction is empty; say what is wanted, or leave the flag out.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("--instruction is not UTF-8; check the terminal's encoding.") from None


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
