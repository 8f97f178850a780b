"""How well free sentences are understood: the share of the first ten items in right categories.

    python -m launch.benchmarks.instructions --workdir=runs/sft-local

A line of the file of sentences has an instruction and the categories that answer it. The default,
instructions.jsonl, is for Complete Journey. No training reads it. Three ways answer:

- the recommender, for a user without a history, and for users with one;
- the plain sentence encoder: items by the cosine of "title, category" and the sentence;
- words: items by the weights of the words that title and sentence share.

For users with a history the script also prints how much two users' lists have in common.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from launch.benchmarks.result import write_result
from sigma_jax.data.vectors import unit_rows
from sigma_jax.encoders.instructions import plain_encoder_of
from sigma_jax.recommender.recommender import RecommendOptions
from sigma_jax.recommender.workdir import OpenWorkdir, load_workdir
from sigma_jax.schema import Catalogue, RequestBatch, Requests

COUNT = 10


def main() -> None:
    """Prints the share of each way, and that of each sentence."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--sentences", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    parser.add_argument("--users", type=int, default=20, help="users with a history")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.sentences.read_text().splitlines()]
    texts = [row["instruction"] for row in rows]
    opened = load_workdir(arguments.workdir)
    catalogue = opened.data.catalogue
    right = right_items(catalogue, rows)
    users = np.linspace(0, len(opened.data.users.table) - 1, arguments.users).astype(int)
    lists = {
        "recommender": answers(opened, texts, -1),
        "encoder": by_encoder(arguments.workdir, catalogue, texts),
        "words": by_words(catalogue, texts),
    }
    shares = {name: shares_right(items, right) for name, items in lists.items()}
    of_users = np.stack([answers(opened, texts, int(user)) for user in users])
    shares["recommender, users"] = np.mean([shares_right(one, right) for one in of_users], axis=0)
    result: dict[str, Any] = {name: float(share.mean()) for name, share in shares.items()}
    result["in common, two users"] = in_common(of_users)
    for name, value in result.items():
        print(f"{value:.3f}  {name}")
    for number, text in enumerate(texts):
        values = "  ".join(f"{name} {share[number]:.1f}" for name, share in shares.items())
        print(f"{text:60s} {values}")
    if arguments.output:
        write_result(arguments.output, {"sentences": len(rows), **result})


def right_items(catalogue: Catalogue, rows: list[dict[str, Any]]) -> np.ndarray:
    """[N, I]: whether each item is in a right category of each sentence."""
    names = np.array([*catalogue.categories.to_pylist(), ""])
    categories = names[np.asarray(catalogue.category)]
    return np.stack([np.isin(categories, row["categories"]) for row in rows])


def shares_right(items: np.ndarray, right: np.ndarray) -> np.ndarray:
    """[N]: the share of right items in each list."""
    return np.take_along_axis(right, items, axis=1).mean(axis=1)


def answers(opened: OpenWorkdir, texts: list[str], user: int) -> np.ndarray:
    """The recommender's items for a user, or for nobody (-1)."""
    data, count = opened.data, len(texts)
    end = int(data.histories.offsets[user + 1]) if user >= 0 else 0
    of_user, nothing = np.full(count, user, np.int32), np.full(count, -1, np.int32)
    ends = np.full(count, end, np.int64)
    requests = Requests(of_user, ends, nothing, nothing, nothing, texts)
    batch = RequestBatch.of(requests, data)
    return np.asarray(opened.recommender.recommend(batch, RecommendOptions(COUNT)).items)


def by_encoder(workdir: Path, catalogue: Catalogue, texts: list[str]) -> np.ndarray:
    """The items nearest to each sentence by the plain encoder."""
    encoder = plain_encoder_of(workdir)
    of_items = categories_of(catalogue, np.arange(len(catalogue)))
    titles = catalogue.table["title"].to_pylist()
    items = [f"{title}, {name}" for title, name in zip(titles, of_items, strict=True)]
    cosines = unit_rows(encoder.encode_queries(texts)) @ unit_rows(encoder.encode_items(items)).T
    return np.argsort(-cosines, axis=1, kind="stable")[:, :COUNT]


def categories_of(catalogue: Catalogue, items: np.ndarray) -> list[str]:
    """The category of each item."""
    names = [*catalogue.categories.to_pylist(), ""]
    return [names[number] for number in np.asarray(catalogue.category)[items].tolist()]


def by_words(catalogue: Catalogue, texts: list[str]) -> np.ndarray:
    """The items whose titles share the rarest words with each sentence."""

    def words(text: str) -> set[str]:
        return set(re.findall(r"\w{3,}", text.lower()))

    items = [words(title) for title in catalogue.table["title"].to_pylist()]
    counts = Counter(itertools.chain.from_iterable(items))
    weights = {word: float(np.log(len(items) / count)) for word, count in counts.items()}
    found = []
    for text in texts:
        asked = words(text)
        score = np.array([sum(weights[word] for word in asked & of_item) for of_item in items])
        found.append(np.argsort(-score, kind="stable")[:COUNT])
    return np.stack(found)


def in_common(lists: np.ndarray) -> float:
    """The mean share of items that the lists of two users [U, N, n] have in common."""
    shares = [
        len(set(one) & set(other)) / COUNT
        for first, second in itertools.combinations(lists, 2)
        for one, other in zip(first.tolist(), second.tolist(), strict=True)
    ]
    return float(np.mean(shares))


if __name__ == "__main__":
    main()
