"""Asks a language model what people say when they want things of a catalogue.

    python -m sigma_jax.knowledge --workdir=runs/demo --output=knowledge.jsonl \\
        --endpoint=http://localhost:8000/v1 --model=NAME
    python -m sigma_jax.knowledge --workdir=runs/demo --output=knowledge.jsonl --folder=FOLDER

WORKDIR holds prepared data (`python -m sigma_jax.prepare`): its categories, seasons and holidays
are asked about. The endpoint is any OpenAI-compatible one; its key is read from OPENAI_API_KEY. The
folder is a Hugging Face folder of the Qwen3 or Llama family. Train with
--config.data.files.knowledge=knowledge.jsonl, in a new workdir.

Each reply is kept at once, in OUTPUT.replies.jsonl. The same command after an interruption, or
after new categories, asks only what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from sigma_jax.language_model.ask import (
    EndpointChats,
    Model,
    Outcome,
    Prices,
    ask_questions,
)
from sigma_jax.language_model.endpoint import Endpoint
from sigma_jax.language_model.local import LocalModel
from sigma_jax.language_model.questions import distinct, questions_of
from sigma_jax.runtime import cli
from sigma_jax.runtime.files import write_text
from sigma_jax.schema import PreparedData

FLAGS = flags.FLAGS
MAX_TOKENS = 400  # of a reply


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("workdir", None, "Folder with prepared data.", required=True)
    flags.DEFINE_string("output", None, "The table: a file, .jsonl.", required=True)
    flags.DEFINE_string("endpoint", None, "URL of an OpenAI-compatible endpoint.")
    flags.DEFINE_string("model", None, "Name of the endpoint's model.")
    flags.DEFINE_string("folder", None, "A Hugging Face folder, in place of an endpoint.")
    flags.DEFINE_integer("count", 20, "Texts of a category, and categories of a theme.", 1)
    flags.DEFINE_float(
        "temperature", 0.7, "Temperature of the sampling; 0 takes the likeliest words.", 0.0
    )
    flags.DEFINE_integer("seed", 0, "Seed of the random numbers of --folder.")
    flags.DEFINE_integer("parallel", 4, "Requests to the endpoint at once.", 1)
    flags.DEFINE_float("requests_per_minute", 0.0, "Most requests a minute; 0: no limit.", 0.0)
    flags.DEFINE_float("prompt_price", 0.0, "Price of a million tokens of questions.", 0.0)
    flags.DEFINE_float("reply_price", 0.0, "Price of a million tokens of replies.", 0.0)
    flags.DEFINE_float("max_cost", 0.0, "The run stops before it costs more; 0: no limit.", 0.0)


def main(argv: Sequence[str]) -> None:
    """Runs the command. ValueError if no model answers; the replies so far are kept."""
    del argv
    output = Path(FLAGS.output)
    if output.suffix != ".jsonl":
        raise ValueError(f"--output={output} does not end in .jsonl; name a file of JSON lines.")
    folder = Path(FLAGS.workdir) / "data"
    if not folder.exists():
        raise ValueError(
            f"{folder} is missing; run python -m sigma_jax.prepare with the same --workdir first."
        )
    data = PreparedData.load(folder)
    questions = list(questions_of(data, FLAGS.count))
    if not questions:
        raise ValueError("the catalogue has no categories, so there is nothing to ask about.")
    prices = Prices(FLAGS.prompt_price, FLAGS.reply_price, FLAGS.max_cost)
    output.parent.mkdir(parents=True, exist_ok=True)
    replies = output.with_suffix(".replies.jsonl")
    outcome = ask_questions(questions, model_of_flags(), replies, prices)
    rows = distinct(outcome.rows)
    if rows:
        write_text(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print(summary(outcome, len(rows), output))
    if outcome.stopped:
        raise ValueError(
            f"stopped after {outcome.known + outcome.asked} of {outcome.questions} questions: "
            f"{outcome.stopped}; the same command asks the rest."
        )


def model_of_flags() -> Model:
    """The model that the flags name. ValueError if they name none, or two."""
    if bool(FLAGS.endpoint) == bool(FLAGS.folder):
        raise ValueError("name one model: --endpoint with --model, or --folder.")
    if FLAGS.folder:
        return LocalModel(Path(FLAGS.folder), MAX_TOKENS, FLAGS.temperature, FLAGS.seed)
    if not FLAGS.model:
        raise ValueError("--model is missing; name the model of the endpoint.")
    endpoint = Endpoint(FLAGS.endpoint, FLAGS.model, MAX_TOKENS, FLAGS.temperature)
    return EndpointChats(endpoint, FLAGS.parallel, FLAGS.requests_per_minute)


def summary(outcome: Outcome, rows: int, output: Path) -> str:
    """The counts of a run, for people."""
    cost = f", cost {outcome.cost:.4g}" if outcome.cost else ""
    return (
        f"{output}: {rows} rows from {outcome.questions} questions: {outcome.known} known before, "
        f"{outcome.asked} asked now, {outcome.nonsense} of these nonsense; "
        f"{outcome.prompt_tokens} tokens asked, {outcome.reply_tokens} answered{cost}."
    )


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
