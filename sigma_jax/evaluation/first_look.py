"""The first results of a run, before any training: baselines, and what the encoder finds.

The command `train` prints it after the data is prepared.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sigma_jax import metrics
from sigma_jax.baselines.item_knn import ItemKnn
from sigma_jax.baselines.popularity import Popularity
from sigma_jax.baselines.registry import Baseline
from sigma_jax.baselines.user_most_frequent import UserMostFrequent
from sigma_jax.data.vectors import unit_rows
from sigma_jax.encoders.instructions import plain_encoder_of
from sigma_jax.schema import PreparedData
from sigma_jax.tasks import instructions
from sigma_jax.tasks.requests import sample_requests

REQUESTS = 500  # validation requests at most
ITEMS = 3  # of an example
CUTOFF = 10


def first_look(workdir: Path, seed: int) -> str:
    """A table of baselines on validation requests, and example lists of the encoder alone."""
    data = PreparedData.load(workdir / "data")
    parts = [baseline_table(data, seed)]
    encoder = plain_encoder_of(workdir)
    if encoder is not None and (sentences := example_sentences(data)):
        items = unit_rows(data.text_vectors)
        cosines = unit_rows(encoder.encode_queries(sentences)) @ items.T
        parts.append("What the sentence encoder finds, before any training:")
        for sentence, of_items in zip(sentences, cosines, strict=True):
            titles = data.catalogue.titles(np.argsort(-of_items, kind="stable")[:ITEMS])
            parts.append(f'"{sentence}": {"; ".join(titles)}')
    return "\n".join(parts)


def baseline_table(data: PreparedData, seed: int) -> str:
    """HR@10 of baselines that need no training, on validation requests without an instruction."""
    requests = sample_requests(
        data,
        "valid",
        seed,
        {"JustForYou": REQUESTS},
        0.0,
        instructions.TRAIN_WORDINGS,
        is_random=True,
    )
    if not len(requests):
        return "There are no validation requests."
    popularity = Popularity.fit(data, seed)
    found: dict[str, Baseline] = {
        "Popularity": popularity,
        "User's most frequent": UserMostFrequent(popularity),
    }
    if data.text_vectors is not None:
        vectors = unit_rows(data.text_vectors)
        found["Item kNN on texts"] = ItemKnn(vectors, popularity, 0.7, 5)
    lines = [
        f"{f'HR@{CUTOFF} of {len(requests)} validation requests, per cent':48} all  seen left out"
    ]
    for name, baseline in found.items():
        shares = [
            metrics.hits(
                metrics.item_ranks(
                    baseline.recommend(data, requests, CUTOFF, exclude_seen, None), requests.target
                ),
                CUTOFF,
            ).mean()
            for exclude_seen in (False, True)
        ]
        lines.append(f"{name:45}{100 * shares[0]:6.1f}{100 * shares[1]:15.1f}")
    return "\n".join(lines)


def example_sentences(data: PreparedData) -> list[str]:
    """Instructions for the first query, the largest category and the first holiday of the data."""
    category = np.asarray(data.catalogue.category)
    chosen = {
        "Query": 0,
        "Category": int(np.bincount(category[category >= 0], minlength=1).argmax()),
    }
    if data.themes is not None and "holiday" in (kinds := data.themes.kinds.to_pylist()):
        chosen["Holiday"] = kinds.index("holiday")
    found = []
    for task, number in chosen.items():
        if values := instructions.slot_value_texts(data, task):
            wording = instructions.TRAIN_WORDINGS[task][0]
            found.append(instructions.render(task, values[number], wording))
    return found
