"""Recommend from Python, and change the catalogue meanwhile.

    python examples/recommend.py --workdir=runs/sft-smoke

The program exports a trained workdir, answers requests by the export, removes an item from the
catalogue, and answers again. A service does the same in a process that keeps running.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from sigma_jax.runtime import cli
from sigma_jax.serving.bundle import Bundle, export
from sigma_jax.serving.catalogue_update import set_active
from sigma_jax.serving.engine import RecommendationEngine

FLAGS = flags.FLAGS


REQUESTS = [
    {"user_id": "new customer", "instruction": "something for breakfast"},
    {"user_id": "regular", "instruction": "party snacks", "history": ["1029743", "995242"]},
]


def show(answers: list[dict]) -> None:
    """Prints the first items of each answer."""
    for answer in answers:
        print(f"{answer['user_id']}: {answer['instruction']} (version {answer['version']})")
        for item in answer["items"][:3]:
            print(f"    {item['probability']:.5f}  {item['item_id']}  {item['title']}")


def main(argv: Sequence[str]) -> None:
    """Exports, recommends, removes an item and recommends again."""
    workdir = Path(FLAGS.workdir)
    folder = workdir.with_name(f"{workdir.name}-export")
    if not folder.exists():
        export(workdir, folder)

    engine = RecommendationEngine(folder)
    answers = engine.recommend(REQUESTS)
    show(answers)

    sold_out = answers[0]["items"][0]["item_id"]
    bundle = Bundle.open(folder)
    version = set_active(bundle.version(), [sold_out], is_active=False)
    bundle.activate(bundle.add_version(version, f"{sold_out} is sold out"))
    engine.refresh()  # a service calls it every few seconds
    answers = engine.recommend(REQUESTS)
    print(f"\nwithout {sold_out}:")
    show(answers)
    assert all(item["item_id"] != sold_out for answer in answers for item in answer["items"])
    bundle.rollback()


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/sft-smoke", "A trained workdir.")
    cli.run_command(main)
